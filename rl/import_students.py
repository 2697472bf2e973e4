#!/usr/bin/env python3
"""Import real students: logs of answers or of tutoring become profiles and memories.

Four formats are read (`rl/import_answers.py`, `rl/import_dialogues.py`): pyKT's preprocessed files (Liu et
al. 2022) and ASSISTments' skill builders (Feng, Heffernan and Koedinger 2009), which hold answers without
text; MathDial (Macina et al. 2023) and Bridge (Wang et al. 2023), which hold a mistake and what a tutor said.
Nothing is invented. Where a log has an order and no times, the answers of a student are written one minute
apart from 2000-01-01T00:00:00Z on, and the script and its report say so.

Reads the files of `--input`. Writes for each student `<profiles_dir>/<student_id>.json` and
`<profiles_dir>/memory/<student_id>.jsonl` (profiles/README.md lists the keys), and a report
`<profiles_dir>/memory/import.json` with `status, format, inputs, students, interactions, new, right, skills,
left_out, times`. The same command continues an import that was stopped, and writes nothing twice.

    python rl/import_students.py --format pykt --input train_valid.csv --profiles_dir /tmp/assist2015
    python rl/import_students.py --format mathdial --input test.jsonl --profiles_dir /tmp/mathdial
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser
from cot.utils.errors import EXIT_OK, EXIT_UNEXPECTED, UserError, script_frame
from cot.utils.files import dumps, lock_file, write_json

if TYPE_CHECKING:
    from rl.import_answers import Batch

FORMATS = ("pykt", "assistments", "mathdial", "bridge")
START, STEP = datetime(2000, 1, 1, tzinfo=UTC), timedelta(minutes=1)  # of times that the data does not have
SYNTHETIC = "none in the data: one minute apart from 2000-01-01T00:00:00Z, in order"
REAL = "of the data; where two answers of a student have the same second, the later one is a second later"
REPORT = "import.json"
MAX_ID, DIGITS = 50, 8  # characters that are kept of a name that is no id, and of its hash


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--format", required=True, choices=FORMATS, help="of the files")
    add("--input", type=Path, nargs="+", required=True, metavar="FILE", help="files to read, in this order")
    add(
        "--profiles_dir", type=Path, required=True, metavar="FOLDER", help="folder to write the students into"
    )
    add("--encoding", default="utf-8-sig", help="of the files; ASSISTments' skill builders are in latin-1")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


class StudentFolder:
    """The students of a folder, written so that an import which was stopped goes on where it stopped.

    What is to be written follows from the input alone. So a file that is there is compared: what it lacks is
    added, and a file that holds something else is not touched.

    Attributes:
        interactions, new, right: of the import; `new` were not there before.
        skills: that occur.
        has_times: whether the data had times; None as long as there is no answer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}  # of the data, by id in lower case
        self._ends: dict[str, tuple[int, datetime]] = {}  # bytes of the log so far, and its last moment
        self.interactions = self.new = self.right = 0
        self.skills: set[str] = set()
        self.has_times: bool | None = None

    @property
    def students(self) -> int:
        """How many there are so far."""
        return len(self._names)

    def add(self, batch: "Batch") -> None:
        """Writes a student's profile and further interactions.

        Raises:
            UserError: two names become one id, or a file of the student holds something else.
        """
        from pydantic import ValidationError

        from cot.utils.students import Interaction, Profile, describe_error

        student_id = make_id(batch.name)
        other = self._names.setdefault(student_id.lower(), batch.name)
        if other != batch.name:
            raise UserError(f"{batch.place}: students {other!r} and {batch.name!r} would share {student_id}")
        end, last = self._ends.get(student_id, (0, START - STEP))

        lines = []
        try:
            if student_id not in self._ends:
                profile = Profile(student_id=student_id, **batch.profile)
                self._write(
                    self._folder / f"{student_id}.json", 0, dumps(profile.model_dump(), indent=2) + "\n"
                )
            for answer in batch.answers:
                last = max(answer["time"], last + timedelta(seconds=1)) if "time" in answer else last + STEP
                fields = {"chapter": None, "question": None, **answer, "time": f"{last:%Y-%m-%dT%H:%M:%SZ}"}
                item = Interaction(student_id=student_id, **fields)
                lines.append(json.dumps(item.content, ensure_ascii=False) + "\n")
        except ValidationError as error:
            raise UserError(f"{batch.place}: {describe_error(error)}") from error

        log, text = self._folder / "memory" / f"{student_id}.jsonl", "".join(lines)
        self.new += self._write(log, end, text)
        self._ends[student_id] = end + len(text.encode()), last
        self.interactions += len(batch.answers)
        self.right += sum(answer["correct"] for answer in batch.answers)
        self.skills.update(answer["skill"] for answer in batch.answers)
        if batch.answers:
            self.has_times = "time" in batch.answers[0]

    def _write(self, path: Path, offset: int, text: str) -> int:
        """Makes a file hold a text from an offset on; the number of line breaks that were not there."""
        content = text.encode()
        try:
            with path.open("ab+") as file:
                file.seek(offset)
                there = file.read()
                if not there.startswith(content):
                    if not content.startswith(there):
                        raise UserError(f"{path}: it holds something else; name a new --profiles_dir")
                    file.write(content[len(there) :])
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}", EXIT_UNEXPECTED) from error
        return content.count(b"\n") - there[: len(content)].count(b"\n")


def make_id(name: str) -> str:
    """A student's name in the data as an id: itself where it is one, else its safe part and a hash of it.

    >>> make_id("16894"), make_id("Ann Lee/3"), make_id("truth")
    ('16894', 'Ann_Lee_3-5d23e37b', 'truth-c5c4bad8')
    """
    from cot.utils.student_files import TRUTH
    from cot.utils.students import STUDENT_ID

    if STUDENT_ID.fullmatch(name) and f"{name.lower()}.json" != TRUTH:
        return name
    digits = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:DIGITS]
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:MAX_ID]
    return f"{safe}-{digits}"


def count_rows(data_format: str, paths: Sequence[Path], encoding: str) -> int:
    """Rows of all files: records of Bridge, else lines, without a CSV file's header."""
    if data_format == "bridge":
        from rl.import_dialogues import count_records

        return sum(count_records(path, encoding) for path in paths)

    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        total -= data_format in ("pykt", "assistments")
    return total


def describe_inputs(paths: Sequence[Path]) -> list[dict]:
    """Each input's name and content, for the report.

    Raises:
        UserError: a file cannot be read, or two hold the same, so that all would be counted twice.
    """
    described: dict[str, dict] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"--input {path}: {error.strerror}") from error
        if digest in described:
            raise UserError(f"--input {path}: it holds the same as {described[digest]['file']}")
        described[digest] = {"file": path.name, "sha256": digest}
    return list(described.values())


def import_all(args: argparse.Namespace) -> dict:
    """Every row to its student's files; what the report says of it."""
    from cot.utils.progress import Progress
    from rl.import_answers import read_assistments, read_pykt
    from rl.import_dialogues import read_bridge, read_mathdial

    readers = dict(zip(FORMATS, (read_pykt, read_assistments, read_mathdial, read_bridge), strict=True))
    total = count_rows(args.format, args.input, args.encoding)
    folder, left_out = StudentFolder(args.profiles_dir), Counter()
    progress = Progress(total, done=0, max_new_tokens=0)

    def seen(rows: int) -> None:
        progress.update(rows, f"{folder.interactions} interactions of {folder.students} students")

    for batch in readers[args.format](args.input, args.encoding, left_out, seen):
        folder.add(batch)
    progress.close()
    return {
        "students": folder.students,
        "interactions": folder.interactions,
        "new": folder.new,
        "right": folder.right / folder.interactions if folder.interactions else None,
        "skills": len(folder.skills),
        "left_out": [{"reason": reason, "rows": count} for reason, count in sorted(left_out.items())],
        "times": REAL if folder.has_times else SYNTHETIC,
    }


def run(args: argparse.Namespace) -> int:
    """Files to students to a report; returns the exit code."""
    memory = args.profiles_dir / "memory"
    try:
        memory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profiles_dir {args.profiles_dir}: {error.strerror}") from error
    lock = lock_file(
        memory / ".import.lock", f"--profiles_dir {args.profiles_dir}: another import writes there"
    )
    try:
        begun = {"status": "running", "format": args.format, "inputs": describe_inputs(args.input)}
        write_json(memory / REPORT, begun)
        report = begun | {"status": "success"} | import_all(args)
        write_json(memory / REPORT, report)
    finally:
        lock.release()

    print(
        f"{report['interactions']} interactions of {report['students']} students, {report['new']} of them new"
    )
    for left_out in report["left_out"]:
        print(f"left out: {left_out['rows']}, {left_out['reason']}")
    print(f"times: {report['times']}")
    print(memory / REPORT)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then imports."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
