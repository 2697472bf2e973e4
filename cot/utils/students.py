"""Students: who they are (a profile each) and what happened to them (a log each, append-only).

A profile is one file, `profiles/<student_id>.json`, whose schema is `Profile`. A log is one file,
`profiles/memory/<student_id>.jsonl`, with one `Interaction` a line, that student's and nobody else's. What
follows from a log (mastery, recurring errors) is `mastery.py`'s; nothing that can be recomputed is stored.
"""

import argparse
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.files import lock_file, read_json

END = "end"  # the moment after all that a log holds
# ASCII only, so that no two ids look alike, and no separator, so that an id can name a file.
STUDENT_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
LOCK_TIMEOUT_S = 60.0
TRUTH = "truth.json"  # beside the profiles of simulated students
STYLE_IN_WORDS = {
    "numbered_steps": "numbered steps, a line for each: 1., 2., 3.",
    "short_sentences": "short sentences of at most 12 words",
    "guiding_questions": "guiding questions, each followed by its answer",
    "equations_first": "every line begins with its equation",
    "check_at_end": "a last line 'Check:' with another equation that confirms the answer",
}
HINT_IN_WORDS = {True: "a hint first", False: "no hint"}
SupportLevel = Literal["worked_out", "guided", "brief"]  # the most support first
SUPPORT_LEVELS: tuple[SupportLevel, ...] = get_args(SupportLevel)
# Fields of an interaction that its line leaves out where they are null, so that older lines stay as they are.
NOTED_OR_ABSENT = ("manner", "student_answer", "tutor_said", "tutor_strategy", "tutor_correct")


def parse_time(value: str) -> datetime:
    """A moment in UTC. Its text has one form only, so that texts sort as moments do.

    Raises:
        ValueError: the text has another form, or names no moment.

    >>> parse_time("2026-01-05T09:00:00Z").isoformat()
    '2026-01-05T09:00:00+00:00'
    """
    if not TIME.fullmatch(value):
        raise ValueError(f"expected a UTC time such as 2026-01-05T09:00:00Z, got {value!r}")
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S%z")


def check_as_of(text: str) -> str:
    """A time, or `end`, for argparse's `type`."""
    try:
        return text if text == END else _checked_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {END}") from error


def _checked_time(value: str) -> str:
    parse_time(value)
    return value


def _checked_id(value: str) -> str:
    if not isinstance(value, str) or not STUDENT_ID.fullmatch(value):
        raise ValueError("expected 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot")
    return value


def _checked_style(value: str) -> str:
    if value not in EXPLANATION_STYLES:
        raise ValueError(f"expected one of {', '.join(EXPLANATION_STYLES)}, got {value!r}")
    return value


def _without_surrogates(value: object) -> object:
    return LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


StudentId = Annotated[str, AfterValidator(_checked_id)]
Phrase = Annotated[str, Field(min_length=1, max_length=200)]
# A lone surrogate can be in no UTF-8 file, and makes jq fail where it is escaped.
Text = Annotated[str, BeforeValidator(_without_surrogates), Field(min_length=1)]


class Profile(BaseModel):
    """A student as a teacher would describe one. Unknown fields and loose types are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    student_id: StudentId
    grade_level: Phrase
    strengths: list[Phrase]
    challenges: list[Phrase]
    learning_preferences: list[Phrase] = []
    explanation_style: Annotated[str, AfterValidator(_checked_style)] | None = None
    notes: Annotated[str, Field(max_length=2000)] = ""


class Manner(BaseModel):
    """How an explanation was made: its style, whether a hint came first, and how much support it gave."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    style: Annotated[str, AfterValidator(_checked_style)] | None = None
    hint: bool | None = None
    support: SupportLevel | None = None


class Interaction(BaseModel):
    """One exercise that a student worked on. Unknown fields and loose types are refused.

    `error_type` is what went wrong, `what_helped` the explanation after which the student understood,
    `manner` how the explanation was made that came before the answer. `chapter` and `question` are null
    where a log of real students has none. `correct` and `student_answer` are the student's; what a tutor,
    a person or a model, said and whether that was right is `tutor_…`, and mastery never reads it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    student_id: StudentId
    time: Annotated[str, AfterValidator(_checked_time)]
    chapter: Text | None
    skill: Text
    question: Text | None
    correct: bool
    error_type: Text | None = None
    what_helped: Text | None = None
    manner: Manner | None = None
    student_answer: Text | None = None
    tutor_said: Text | None = None
    tutor_strategy: Text | None = None
    tutor_correct: bool | None = None

    @property
    def content(self) -> dict:
        """All fields, as a log's line holds them; those of `NOTED_OR_ABSENT` where they were noted."""
        absent = {name for name in NOTED_OR_ABSENT if getattr(self, name) is None}
        return self.model_dump(exclude=absent)

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the content's SHA-256: equal interactions have equal ids."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def describe_error(error: ValidationError) -> str:
    """The first finding of pydantic as `field: what was expected, what came`."""
    finding = error.errors()[0]
    field = ".".join(str(part) for part in finding["loc"]) or "record"
    expected = {
        "list_type": "expected a list of strings",
        "string_type": "expected a string",
        "bool_type": "expected true or false",
        "missing": "missing",
        "extra_forbidden": "unknown field",
    }.get(finding["type"])
    if expected is None:
        return f"{field}: {finding['msg'].removeprefix('Value error, ')}"
    got = "" if expected in ("missing", "unknown field") else f", got {type(finding['input']).__name__}"
    return f"{field}: {expected}{got}"


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


def render_profile(profile: Profile) -> list[str]:
    """The profile as short lines for a prompt, most important first; the student's id, never a name."""
    who = f"Student {profile.student_id}, {profile.grade_level}."
    return [who, *render_wishes(profile), *render_traits(profile)]


def render_wishes(profile: Profile) -> list[str]:
    """What the student says it prefers, as lines for a prompt; none where nobody has said."""
    style, preferences = profile.explanation_style, profile.learning_preferences
    lines = [f"Explanation style: {STYLE_IN_WORDS[style]}."] if style else []
    return lines + ([f"Prefers: {'; '.join(preferences)}."] if preferences else [])


def render_traits(profile: Profile) -> list[str]:
    """Challenges, strengths and notes as lines for a prompt, most important first."""
    lines = []
    for label, entries in (("Challenges", profile.challenges), ("Strengths", profile.strengths)):
        lines += [f"{label}: {'; '.join(entries)}."] if entries else []
    return lines + ([profile.notes] if profile.notes else [])


def in_time_order(interactions: Iterable[Interaction], as_of: str = END) -> list[Interaction]:
    """Each interaction once, by time and then as given; with a time as `as_of` only strictly earlier ones.

    Raises:
        UserError: `as_of` is neither a time nor `end`.
    """
    distinct = list(dict.fromkeys(interactions))
    if as_of != END:
        try:
            parse_time(as_of)
        except ValueError as error:
            raise UserError(f"as_of: {error}") from error
        distinct = [item for item in distinct if item.time < as_of]
    return sorted(distinct, key=lambda item: item.time)


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
            return self.folder / f"{_checked_id(student_id)}.jsonl"
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
        interaction = Interaction.model_validate(json.loads(line))
    except ValidationError as error:
        raise UserError(f"{place}: {describe_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error
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
