"""Simulate students who walk through the textbook, and write what happened to them as their memory.

How a student answers and learns is `rl/student_model.py`'s. Only exercises of the train split are used, so
what stands in a memory is never asked in an evaluation.

Reads `profiles/*.json` and `data/textbook/`; writes `profiles/memory/<student_id>.jsonl`, one line per
exercise: `student_id, time, chapter, skill, question, correct, error_type, what_helped`.

With `--generate` it makes the students, too. Each needs a style, and a hint or none, which no profile says.
Every exercise then follows an explanation whose `manner` is drawn at random and recorded, and one that fits
makes a right answer and learning likelier. `truth.json` holds the needs, for judging alone.

    python rl/simulate_students.py --seed 0 --profiles_dir /tmp/my_profiles --interactions_per_chapter 2
    python rl/simulate_students.py --generate 40 --profiles_dir /tmp/students
    python rl/simulate_students.py --seed 0 --overwrite
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser, number
from cot.utils.errors import EXIT_OK, UserError, script_frame
from cot.utils.files import write_json
from cot.utils.paths import PROFILES_DIR, writable_dir
from cot.utils.student_files import TRUTH, MemoryLog, load_profiles
from cot.utils.students import Interaction
from cot.utils.textbook import load_chapters
from rl.student_model import (
    GENERATED_CHAPTERS,
    INTERACTIONS_PER_CHAPTER,
    generate_student,
    needs_of,
    simulate_history,
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--seed", type=number(int, 0), default=0, help="of exercises, parameters and answers")
    add("--profiles_dir", type=Path, default=PROFILES_DIR, help="logs lie in <profiles_dir>/memory/")
    add("--interactions_per_chapter", type=number(int, 1), help="exercises in each chapter; 15, generated 12")
    add("--generate", type=number(int, 1), metavar="N", help="make N students who never say what they need")
    add("--pairs", default="seen", choices=["seen", "unseen"], help="which needs the generated may have")
    add("--changes_after", type=number(int, 1), metavar="N", help="interactions until their needs change")
    add("--overwrite", action="store_true", help="replace logs that exist")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def simulate_all(args: argparse.Namespace) -> dict[str, Sequence[Interaction]]:
    """The history of every student who has a profile."""
    profiles, chapters = load_profiles(args.profiles_dir), load_chapters()
    count = args.interactions_per_chapter or 15
    return {
        student_id: simulate_history(profile, chapters, args.seed, count)
        for student_id, profile in profiles.items()
    }


def generate_all(args: argparse.Namespace) -> dict[str, Sequence[Interaction]]:
    """Writes the profiles and what nobody says of them (`truth.json`); their histories.

    Raises:
        UserError: the folder holds profiles already.
    """
    folder, chapters = writable_dir(args.profiles_dir), load_chapters()[:GENERATED_CHAPTERS]
    if any(folder.glob("*.json")) and not args.overwrite:
        raise UserError(f"--profiles_dir {folder}: it holds profiles; name a new folder, or --overwrite")
    students = [
        generate_student(
            number=number,
            chapters=chapters,
            seed=args.seed,
            pairs=args.pairs,
            interactions_per_chapter=args.interactions_per_chapter or INTERACTIONS_PER_CHAPTER,
            changes_after=args.changes_after,
        )
        for number in range(args.generate)
    ]
    for student in students:
        write_json(folder / f"{student.student_id}.json", student.profile.model_dump())
    needs = {student.student_id: asdict(needs_of(student.truth)) for student in students}
    write_json(folder / TRUTH, needs)
    return {student.student_id: student.history for student in students}


def run(args: argparse.Namespace) -> int:
    """Histories to logs; returns the exit code."""
    log = MemoryLog(args.profiles_dir / "memory")
    histories = generate_all(args) if args.generate else simulate_all(args)
    existing = sorted(set(log.students()) & set(histories))
    if existing and not args.overwrite:
        raise UserError(f"{log.folder}: a log exists for {', '.join(existing)}; --overwrite replaces it")
    for student_id, history in histories.items():
        path = log.folder / f"{student_id}.jsonl"
        path.unlink(missing_ok=True)
        log.append(history)
        right = sum(interaction.correct for interaction in history)
        print(f"{path}: {len(history)} exercises, {right} right")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
