"""Students: who they are (`Profile`), what happened to them (`Interaction`), and how it reads in a prompt.

Their files are `student_files.py`'s. What follows from interactions (mastery, recurring errors) is
`mastery.py`'s.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cot.utils.errors import UserError
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.files import LONE_SURROGATE

END = "end"  # the moment after all that a log holds
# ASCII only, so that no two ids look alike, and no separator, so that an id can name a file.
STUDENT_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}Z")
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
    try:
        return datetime.fromisoformat(value)  # a tenth of what strptime takes
    except ValueError as error:
        raise ValueError(f"{error}: {value!r}") from error


def check_as_of(text: str) -> str:
    """A time, or `end`, for argparse's `type`."""
    try:
        return text if text == END else _checked_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {END}") from error


def _checked_time(value: str) -> str:
    parse_time(value)
    return value


def check_id(value: str) -> str:
    """A student's id, as it is.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not STUDENT_ID.fullmatch(value):
        raise ValueError("expected 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot")
    return value


def _checked_style(value: str) -> str:
    if value not in EXPLANATION_STYLES:
        raise ValueError(f"expected one of {', '.join(EXPLANATION_STYLES)}, got {value!r}")
    return value


def _without_surrogates(value: object) -> object:
    return LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


StudentId = Annotated[str, AfterValidator(check_id)]
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
