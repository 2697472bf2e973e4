"""The answers of a folder's students as arrays: what a model of mastery is fitted on and judged by."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cot.utils.errors import UserError
from cot.utils.progress import Progress
from cot.utils.student_files import MemoryLog

FOLDS = 5


@dataclass(frozen=True)
class Responses:
    """One row an answer, student by student and each student's in time order; N answers.

    Attributes:
        student: (N,) int64, the number of each answer's student, ascending from 0 without gaps.
        skill: (N,) int64, a place in `skills`.
        correct: (N,) bool.
        skills: names, in alphabetical order.
    """

    student: np.ndarray
    skill: np.ndarray
    correct: np.ndarray
    skills: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.student)

    @property
    def students(self) -> int:
        """How many there are."""
        return int(self.student[-1]) + 1 if len(self) else 0

    @property
    def fingerprint(self) -> str:
        """20 hexadecimal digits over all answers, whatever the students are called."""
        digest = hashlib.sha256("\n".join(self.skills).encode())
        for values in (self.student, self.skill, self.correct):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:20]

    def of(self, chosen: np.ndarray) -> "Responses":
        """The answers of some students.

        Args:
            chosen: (students,) bool.
        """
        there = chosen[self.student]
        numbers = np.cumsum(chosen) - 1
        return Responses(
            numbers[self.student[there]], self.skill[there], self.correct[there], skills=self.skills
        )

    def places(self) -> np.ndarray:
        """(N,) int64: how many answers of the same student came before each."""
        firsts = np.searchsorted(self.student, np.arange(self.students))
        return np.arange(len(self)) - firsts[self.student]

    def counts_in_skill(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) float64 each: answers of the same student in the same skill before each, and right ones."""
        chains = Chains(self)
        return chains.count_before(np.ones(len(self))), chains.count_before(self.correct.astype(float))


class Chains:
    """Each student's answers in one skill, side by side, so that a step is one array operation.

    Responses are laid out step by step: first the first answer of every chain, then the second of those that
    have one, and so on. The longest chain comes first, so that a step's chains are the first ones of the step
    before.

    Attributes:
        order: (N,) int64, the answer at each place of the layout.
        skill, correct: (N,) of the answers, in the layout.
        steps: for each step its first place and its number of chains.
    """

    def __init__(self, responses: Responses) -> None:
        chain = responses.student * len(responses.skills) + responses.skill
        by_chain = np.argsort(chain, kind="stable")
        _, firsts, lengths = np.unique(chain[by_chain], return_index=True, return_counts=True)
        longest_first = np.argsort(-lengths, kind="stable")
        firsts, lengths = firsts[longest_first], lengths[longest_first]

        self.steps: list[tuple[int, int]] = []
        order, begin = [], 0
        for step in range(lengths[0] if len(lengths) else 0):
            active = int(np.searchsorted(-lengths, -step))  # chains longer than `step`
            order.append(by_chain[firsts[:active] + step])
            self.steps.append((begin, active))
            begin += active
        self.order = np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
        self.skill, self.correct = responses.skill[self.order], responses.correct[self.order]

    def back(self, values: np.ndarray) -> np.ndarray:
        """(N,) values of the layout, in the order of the answers."""
        result = np.empty_like(values)
        result[self.order] = values
        return result

    def count_before(self, values: np.ndarray) -> np.ndarray:
        """(N,) sums over a chain's earlier answers, in the order of the answers."""
        values, sums = values[self.order], np.zeros(len(values))
        for (begin, _), (next_begin, active) in zip(self.steps, self.steps[1:], strict=False):
            now, after = slice(begin, begin + active), slice(next_begin, next_begin + active)
            sums[after] = sums[now] + values[now]
        return self.back(sums)


def read_responses(folder: Path, flag: str) -> Responses:
    """All answers that the logs of a folder's students hold, students in alphabetical order.

    Args:
        flag: that named the folder, for messages.

    Raises:
        UserError: no log there, or a malformed one.
    """
    log = MemoryLog(Path(folder) / "memory")
    names = log.students()
    if not names:
        raise UserError(
            f"{flag} {folder}: no memory/<student_id>.jsonl there; rl/import_students.py writes some"
        )

    numbers: dict[str, int] = {}
    student, skill, correct = [], [], []
    progress = Progress(len(names), done=0, max_new_tokens=0)
    for number, name in enumerate(names):
        for item in log.read(name):
            student.append(number)
            skill.append(numbers.setdefault(item.skill, len(numbers)))
            correct.append(item.correct)
        progress.update(1, f"{len(correct)} answers")
    progress.close()
    if not correct:
        raise UserError(f"{flag} {folder}: no answer in its logs")

    found = sorted(numbers)
    place = np.empty(len(found), dtype=np.int64)
    place[[numbers[name] for name in found]] = np.arange(len(found))
    _, without_gaps = np.unique(student, return_inverse=True)  # a student whose log is empty has no number
    return Responses(
        student=without_gaps.astype(np.int64),
        skill=place[skill],
        correct=np.array(correct, dtype=bool),
        skills=tuple(found),
    )


def use_skills(responses: Responses, skills: Sequence[str]) -> Responses:
    """The same answers, with skills numbered as elsewhere; skills that are not there come behind."""
    names = (*skills, *(name for name in responses.skills if name not in set(skills)))
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([place[name] for name in responses.skills], dtype=np.int64)
    return Responses(responses.student, numbers[responses.skill], responses.correct, names)


def draw_folds(students: int, seed: int) -> np.ndarray:
    """(students,) the fold of each, 0 to `FOLDS` - 1, as equal in size as can be."""
    return np.random.default_rng(seed).permutation(students) % FOLDS
