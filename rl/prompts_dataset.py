"""The prompts that a policy is trained on: a student at a time, an exercise, the memory as of that time.

Built once, from a seed: as many rows as training is going to see, in the order in which it sees them, so that
a run which resumes in the middle meets the same prompts as one that never stopped.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cot.utils.conditioning import Conditioner
from cot.utils.data import Question
from cot.utils.errors import UserError
from cot.utils.mastery import DEFAULT_PARAMETERS, mastery_by_skill
from cot.utils.memory import MemoryLog
from cot.utils.profiles import Profile
from cot.utils.prompts import Prompt, build_prompt, fit_lines
from cot.utils.textbook import Chapter, Exercise, generate_exercise, generate_exercises

MOMENT_EVERY = 4  # exercises between two moments at which a student's memory is taken
OTHER_STUDENTS = 3  # with whom `memory_margin` compares


@dataclass(frozen=True)
class Situation:
    """A student with an exercise, at a moment.

    Attributes:
        as_of: only what happened before is remembered; None for all.
        mastery: P(known) of the exercise's skill before it is worked on; None where no skill is known.
    """

    student_id: str
    question: Question
    as_of: str | None = None
    mastery: float | None = None


class Students:
    """The students' memories at any moment, in the form in which they stand in a prompt.

    Args:
        embedder: a `retrieval.Embedder`; None where `top_k` is 0.
    """

    def __init__(self, profiles: Mapping[str, Profile], log: MemoryLog, embedder, top_k: int) -> None:
        self.profiles, self.log = dict(profiles), log
        self._embedder, self._top_k = embedder, top_k
        self.histories = {student: log.read(student) for student in profiles}
        self.conditioner = functools.cache(self._conditioner)

    def _conditioner(self, as_of: str | None) -> Conditioner:
        return Conditioner(self.profiles, self.log, self._embedder, self._top_k, 0.2, as_of)

    def textbook_situations(
        self, chapters: Sequence[Chapter], split: str, count: int, seed: int, novel_phrasing: bool = False
    ) -> list[Situation]:
        """Students in turn, each at a random moment of the walk, with a new exercise of the current chapter.

        Raises:
            UserError: a student has worked on none of these chapters.
        """
        rng = random.Random(f"situations {seed} {split}")
        by_id = {chapter.id: chapter for chapter in chapters}
        moments = {
            student: [item for item in history[::MOMENT_EVERY] if item.chapter in by_id]
            for student, history in self.histories.items()
        }
        if empty := sorted(student for student, found in moments.items() if not found):
            raise UserError(
                f"--students {empty[0]}: its log has no exercise of {', '.join(by_id)};"
                " rl/students.py writes logs"
            )
        situations = []
        for number in range(count):
            student = list(moments)[number % len(moments)]
            moment = rng.choice(moments[student])
            chapter = by_id[moment.chapter]
            template = rng.choice([template for template in chapter.templates if template.split == split])
            exercise = generate_exercise(chapter, template, rng, novel_phrasing)
            situations.append(self._situation(student, exercise, moment.time))
        rng.shuffle(situations)
        return situations

    def held_out_situations(
        self,
        chapters: Sequence[Chapter],
        exercises_per_chapter: int,
        students_per_exercise: int,
        seed: int,
        novel_phrasing: bool = False,
    ) -> list[Situation]:
        """Exercises of the test split, each for some students, at a moment when they worked on the chapter.

        Raises:
            UserError: fewer than `students_per_exercise` students have worked on a chapter.
        """
        rng = random.Random(f"held out {seed}")
        situations = []
        for chapter in chapters:
            moments = {
                student: [item.time for item in history if item.chapter == chapter.id]
                for student, history in self.histories.items()
            }
            able = [student for student, times in moments.items() if times]
            if len(able) < students_per_exercise:
                raise UserError(
                    f"{chapter.id}: {len(able)} students have worked on it; rl/students.py writes logs"
                )
            for exercise in generate_exercises(chapter, "test", exercises_per_chapter, seed, novel_phrasing):
                for student in rng.sample(able, students_per_exercise):
                    situations.append(self._situation(student, exercise, rng.choice(moments[student])))
        return situations

    def _situation(self, student: str, exercise: Exercise, as_of: str) -> Situation:
        known = mastery_by_skill(self.histories[student], as_of=as_of)
        question = Question(
            exercise.id, exercise.question, exercise.gold_solution, exercise.chapter, exercise.skill
        )
        return Situation(student, question, as_of, known.get(exercise.skill, DEFAULT_PARAMETERS.p_init))

    def crossed_situations(self, questions: Sequence[Question], count: int, seed: int) -> list[Situation]:
        """Questions crossed with students, shuffled; begun again, in another order, when used up."""
        rng = random.Random(f"crossed {seed}")
        pairs: list[Situation] = []
        while len(pairs) < count:
            cells = [Situation(student, question) for question in questions for student in self.profiles]
            pairs += rng.sample(cells, len(cells))
        return pairs[:count]


def draw_arms(arm: str, mix: Sequence[float], count: int, seed: int) -> list[str]:
    """Which memory each prompt carries.

    Args:
        arm: `own` mixes own, none and shuffled by `mix`; `none` and `shuffled` are controls without mix.
        mix: shares of own, none and shuffled, summing to 1.
    """
    if arm != "own":
        return [arm] * count
    return random.Random(f"arms {seed}").choices(["own", "none", "shuffled"], mix, k=count)


def make_prompt(
    tokenizer,
    students: Students,
    situation: Situation,
    arm: str,
    instruction: str,
    memory_tokens: int,
    max_prompt_tokens: int | None,
    seed: int,
    shuffle_lines: bool = True,
) -> Prompt:
    """The prompt of a situation in one memory arm; the order of the memory's lines is shuffled.

    Lines are shuffled after the budget was applied, so that the most relevant ones stay whatever the order.
    """
    lines: list[str] = []
    if arm != "none":
        conditioner = students.conditioner(situation.as_of)
        student = situation.student_id
        if arm == "shuffled":
            student = conditioner.donor(student, situation.question, seed)
        recalled = conditioner.recall(student, situation.question).lines
        lines = fit_lines(tokenizer, recalled, memory_tokens)
        if shuffle_lines:
            random.Random(f"lines {seed} {situation.student_id} {situation.question.id}").shuffle(lines)
    question = situation.question.question
    return build_prompt(tokenizer, question, instruction, lines, (), memory_tokens, max_prompt_tokens)


def build_rows(
    tokenizer,
    students: Students,
    situations: Sequence[Situation],
    arms: Sequence[str],
    fit_arms: Sequence[str],
    seed: int,
    **prompt_options,
) -> tuple[list[dict], int]:
    """The data set's rows, and how many situations were dropped because the question itself is too long.

    Args:
        arms: one a situation.
        fit_arms: arms whose rows are rewarded for fit; in the others `profile` is None.
        prompt_options: `instruction`, `memory_tokens`, `max_prompt_tokens` of `make_prompt`.

    Raises:
        UserError: no prompt fits the budget.
    """
    profiles = {student: profile.model_dump_json() for student, profile in students.profiles.items()}
    rng = random.Random(f"others {seed}")
    rows, dropped = [], 0
    for situation, arm in zip(situations, arms, strict=True):
        prompt = make_prompt(tokenizer, students, situation, arm, seed=seed, **prompt_options)
        limit = prompt_options["max_prompt_tokens"]
        if limit is not None and len(prompt.ids) > limit:
            dropped += 1
            continue
        student, question = situation.student_id, situation.question
        others = sorted(set(profiles) - {student})
        others = rng.sample(others, min(OTHER_STUDENTS, len(others)))
        rows.append(
            {
                "prompt": prompt.text,
                "prompt_ids": list(prompt.ids),
                "question_id": question.id,
                "chapter": question.chapter,
                "gold_solution": question.gold_solution,
                "student_id": student,
                "memory_arm": arm,
                "memory": prompt.memory,
                "profile": profiles[student] if arm in fit_arms else None,
                "other_profiles": [profiles[other] for other in others],
                "mastery": situation.mastery,
                "steps": max(1, question.gold_solution.count("<<")),
            }
        )
    if not rows:
        raise UserError("--max_prompt_length: no question fits it; raise it or shorten --cot_prompt")
    return rows, dropped
