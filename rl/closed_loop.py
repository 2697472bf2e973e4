"""The closed loop: what a tutor writes is what its students get, and what they then do is what it remembers.

Before it the students practise on train exercises, each explained in a manner drawn at random: that is what
a tutor can know of them when it begins. Then they go through the test exercises in lockstep. The tutor
explains each one, to each student with its memory as of then. The manner of the text is recognised by the
checks, decides how likely the student is to be right and to learn, and enters its memory. Nothing of an
explanation with a wrong answer reaches the student. Beside the policies explain two tutors without a model:
`random` draws every manner, `oracle` knows what each student needs and how much it has mastered.

All tutors meet the same students and exercises. Nothing here is rewarded in training: learning is measured on
what the student knows, which no prompt and no record shows.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot.utils.comparisons import decide
from cot.utils.errors import UserError
from cot.utils.fidelity import EXPLANATION_STYLES, hint_first
from cot.utils.manners import support_fit, support_level, support_target
from cot.utils.memory_arms import MemoryArms
from cot.utils.progress import Progress
from cot.utils.questions import question_of
from cot.utils.records import Row
from cot.utils.runner import Run
from cot.utils.stats import mean_interval
from cot.utils.students import Interaction, Manner, Profile
from cot.utils.textbook import Chapter, Exercise, generate_exercises
from rl.policies import Policy
from rl.student_model import Student, draw_manner, needs_of

MODELLESS = ("random", "oracle")
# Styles, the most marked first: a text with a check at its end may also be one in short sentences.
MARKED_FIRST = ("check_at_end", "equations_first", "guiding_questions", "numbered_steps", "short_sentences")


@dataclass
class Learner:
    """A student on its way with one tutor, and what happened to it so far."""

    student: Student
    history: list[Interaction]
    steps: list[dict]

    def meet(self, exercise: Exercise, manner: Manner, is_sound: bool) -> None:
        """Gets an explanation, works on the exercise, learns or not."""
        target = support_target(self.student.mastery.get(exercise.skill))
        interaction = self.student.answer(exercise, manner, is_sound)
        self.history.append(interaction)
        self.steps.append(
            {
                "fit": self.student.needs.met_by(manner),
                "support_fit": support_fit(manner.support, target),
                "sound": is_sound,
                "right": interaction.correct,
            }
        )

    def describe(self) -> dict:
        """The walk in numbers: learning gain, and means over its steps and over each half of them."""
        student, half = self.student, len(self.steps) // 2
        gains = [student.known[skill] - student.known_before[skill] for skill in student.known]
        found = {"student_id": student.student_id, "learning_gain": sum(gains) / len(gains)}
        for key in ("fit", "support_fit", "sound", "right"):
            values = [float(step[key]) for step in self.steps]
            found[key] = sum(values) / len(values)
            found[f"{key}_first_half"] = sum(values[:half]) / max(1, half)
            found[f"{key}_second_half"] = sum(values[half:]) / len(values[half:])
        return found


def read_manner(text: str, gold_steps: int) -> Manner:
    """The manner of an explanation as its checks find it; of several styles the most marked one.

    >>> read_manner("Hint: think of adding.\\n14+23=37 marbles.\\n#### 37", gold_steps=1)
    Manner(style='equations_first', hint=True, support='brief')
    """
    style = next((name for name in MARKED_FIRST if EXPLANATION_STYLES[name](text)), None)
    return Manner(style=style, hint=hint_first(text), support=support_level(text, gold_steps))


def arm_of(policy: Policy) -> str:
    """What a policy's prompts show: no memory where it was trained without, else the student's own."""
    return "none" if policy.config.get("memory") == "none" else "own"


def start_walk(
    truths: Mapping[str, Profile], chapters: Sequence[Chapter], seed: int, practice: int = 0
) -> list[Learner]:
    """Every student at its beginning, the same for each tutor.

    Args:
        practice: train exercises of each chapter that it worked on before, each explained in a manner drawn
            at random; what it learned from them is no gain of the walk.

    Raises:
        UserError: it is not known what a student needs.
    """
    if unknown := [name for name, truth in truths.items() if needs_of(truth) is None]:
        raise UserError(
            f"--closed_loop: what {unknown[0]} needs is not known;"
            " rl/simulate_students.py --generate makes students of whom it is"
        )
    practised = draw_course(chapters, practice, seed, "train") if practice else []
    learners = []
    for truth in truths.values():
        student = Student(truth, chapters, seed, needs=needs_of(truth))
        learners.append(Learner(student, [student.answer(exercise) for exercise in practised], steps=[]))
        student.known_before = dict(student.known)
    return learners


def draw_course(
    chapters: Sequence[Chapter],
    exercises_per_chapter: int,
    seed: int,
    split: str = "test",
    wording: str = "usual",
) -> list[Exercise]:
    """Exercises of all chapters, in their order; further arguments as in `generate_exercises`."""
    return [
        exercise
        for chapter in chapters
        for exercise in generate_exercises(chapter, split, exercises_per_chapter, seed, wording)
    ]


def teach_without_model(
    tutor: str, learners: Sequence[Learner], course: Sequence[Exercise], seed: int
) -> None:
    """The walk with `random` or `oracle`, whose explanations are always right."""
    rng = random.Random(f"tutor {seed}")
    for exercise in course:
        for learner in learners:
            manner = draw_manner(rng)
            if tutor == "oracle":
                target = support_target(learner.student.mastery.get(exercise.skill))
                needs = learner.student.needs
                manner = Manner(style=needs.style, hint=needs.hint, support=target)
            learner.meet(exercise, manner, is_sound=True)


def teach(
    run: Run,
    policy: Policy,
    learners: Sequence[Learner],
    course: Sequence[Exercise],
    remember: Callable[[dict], MemoryArms],
    progress: Progress,
) -> None:
    """The walk with a policy, one exercise after the other for all students.

    Args:
        remember: from histories by student id to what each arm shows.
    """
    engine, temperature, arm = run.load(policy.name), run.args.temperatures[0], arm_of(policy)
    for number, exercise in enumerate(course):
        question = question_of(exercise)
        arms = remember({learner.student.student_id: learner.history for learner in learners})
        rows = []
        for learner in learners:
            now = learner.student.clock.strftime("%Y-%m-%dT%H:%M:%SZ")
            moment = arms.moment(learner.student.student_id, question, as_of=now, number=number)
            rows.append(Row(policy.name, number, moment, arms.show(moment, arm), temperature, sample=0))

        for learner, record in zip(learners, run.ask(engine, rows, progress), strict=True):
            manner = read_manner(record["generated_text"], question.gold_steps)
            learner.meet(exercise, manner, is_sound=bool(record["correct"]))


def teach_all(
    run: Run,
    policies: Sequence[Policy],
    start: Callable[[], list[Learner]],
    course: Sequence[Exercise],
    remember: Callable[[dict], MemoryArms],
) -> dict[str, list[dict]]:
    """Every tutor's walk with the same students: by tutor, `Learner.describe` of each.

    Args:
        start: gives the students as they are at their beginning.
    """
    walks = {}
    for tutor in MODELLESS:
        learners = start()
        teach_without_model(tutor, learners, course, run.args.seed)
        walks[tutor] = [learner.describe() for learner in learners]

    progress = Progress(len(policies) * len(course) * len(start()), 0, run.args.max_new_tokens)
    for policy in policies:
        learners = start()
        teach(run, policy, learners, course, remember, progress)
        walks[policy.name] = [learner.describe() for learner in learners]
    progress.close()
    return walks


def walk_with_tutors(
    open_run: Callable[..., Run],
    policies: Sequence[Policy],
    start: Callable[[], list[Learner]],
    course: Sequence[Exercise],
    remember: Callable[[dict], MemoryArms],
    summarize: Callable[[dict[str, list[dict]]], dict],
    **identity,
) -> tuple[Run, Path, dict]:
    """The closed loop as a run: every tutor's walk, and the result files.

    Args:
        open_run: gives the run from its `rows` and its `identity`, what decides the walks beside the flags.
        start: as of `teach_all`.
        summarize: from the walks to a file's `summary`.
        identity: what decides the walks beside the course and the policies.

    Returns:
        The run, the path of its summary, and what that holds.
    """
    answered = [[policy.name, policy.source.revision, arm_of(policy)] for policy in policies]
    identity |= {"course": [exercise.id for exercise in course], "policies": answered}
    with open_run(rows=[], identity=identity) as run:  # the next question depends on the last answer
        walks = teach_all(run, policies, start, course, remember)
        path, document = run.finish(lambda _: summarize(walks))
    return run, path, document


def summarize_walks(walks: Mapping[str, Sequence[dict]], against: str) -> dict:
    """Means over students with their intervals, and each tutor's gain beside another's, student by student.

    Args:
        walks: by tutor, `Learner.describe` of each student.
        against: the tutor that the others are compared with.

    Returns:
        tutors: of each the measures of a walk as `n, mean, low, high`; gains: of each other tutor the paired
        difference in learning gain, with its verdict.
    """
    tutors = {
        tutor: {
            measure: mean_interval([walk[measure] for walk in found])
            for measure in found[0]
            if measure != "student_id"
        }
        for tutor, found in walks.items()
    }
    gains = []
    for tutor, found in walks.items():
        if tutor == against:
            continue
        pairs = zip(found, walks[against], strict=True)
        effect = mean_interval([one["learning_gain"] - other["learning_gain"] for one, other in pairs])
        effect = {**effect, "clusters": len(found)}
        gains.append({"tutor": tutor, "against": against, "effect": effect, "verdict": decide(effect)})
    return {"tutors": tutors, "gains": gains}
