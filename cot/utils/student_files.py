"""The files of students: a profile each, an append-only log each, and what simulated ones need.

A profile is one file, `profiles/<student_id>.json`, whose schema is `Profile`. A log is one file,
`profiles/memory/<student_id>.jsonl`, with one `Interaction` a line, that student's and nobody else's. Nothing
that can be recomputed is stored.
"""

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.files import lock_file, parse_json, read_json
from cot.utils.students import (
    HINT_IN_WORDS,
    Interaction,
    Manner,
    Profile,
    check_id,
    describe_error,
    in_time_order,
)

LOCK_TIMEOUT_S = 60.0
TRUTH = "truth.json"  # beside the profiles of simulated students


def load_profiles(folder: Path) -> dict[str, Profile]:
    """Every `*.json` of a folder, by student id in alphabetical order.

    Raises:
        UserError: the folder is absent or holds no profile, or one of them is malformed: file and field.
    """
    paths = sorted(path for path in Path(folder).glob("*.json") if path.name != TRUTH)
    if not paths:
        raise UserError(f"--profiles_dir {folder}: no profile (*.json) there; see profiles/README.md")
    profiles = {path.stem: _load_profile(path) for path in paths}
    if len({student_id.lower() for student_id in profiles}) < len(profiles):
        raise UserError(f"--profiles_dir {folder}: two student ids differ only in upper and lower case")
    return profiles


def load_truths(folder: Path, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
    """The profiles against which texts are judged: for simulated students with what they need as wishes.

    `truth.json` holds, by student id, `explanation_style` and `hint` of students who never said what they
    need. It is read for judging, and for prompts that tell the needs on purpose. Without it
    the profiles themselves.

    Raises:
        UserError: the file is malformed, or speaks of a student who has no profile.
    """
    path = Path(folder) / TRUTH
    if not path.exists():
        return dict(profiles)
    truths = dict(profiles)
    for student_id, record in read_json(path).items():
        if not path.with_name(f"{student_id}.json").exists():
            raise UserError(f"{path}: {student_id}: no such profile")
        if student_id not in profiles:  # not one of those at hand
            continue
        try:
            needs = Manner.model_validate(record)
        except ValidationError as error:
            raise UserError(f"{path}: {student_id}: {describe_error(error)}") from error
        wishes = [] if needs.hint is None else [HINT_IN_WORDS[needs.hint]]
        update = {"explanation_style": needs.style, "learning_preferences": wishes}
        truths[student_id] = profiles[student_id].model_copy(update=update)
    return truths


def _load_profile(path: Path) -> Profile:
    try:
        profile = Profile.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {describe_error(error)}") from error
    if profile.student_id != path.stem:
        raise UserError(
            f"{path}: student_id: expected {path.stem!r} as the file's name, got {profile.student_id!r}"
        )
    return profile


def pick_students(names: Sequence[str], profiles: Mapping[str, Profile]) -> list[str]:
    """The ids that a `--students` flag means: those named, or every one for `all`.

    Raises:
        UserError: no such profile.
    """
    if list(names) == ["all"]:
        return list(profiles)
    if unknown := [name for name in names if name not in profiles]:
        raise UserError(f"--students {unknown[0]}: no such profile; there are {', '.join(profiles)}, and all")
    return list(names)


class MemoryLog:
    """The interactions of all students of one folder. Times come from the caller, never from the clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def students(self) -> list[str]:
        """The ids that have a log, in alphabetical order.

        Raises:
            UserError: a log whose name is no id.
        """
        return sorted(self._path(path.stem).stem for path in self.folder.glob("*.jsonl"))

    def read(self, student_id: str) -> list[Interaction]:
        """One student's interactions in time order, duplicates dropped; none where there is no log.

        A torn last line is dropped with a warning.

        Raises:
            UserError: a malformed line, or one of another student, named by file, line and field.
        """
        return in_time_order(self._scan(student_id)[0])

    def append(self, interactions: Iterable[Interaction]) -> int:
        """Add interactions to their students' logs; the number of those that were not there yet.

        When it returns, they are on the disk. A log is never rewritten; only a torn last line is cut off.

        Raises:
            UserError: a malformed log, a lock held for too long, or a write that fails.
        """
        by_student: dict[str, list[Interaction]] = {}
        for interaction in interactions:
            by_student.setdefault(interaction.student_id, []).append(interaction)
        return sum(self._append_to(student_id, new) for student_id, new in sorted(by_student.items()))

    def _path(self, student_id: str) -> Path:
        try:
            return self.folder / f"{check_id(student_id)}.jsonl"
        except ValueError as error:
            raise UserError(f"student id {student_id!r}: {error}") from error

    def _append_to(self, student_id: str, interactions: list[Interaction]) -> int:
        path = self._path(student_id)
        busy = f"{path}: another process has held its lock for {LOCK_TIMEOUT_S:g} s"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = lock_file(path.with_name(f".{path.name}.lock"), busy, LOCK_TIMEOUT_S)
            try:
                logged, whole_bytes, unfinished = self._scan(student_id)
                there = set(logged)
                new = [item for item in dict.fromkeys(interactions) if item not in there]
                if new:
                    lines = [json.dumps(item.content, ensure_ascii=False) + "\n" for item in new]
                    _write_at(path, whole_bytes, ("\n" * unfinished + "".join(lines)).encode())
            finally:
                lock.release()
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}", EXIT_UNEXPECTED) from error
        return len(new)

    def _scan(self, student_id: str) -> tuple[list[Interaction], int, bool]:
        """Interactions in file order, the bytes to keep, whether those lack their last line break."""
        path = self._path(student_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return [], 0, False
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror}") from error

        tail = content[content.rfind(b"\n") + 1 :]
        if tail and not _is_json(tail):
            warnings.warn(f"{path}: torn last line dropped ({len(tail)} bytes)", stacklevel=3)
            content = content[: -len(tail)]

        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
        lines = enumerate(text.split("\n"), start=1)
        found = [_from_line(line, f"{path}: line {n}", student_id) for n, line in lines if line.strip()]
        return found, len(content), bool(content) and not content.endswith(b"\n")


def _is_json(tail: bytes) -> bool:
    """Whether a last line without line break is complete (no proper prefix of a JSON object is JSON)."""
    try:
        json.loads(tail.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _from_line(line: str, place: str, student_id: str) -> Interaction:
    try:
        interaction = Interaction.model_validate(parse_json(line, place))
    except ValidationError as error:
        raise UserError(f"{place}: {describe_error(error)}") from error
    if interaction.student_id != student_id:
        raise UserError(
            f"{place}: student_id: expected {student_id!r} as the file's name, got {interaction.student_id!r}"
        )
    return interaction


def _write_at(path: Path, offset: int, content: bytes) -> None:
    """Write at an offset, cut what follows, and return when file and folder entry are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
