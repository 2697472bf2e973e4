#!/usr/bin/env python3
"""Does a long sweep lose nothing, repeat nothing and grow nowhere, however often it is killed?

A tiny random model answers made-up questions at three temperatures, once straight and once with a real
signal (SIGKILL, SIGTERM or SIGINT) every few seconds at random, while another process reads its result files
strictly. Both runs must give the same files but for times. Prints the kills, the reads, memory and time per
answer over the straight run; exit code 1 where something differs.

    python tests/long_run.py --questions 20
    python tests/long_run.py
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import fork_here, make_model, make_tokenizer, only, read_strictly, without_times

from cot import run_baseline_cot

LATE = 3  # signals when all answers are there
TOO_LONG_S = 300.0
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--questions", type=int, default=2000, help="each asked at three temperatures")
    parser.add_argument("--max_new_tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--batch_size", type=int, default=32, help="answers at once")
    parser.add_argument("--every_s", type=float, default=2.0, help="mean seconds between two signals")
    parser.add_argument("--seed", type=int, default=0, help="of the signals and their moments")
    return parser


def plant(folder: Path, questions: int) -> list[str]:
    """Model and questions on the disk, and the flags that name them."""
    tokenizer = make_tokenizer()
    for part in (make_model("llama", len(tokenizer)), tokenizer):
        part.save_pretrained(folder / "tiny-llama")
    lines = [{"question": f"What is {n} + 3?", "answer": f"#### {n + 3}"} for n in range(questions)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--model_name", folder / "tiny-llama", "--dataset", folder / "sums.jsonl", "--device", "cpu"]
    flags += ["--subset_size", questions, "--cot_prompt", "Solve.", "--temperatures", 0.0, 0.5, 1.0]
    return list(map(str, flags))


def count_lines(folder: Path) -> int:
    """Of the run's journal."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("journal_*.jsonl"))


def run_straight(flags: list[str], folder: Path) -> list[int]:
    """Runs to the end; MiB of memory whenever the journal had grown."""
    process, lines, memory = fork_here(run_baseline_cot.main, *flags), 2, []
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if (found := count_lines(folder)) > lines:
            resident = Path(f"/proc/{process}/status").read_text().partition("VmRSS:")[2].split()
            memory += [int(resident[0]) >> 10] if resident else []  # none of a process that has just ended
            lines = found
        time.sleep(0.2)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    return memory


def read_on(folder: Path, counts: Path) -> int:
    """Another process that reads all result files strictly, again and again, and adds a byte each time."""
    if process := os.fork():
        return process
    while True:
        for path in folder.rglob("*.json"):
            read_strictly(path)
        with counts.open("ab") as file:
            file.write(b".")


def run_killed(
    flags: list[str], folder: Path, lines: int, every_s: float, rng: random.Random
) -> collections.Counter:
    """Runs with signals until one run comes to its end; how often which signal ended one.

    Three of four come after a further batch, and but a few when all answers are there, as what is measured of
    them is not kept.

    Args:
        lines: of the journal when all answers are there.
    """
    kills, late = collections.Counter(), 0
    while True:
        before, begun = count_lines(folder), time.monotonic()
        process = fork_here(run_baseline_cot.main, *flags)
        late += before >= lines
        if late > LATE:
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
            return kills
        if before < lines and rng.random() < 0.75:
            while count_lines(folder) <= max(before, 2) and time.monotonic() - begun < TOO_LONG_S:
                time.sleep(0.02)
        time.sleep(rng.uniform(0, 2 * every_s))
        signum = rng.choice(list(CODES))
        os.kill(process, signum)  # one that has ended stays until it is waited for
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            return kills
        assert code in (CODES[signum], -signum), f"{signum.name} gave exit code {code}"
        kills[signum.name] += 1


def main() -> int:
    """Both runs, compared."""
    args, folder = build_parser().parse_args(), Path(tempfile.mkdtemp(prefix="long_run_"))
    flags = plant(folder, args.questions)
    flags += ["--max_new_tokens", str(args.max_new_tokens), "--batch_size", str(args.batch_size)]
    from cot.utils.scorers import load_scorers

    load_scorers("cpu")  # every run is forked with the libraries imported

    start = time.monotonic()
    straight, killed = folder / "straight", folder / "killed"
    memory = run_straight([*flags, "--output_dir", str(straight)], straight)
    straight_s, start = time.monotonic() - start, time.monotonic()
    reader = read_on(killed, folder / "reads")
    try:
        kills = run_killed(
            [*flags, "--output_dir", str(killed)],
            folder=killed,
            lines=count_lines(straight) - 1,  # without the mark of its end
            every_s=args.every_s,
            rng=random.Random(args.seed),
        )
        assert os.waitpid(reader, os.WNOHANG) == (0, 0), "a result file was not strict JSON"
    finally:
        os.kill(reader, signal.SIGKILL)

    for path in sorted(straight.rglob("*_*.json")):
        name = path.name.rpartition("_2")[0]  # without its time
        assert without_times(read_strictly(path)) == without_times(
            read_strictly(only(killed, f"{name}_*.json"))
        )
    journals = [only(run, "journal_*.jsonl").read_text().splitlines() for run in (straight, killed)]
    batches = [[json.loads(line) for line in lines if '"records"' in line] for lines in journals]
    for run in batches:
        keys = [key for batch in run for key in batch["records"]]
        assert len(keys) == len(set(keys)) == 3 * args.questions

    pace = [1000 * batch["wall_s"] / len(batch["records"]) for batch in batches[0]]
    fifth = max(1, len(pace) // 5)
    print(
        f"{3 * args.questions} answers; straight {straight_s:.0f} s, killed {time.monotonic() - start:.0f} s"
    )
    print(f"kills: {dict(kills)}; strict reads of all files: {(folder / 'reads').stat().st_size}")
    print(
        f"memory: {memory[len(memory) // 5]} MiB after a fifth, {memory[-1]} at the end of the straight run"
    )
    print(f"ms an answer: {sum(pace[:fifth]) / fifth:.1f} first fifth, {sum(pace[-fifth:]) / fifth:.1f} last")
    return 0


if __name__ == "__main__":
    sys.exit(main())
