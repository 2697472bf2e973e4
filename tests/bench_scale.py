#!/usr/bin/env python3
"""What grows with a sweep: start, prompts, records, files, summary, memory, and the flush of a signal.

Runs `cot/run_baseline_faiss.py` for the students of a folder, each asked every question under several memory
arms at four temperatures, at several sizes. All is the script's own but what takes the same time for each
text: the model's texts are those of `fit_labels.jsonl` with other numbers, and neither the embedder nor spaCy
measures them. The run is asked to end (SIGTERM) before the last texts, goes on by the same command, is asked
to end in its statistics, and finishes.

Prints a table, and writes it as JSON where `--json` says so, a row a size: `rows`; seconds `start_s` (to the
first answer, with imports), `prompts_s`, `records_s`, `rewrite_s` (the longest of the running files),
`flush_s` (from the first signal to the end of the process), `resume_s` (of the second start to the answers
that were left), `late_flush_s` (from the second signal), `summary_s`, `files_s` (at the end), `figures_s`;
`results_mib`, `peak_mib`.

    python tests/bench_scale.py --questions 4 8
    python tests/bench_scale.py --json bench_scale.json
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import make_model, make_tokenizer

BATCH = 256  # texts that the recorded engine gives at once
COLUMNS = (
    *("rows", "start_s", "prompts_s", "records_s", "rewrite_s", "flush_s", "resume_s", "late_flush_s"),
    *("summary_s", "files_s", "figures_s", "results_mib", "peak_mib"),
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--questions", type=int, nargs="+", default=[82, 330, 1319], help="how many, of each size")
    add("--profiles_dir", help="the students' folder; default: the eight of this repository")
    add("--memory", nargs="+", default=["own", "none", "shuffled", "random"], help="arms")
    add("--json", type=Path, help="also write the rows to this file")
    add("--run", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)  # this process is one run
    add("--end_in", choices=["answers", "statistics"], help=argparse.SUPPRESS)
    return parser


def plant(folder: Path, questions: int) -> None:
    """A tiny model with room for every prompt, and made-up questions of the usual length."""
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer))
    model.config.max_position_embeddings = 16384
    for part in (model, tokenizer):
        part.save_pretrained(folder / "tiny-llama")
    story = "A shop sells {} boxes of pens on Monday and {} boxes on Tuesday, and every box holds {} pens."
    lines = [
        {
            "question": f"{story.format(n, n + 3, 7)} How many pens are sold?",
            "answer": f"#### {7 * (2 * n + 3)}",
        }
        for n in range(questions)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def end_this_process() -> None:
    """Asks for it, and says when."""
    print(f"signal {time.monotonic()}", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


class RecordedTexts:
    """In the place of a model's texts: real ones with other numbers, the same for equal requests."""

    def __init__(self, end_early: bool) -> None:
        lines = (Path(__file__).parent / "fit_labels.jsonl").read_text().splitlines()
        self.texts, self.end_early = [json.loads(line)["text"] for line in lines], end_early

    def generate(self, engine, requests, watch=None):
        """As an engine's `generate`."""
        from cot.utils.completions import Completion, sort_out

        _, sharing = sort_out(requests, engine.max_new_tokens, engine.context_length)
        queue = list(sharing)
        for start in range(0, len(queue), BATCH):
            if self.end_early and start + BATCH >= len(queue):
                end_this_process()
            batch = []
            for first in queue[start : start + BATCH]:
                rng = random.Random(first)
                text = re.sub(r"\d+", lambda _, rng=rng: str(rng.randint(2, 99)), rng.choice(self.texts))
                ids = tuple(range(len(text) // 4))
                completion = Completion(text, ids, (-0.5,) * len(ids))
                batch += [(index, completion) for index in sharing[first]]
            yield batch


def fill_in(_, records) -> None:
    """In the place of the metrics that embed or parse a text."""
    for number, record in enumerate(records):
        record |= {"semantic_similarity": number % 7 / 7, "reasoning_steps": 3, "entity_overlap": 0.5}


def fill_in_and_end(scorers, records) -> None:
    """The same; the statistics that follow are asked to end after a second."""
    fill_in(scorers, records)
    threading.Timer(1.0, end_this_process).start()


class Clock:
    """Seconds in each function that it was put around."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.longest: dict[str, float] = {}

    def around(self, owner, name: str) -> None:
        """Times every call of a function of a module or class."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.monotonic() - start
                self.total[name] = self.total.get(name, 0.0) + passed
                self.longest[name] = max(self.longest.get(name, 0.0), passed)

        setattr(owner, name, timed)


def run_once(args: argparse.Namespace) -> int:
    """One run in this process; its last line is what it took, as JSON."""
    from cot import run_baseline_faiss
    from cot.utils import runner, sweeps
    from cot.utils.engine import TransformersEngine
    from cot.utils.scorers import Scorers

    clock, texts = Clock(), RecordedTexts(args.end_in == "answers")
    TransformersEngine.generate = lambda *called, **named: texts.generate(*called, **named)
    Scorers.embed = lambda *_: None
    Scorers.add_metrics = fill_in_and_end if args.end_in == "statistics" else fill_in
    clock.around(sweeps, "summarize")
    clock.around(sweeps, "draw_sweep")
    for name in ("__enter__", "make_prompts", "generate", "finish", "_write"):
        clock.around(runner.Run, name)

    folder = args.run
    flags = [
        "--model_name",
        folder / "tiny-llama",
        "--dataset",
        folder / "questions.jsonl",
        "--device",
        "cpu",
    ]
    flags += ["--subset_size", "all", "--students", "all", "--memory", *args.memory, "--dtype", "float32"]
    flags += ["--temperatures", "0", "0.3", "0.7", "1", "--output_dir", folder / "results"]
    flags += ["--profiles_dir", args.profiles_dir] if args.profiles_dir else []
    start = time.monotonic()
    code = run_baseline_faiss.main([str(flag) for flag in flags])

    spent = clock.total
    later = spent["generate"] + spent.get("finish", 0.0) + spent.get("draw_sweep", 0.0)
    took = {
        "start_s": time.monotonic() - start - later,
        "prompts_s": spent.get("make_prompts", 0.0),
        "records_s": spent["generate"] - spent.get("make_prompts", 0.0),
        "rewrite_s": clock.longest["_write"],
        "summary_s": spent.get("summarize", 0.0),
        "files_s": spent.get("finish", 0.0) - spent.get("summarize", 0.0),
        "figures_s": spent.get("draw_sweep", 0.0),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }
    print(json.dumps(took))
    return code


def measure(args: argparse.Namespace, questions: int) -> dict:
    """The run of one size: asked to end, and finished by the same command."""
    with tempfile.TemporaryDirectory(prefix="bench_scale_") as folder:
        plant(Path(folder), questions)
        command = [sys.executable, __file__, "--run", folder, "--memory", *args.memory]
        command += ["--profiles_dir", args.profiles_dir] if args.profiles_dir else []
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        found = []
        for place in ("answers", "statistics", None):
            further, code = (["--end_in", place], 128 + signal.SIGTERM) if place else ([], 0)
            done = subprocess.run([*command, *further], capture_output=True, text=True, env=environment)
            ended = time.monotonic()
            assert done.returncode == code, done.stderr[-2000:]
            sent = re.search(r"^signal (\S+)$", done.stdout, re.MULTILINE)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            if sent:
                found[-1]["flush_s"] = ended - float(sent[1])
        results = list(Path(folder).rglob("results_*.json"))
        counted = {
            "rows": sum(path.read_bytes().count(b'\n    {"index"') for path in results),
            "results_mib": sum(path.stat().st_size for path in results) / 2**20,
        }
    first, second, last = found
    whole = ("start_s", "prompts_s", "records_s", "rewrite_s", "flush_s")
    resumed = {"resume_s": second["start_s"], "late_flush_s": second["flush_s"]}
    return counted | last | {name: first[name] for name in whole} | resumed


def main() -> int:
    """All sizes, as a table."""
    args = build_parser().parse_args()
    if args.run:
        return run_once(args)
    print("".join(f"{column:>14}" for column in COLUMNS))
    rows = []
    for questions in args.questions:
        rows.append(measure(args, questions))
        print("".join(f"{rows[-1][column]:>14.6g}" for column in COLUMNS), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
