#!/usr/bin/env python3
"""Train every arm with several seeds and compare them on held-out students: is history learned from?

Arms: `ipo` (own memory, all rewards), `no_memory` (no memory, all rewards that need none), `shuffled_memory`
(another student's memory, all rewards), `correctness_only` (own memory, rewarded for correctness),
`random_reward` (own memory, rewarded by a coin); beside them the base, and with `--supervised` a policy of
`rl/warm_start.py --follow_memory`. No memory states a wish. `rl/conditions.py` says who is asked what;
`rl/hypotheses.py` what is claimed. Each training is a process of `rl/train_rl_memory.py`. Writes a folder:
`<arm>_<seed>/` for each training with its `train.log`, the files of every run
(`results_temp_<T>_<stamp>.json` and `summary_<stamp>.json`, whose `summary` has `rows_done, table, verdicts,
timing`), `answers.jsonl.gz`, `experiment.md` and figures. The same command continues an interrupted
experiment; with more arms or seeds it adds to it.

    python rl/run_experiment.py --split test --seeds 0 --arms ipo --max_steps 4 --exercises_per_chapter 4
    python rl/run_experiment.py
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import COT_PROMPT, Distinct, OneLineParser, flags_of, number
from cot.utils.errors import EXIT_UNEXPECTED, UserError, script_frame
from cot.utils.files import write_answers
from cot.utils.model_names import BASE
from cot.utils.paths import DATA_DIR, writable_dir
from cot.utils.processes import Processes, launcher_variables, leave_launch
from cot.utils.run_flags import add_engine_flags
from rl.settings import GENERATED, PRESETS

if TYPE_CHECKING:
    from rl.conditions import HeldOut

CORRECTNESS = "correct=1,format=0.1,overlong=1,repetition=0.2"
ARMS = {  # flags of the training script
    "ipo": ["--memory", "own"],
    "no_memory": ["--memory", "none"],
    "shuffled_memory": ["--memory", "shuffled"],
    "correctness_only": ["--memory", "own", "--reward_weights", CORRECTNESS],
    "random_reward": ["--memory", "own", "--reward_weights", "coin=1"],
}
SEEDS = [0, 1, 2, 3, 4]
WALK_EXERCISES = 4  # of each chapter, in the closed loop, at most; as many of practice before it
ANSWER_KEYS = (  # of `answers.jsonl.gz`; what was asked follows from `rl/conditions.py`
    *("arm", "seed", "memory_arm", "temperature", "sample", "student_id", "moment", "question_id"),
    *("correct", "fidelity", "support", "output_tokens", "generated_text"),
)
LOG = "train.log"  # of a training, in its folder


def build_parser() -> argparse.ArgumentParser:
    """The flags; what else training needs has the CPU defaults of the training script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add, cpu = parser.add_argument, PRESETS["cpu"]
    add("--model_name", default="tutor", help="the base: tutor, bundled, a hub name or a folder")
    add("--arms", nargs="+", action=Distinct, default=list(ARMS), choices=ARMS, help="to train")
    add(
        "--seeds", nargs="+", action=Distinct, type=number(int, 0), default=list(range(5)), help="of training"
    )
    add("--max_steps", type=number(int, 1), default=cpu["max_steps"], help="optimizer steps of a training")
    add("--supervised", metavar="FOLDER", help="a policy that learned the students' needs by supervision")
    add(
        "--split",
        default="confirm",
        choices=["test", "confirm"],
        help="of the exercises' templates: test is for tuning settings, confirm for asking once",
    )
    add(
        "--memory_level",
        default="history",
        choices=["history", "stated"],
        help="whether only the history of the students tells what they need, or they say so themselves",
    )
    add("--exercises_per_chapter", type=number(int, 1), default=24, help="held out, each for 3 students")
    add("--jobs", type=number(int, 1), default=2, help="trainings at once, sharing the cores")
    add("--output_dir", type=Path, help="of the experiment; default: data/tutor/experiment_<memory_level>")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    add_engine_flags(parser)
    # how the held-out exercises are answered is no choice: all arms and seeds are compared
    parser.set_defaults(device="cpu", dtype="float32", batch_size=None, seed=0, fail_on_error=0.05)
    parser.set_defaults(retry_failed=False)
    parser.set_defaults(temperatures=[0.0, 1.0], max_new_tokens=cpu["max_completion_length"])
    parser.set_defaults(system_prompt=None, thinking="auto", chat_template_kwargs=None, think_end=None)
    parser.set_defaults(top_p=1.0, sampling_top_k=0, min_p=0.0)
    parser.set_defaults(attn_implementation="auto", load_in_4bit=False, batch_invariant=False)
    return parser


def train_arms(args: argparse.Namespace, folders: Mapping[tuple[str, int], Path], contents: dict) -> None:
    """Trains what is not trained, `--jobs` at a time.

    Args:
        folders: of the trainings, by (arm, seed).
        contents: fingerprints of what trainings share, as their `run.json` names them.

    Raises:
        UserError: a training failed, or one that is there had other settings.
    """
    waiting = [each for each in folders if not is_trained(args, *each, folders[each], contents)]
    total, started, running = len(waiting), time.monotonic(), {}
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                arm, seed = waiting.pop(0)
                running[arm, seed] = start_training(args, arm, seed, folders[arm, seed])

            time.sleep(0.1)
            for (arm, seed), process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[arm, seed]
                if process.returncode:
                    log = folders[arm, seed] / LOG
                    raise UserError(f"{arm}, seed {seed}: training failed; {log} says why", EXIT_UNEXPECTED)
                seconds, left = time.monotonic() - started, len(waiting) + len(running)
                left_s = seconds / (total - left) * left
                print(
                    f"{arm}, seed {seed}: trained; {seconds:.0f} s, at most {left_s:.0f} s left", flush=True
                )
    finally:
        for process in running.values():
            process.terminate()  # it saves a checkpoint first
            process.wait()


def is_trained(args: argparse.Namespace, arm: str, seed: int, folder: Path, contents: dict) -> bool:
    """Whether this very training has come to its end.

    Raises:
        UserError: another one has, with other settings, another base or other students.
    """
    from rl.runs import read_run, refuse_changes
    from rl.settings import fill_preset
    from rl.train_rl_memory import IDENTITY, parse_args

    run = read_run(folder)
    if run.get("status") != "success":
        return False
    training = parse_args(training_flags(args, arm, seed, folder))
    fill_preset(training)
    flags = flags_of(training)
    refuse_changes(run["config"]["identity"], {name: flags[name] for name in IDENTITY} | contents)
    return True


def training_flags(args: argparse.Namespace, arm: str, seed: int, folder: Path) -> list[str]:
    """The flags with which the training script trains an arm."""
    flags = [*ARMS[arm], "--seed", str(seed), "--max_steps", str(args.max_steps)]
    flags += ["--students", *GENERATED, "--memory_level", args.memory_level]
    flags += ["--model_name", args.model_name, "--max_completion_length", str(args.max_new_tokens)]
    return [*flags, "--preset", "cpu", "--dataset", "textbook", "--output_dir", str(folder)]


def start_training(args: argparse.Namespace, arm: str, seed: int, folder: Path) -> subprocess.Popen:
    """A process of the training script, which continues where an earlier one was stopped."""
    script = Path(__file__).with_name("train_rl_memory.py")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    # threads that spin while they wait would slow the other trainings down
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    for name in launcher_variables():  # a training is shared with no other process of this launch
        del environment[name]
    with (writable_dir(folder) / LOG).open("a", encoding="utf-8") as log:
        command = [sys.executable, str(script), *training_flags(args, arm, seed, folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def build_rows(held_out: "HeldOut", trained: Mapping[str, tuple[str, int]]) -> list:
    """Every policy's cells: those of all, and what an arm is asked beside them.

    Args:
        trained: the arm and the seed of each policy.
    """
    from cot.utils.records import Row

    further = {"ipo": held_out.probing, BASE: held_out.instructed}
    return [
        Row(policy, index, cell.moment, cell.memory, cell.temperature, cell.sample)
        for policy, (arm, _) in trained.items()
        for index, cell in enumerate([*held_out.common, *further.get(arm, [])])
    ]


def walk_students(
    args: argparse.Namespace,
    engine: str,
    trained: Mapping[str, tuple[str, int]],
    sources: Mapping,
    held_out: "HeldOut",
) -> dict[str, list[dict]]:
    """The closed loop: every student's walk with every policy and with the tutors that need no model."""
    from cot.utils.memory_arms import MemoryArms, PromptShape
    from cot.utils.runner import Run
    from cot.utils.textbook import pick_chapters
    from rl.closed_loop import draw_course, start_walk, walk_with_tutors
    from rl.cohorts import describe_students
    from rl.conditions import HELD_OUT_SEED
    from rl.policies import Policy

    chapters = pick_chapters(PRESETS["cpu"]["chapters"])
    profiles, _, truths = describe_students(held_out.students, args.memory_level)
    count = min(WALK_EXERCISES, args.exercises_per_chapter)
    course = draw_course(chapters, count, HELD_OUT_SEED, args.split)
    policies = [
        Policy(name, sources[name], config={"memory": "none" if arm == "no_memory" else "own"})
        for name, (arm, _) in trained.items()
    ]
    open_run = partial(
        Run,
        script=Path(__file__).name,
        args=argparse.Namespace(**vars(args) | {"temperatures": [1.0]}),
        sources=sources,
        shape=PromptShape(COT_PROMPT, PRESETS["cpu"]["memory_tokens"]),
        profiles=truths,
        config={"device": args.device, "engine": engine},
        folder=writable_dir(args.output_dir / "closed_loop"),
    )
    _, _, document = walk_with_tutors(
        open_run,
        policies,
        start=partial(start_walk, truths, chapters, HELD_OUT_SEED, practice=count),
        course=course,
        remember=lambda histories: MemoryArms(
            profiles,
            histories,
            embedder=None,
            seed=HELD_OUT_SEED,
            level=args.memory_level,
            truths=truths,
        ),
        summarize=lambda walks: {"walks": walks},
    )
    return document["summary"]["walks"]


def run(args: argparse.Namespace) -> int:
    """Trainings, answers, tables; returns the exit code."""
    from cot.utils.engine_choice import settle_engine
    from cot.utils.figures import draw_evidence, draw_experiment_curves
    from cot.utils.memory_arms import PromptShape
    from cot.utils.model_names import resolve_model
    from cot.utils.runner import Run
    from cot.utils.textbook import pick_chapters
    from rl.conditions import hold_out
    from rl.effects import (
        add_measures,
        follow_curve,
        judge_walks,
        quote_student,
        render_experiment,
        summarize,
    )

    # the policies that answer, and who is asked what
    processes = Processes()
    folder, base = writable_dir(args.output_dir), resolve_model(args.model_name)
    models = {(BASE, 0): base}
    if args.supervised:
        models["supervised", 0] = resolve_model(args.supervised)
    engine, cpu = settle_engine(args, list(models.values())), PRESETS["cpu"]
    trainings = [(arm, seed) for seed in args.seeds for arm in args.arms]
    folders = {(arm, seed): folder / f"{arm}_{seed}" for arm, seed in trainings}
    if processes.is_main:
        train_arms(args, folders, {"model_revision": base.revision})
        processes.tell("trained", "all")
    else:
        processes.hear("trained", within_s=math.inf)
    held_out = hold_out(
        pick_chapters(cpu["chapters"]), args.split, args.exercises_per_chapter, args.memory_level
    )

    # a policy's name holds its weights' revision: an arm that was trained again is another policy
    models |= {training: resolve_model(str(path / "model")) for training, path in folders.items()}
    trained = {f"{arm}_{seed}@{model.revision[:8]}": (arm, seed) for (arm, seed), model in models.items()}

    # their answers
    experiment = Run(
        script=Path(__file__).name,
        args=args,
        rows=build_rows(held_out, trained),
        sources=dict(zip(trained, models.values(), strict=True)),
        shape=PromptShape(COT_PROMPT, cpu["memory_tokens"]),
        profiles=held_out.truths,
        config={
            "device": args.device,
            "engine": engine,
            "exercises": args.exercises_per_chapter * len(cpu["chapters"]),
        },
        folder=folder,
        growing=True,
    )
    with experiment:
        experiment.generate()
        if not experiment.is_main:  # process 0 puts the answers of all together
            return experiment.exit_code
        path, document = experiment.finish(
            summarize=lambda records: summarize(records, args.memory_level),
            measure=lambda records: add_measures(records, trained, held_out),
        )

    # what students learn from them, claimed where only history tells what helps
    leave_launch()  # each walk is a row of answers that follow from each other
    walks = {}
    if args.memory_level == "history":
        walks = walk_students(args, engine, trained, experiment.sources, held_out)

    # what they say
    records = experiment.in_order()
    write_answers(records, ANSWER_KEYS, folder / "answers.jsonl.gz")
    summary = document["summary"] | judge_walks(walks, trained)
    report = render_experiment(summary, document["config"], quote_student(records, held_out.truths))
    (folder / "experiment.md").write_text(report, encoding="utf-8")
    draw_experiment_curves(folders, folder / "curves.png")
    if args.memory_level == "history":
        table = document["summary"]["table"]
        curves = {prefix: follow_curve(table, prefix) for prefix in ("after_", "changed_", "forgetting_")}
        draw_evidence(curves, folder / "evidence.png")
    print(f"{report}\n{path}")
    return experiment.exit_code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    args.output_dir = args.output_dir or DATA_DIR / "tutor" / f"experiment_{args.memory_level}"
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
