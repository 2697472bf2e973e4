"""Tutoring dialogues, MathDial's and Bridge's: the student's mistake, and what a tutor said to it.

They are read as `import_answers.py` says. What a tutor said is kept apart from what the student did.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.files import parse_json, text_field
from cot.utils.mathdial import Dialogue, parse_dialogue
from rl.import_answers import GRADE_UNKNOWN, Batch, Seen

# Reasons for leaving a row out.
NO_ERROR, SECOND_READING = "none of the six errors", "another reading of a moment that is there"

MATHDIAL_SKILL = "multi-step word problems"
BRIDGE_ERRORS = {"guess", "misinterpret", "careless", "right-idea", "imprecise", "diagnose"}
ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


def read_mathdial(paths: Sequence[Path], encoding: str, left_out: Counter, seen: Seen) -> Iterator[Batch]:
    """MathDial's dialogues: each one wrong solution of a student, with the teacher's view and words.

    Its students are played by a language model after a description. Equal descriptions are one student.
    """
    found: dict[str, list[dict]] = {}
    described: dict[str, Dialogue] = {}
    for path in paths:
        for line, record in _json_lines(path, encoding):
            dialogue = parse_dialogue(record, f"{path}: line {line}")
            split, teacher = dialogue.gsm8k_split, dialogue.teacher_turns
            answer = {
                "chapter": f"gsm8k {split}" if split else None,
                "skill": MATHDIAL_SKILL,
                "question": dialogue.question,
                "correct": False,
                "error_type": dialogue.confusion,
                "student_answer": dialogue.student_solution,
                "tutor_said": dialogue.teacher_said or None,
                "tutor_strategy": ", ".join(dict.fromkeys(turn.act for turn in teacher)) or None,
            }
            found.setdefault(dialogue.profile, []).append(answer)
            described.setdefault(dialogue.profile, dialogue)
            seen(1)

    for profile, answers in found.items():
        student = described[profile]
        name = f"mathdial_{hashlib.sha256(profile.encode()).hexdigest()[:10]}"
        who = {"grade_level": student.grade_level, "strengths": [], "challenges": [student.trait]}
        yield Batch(name, answers, f"{paths[0]}: {name}", who)


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
            chat, _, message = text_field(record, "c_id", place).rpartition("_")
            if not chat or not message.isdecimal():
                raise UserError(f"{place}: c_id: expected CHAT_MESSAGE, got {record['c_id']!r}")
            error, topic = text_field(record, "e", place), text_field(record, "lesson_topic", place)
            answer = {
                "skill": topic,
                **_read_chat(record, place),
                "correct": False,
                "error_type": error,
                "tutor_said": " ".join(text for user, text in _messages(record, "c_r", place)) or None,
                "tutor_strategy": " ".join(text_field(record, "z_what", place).split()),
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
    found = [(message["user"], text_field(message, "text", where, may_be_empty=True)) for message in messages]
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
    record = parse_json(text, place)
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def _json_list(path: Path, encoding: str) -> list[dict]:
    try:
        text = path.read_text(encoding=encoding)
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {encoding}; name another --encoding") from error
    records = parse_json(text, str(path))
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: expected a JSON list of objects")
    return records
