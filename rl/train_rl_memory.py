#!/usr/bin/env python3
"""Train a policy by GRPO on prompts that carry a student's memory, rewarded for being right and for fitting.

Method: GRPO (Shao et al. 2024, arXiv 2402.03300) with TRL. Each prompt shows an exercise and what was known
of a student at that moment; all completions of a group share it. Rewards: `rl/rewards.py`. Without flags a
GPU trains a LoRA adapter of Qwen2.5-1.5B-Instruct on GSM8K crossed with the students, a CPU the tutor
policy on the textbook. Reads `profiles/` and its memories, and the data set. Writes a run folder: `run.json`
(`status, started, config, environment, summary`), `metrics.jsonl` (one object a step: `step, loss, reward,
rewards/<part>/mean|std, kl, entropy, frac_reward_zero_std, completions/clipped_ratio, copying, reward_share`;
now and then `probe/<metric>`), `completions.jsonl` (`step, prompt, completion, rewards`), `curves.png`,
`checkpoint-N/`, and `model/`, the result.

    python rl/train_rl_memory.py --max_steps 4 --prompts_per_step 2 --probe_size 8 --output_dir /tmp/run
    python rl/train_rl_memory.py
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import COT_PROMPT, PROFILES_DIR, OneLineParser, flags_of, number, run_script
from cot.utils.cli import writable_dir as writable
from cot.utils.errors import EXIT_OK, EXIT_SIGNAL, EXIT_UNEXPECTED, UserError
from rl.grpo_flags import DEFAULTS, fill_defaults, parse_grpo, parse_mix, read_config

# What a checkpoint cannot be continued with when it differs.
IDENTITY = ("dataset", "chapters", "students", "memory", "memory_mix", "weights", "num_generations")
IDENTITY += (
    "prompts_per_step",
    "max_completion_length",
    "max_prompt_length",
    "memory_tokens",
    "top_k",
    "seed",
)
IDENTITY += ("cot_prompt", "use_peft", "lora_r", "lora_alpha", "loss_type", "scale_rewards", "beta", "grpo")
IDENTITY += ("learning_rate", "max_steps")


def build_parser() -> argparse.ArgumentParser:
    """The flags; where the default is None, the machine decides (`rl/grpo_flags.py`)."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    whole = number(int, 1)
    add("--config", type=Path, metavar="FILE.yaml", help="flags from a file; the command line wins")
    add("--model_name", default="auto", help="auto, tutor, bundled, a hub name or a folder")
    add("--device_kind", default="auto", choices=["auto", *DEFAULTS], help="whose defaults to take")
    add("--dataset", default="auto", help="auto, textbook, gsm8k, or a .jsonl or .json file")
    add("--chapters", nargs="+", metavar="ID", help="of the textbook; unset: by the machine")
    add("--profiles_dir", type=Path, default=PROFILES_DIR, help="profiles; memories in its memory/")
    add("--students", nargs="+", default=["all"], metavar="ID", help="students to train for")
    add("--memory", default="own", choices=["own", "none", "shuffled"], help="arm: what the prompts carry")
    add("--memory_mix", type=parse_mix, default="0.70,0.15,0.15", help="own, none, shuffled in the arm own")
    add("--memory_tokens", type=whole, help="tokens of memory in a prompt")
    add("--top_k", type=number(int, 0), help="past exercises retrieved into a prompt")
    add("--cot_prompt", default=COT_PROMPT, help="the instruction before the question")
    add("--reward_weights", metavar="PART=W,…", help="weights of the parts; unset: by the machine")
    add("--num_generations", type=number(int, 2), help="completions of a group")
    add("--prompts_per_step", type=whole, help="groups in an optimizer step, over all devices")
    add("--per_device_train_batch_size", type=whole, help="completions at once on a device, at most")
    add_training_flags(add)
    add("--output_dir", type=Path, help="run folder; unset: a new one under data/, or the unfinished one")
    add("--resume", default="auto", metavar="auto|never|PATH", help="continue from a checkpoint")
    add("--save_steps", type=whole, default=50, help="steps between two checkpoints")
    add("--save_minutes", type=number(float, 0), default=10.0, help="minutes between two checkpoints")
    add("--probe_size", type=number(int, 0), default=64, help="held-out exercises answered now and again")
    add("--probe_every", type=whole, default=20, help="steps between two probes")
    add("--sample_every", type=whole, default=10, help="steps between two samples in completions.jsonl")
    add("--seed", type=number(int, 0), default=0, help="of the data, the adapter and sampling")
    add("--grpo", nargs="+", default=[], metavar="KEY=VALUE", help="any other field of TRL's GRPOConfig")
    add("--debug", action="store_true", help="add the traceback to an error")
    return parser


def add_training_flags(add) -> None:
    """The flags of the algorithm."""
    whole = number(int, 1)
    add("--learning_rate", type=number(float, 0, 1), help="until half of the run, then falling to 0")
    add("--beta", type=number(float, 0, 10), help="weight of the KL divergence from the base")
    add("--max_steps", type=whole, help="optimizer steps")
    add("--max_completion_length", type=number(int, 5), help="tokens of a completion")
    add(
        "--max_prompt_length",
        type=whole,
        help="tokens of a prompt; memory gives way, then the row is dropped",
    )
    losses = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"]
    add("--loss_type", default="dapo", choices=losses, help="as in TRL")
    add("--scale_rewards", default="group", choices=["group", "batch", "none"], help="of the advantage")
    add("--use_peft", action=argparse.BooleanOptionalAction, help="train a LoRA adapter")
    add("--lora_r", type=whole, default=16, help="rank")
    add("--lora_alpha", type=whole, default=32, help="scale")
    add("--use_vllm", action=argparse.BooleanOptionalAction, default=False, help="generate with vLLM")
    add(
        "--vllm_mode", default="colocate", choices=["colocate", "server"], help="in this process, or a server"
    )
    add("--report_to", default="none", choices=["none", "tensorboard", "trackio", "wandb"], help="a tracker")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags, a file's flags before them, and the choices that need no library."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    try:
        if args.config:
            args = parser.parse_args([*read_config(args.config, parser), *argv])
        args.options = parse_grpo(args.grpo)
        if args.reward_weights:
            from rl.rewards import parse_weights

            args.weights = parse_weights(args.reward_weights)
        if args.resume not in ("auto", "never") and not Path(args.resume).is_dir():
            raise UserError(f"--resume {args.resume}: expected auto, never or a checkpoint's folder")
        if args.output_dir:
            writable(args.output_dir)
    except UserError as error:
        parser.error(str(error))
    return args


def load_students(args):
    """The students to train for, with an embedder where past exercises are retrieved."""
    from cot.utils.memory import MemoryLog
    from cot.utils.profiles import load_profiles, pick_students
    from rl.prompts_dataset import Students

    profiles = load_profiles(args.profiles_dir)
    names = pick_students(args.students, profiles)
    if args.memory != "none" and len(names) < 2:
        raise UserError(f"--students {names[0]}: shuffled memory and the margin need a second student")
    embedder = None
    if args.top_k:
        from cot.utils.retrieval import load_embedder

        embedder = load_embedder()
    chosen = {name: profiles[name] for name in names}
    return Students(chosen, MemoryLog(args.profiles_dir / "memory"), embedder, args.top_k)


def pick_situations(args, students) -> tuple[list, list, str]:
    """Situations to train on, as many as training sees; to probe with, held out; and the data's name."""
    count = args.max_steps * args.prompts_per_step
    if args.dataset != "textbook":
        from cot.utils.data import load_questions

        train = load_questions(args.dataset, "train")
        held_out = load_questions(args.dataset, "test", args.probe_size or 1)
        probe = students.crossed_situations(held_out.questions, args.probe_size, args.seed)
        return students.crossed_situations(train.questions, count, args.seed), probe, train.source
    from cot.utils.textbook import pick_chapters

    picked = pick_chapters(args.chapters)
    probe = students.textbook_situations(picked, "test", args.probe_size, args.seed)
    return students.textbook_situations(picked, "train", count, args.seed), probe, "textbook train"


def build_data(args, tokenizer, students, context: int | None):
    """Rows of the data set, probe items, and what the run's record says about them."""
    from rl.probe import make_probe
    from rl.prompts_dataset import build_rows, draw_arms

    train, held_out, source = pick_situations(args, students)
    room = (
        args.max_prompt_length
        if context is None
        else min(args.max_prompt_length, context - args.max_completion_length)
    )
    shape = {"instruction": args.cot_prompt, "memory_tokens": args.memory_tokens, "max_prompt_tokens": room}
    arms = draw_arms(args.memory, args.memory_mix, len(train), args.seed)
    # the control with another's memory is paid for fit as well: what differs is the information alone
    fit_arms = ("shuffled",) if args.memory == "shuffled" else ("own",)
    rows, dropped = build_rows(tokenizer, students, train, arms, fit_arms, args.seed, **shape)
    needed = args.max_steps * args.prompts_per_step
    rows = (rows * (needed // len(rows) + 1))[:needed]  # dropped rows are made up for, in the same order
    arm = "none" if args.memory == "none" else "own"
    probe = make_probe(tokenizer, students, held_out, arm, seed=args.seed, **shape)
    about = {"dataset_source": source, "rows": len(rows), "dropped": dropped}
    about["probe"] = f"{len(probe)} held-out exercises, memory: {arm}"
    return rows, probe, about


def make_prober(args, tokenizer, students, probe, base_file: Path):
    """Answers the probe set greedily; breakage counts against the base's answers, kept for a resumed run."""
    from cot.utils.results import write_json
    from rl.probe import answer_probe, correctness, summarize

    def answer(model) -> dict:
        texts = answer_probe(model, tokenizer, probe, args.max_completion_length, 0.0, args.seed)
        if not base_file.exists():
            write_json(base_file, correctness(probe, texts))
        return summarize(probe, texts, students.profiles, json.loads(base_file.read_text(encoding="utf-8")))

    return answer if probe else None


def finish(trainer, run_folder, record: dict, tokenizer) -> None:
    """The final model with its card, the curves, and the run's summary."""
    from rl.memory_trainer import metrics_lines
    from rl.report import before_and_after, plot_curves, write_card

    folder = run_folder.path
    trainer.save_model(str(folder / "model"))  # every process takes part
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(folder / "model")
    lines = metrics_lines(folder / "metrics.jsonl")
    plot_curves(lines, folder / "curves.png")
    write_card(folder / "model", record["config"], lines)
    before, after = before_and_after(lines)
    run_folder.close(record | {"summary": {"before": before, "after": after}}, "success")
    print(f"before: {before}\nafter:  {after}\nmodel:  {folder / 'model'}", flush=True)


def train_to_the_end(trainer, checkpoint: Path | None) -> None:
    """Trains, from the checkpoint where there is one; a full memory becomes one line with what fits."""
    from cot.utils.devices import is_out_of_memory
    from rl.memory_trainer import smaller_batch

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory; try {smaller_batch(trainer.args)}", EXIT_UNEXPECTED) from error


def run(args: argparse.Namespace) -> int:
    """Flags to data to trainer to model; returns the exit code."""
    from cot.utils.devices import keep_freed_memory
    from cot.utils.hub import hub_answers
    from cot.utils.model_source import resolve_model

    fill_defaults(args)
    keep_freed_memory()
    source = resolve_model(args.model_name)
    if source.kind == "bundled":
        hub_answers()  # PEFT asks the hub about a base that is no folder; a dead hub would cost a minute
    students = load_students(args)
    from cot.utils.models import context_length, describe_model, load_model
    from rl.callbacks import Recorder, Signals
    from rl.memory_trainer import keep_reference, make_config, make_trainer, quiet_libraries
    from rl.reward_table import RewardTable
    from rl.rewards import reward_parts
    from rl.run_folder import open_run, start_processes, weights_are_sharded

    quiet_libraries()
    processes = start_processes()
    identity = {name: flags_of(args)[name] for name in IDENTITY} | {"model_name": source.revision}
    run_folder = open_run(args.output_dir, source, identity, args.resume, processes)
    folder = run_folder.path
    print(f"model: {source.name}\ndata:  {args.dataset}\nrun:   {folder}", flush=True)
    config = make_config(args, folder, list(args.weights.values()), args.options, processes.num_processes)
    full_on_gpu = args.device_kind == "gpu" and not args.use_peft  # its weights are the optimizer's: float32
    sharded = weights_are_sharded()
    device = "cpu" if sharded else str(processes.device)  # the trainer brings each shard to its place
    model, tokenizer = load_model(source, device, "float32" if full_on_gpu else "auto")
    rows, probe, about = build_data(args, tokenizer, students, context_length(model))
    settings = flags_of(args) | about | {"model": describe_model(source, model), "identity": identity}
    record = run_folder.begin(settings, str(processes.device))
    parts = reward_parts(list(args.weights), args.max_completion_length)
    samples = folder / "completions.jsonl", args.sample_every, processes.is_main_process
    table, signals = RewardTable(parts, *samples), Signals()
    prober = None if sharded else make_prober(args, tokenizer, students, probe, folder / "probe_base.json")
    files = folder / "metrics.jsonl", table, signals, prober
    recorder = Recorder(*files, args.probe_every, args.save_minutes, args.max_steps)
    keep_reference(config, args.use_peft, model, source, folder, processes)
    trainer = make_trainer(args, config, model, tokenizer, rows, table, recorder)
    train_to_the_end(trainer, run_folder.checkpoint)
    step = trainer.state.global_step
    if signals.received is not None:
        run_folder.close(record, "cancelled")
        print(f"stopped by a signal at step {step}; the same command continues", file=sys.stderr)
        return EXIT_SIGNAL + signals.received
    if table.errors:
        print(f"warning: {table.errors} completions left out, last because of {table.last_error}", flush=True)
    if recorder.stopped:
        run_folder.close(record, "error")
        raise UserError(f"stopped at step {step}: {recorder.stopped}", EXIT_UNEXPECTED)
    finish(trainer, run_folder, record, tokenizer)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then trains."""
    return run_script(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
