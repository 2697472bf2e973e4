"""Follow simulated students through the textbook: which exercise is asked when, and what was known then.

In every chapter a student practises, meets an exercise of the test split, and then works on an exercise of
the train split with the same skill; only train exercises enter the memory. What is known at a moment is what
happened strictly before it. So nothing after t, and no exercise that is ever evaluated, can stand in a
prompt. What a student does depends on the simulated student alone, not on the explanation: every policy and
every memory arm meets the same moments, and no claim is made that students learn from the texts.

The one arm that looks elsewhere on purpose is `time_shuffled`: the student's own memory as of another moment
of the walk, earlier or later.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cot.utils.conditioning import Conditioner, StudentMemory, random_lines
from cot.utils.data import Question
from cot.utils.mastery import mastery_by_skill
from cot.utils.memory import Interaction
from cot.utils.profiles import Profile
from cot.utils.textbook import Chapter, Exercise, generate_exercise, generate_exercises
from rl.students import Student, student_grade

ARMS = ("own", "none", "shuffled", "random", "time_shuffled")


@dataclass(frozen=True)
class Moment:
    """A student who is about to get an explanation.

    Attributes:
        number: 0 for the student's first; the time axis of progress.
        as_of: only what happened strictly before is known; None for all of a log.
        gold_steps: calculations in the gold solution, at least 1.
        skills: that the exercise needs, the practised one first; empty outside the textbook.
        mastery: P(known) by skill before the exercise; skills never practised are absent.
    """

    student_id: str
    number: int
    question: Question
    as_of: str | None = None
    gold_steps: int = 1
    skills: tuple[str, ...] = ()
    mastery: Mapping[str, float] = field(default_factory=dict)


class WalkLog:
    """The interactions of a walk, kept in memory; read like a `memory.MemoryLog`."""

    def __init__(self, histories: Mapping[str, Sequence[Interaction]]) -> None:
        self.histories = histories

    def read(self, student_id: str, as_of: str | None = None) -> list[Interaction]:
        """One student's interactions in time order, with `as_of` only strictly earlier ones."""
        history = self.histories.get(student_id, ())
        return [item for item in history if as_of is None or item.time < as_of]


def walk_textbook(
    profiles: Mapping[str, Profile],
    chapters: Sequence[Chapter],
    exercises_per_chapter: int,
    practice: int,
    seed: int,
) -> tuple[list[Moment], WalkLog]:
    """Each student's way through the chapters up to the grade above the own one.

    The evaluated exercises of a chapter are the same for all students, so that students cross with
    questions.

    Args:
        exercises_per_chapter: evaluated ones, of the test split.
        practice: train exercises that a student works on before each evaluated one.
        seed: of exercises and students.
    """
    evaluated = {
        chapter.id: generate_exercises(chapter, "test", exercises_per_chapter, seed) for chapter in chapters
    }
    moments, histories = [], {}
    for name, profile in profiles.items():
        student, rng = Student(profile, chapters, seed), random.Random(f"walk {seed} {name}")
        history: list[Interaction] = []
        histories[name] = history
        number = 0
        for chapter in (chapter for chapter in chapters if chapter.grade <= student_grade(profile) + 1):
            for exercise in evaluated[chapter.id]:
                history += [student.answer(_draw(chapter, rng)) for _ in range(practice)]
                as_of = student.clock.strftime("%Y-%m-%dT%H:%M:%SZ")
                moments.append(_moment(name, number, exercise, as_of, history))
                history.append(student.answer(_draw(chapter, rng, exercise.skill)))
                number += 1
    return moments, WalkLog(histories)


def _draw(chapter: Chapter, rng: random.Random, skill: str | None = None) -> Exercise:
    """A train exercise, of a skill where the chapter has one."""
    train = [template for template in chapter.templates if template.split == "train"]
    fitting = [template for template in train if skill is None or template.skills[0] == skill]
    return generate_exercise(chapter, rng.choice(fitting or train), rng)


def _moment(name: str, number: int, exercise: Exercise, as_of: str, history: Sequence[Interaction]) -> Moment:
    question = Question(
        exercise.id, exercise.question, exercise.gold_solution, exercise.chapter, exercise.skill
    )
    mastery = mastery_by_skill(history, as_of=as_of)
    return Moment(name, number, question, as_of, exercise.steps, exercise.skills, mastery)


def cross_moments(profiles: Mapping[str, Profile], questions: Sequence[Question]) -> list[Moment]:
    """Every question for every student, with all that the log holds; for data sets without chapters."""
    return [
        Moment(student, number, question, gold_steps=max(1, question.gold_solution.count("<<")))
        for student in profiles
        for number, question in enumerate(questions)
    ]


def other_moments(moments: Sequence[Moment], seed: int) -> dict[tuple[str, int], str | None]:
    """For each (student, number) the `as_of` of another moment of the same student: all moved, none lost.

    A student with one moment only has no other: None.
    """
    found: dict[tuple[str, int], str | None] = {}
    for student in dict.fromkeys(moment.student_id for moment in moments):
        own = [moment for moment in moments if moment.student_id == student]
        rng, order = random.Random(f"time {seed} {student}"), list(range(len(own)))
        while len(own) > 1 and any(place == index for index, place in enumerate(order)):
            rng.shuffle(order)
        for moment, place in zip(own, order, strict=True):
            found[student, moment.number] = own[place].as_of if len(own) > 1 else None
    return found


class MemoryArms:
    """What is shown of a student, in each arm.

    Args:
        log: a `WalkLog` or a `memory.MemoryLog`.
        embedder: a `retrieval.Embedder`; None where `top_k` is 0.
        moments: all of the run; among them `time_shuffled` moves.
    """

    def __init__(
        self, profiles: Mapping[str, Profile], log, embedder, top_k: int, moments: Sequence[Moment], seed: int
    ) -> None:
        self._profiles, self._log, self._embedder, self._top_k = profiles, log, embedder, top_k
        self._seed, self._elsewhere = seed, other_moments(moments, seed)
        self._conditioner = functools.cache(self._make_conditioner)

    def _make_conditioner(self, student_id: str, as_of: str | None) -> Conditioner:
        one = {student_id: self._profiles[student_id]}
        return Conditioner(one, self._log, self._embedder, self._top_k, 0.2, as_of)

    def recall(self, moment: Moment, arm: str) -> tuple[StudentMemory | None, str | None]:
        """The memory that the arm shows, and as of when; None for `none` and `random`."""
        student, as_of = moment.student_id, moment.as_of
        if arm in ("none", "random"):
            return None, None
        if arm == "shuffled":
            rng = random.Random(f"donor {self._seed} {student} {moment.question.id}")
            student = rng.choice(sorted(set(self._profiles) - {student}))
        if arm == "time_shuffled":
            as_of = self._elsewhere[student, moment.number]
        return self._conditioner(student, as_of).recall(student, moment.question), as_of

    def filler(self, moment: Moment) -> list[str]:
        """The lines of the arm `random`, more than any memory holds."""
        return random_lines(self._seed, moment.question, moment.student_id)
