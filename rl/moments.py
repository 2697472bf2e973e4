"""Who meets what, when: the moments of training, of the experiment and of the evaluation, all from a seed.

A moment is a student about to get an explanation of an exercise, with what had happened strictly before. So
nothing after it, and no exercise that is ever evaluated, can stand in its prompt. What a student does depends
on the student alone, not on the explanation: every policy and every memory arm meets the same moments, and no
claim is made that students learn from the texts.
"""

import argparse
import hashlib
import random
from collections.abc import Mapping, Sequence

from cot.utils.errors import UserError
from cot.utils.files import dumps
from cot.utils.manners import support_target
from cot.utils.mastery import DEFAULT_PARAMETERS, mastery_by_skill
from cot.utils.mastery_model import MasteryModel
from cot.utils.memory_arms import MemoryArms, Moment, PromptShape, make_prompt
from cot.utils.questions import Question, question_of
from cot.utils.students import SUPPORT_LEVELS, Interaction, Profile
from cot.utils.templates import PromptFormat, read_format
from cot.utils.textbook import Chapter, Exercise, generate_exercise, generate_exercises
from rl.student_model import (
    Student,
    needs_of,
    student_grade,
)

MOMENT_EVERY = 4  # exercises of a log between two moments at which training takes its memory
DRAWS = 8  # of a moment at which a student needs the level of support that is wanted
OTHER_STUDENTS = 3  # with whom `memory_margin` compares


def textbook_moments(
    arms: MemoryArms,
    chapters: Sequence[Chapter],
    split: str,
    count: int,
    seed: int,
) -> list[Moment]:
    """Students in turn, each at a random moment of its log, with a new exercise of a chapter that it has met.

    Of the exercises that a student could get, one is taken whose skill needs a level of support drawn
    beforehand, each level alike, as far as the student has such a skill: so no level pays for all.

    Args:
        split: of the exercise's template: `train`, `test` or `confirm`.

    Raises:
        UserError: a student has worked on none of these chapters.
    """
    rng = random.Random(f"situations {seed} {split}")
    by_id = {chapter.id: chapter for chapter in chapters}
    candidates = {
        student: [item for item in arms.histories[student][::MOMENT_EVERY] if item.chapter in by_id]
        for student in arms.profiles
    }
    if empty := sorted(student for student, found in candidates.items() if not found):
        raise UserError(
            f"--students {empty[0]}: its log has no exercise of {', '.join(by_id)};"
            " rl/simulate_students.py writes logs"
        )

    students, moments = list(candidates), []
    for number in range(count):
        student, wanted = students[number % len(students)], rng.choice(SUPPORT_LEVELS)
        for item in rng.choices(candidates[student], k=DRAWS):
            mastery = arms.mastery(student, item.time)
            met = {
                past.chapter for past in arms.histories[student] if past.time <= item.time
            }  # the current one, too
            able = [
                (chapter, template)
                for chapter in chapters
                if chapter.id in met
                for template in chapter.templates
                if template.split == split
            ]
            fitting = [pair for pair in able if support_target(mastery.get(pair[1].skills[0])) == wanted]
            if fitting:
                break
        chapter, template = rng.choice(fitting or able)
        exercise = generate_exercise(chapter, template, rng)
        moments.append(arms.moment(student, question_of(exercise), as_of=item.time))
    rng.shuffle(moments)
    return moments


def crossed_moments(arms: MemoryArms, questions: Sequence[Question], count: int, seed: int) -> list[Moment]:
    """Questions crossed with students, shuffled; begun again, in another order, when used up."""
    rng = random.Random(f"crossed {seed}")
    cells = [arms.moment(student, question) for question in questions for student in arms.profiles]
    moments: list[Moment] = []
    while len(moments) < count:
        moments += rng.sample(cells, len(cells))
    return moments[:count]


def walk_textbook(
    profiles: Mapping[str, Profile],
    chapters: Sequence[Chapter],
    exercises_per_chapter: int,
    practice: int,
    seed: int,
    half_life_days: float | None = None,
    truths: Mapping[str, Profile] | None = None,
    mastery_model: MasteryModel | None = None,
) -> tuple[list[Moment], dict[str, list[Interaction]]]:
    """Each student's way through the chapters up to the grade above the own one.

    In every chapter a student practises, meets an exercise of the test split, and then works on an exercise
    of the train split with the same skill. The evaluated exercises of a chapter are the same for all
    students, so that students cross with questions.

    Args:
        exercises_per_chapter: evaluated ones, of the test split.
        practice: train exercises that a student works on before each evaluated one.
        seed: of exercises and students.
        half_life_days: of forgetting; None for no forgetting.
        truths: what helps each student, whose explanations then have manners; None for students whom every
            explanation helps alike.
        mastery_model: fitted to real students; None for tracing with the default parameters.

    Returns:
        The moments of the evaluated exercises, and what each student did: train exercises only.
    """
    evaluated = {
        chapter.id: generate_exercises(chapter, "test", exercises_per_chapter, seed) for chapter in chapters
    }
    trace = mastery_model.mastery_by_skill if mastery_model else mastery_by_skill
    moments: list[Moment] = []
    histories: dict[str, list[Interaction]] = {}
    for name, profile in profiles.items():
        needs = needs_of(truths[name]) if truths else None
        student = Student(profile, chapters, seed, needs=needs)
        rng = random.Random(f"walk {seed} {name}")
        history = histories[name] = []
        number = 0
        for chapter in (chapter for chapter in chapters if chapter.grade <= student_grade(profile) + 1):
            for exercise in evaluated[chapter.id]:
                history += [student.answer(_draw_practice(chapter, rng)) for _ in range(practice)]
                as_of = student.clock.strftime("%Y-%m-%dT%H:%M:%SZ")
                moments.append(
                    Moment(
                        question=question_of(exercise),
                        student_id=name,
                        number=number,
                        as_of=as_of,
                        mastery=trace(history, half_life_days=half_life_days, as_of=as_of),
                    )
                )
                history.append(student.answer(_draw_practice(chapter, rng, exercise.skill)))
                number += 1
    return moments, histories


def _draw_practice(chapter: Chapter, rng: random.Random, skill: str | None = None) -> Exercise:
    """A train exercise, of a skill where the chapter has one of it."""
    train = [template for template in chapter.templates if template.split == "train"]
    fitting = [template for template in train if skill is None or template.skills[0] == skill]
    return generate_exercise(chapter, rng.choice(fitting or train), rng)


def plan_prompts(args: argparse.Namespace, context: int | None) -> tuple[PromptShape, int]:
    """How a run's prompts are built, and how many tokens one may have so that a completion fits, too.

    Args:
        context: positions of the model; None where it names no limit.
    """
    room = args.max_prompt_length
    if context is not None:
        room = min(room, context - args.max_completion_length)
    return PromptShape(instruction=args.cot_prompt, memory_tokens=args.memory_tokens), room


def draw_arms(arm: str, mix: Sequence[float], count: int, seed: int) -> list[str]:
    """Which memory each prompt carries.

    Args:
        arm: `own` mixes own, none and shuffled by `mix`; `none` and `shuffled` are controls without mix.
        mix: shares of own, none and shuffled, summing to 1.
    """
    if arm != "own":
        return [arm] * count
    return random.Random(f"arms {seed}").choices(["own", "none", "shuffled"], mix, k=count)


def build_rows(
    tokenizer,
    arms: MemoryArms,
    moments: Sequence[Moment],
    shown: Sequence[str],
    fit_arms: Sequence[str],
    shape: PromptShape,
    max_prompt_tokens: int | None,
    seed: int,
    prompt_format: PromptFormat | None = None,
) -> tuple[list[dict], int]:
    """The data set's rows, and how many moments were dropped because the question itself is too long.

    A row: `prompt, prompt_ids, stop, question_id, chapter, gold_solution, student_id, memory_arm, memory,
    fit_to, other_students, mastery, steps`. `fit_to` is the student whose fit is rewarded, None where the row
    is not judged for fit; `mastery` is P(known) of the skill before the exercise, None where no skill is
    named.

    Args:
        shown: the memory arm of each moment.
        fit_arms: arms whose rows are rewarded for fit.
        seed: of the order of the memory's lines, and of the other students.
        prompt_format: the model's; None reads it from the tokenizer.

    Raises:
        UserError: no prompt fits the budget.
    """
    rng = random.Random(f"others {seed}")
    prompt_format = prompt_format or read_format(tokenizer)
    rows, dropped = [], 0
    for moment, arm in zip(moments, shown, strict=True):
        memory = arms.show(moment, arm)
        prompt = make_prompt(
            tokenizer, moment, memory, shape, max_prompt_tokens, seed, prompt_format=prompt_format
        )
        if max_prompt_tokens is not None and len(prompt.ids) > max_prompt_tokens:
            dropped += 1
            continue

        student, question = moment.student_id, moment.question
        others = sorted(set(arms.profiles) - {student})
        mastery = None
        if question.skill is not None:
            mastery = moment.mastery.get(question.skill, DEFAULT_PARAMETERS.p_init)
        rows.append(
            {
                "prompt": prompt.text,
                "prompt_ids": list(prompt.ids),
                "stop": list(prompt.stop),
                "question_id": question.id,
                "chapter": question.chapter,
                "gold_solution": question.gold_solution,
                "student_id": student,
                "memory_arm": arm,
                "memory": prompt.memory,
                "fit_to": student if arm in fit_arms else None,
                "other_students": rng.sample(others, min(OTHER_STUDENTS, len(others))),
                "mastery": mastery,
                "steps": question.gold_steps,
            }
        )
    if not rows:
        raise UserError("--max_prompt_length: no question fits it; raise it or shorten --cot_prompt")
    return rows, dropped


def fingerprint_students(arms: MemoryArms) -> str:
    """20 hexadecimal digits over the profiles, needs, memories and fitted mastery of the run's students."""
    content = [
        [
            profile.model_dump(),
            [item.content for item in arms.histories[student]],
            *([arms.truths[student].model_dump()] if arms.truths[student] != profile else []),
        ]
        for student, profile in arms.profiles.items()
    ]
    if arms.mastery_model is not None:
        content.append([arms.mastery_model.fingerprint])
    return hashlib.sha256(dumps(content).encode()).hexdigest()[:20]


def fingerprint_questions(moments: Sequence[Moment]) -> str:
    """20 hexadecimal digits over the questions and solutions in the order in which they are met."""
    content = [[moment.question.question, moment.question.gold_solution] for moment in moments]
    return hashlib.sha256(dumps(content).encode()).hexdigest()[:20]
