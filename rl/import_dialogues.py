"""Tutoring dialogues, MathDial's and Bridge's: the student's mistake, and what a tutor said to it.

They are read as `import_answers.py` says. What a tutor said is kept apart from what the student did.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cot.utils.errors import UserError
from rl.import_answers import GRADE_UNKNOWN, Batch, Seen

# Reasons for leaving a row out.
NO_ERROR, SECOND_READING = "none of the six errors", "another reading of a moment that is there"

MATHDIAL_SKILL = "multi-step word problems"
MATHDIAL_PROFILE = re.compile(
    r"\w+ is an? (?P<grade>[0-9]+(?:st|nd|rd|th) grade) student\. (?P<trait>.+)", re.DOTALL
)
MATHDIAL_TEACHER = re.compile(r"Teacher: \((?P<act>\w+)\)(?P<said>.*)", re.DOTALL)
GSM8K_SPLITS = {"5": "gsm8k train", "6": "gsm8k test"}  # by the first digit of MathDial's qid
BRIDGE_ERRORS = {"guess", "misinterpret", "careless", "right-idea", "imprecise", "diagnose"}
ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


def read_mathdial(paths: Sequence[Path], encoding: str, left_out: Counter, seen: Seen) -> Iterator[Batch]:
    """MathDial's dialogues: each one wrong solution of a student, with the teacher's view and words.

    Its students are played by a language model after a description. Equal descriptions are one student.
    """
    found: dict[str, list[dict]] = {}
    for path in paths:
        for line, record in _json_lines(path, encoding):
            place = f"{path}: line {line}"
            teacher = _teacher_turns(_text(record, "conversation", place), place)
            confusion = _text(record, "teacher_described_confusion", place, may_be_null=True)
            answer = {
                "chapter": GSM8K_SPLITS.get(str(record.get("qid"))[:1]),
                "skill": MATHDIAL_SKILL,
                "question": _text(record, "question", place),
                "correct": False,
                "error_type": " ".join(confusion.split()) if confusion else None,
                "student_answer": _text(record, "student_incorrect_solution", place),
                "tutor_said": "\n".join(turn["said"].strip() for turn in teacher) or None,
                "tutor_strategy": ", ".join(dict.fromkeys(turn["act"] for turn in teacher)) or None,
            }
            profile = _text(record, "student_profile", place)
            if not MATHDIAL_PROFILE.fullmatch(profile):
                raise UserError(f"{place}: student_profile: expected 'NAME is a 7th grade student. …'")
            found.setdefault(profile, []).append(answer)
            seen(1)

    for profile, answers in found.items():
        described = MATHDIAL_PROFILE.fullmatch(profile)
        name = f"mathdial_{hashlib.sha256(profile.encode()).hexdigest()[:10]}"
        who = {"grade_level": described["grade"], "strengths": [], "challenges": [described["trait"].strip()]}
        yield Batch(name, answers, f"{paths[0]}: {name}", who)


def _teacher_turns(conversation: str, place: str) -> list[dict]:
    turns = [turn for turn in conversation.split("|EOM|") if turn.startswith("Teacher:")]
    found = [MATHDIAL_TEACHER.fullmatch(turn) for turn in turns]
    if not all(found):
        raise UserError(f"{place}: conversation: expected a teacher's turn as 'Teacher: (act)…'")
    return [turn.groupdict() for turn in found]


def read_bridge(paths: Sequence[Path], encoding: str, left_out: Counter, seen: Seen) -> Iterator[Batch]:
    """Bridge's moments of chats with tutors: each one mistake, its kind, and how an expert would remedy it.

    A chat is a student. Two experts read many moments: the first reading that names one of the six errors
    counts.
    """
    chats: dict[str, dict[int, dict]] = {}
    topics: dict[str, str] = {}
    for path in paths:
        for number, record in enumerate(_json_list(path, encoding), start=1):
            place = f"{path}: record {number}"
            chat, _, message = _text(record, "c_id", place).rpartition("_")
            if not chat or not message.isdecimal():
                raise UserError(f"{place}: c_id: expected CHAT_MESSAGE, got {record['c_id']!r}")
            error, topic = _text(record, "e", place), _text(record, "lesson_topic", place)
            answer = {
                "skill": topic,
                **_read_chat(record, place),
                "correct": False,
                "error_type": error,
                "tutor_said": " ".join(text for user, text in _messages(record, "c_r", place)) or None,
                "tutor_strategy": " ".join(_text(record, "z_what", place).split()),
            }
            seen(1)
            if error not in BRIDGE_ERRORS:
                left_out[NO_ERROR] += 1
            elif int(message) in chats.get(chat, {}):
                left_out[SECOND_READING] += 1
            else:
                chats.setdefault(chat, {})[int(message)] = answer
                topics.setdefault(chat, topic)

    for chat, moments in chats.items():
        answers = [answer for _, answer in sorted(moments.items())]
        grade = re.match(r"([1-9])\.", topics[chat])
        level = GRADE_UNKNOWN
        if grade:
            level = f"{ORDINALS.get(int(grade[1]), f'{grade[1]}th')} grade lesson"
        who = {"grade_level": level, "strengths": [], "challenges": []}
        yield Batch(f"bridge_{chat}", answers, f"{paths[0]}: chat {chat}", who)


def _read_chat(record: Mapping, place: str) -> dict:
    """The tutor's last message before the student's last turn, and that turn; null where there is none."""
    history = _messages(record, "c_h", place)
    turn = len(history)
    while turn and history[turn - 1][0] == "student":
        turn -= 1
    said = " ".join(text for _, text in history[turn:])
    return {"question": history[turn - 1][1] if turn else None, "student_answer": said or None}


def _messages(record: Mapping, key: str, place: str) -> list[tuple[str, str]]:
    """User and text of a chat's messages, those without text left out."""
    messages = record.get(key)
    if not isinstance(messages, list):
        raise UserError(f"{place}: {key}: expected a list of messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("user") not in ("student", "tutor"):
            raise UserError(f"{place}: {key}: expected messages with user student or tutor")
    where = f"{place}: {key}"
    found = [(message["user"], _text(message, "text", where, may_be_empty=True)) for message in messages]
    return [(user, " ".join(text.split())) for user, text in found if text.strip()]


# --- JSON -------------------------------------------------------------------------------------------------


def count_records(path: Path, encoding: str) -> int:
    """How many moments a file of Bridge holds.

    Raises:
        UserError: the file cannot be read, or is no JSON list of objects.
    """
    return len(_json_list(path, encoding))


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict]]:
    try:
        with path.open(encoding=encoding) as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _record(text, f"{path}: line {line}")
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {encoding}; name another --encoding") from error


def _record(text: str, place: str) -> dict:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def _json_list(path: Path, encoding: str) -> list[dict]:
    try:
        records = json.loads(path.read_text(encoding=encoding))
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {encoding}; name another --encoding") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: expected a JSON list of objects")
    return records


def _text(
    record: Mapping, key: str, place: str, may_be_null: bool = False, may_be_empty: bool = False
) -> str | None:
    """A field that is a text.

    Raises:
        UserError: it is not there, no text, or empty.
    """
    value = record.get(key)
    if value is None and may_be_null:
        return None
    if not isinstance(value, str):
        got = type(value).__name__ if key in record else "nothing"
        raise UserError(f"{place}: {key}: expected a text, got {got}")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{place}: {key}: expected a text, got an empty one")
    return value
