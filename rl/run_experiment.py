#!/usr/bin/env python3
"""Train every arm with several seeds and compare them on held-out exercises: what does memory add to GRPO?

Arms: `ipo` (own memory, all rewards), `no_memory` (no memory, all rewards that need none), `shuffled_memory`
(another student's memory, all rewards), `correctness_only` (own memory, rewarded for correctness),
`random_reward` (own memory, rewarded by a coin). Every policy and the base answer exercises of templates that
training has not, in the usual wordings and in novel ones, with the own memory and without. Each training is a
process of `rl/train_rl_memory.py`. Reads `profiles/` and the textbook. Writes a folder: `<arm>_<seed>/` for
each training with its `train.log`, the files of every run (`results_temp_<T>_<stamp>.json` and
`summary_<stamp>.json`, whose `summary` has `rows_done, table, verdicts, timing`), `experiment.md` and
`curves.png`. The same command continues an interrupted experiment; with more arms or seeds it adds to it.

    python rl/run_experiment.py --seeds 0 --arms ipo no_memory --max_steps 4 --exercises_per_chapter 4
    python rl/run_experiment.py
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import (
    BASE,
    COT_PROMPT,
    DATA_DIR,
    PROFILES_DIR,
    Distinct,
    OneLineParser,
    flags_of,
    number,
    script_frame,
    temperature,
    writable_dir,
)
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from rl.settings import PRESETS

CORRECTNESS = "correct=1,format=0.1,overlong=1,repetition=0.2"
ARMS = {  # flags of the training script
    "ipo": ["--memory", "own"],
    "no_memory": ["--memory", "none"],
    "shuffled_memory": ["--memory", "shuffled"],
    "correctness_only": ["--memory", "own", "--reward_weights", CORRECTNESS],
    "random_reward": ["--memory", "own", "--reward_weights", "coin=1"],
}
SETS = (("usual", "own"), ("usual", "none"), ("novel", "own"))  # wording, and what the prompt shows
HELD_OUT_SEED = 1_000_003  # of the evaluated exercises: the same for all arms and seeds
LOG = "train.log"  # of a training, in its folder


def build_parser() -> argparse.ArgumentParser:
    """The flags; what else training needs has the CPU defaults of the training script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add, cpu = parser.add_argument, PRESETS["cpu"]
    add("--model_name", default="tutor", help="the base: tutor, bundled, a hub name or a folder")
    add("--arms", nargs="+", action=Distinct, default=list(ARMS), choices=ARMS, help="to train")
    add("--seeds", nargs="+", action=Distinct, type=number(int, 0), default=[0, 1, 2], help="of training")
    add("--max_steps", type=number(int, 1), default=cpu["max_steps"], help="optimizer steps of a training")
    add("--profiles_dir", type=Path, default=PROFILES_DIR, help="profiles; memories in its memory/")
    add("--exercises_per_chapter", type=number(int, 1), default=80, help="held out, of each wording")
    add("--students_per_exercise", type=number(int, 2), default=2, help="for whom each is explained")
    add(
        "--temperatures", nargs="+", action=Distinct, type=temperature, default=[0.0, 1.0], help="0 is greedy"
    )
    add("--jobs", type=number(int, 1), default=2, help="trainings at once, sharing the cores")
    add("--output_dir", type=Path, default=DATA_DIR / "tutor" / "experiment", help="of the experiment")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    # how the held-out exercises are answered is no choice: all arms and seeds are compared
    parser.set_defaults(
        device="cpu", dtype="float32", batch_size=None, seed=HELD_OUT_SEED, fail_on_error=0.05
    )
    parser.set_defaults(max_new_tokens=cpu["max_completion_length"])
    parser.set_defaults(thinking="auto", chat_template_kwargs=None, think_end=None)
    return parser


def train_arms(args: argparse.Namespace, contents: dict) -> dict[tuple[str, int], Path]:
    """Trains what is not trained, `--jobs` at a time; the folder of each training by (arm, seed).

    Args:
        contents: fingerprints of what trainings share, as their `run.json` names them.

    Raises:
        UserError: a training failed, or one that is there had other settings.
    """
    trainings = [(arm, seed) for seed in args.seeds for arm in args.arms]
    folders = {(arm, seed): args.output_dir / f"{arm}_{seed}" for arm, seed in trainings}
    waiting = [each for each in trainings if not is_trained(args, *each, folders[each], contents)]
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
    return folders


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
    flags += ["--model_name", args.model_name, "--profiles_dir", str(args.profiles_dir)]
    flags += ["--max_completion_length", str(args.max_new_tokens)]
    return [*flags, "--preset", "cpu", "--dataset", "textbook", "--output_dir", str(folder)]


def start_training(args: argparse.Namespace, arm: str, seed: int, folder: Path) -> subprocess.Popen:
    """A process of the training script, which continues where an earlier one was stopped."""
    script = Path(__file__).with_name("train_rl_memory.py")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    # threads that spin while they wait would slow the other trainings down
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (writable_dir(folder) / LOG).open("a", encoding="utf-8") as log:
        command = [sys.executable, str(script), *training_flags(args, arm, seed, folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def load_held_out(args: argparse.Namespace) -> tuple:
    """The students, and by wording the moments at which every policy is asked."""
    from cot.utils.memory_arms import MemoryArms
    from cot.utils.students import MemoryLog, load_profiles
    from cot.utils.textbook import pick_chapters
    from rl.moments import held_out_moments

    profiles, log = load_profiles(args.profiles_dir), MemoryLog(args.profiles_dir / "memory")
    histories = {student: log.read(student) for student in profiles}
    arms = MemoryArms(profiles, histories, embedder=None, seed=HELD_OUT_SEED)  # no past exercises: top_k 0
    chapters = pick_chapters(PRESETS["cpu"]["chapters"])
    students = {"usual": args.students_per_exercise, "novel": 1}
    return arms, {
        wording: held_out_moments(arms, chapters, args.exercises_per_chapter, count, HELD_OUT_SEED, wording)
        for wording, count in students.items()
    }


def build_rows(args: argparse.Namespace, arms, moments: Mapping, policies: Sequence[str]) -> list:
    """Every policy at every moment: usual wordings with the own memory and without, novel ones with it."""
    from cot.utils.rows import expand

    shown = []
    for wording, memory_arm in SETS:
        asked = moments[wording]
        if memory_arm == "none":  # the same prompt for every student: asked once
            asked = list({moment.question.id: moment for moment in asked}.values())
        shown += [(moment, arms.show(moment, memory_arm)) for moment in asked]
    return [
        row
        for policy in policies
        for index, (moment, memory) in enumerate(shown)
        for row in expand(policy, index, moment, memory, args.temperatures, num_samples=1)
    ]


def run(args: argparse.Namespace) -> int:
    """Trainings, answers, tables; returns the exit code."""
    from cot.utils.figures import draw_experiment_curves
    from cot.utils.memory_arms import PromptShape
    from cot.utils.model_names import resolve_model
    from cot.utils.models import keep_bars_out_of_logs
    from cot.utils.runner import Run
    from rl.effects import add_measures, render_experiment, summarize
    from rl.moments import fingerprint_students

    folder, base = writable_dir(args.output_dir), resolve_model(args.model_name)
    arms, moments = load_held_out(args)
    contents = {"model_revision": base.revision, "students_content": fingerprint_students(arms)}
    folders = train_arms(args, contents)

    # a policy's name holds its weights' revision: an arm that was trained again is another policy
    models = {training: resolve_model(str(path / "model")) for training, path in folders.items()}
    models = {(BASE, 0): base, **models}
    trained = {f"{arm}_{seed}@{model.revision[:8]}": (arm, seed) for (arm, seed), model in models.items()}
    sources = dict(zip(trained, models.values(), strict=True))

    keep_bars_out_of_logs()
    experiment = Run(
        script=Path(__file__).name,
        args=args,
        rows=build_rows(args, arms, moments, list(trained)),
        sources=sources,
        shape=PromptShape(COT_PROMPT, PRESETS["cpu"]["memory_tokens"]),
        profiles=arms.profiles,
        config={"device": args.device, "exercises": len({m.question.id for m in moments["usual"]})},
        folder=folder,
        growing=True,
    )
    with experiment:
        experiment.generate()
        path, document = experiment.finish(
            measure=lambda records: add_measures(records, trained, arms.profiles), summarize=summarize
        )
    report = render_experiment(document["summary"], document["config"])
    (folder / "experiment.md").write_text(report, encoding="utf-8")
    draw_experiment_curves(folders, folder / "curves.png")
    print(f"{report}\n{path}")
    return experiment.exit_code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
