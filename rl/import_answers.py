"""Logs of answers, in pyKT's and ASSISTments' columns, read row by row into what students did.

A reader yields batches: a student, as the data calls it, and some of its answers in order. It adds nothing:
what the data does not say is null, and of what is left out it counts the reason. A row that does not fit its
format is an error that names file, line and field.
"""

import csv
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cot.utils.errors import UserError

MAX_FIELD = 1 << 27  # characters of a CSV field: pyKT keeps all answers of a student in one
NO_SKILL = {"", "NA", "nan", "NaN"}
GRADE_UNKNOWN = "grade unknown"
# Reasons for leaving a row out.
PADDING, WITHOUT_SKILL, PARTLY_RIGHT = "padding (-1)", "no skill", "partly right"
JOINED = "another skill of an answer that is there (joined)"
AGAIN = "an answer that is there already"


def nothing_known() -> dict:
    """The profile of a student of whom the data says nothing."""
    return {"grade_level": GRADE_UNKNOWN, "strengths": [], "challenges": []}


@dataclass(frozen=True)
class Batch:
    """Some answers of one student, later than those of its earlier batches.

    Attributes:
        name: of the student in the data.
        answers: fields of an `Interaction` but `student_id`; `time` is a `datetime` where the data has one.
        place: file and line, for messages.
        profile: fields of a `Profile` but `student_id`.
    """

    name: str
    answers: list[dict]
    place: str
    profile: dict = field(default_factory=nothing_known)


Seen = Callable[[int], None]  # told how many further rows were read


# --- pyKT: a row of comma-separated answers for each student ----------------------------------------------


def read_pykt(paths: Sequence[Path], encoding: str, left_out: Counter, seen: Seen) -> Iterator[Batch]:
    """pyKT's preprocessed files: `uid, concepts, responses`; if they are there, `timestamps, is_repeat`, too.

    An answer in several skills is one: pyKT joins them as `12_13`, or repeats the answer and marks it in
    `is_repeat`. `timestamps` are milliseconds since 1970.
    """
    for path in paths:
        for line, row in _csv_rows(path, encoding, ("uid", "concepts", "responses")):
            place = f"{path}: line {line}"
            if not (name := row["uid"].strip()):
                raise UserError(f"{place}: uid: empty")
            seen(1)
            yield Batch(name, _split_row(row, place, left_out), place)


def _split_row(row: Mapping[str, str], place: str, left_out: Counter) -> list[dict]:
    concepts, responses = row["concepts"].split(","), row["responses"].split(",")
    repeats = _same_length("is_repeat", row, len(concepts), place)
    times = _same_length("timestamps", row, len(concepts), place)
    if len(responses) != len(concepts):
        raise UserError(f"{place}: responses: expected {len(concepts)} as in concepts, got {len(responses)}")

    answers: list[dict] = []
    for index, (concept, response) in enumerate(zip(concepts, responses, strict=True)):
        concept, response = concept.strip(), response.strip()
        if concept == response == "-1":
            left_out[PADDING] += 1
            continue
        if response not in ("0", "1") or concept == "-1":
            got = f"{response!r} in concept {concept!r}"
            raise UserError(
                f"{place}: responses: item {index + 1}: expected 0 or 1, or -1 in both; got {got}"
            )
        if concept in NO_SKILL:
            left_out[WITHOUT_SKILL] += 1
            continue

        correct = response == "1"
        if repeats and repeats[index].strip() == "1":
            if not answers or answers[-1]["correct"] != correct:
                raise UserError(f"{place}: is_repeat: item {index + 1}: it repeats no answer of that outcome")
            answers[-1]["skill"] += f"_{concept}"
            left_out[JOINED] += 1
            continue
        answer = {"skill": concept, "correct": correct}
        if times:
            answer["time"] = _from_milliseconds(
                times[index].strip(), f"{place}: timestamps: item {index + 1}"
            )
        answers.append(answer)
    return answers


def _same_length(column: str, row: Mapping[str, str], count: int, place: str) -> list[str] | None:
    """The items of an optional column; None where it is absent or says NA."""
    value = row.get(column, "NA").strip()
    if value in NO_SKILL:
        return None
    items = value.split(",")
    if len(items) != count:
        raise UserError(f"{place}: {column}: expected {count} as in concepts, got {len(items)}")
    return items


def _from_milliseconds(text: str, place: str) -> datetime:
    try:
        moment = datetime.fromtimestamp(int(text) // 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"{place}: expected milliseconds since 1970, got {text!r}") from error
    if not 1990 <= moment.year < 2100:
        raise UserError(f"{place}: expected milliseconds since 1970, got {text!r}, the year {moment.year}")
    return moment


# --- ASSISTments: a row for each answer, or for each skill of an answer -----------------------------------


def read_assistments(paths: Sequence[Path], encoding: str, left_out: Counter, seen: Seen) -> Iterator[Batch]:
    """The skill builder files: `user_id, order_id, correct`, and `skill_name` or `skill_id`.

    Rows of one student and `order_id` are one answer in several skills: the file repeats it for each. A
    student's rows lie anywhere in the file, so all are read before the first batch, 25 bytes a row.
    """
    users: dict[str, int] = {}
    skills: dict[str, int] = {}
    columns = {"user": array("q"), "order": array("q"), "skill": array("q"), "line": array("q")}
    correct, file_of = array("b"), array("b")
    for number, path in enumerate(paths):
        for line, row in _csv_rows(path, encoding, ("user_id", "order_id", "correct")):
            seen(1)
            place = f"{path}: line {line}"
            skill = _named_skill(row, place)
            outcome = _outcome(row["correct"].strip(), place)
            user = row["user_id"].strip()
            if not user:
                raise UserError(f"{place}: user_id: empty")
            try:
                order = int(row["order_id"])
            except ValueError as error:
                raise UserError(
                    f"{place}: order_id: expected a whole number, got {row['order_id']!r}"
                ) from error
            if skill in NO_SKILL or outcome is None:
                left_out[WITHOUT_SKILL if skill in NO_SKILL else PARTLY_RIGHT] += 1
                continue
            columns["user"].append(users.setdefault(user, len(users)))
            columns["order"].append(order)
            columns["skill"].append(skills.setdefault(skill, len(skills)))
            columns["line"].append(line)
            correct.append(outcome)
            file_of.append(number)

    # by student in the order of first appearance, then by order_id
    by_time = np.lexsort((np.asarray(columns["order"]), np.asarray(columns["user"]))).tolist()
    names, skill_names = list(users), list(skills)
    answers: list[dict] = []
    asked: list[set[int]] = []
    current, last_order = None, None
    for row_number in by_time:
        user, order = columns["user"][row_number], columns["order"][row_number]
        skill_number, is_right = columns["skill"][row_number], bool(correct[row_number])
        if user != current:
            if answers:
                yield _assistments_batch(names[current], answers, asked, skill_names, paths)
            answers, asked, current, last_order = [], [], user, None
        if order != last_order:
            answers.append({"skill": "", "correct": is_right})
            asked.append({skill_number})
            last_order = order
            continue
        if answers[-1]["correct"] != is_right:
            place = f"{paths[file_of[row_number]]}: line {columns['line'][row_number]}"
            raise UserError(
                f"{place}: correct: another row of order_id {order} and this student says otherwise"
            )
        left_out[AGAIN if skill_number in asked[-1] else JOINED] += 1
        asked[-1].add(skill_number)
    if answers:
        yield _assistments_batch(names[current], answers, asked, skill_names, paths)


def _assistments_batch(
    name: str, answers: list[dict], asked: list[set[int]], skill_names: list[str], paths: Sequence[Path]
) -> Batch:
    for answer, numbers in zip(answers, asked, strict=True):
        answer["skill"] = " + ".join(sorted(skill_names[number] for number in numbers))
    return Batch(name, answers, f"{paths[0]}: user_id {name}")


def _named_skill(row: Mapping[str, str], place: str) -> str:
    if "skill_name" not in row and "skill_id" not in row:
        raise UserError(f"{place}: no column skill_name or skill_id")
    name = row.get("skill_name", "").strip()
    return row.get("skill_id", "").strip() if name in NO_SKILL else name


def _outcome(text: str, place: str) -> bool | None:
    """Right or wrong; None for a part of the credit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"{place}: correct: expected 0 to 1, got {text!r}")
    return bool(value) if value in (0, 1) else None


# --- CSV --------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, encoding: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number (of its last line) and fields by column of each row.

    Raises:
        UserError: a file cannot be read, lacks a column or has it twice, or a row is of another length.
    """
    csv.field_size_limit(MAX_FIELD)
    line = 1
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            for column in columns:
                if header.count(column) != 1:
                    got = ", ".join(header) or "none"
                    raise UserError(f"{path}: line 1: expected one column {column}, got {got}")
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    how = "more" if None in row else "fewer"
                    raise UserError(f"{path}: line {line}: {how} than the header's {len(header)} fields")
                yield line, row
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {line + 1}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: behind line {line}: not {encoding}; name another --encoding") from error
