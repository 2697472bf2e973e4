#!/usr/bin/env python3
"""Train a policy by GRPO on prompts that carry a student's memory, rewarded for being right and for fitting.

Method: GRPO (Shao et al. 2024, arXiv 2402.03300) with TRL. Each prompt shows an exercise and what was known
of a student at that moment; all completions of a group share it. Rewards: `rl/rewards.py`. Without flags a
GPU trains a LoRA adapter of Qwen2.5-1.5B-Instruct on GSM8K crossed with the students, a CPU the tutor
policy on the textbook. Reads `profiles/` and its memories, and the data set. Writes a run folder: `run.json`
(`status, started, config, environment, summary`), `metrics.jsonl` (one object a step: `step, loss, reward,
rewards/<part>/mean|std, kl, entropy, frac_reward_zero_std, completions/clipped_ratio, copying, step_s,
tokens_per_second`; now and then `eval/<metric>`), `completions.jsonl` (`step, prompt, completion, rewards`),
`curves.png`, `checkpoint-N/`, and `model/`, the result.

    python rl/train_rl_memory.py --max_steps 4 --prompts_per_step 2 --eval_size 8 --output_dir /tmp/run
    python rl/train_rl_memory.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import (
    COT_PROMPT,
    OneLineParser,
    add_attention_flag,
    add_memory_flags,
    add_revision_flag,
    add_template_flags,
    flags_of,
    number,
)
from cot.utils.errors import EXIT_OK, EXIT_UNEXPECTED, UserError, hold_signals, script_frame
from rl.settings import (
    GENERATED,
    PRESETS,
    add_training_flags,
    check_flags,
    fill_preset,
    find_base,
    in_presets,
    make_config,
    parse_mix,
    read_config,
    settle_length,
)

# The flags that a checkpoint cannot be continued with when one of them differs.
IDENTITY = (
    *("dataset", "chapters", "students", "cot_prompt", "seed"),
    *("system_prompt", "thinking", "chat_template_kwargs", "think_end"),
    *("memory", "memory_mix", "memory_level", "memory_tokens", "memory_half_life", "top_k", "min_similarity"),
    *("weights", "num_generations", "prompts_per_step", "max_completion_length", "max_prompt_length"),
    *("attn_implementation", "learning_rate", "beta", "max_steps", "loss_type", "scale_rewards", "grpo"),
    *("use_peft", "lora_r", "lora_alpha"),
)


def build_parser() -> argparse.ArgumentParser:
    """The flags; where the default is None, the preset decides (`rl/settings.py`)."""
    parser = OneLineParser(
        description=__doc__.split("\n", 1)[0],
        epilog=f"--top_k is {in_presets('top_k')}; --memory_tokens {in_presets('memory_tokens')}."
        f" --students {GENERATED[0]} makes students who never say what they need: the default, with"
        " --memory_level history, unless --profiles_dir or --students names others; then it is stated.",
    )
    add, whole = parser.add_argument, number(int, 1)
    add("--config", type=Path, metavar="FILE.yaml", help="flags from a file; the command line wins")
    add(
        "--preset",
        default="auto",
        choices=["auto", *PRESETS],
        help="whose defaults to take; auto is gpu where CUDA is there, else cpu",
    )
    add(
        "--model_name",
        default="auto",
        help=f"tutor, bundled, a hub name or a folder; auto is {in_presets('model_name')}",
    )
    add_revision_flag(add)
    add_attention_flag(add)
    add(
        "--dataset",
        default="auto",
        help=f"textbook, gsm8k, or a .jsonl or .json file; auto is {in_presets('dataset')}",
    )
    add(
        "--chapters",
        nargs="+",
        metavar="ID",
        help=f"chapters of the textbook, or all; default: {in_presets('chapters')}",
    )
    add("--cot_prompt", default=COT_PROMPT, help="the instruction before the question")

    add_template_flags(parser)
    add_memory_flags(parser)
    parser.set_defaults(students=None, memory_level=None, top_k=None, memory_tokens=None)
    add(
        "--memory",
        default="own",
        choices=["own", "none", "shuffled"],
        help="whose memory the prompts show: the student's own, nobody's, or another student's",
    )
    add(
        "--memory_mix",
        type=parse_mix,
        default="0.70,0.15,0.15",
        metavar="OWN,NONE,SHUFFLED",
        help="with --memory own: shares of the prompts that show the own memory, none, and another's",
    )

    add_training_flags(parser)
    add("--output_dir", type=Path, help="run folder; without this flag a new one in data/, or the unfinished")
    add(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="continue from the newest checkpoint of the run folder, never, or from this checkpoint",
    )
    add("--save_steps", type=whole, default=50, help="steps between two checkpoints")
    add("--save_minutes", type=number(float, 0), default=10.0, help="minutes between two checkpoints")
    add("--eval_size", type=number(int, 0), default=64, help="held-out exercises answered now and again")
    add("--eval_every", type=whole, default=20, help="steps between two of these evaluations")
    add("--sample_every", type=whole, default=10, help="steps between two samples in completions.jsonl")
    add(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, help="seed of the data, the adapter and sampling"
    )
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags, a file's flags before them, and the choices that need no library."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    try:
        if args.config:
            args = parser.parse_args([*read_config(args.config, parser), *argv])
        check_flags(args)
    except UserError as error:
        parser.error(str(error))
    return args


def build_data(args: argparse.Namespace, tokenizer, data, shape, room: int, prompt_format):
    """The rows in the order in which training sees them, and how many moments were dropped."""
    from rl.moments import build_rows, draw_arms

    count = len(data.train)
    rows, dropped = build_rows(
        tokenizer=tokenizer,
        arms=data.arms,
        moments=data.train,
        shown=draw_arms(args.memory, args.memory_mix, count, args.seed),
        # the control with another's memory is paid for fit as well: what differs is the information alone
        fit_arms=["shuffled"] if args.memory == "shuffled" else ["own"],
        shape=shape,
        max_prompt_tokens=room,
        seed=args.seed,
        prompt_format=prompt_format,
    )
    repeated = rows * (count // len(rows) + 1)  # makes up for the dropped ones, in the same order
    return repeated[:count], dropped


def run(args: argparse.Namespace) -> int:
    """Flags to moments to rows to trainer to model; returns the exit code."""
    from rl.moments import plan_prompts
    from rl.splits import load_data

    # who is asked what, when, and how: the template is checked before any weights load
    named_length = args.max_completion_length
    fill_preset(args)
    source = find_base(args)
    data = load_data(args)
    tokenizer = settle_length(args, source, named_length)

    from rl.rewards import RewardTable, reward_parts
    from rl.runs import open_run
    from rl.trainer import (
        keep_reference,
        load_base,
        make_evaluator,
        make_recorder,
        make_trainer,
        may_evaluate,
        part_processes,
        save_policy,
        settle_devices,
        spreads_weights,
        start_processes,
        train_to_the_end,
    )

    # where the run lies, and whether it continues one
    processes = start_processes()
    config = make_config(args, processes.num_processes)
    settle_devices(config, args.use_peft, processes)
    identity = {name: flags_of(args)[name] for name in IDENTITY} | data.fingerprints
    spread = spreads_weights(processes)
    run_folder = open_run(args.output_dir, source, identity, args.resume, processes, spread)
    folder = run_folder.path
    config.output_dir, config.run_name = str(folder), folder.name
    print(f"model: {source.name}\ndata:  {args.dataset}\nrun:   {folder}", flush=True)

    # the model and its prompts
    model, tokenizer, prompt_format, described = load_base(
        args, source, processes, tokenizer, started=run_folder.started
    )
    shape, room = plan_prompts(args, described["context_length"])
    rows, dropped = build_data(args, tokenizer, data, shape, room, prompt_format)
    eval_arm = "none" if args.memory == "none" else "own"
    held_out = f"{len(data.held_out)} held-out exercises ({data.source.held_out}), memory: {eval_arm}"
    record = run_folder.begin(
        config={
            **flags_of(args),
            "dataset_source": data.source.train,
            "rows": len(rows),
            "dropped": dropped,
            "eval": held_out,
            "held_out": data.source.held_out_ids,
            "model": described,
        },
        device=str(processes.device),
    )

    # what is rewarded, and what watches
    table = RewardTable(
        parts=reward_parts(list(args.weights), data.arms.truths, args.max_completion_length),
        samples=folder / "completions.jsonl",
        sample_every=args.sample_every,
        writes=processes.is_main_process,
        reasoning=prompt_format.reasoning,
    )
    evaluate = None
    if data.held_out and may_evaluate(processes):
        evaluate = make_evaluator(
            tokenizer=tokenizer,
            arms=data.arms,
            moments=data.held_out,
            arm=eval_arm,
            shape=shape,
            max_prompt_tokens=room,
            max_new_tokens=args.max_completion_length,
            seed=args.seed,
            base_file=folder / "eval_base.json",
            prompt_format=prompt_format,
        )
    recorder = make_recorder(args, config, folder, table, evaluate, model, tokenizer)

    # training
    keep_reference(config, args.use_peft, model, source, folder, processes)
    trainer = make_trainer(args, config, model, tokenizer, rows, table, recorder, prompt_format)
    with hold_signals():  # the step in flight ends, and its checkpoint is saved
        if not train_to_the_end(trainer, run_folder.checkpoint):
            run_folder.close(record, "cancelled")
            print(f"step {trainer.state.global_step} is saved; the same command continues", file=sys.stderr)
            part_processes(processes)

    # how it ended
    step = trainer.state.global_step
    if table.errors:
        print(f"warning: {table.errors} completions left out, last because of {table.last_error}", flush=True)
    if recorder.stopped:
        run_folder.close(record, "error")
        part_processes(processes)
        raise UserError(f"stopped at step {step}: {recorder.stopped}", EXIT_UNEXPECTED)
    save_policy(trainer, folder / "model")
    if processes.is_main_process:
        tokenizer.save_pretrained(folder / "model")
        run_folder.finish(record)
    part_processes(processes)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then trains."""
    args = parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
