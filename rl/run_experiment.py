#!/usr/bin/env python3
"""Train every arm with several seeds and compare them on held-out exercises: what does memory add to GRPO?

Arms: `ipo` (own memory, all rewards), `none` (no memory), `shuffled` (another student's memory, all
rewards), `correctness` (own memory, rewarded for correctness only), `random` (own memory, rewarded by a
coin). Every policy and the base answer exercises of templates never trained on, in the usual wordings and in
wordings of a kind never trained on, with the own memory and without. Each run is one of
`rl/train_rl_memory.py`. Reads `profiles/` and the textbook. Writes a folder: `<arm>_<seed>/` for each run
with its `train.log`, `answers_*.jsonl` (one answer a line), `experiment.json` (result contract;
`summary.table`, `summary.hypotheses`), `experiment.md`, `curves.png`. The same command continues an
interrupted experiment.

    python rl/run_experiment.py --seeds 0 --arms ipo none --max_steps 4 --exercises_per_chapter 4
    python rl/run_experiment.py
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import DATA_DIR, PROFILES_DIR, OneLineParser, flags_of, number, run_script
from cot.utils.cli import writable_dir as writable
from cot.utils.errors import EXIT_OK, EXIT_UNEXPECTED, UserError
from rl.grpo_flags import DEFAULTS, find_tutor

CORRECTNESS = "correct=1,format=0.1,overlong=1,repetition=0.2"
ARMS = {  # flags of the training script
    "ipo": ["--memory", "own"],
    "none": ["--memory", "none"],
    "shuffled": ["--memory", "shuffled"],
    "correctness": ["--memory", "own", "--reward_weights", CORRECTNESS],
    "random": ["--memory", "own", "--reward_weights", "coin=1"],
}
LOG = "train.log"  # of a run, in its folder
HELD_OUT_SEED = 1_000_003  # of the evaluated exercises: the same for all arms and seeds


def build_parser() -> argparse.ArgumentParser:
    """The flags; what else training needs has the CPU defaults of the training script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--model_name", default="tutor", help="the base: tutor, bundled, a hub name or a folder")
    add("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="to train")
    add("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], help="of training")
    add(
        "--max_steps", type=number(int, 1), default=DEFAULTS["cpu"]["max_steps"], help="optimizer steps a run"
    )
    add("--profiles_dir", type=Path, default=PROFILES_DIR, help="profiles; memories in its memory/")
    add("--exercises_per_chapter", type=number(int, 1), default=80, help="held out, of each wording")
    add("--students_per_exercise", type=number(int, 2), default=2, help="for whom each is explained")
    add("--temperatures", nargs="+", type=number(float, 0, 2), default=[0.0, 1.0], help="0 is greedy")
    add("--jobs", type=number(int, 1), default=2, help="training runs at once, sharing the cores")
    add("--output_dir", type=Path, default=DATA_DIR / "tutor" / "experiment", help="of all runs")
    add("--debug", action="store_true", help="add the traceback to an error")
    return parser


def threads_each(jobs: int) -> int:
    """Threads of one of several processes that share the cores."""
    return max(1, (os.cpu_count() or 1) // jobs)


class Trainings:
    """The training runs, `--jobs` at a time, each one a process of the training script.

    Attributes:
        folders: of the runs, by (arm, seed), in the order in which they begin: arm after arm for each seed.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self.folders = {(arm, seed): folder / f"{arm}_{seed}" for seed in args.seeds for arm in args.arms}
        self._processes: list[subprocess.Popen] = []
        self._started, self._done = time.monotonic(), 0

    def finished(self) -> Iterator[tuple[str, int]]:
        """Yields each run when it is finished; one that was finished before is not trained again.

        Raises:
            UserError: training failed.
        """
        pool = ThreadPoolExecutor(self._args.jobs)
        try:
            for run, code in zip(self.folders, pool.map(self._train, self.folders), strict=True):
                if code:
                    log = self.folders[run] / LOG
                    raise UserError(
                        f"{run[0]}, seed {run[1]}: training failed; {log} says why", EXIT_UNEXPECTED
                    )
                yield run
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in self._processes:
                if process.poll() is None:
                    process.terminate()  # it saves a checkpoint first
                    process.wait()

    def _train(self, run: tuple[str, int]) -> int:
        from rl.run_folder import read_run

        (arm, seed), folder, args = run, self.folders[run], self._args
        if read_run(folder).get("status") == "success":
            return 0
        command = [sys.executable, str(Path(__file__).with_name("train_rl_memory.py")), *ARMS[arm]]
        command += ["--seed", str(seed), "--output_dir", str(folder), "--model_name", args.model_name]
        command += ["--profiles_dir", str(args.profiles_dir), "--max_steps", str(args.max_steps)]
        command += ["--device_kind", "cpu", "--dataset", "textbook"]
        # waiting threads that spin would slow the other runs down
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads_each(args.jobs)),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with (writable(folder) / LOG).open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            self._processes.append(process)
            code = process.wait()
        self._done += 1
        seconds = time.monotonic() - self._started
        left = seconds / self._done * (len(self.folders) - self._done)
        print(f"{arm}, seed {seed}: trained; {seconds:.0f} s, at most {left:.0f} s left", flush=True)
        return code


def make_held_out(args: argparse.Namespace):
    """What every policy is asked."""
    from cot.utils.cli import COT_PROMPT
    from cot.utils.memory import MemoryLog
    from cot.utils.profiles import load_profiles
    from cot.utils.textbook import pick_chapters
    from rl.experiment_answers import HeldOut
    from rl.prompts_dataset import Students

    defaults = DEFAULTS["cpu"]
    chapters = pick_chapters(defaults["chapters"])
    students = Students(load_profiles(args.profiles_dir), MemoryLog(args.profiles_dir / "memory"), None, 0)
    size = args.exercises_per_chapter, args.students_per_exercise, HELD_OUT_SEED
    situations = {"usual": students.held_out_situations(chapters, *size)}
    situations["novel"] = students.held_out_situations(chapters, size[0], 1, size[2], novel_phrasing=True)
    prompt = {"instruction": COT_PROMPT, "memory_tokens": defaults["memory_tokens"]}
    prompt["max_prompt_tokens"] = defaults["max_prompt_length"]
    tokens = defaults["max_completion_length"]
    return HeldOut(students, situations, prompt, tokens, args.temperatures, HELD_OUT_SEED)


def answer(held_out, model_name: str, path: Path) -> list[dict]:
    """A policy's answers, from the file where it has answered before."""
    from cot.utils.model_source import resolve_model
    from cot.utils.models import load_model
    from rl.experiment_answers import answer_held_out, read_answers

    if not path.exists():
        print(f"answers: {path.name}", flush=True)
        model, tokenizer = load_model(resolve_model(model_name), "cpu")
        answer_held_out(model.eval(), tokenizer, held_out, path)
    return read_answers(path)


def keep_config(path: Path, config: dict) -> None:
    """Remembers what decides the answers, arms and seeds aside: those may be added.

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    from cot.utils.results import write_json

    fixed = {
        name: value for name, value in config.items() if name not in ("arms", "seeds", "jobs", "output_dir")
    }
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(fixed)):
        raise UserError(f"--output_dir {path.parent}: an experiment with other settings; name another folder")
    write_json(path, fixed)


def run(args: argparse.Namespace) -> int:
    """Training runs, answers, tables; returns the exit code."""
    from cot.utils.model_source import resolve_model
    from cot.utils.results import document, environment, timestamp, write_json

    folder, started = writable(args.output_dir), timestamp()
    args.model_name = find_tutor(args.model_name)
    config = flags_of(args) | {"base_revision": resolve_model(args.model_name).revision}
    keep_config(folder / "settings.json", config)
    held_out = make_held_out(args)
    import torch

    from cot.utils.runtime import keep_bars_out_of_logs
    from rl.experiment_answers import SETS
    from rl.experiment_tables import Experiment, plot_curves, render

    keep_bars_out_of_logs()
    torch.set_num_threads(threads_each(args.jobs))
    base = answer(held_out, args.model_name, folder / "answers_base.jsonl")
    trainings, answers = Trainings(args, folder), {}
    for arm, seed in trainings.finished():
        path = folder / f"answers_{arm}_{seed}.jsonl"
        answers[arm, seed] = answer(held_out, str(trainings.folders[arm, seed] / "model"), path)
    experiment = Experiment(answers, base)
    summary = {"table": experiment.table(args.temperatures, SETS)}
    summary["hypotheses"] = experiment.hypotheses(args.temperatures)
    config["exercises"] = len({s.question.id for s in held_out.situations["usual"]})
    script = "rl/run_experiment.py"
    finished = document(
        script, "success", None, started, timestamp(), config, environment("cpu"), summary, []
    )
    write_json(folder / "experiment.json", finished)
    (folder / "experiment.md").write_text(render(summary, config), encoding="utf-8")
    plot_curves(trainings.folders, folder / "curves.png")
    print((folder / "experiment.md").read_text(encoding="utf-8"))
    print(f"results: {folder / 'experiment.json'}", flush=True)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    return run_script(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
