"""MathDial: tutoring dialogues of teachers about a wrong solution of a student, played by a language model.

A line of its files holds a problem of GSM8K with its solution, the student's description and wrong solution,
how the teacher describes the confusion, and the conversation, `Teacher: (act) …|EOM|Student: …`.

Source: Macina et al. 2023 (arXiv 2305.14536), CC BY-SA 4.0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.files import read_json_lines, text_field

PREFIX = "mathdial:"  # of --dataset, before the file's path
TEACHER, STUDENT = "Teacher", "Student"
GSM8K_SPLITS = {"5": "train", "6": "test"}  # by the first digit of a problem's id
_PROFILE = re.compile(r"\w+ is an? (?P<grade>[0-9]+(?:st|nd|rd|th) grade) student\. (?P<trait>.+)", re.DOTALL)
_TEACHER_TURN = re.compile(r"Teacher: \((?P<act>\w+)\)(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        user: `Teacher` or `Student`.
        act: of a teacher: `focus`, `probing`, `telling` or `generic`; None of a student.
    """

    user: str
    text: str
    act: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """One dialogue.

    Attributes:
        qid: of the problem; the dialogues of one problem share it. Empty where the record has none.
        ground_truth: the solution, whose last line is the answer; None where the record has none.
        profile: the student's description, with the name that the data gives it.
        grade_level, trait: what the description says, without the name.
        confusion: in the teacher's words; None where the teacher has described none.
    """

    qid: str
    question: str
    ground_truth: str | None
    profile: str
    grade_level: str
    trait: str
    student_solution: str
    confusion: str | None
    turns: tuple[Turn, ...]

    @property
    def gsm8k_split(self) -> str | None:
        """`train` or `test`: whether a model may have been trained on the problem."""
        return GSM8K_SPLITS.get(self.qid[:1])

    @property
    def question_id(self) -> str:
        """The problem's name, the same in every dialogue about it."""
        return f"mathdial-{self.qid}"

    @property
    def gold_solution(self) -> str:
        """The solution as GSM8K writes one, with `#### N` as its last line."""
        steps, _, answer = self.ground_truth.rstrip().rpartition("\n")
        return f"{steps.rstrip()}\n#### {answer.strip()}"

    @property
    def teacher_turns(self) -> list[Turn]:
        """What the teacher said."""
        return [turn for turn in self.turns if turn.user == TEACHER]

    @property
    def teacher_said(self) -> str:
        """All of it, a turn a line."""
        return "\n".join(turn.text for turn in self.teacher_turns)


def parse_dialogue(record: Mapping, place: str) -> Dialogue:
    """A record of MathDial's files: THE reader of that format.

    Raises:
        UserError: a field is absent, no text or of another form; begins with the place.
    """
    turns = _read_turns(text_field(record, "conversation", place), place)
    confusion = text_field(record, "teacher_described_confusion", place, may_be_null=True)
    question = text_field(record, "question", place)
    solution = text_field(record, "student_incorrect_solution", place)
    profile = text_field(record, "student_profile", place)
    described = _PROFILE.fullmatch(profile)
    if not described:
        raise UserError(f"{place}: student_profile: expected 'NAME is a 7th grade student. …'")
    return Dialogue(
        qid=str(record.get("qid", "")),
        question=question,
        ground_truth=text_field(record, "ground_truth", place, may_be_null=True),
        profile=profile,
        grade_level=described["grade"],
        trait=described["trait"].strip(),
        student_solution=solution,
        confusion=" ".join(confusion.split()) if confusion else None,
        turns=turns,
    )


def load_dialogues(dataset: str) -> list[Dialogue]:
    """The dialogues of `--dataset mathdial:FILE`, in the file's order.

    Raises:
        UserError: the file cannot be read, a record is malformed, or lacks its problem's id or solution.
    """
    path, found = Path(dataset.removeprefix(PREFIX)), []
    for line, record in read_json_lines(path):
        place = f"{path}: line {line}"
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
        dialogue = parse_dialogue(record, place)
        for field, value in (("qid", dialogue.qid), ("ground_truth", dialogue.ground_truth)):
            if not value:
                raise UserError(f"{place}: {field}: missing; a question needs it")
        found.append(dialogue)
    return found


def _read_turns(conversation: str, place: str) -> tuple[Turn, ...]:
    turns = []
    for text in conversation.split("|EOM|"):
        if not text.startswith(f"{TEACHER}:"):
            turns.append(Turn(STUDENT, text.removeprefix(f"{STUDENT}:").strip()))
        elif found := _TEACHER_TURN.fullmatch(text):
            turns.append(Turn(TEACHER, found["text"].strip(), found["act"]))
        else:
            raise UserError(f"{place}: conversation: expected a teacher's turn as 'Teacher: (act)…'")
    return tuple(turns)
