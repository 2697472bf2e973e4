"""What the experiment asks: who is asked about which exercise, when, and what the prompt shows.

Generated students whom no training has met, exercises of templates that no training has, and conditions: the
arms of a memory experiment (`cot/utils/memory_arms.py`), and beside them, where history alone tells of needs,

novel          the own memory; the exercise is in a register that the usual wordings never use
own_256        the own memory with 256 tokens, more of which is of no use
after_N        the own memory after N interactions, for exercises and students that are the same for each N
changed_N      the same of a student whose needs became others after 20 interactions, N interactions later
forgetting_N   the same, where old interactions weigh less
other_state    the own memory, whose line about the skill at hand tells of another state of it
stale          the own memory as of long ago
wrong          what the own memory begins with, after a line that states a wrong answer to this very question
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cot.utils.interventions import (
    LARGE_BUDGET,
    recall_after,
    recall_stale,
    state_wrong_answer,
    time_after,
)
from cot.utils.manners import support_target
from cot.utils.mastery import AT_HAND
from cot.utils.memory_arms import MemoryArms, Moment, StudentMemory
from cot.utils.questions import question_of
from cot.utils.students import SUPPORT_LEVELS, Profile, SupportLevel
from cot.utils.textbook import Chapter, Exercise
from rl.bayes_choice import likely_needs
from rl.closed_loop import draw_course
from rl.cohorts import UNSEEN_SEED, arms_of
from rl.lessons import draw_skill_line
from rl.student_model import SimulatedStudent, generate_unseen, tell_needs

HELD_OUT_SEED = 3_000_017  # of exercises and students: the same for all arms and seeds
STUDENTS = 60  # of each population, half of them with pairs of needs that no training has
MOMENTS = (20, 30, 40, 50, 60)  # interactions after which a student is asked
EVIDENCE = (0, 2, 5, 10, 20, 40)
CHANGE = 20  # interactions after which the needs of the second population become others
SINCE_CHANGE = (0, 5, 10, 20, 40)
HALF_LIFE_DAYS = 3.0  # of `forgetting_N`: a student does about three exercises a day


@dataclass(frozen=True)
class Asking:
    """A prompt to be answered.

    Attributes:
        memory: its `arm` names the condition.
        temperature, sample: 0 is greedy; which of the answers to the same prompt.
    """

    moment: Moment
    memory: StudentMemory
    temperature: float
    sample: int = 0


@dataclass(frozen=True)
class HeldOut:
    """The students and cells of an experiment.

    Attributes:
        students: of the first population, whose needs never change.
        truths: what each student needs, by student id.
        common: cells of every policy.
        probing: further cells of the policies that were trained with their own memory and all rewards.
        instructed: further cells of the base.
        bayes: by student id and interactions, the needs that the Bayes choice infers from these.
        other_states: of each cell of `other_state`, by student and question, the level its line asks for.
    """

    students: list[SimulatedStudent]
    truths: dict[str, Profile]
    common: list[Asking]
    probing: list[Asking]
    instructed: list[Asking]
    bayes: dict[tuple[str, int], Profile]
    other_states: dict[tuple[str, str], SupportLevel]


def hold_out(
    chapters: Sequence[Chapter], split: str, exercises_per_chapter: int, level: str = "history"
) -> HeldOut:
    """All cells; a function of the arguments alone.

    Args:
        split: of the exercises' templates: `test`, on which settings are tuned, or `confirm`.
        level: of memory; at the level `stated` the students say what they need.
    """
    seed = HELD_OUT_SEED + (split == "confirm")  # the students are others, too
    population = UNSEEN_SEED + seed
    students = generate_unseen(STUDENTS, chapters, population)
    changing = generate_unseen(STUDENTS, chapters, population, first=STUDENTS, changes_after=CHANGE)
    arms = arms_of(students, seed=seed, level=level)
    exercises = draw_course(chapters, exercises_per_chapter, seed, split)
    moments = draw_moments(arms, exercises, seed)
    arms.shift_times(moments)

    other_states = draw_other_states(moments, seed)
    if level == "stated":  # no hypothesis at this level compares more
        probing = [Asking(moment, arms.show(moment, "shuffled"), 0.0) for moment in moments]
    else:
        probing = probe(arms, moments, other_states, seed)
        probing += follow_evidence(arms, exercises, EVIDENCE, "after", seed)
        novel = draw_course(chapters, exercises_per_chapter, seed, split, wording="novel")
        probing += [
            Asking(moment, replace(arms.show(moment, "own"), arm="novel"), 0.0)
            for moment in draw_moments(arms, novel, seed)
        ]
        for name, half_life_days in (("changed", None), ("forgetting", HALF_LIFE_DAYS)):
            remembering = arms_of(changing, seed=seed, level=level, half_life_days=half_life_days)
            times = [CHANGE + since for since in SINCE_CHANGE]
            probing += follow_evidence(remembering, exercises, times, name, seed, start=CHANGE)

    common = [
        Asking(moment, arms.show(moment, arm), temperature)
        for temperature in (0.0, 1.0)
        for arm in ("own", "none")
        for moment in moments
    ]
    bayes = {
        (student.student_id, count): tell_needs(
            student.profile, likely_needs(student.profile, student.history[:count], chapters)
        )
        for student in (students if level == "history" else ())  # who says it leaves nothing to infer
        for count in {*EVIDENCE, *MOMENTS}
    }
    return HeldOut(
        students=students,
        truths={student.student_id: student.truth for student in (*students, *changing)},
        common=common,
        probing=probing,
        instructed=[Asking(moment, arms.show(moment, "instructed"), 0.0) for moment in moments],
        bayes=bayes,
        other_states=other_states,
    )


def draw_moments(arms: MemoryArms, exercises: Sequence[Exercise], seed: int) -> list[Moment]:
    """Each exercise for three students who differ in its skill: each level of support is needed alike.

    A moment's `number` is the student's interactions times 1000, and which of its moments it is.
    """
    rng = random.Random(f"cells {seed}")
    moments: list[Moment] = []
    for exercise in exercises:
        able = [(student, count) for student in arms.profiles for count in MOMENTS]
        rng.shuffle(able)
        asked: set[str] = set()
        for wanted in SUPPORT_LEVELS:
            for student, count in able:
                as_of = time_after(arms, student, count)
                mastery = arms.mastery(student, as_of).get(exercise.skill)
                if student not in asked and mastery is not None and support_target(mastery) == wanted:
                    asked.add(student)
                    number = 1000 * count + len(moments)
                    moments.append(arms.moment(student, question_of(exercise), as_of, number))
                    break
    return moments


def draw_other_states(moments: Sequence[Moment], seed: int) -> dict[tuple[str, str], SupportLevel]:
    """For each moment, by student and question, a level of support that its student does not need."""
    rng = random.Random(f"other states {seed}")
    return {
        (moment.student_id, moment.question.id): rng.choice(
            [level for level in SUPPORT_LEVELS if level != support_target(moment.skill_mastery)]
        )
        for moment in moments
    }


def probe(
    arms: MemoryArms,
    moments: Sequence[Moment],
    other_states: Mapping[tuple[str, str], SupportLevel],
    seed: int,
) -> list[Asking]:
    """What else a prompt could show at these moments."""
    rng = random.Random(f"interventions {seed}")
    cells = []
    for moment in moments:
        own = arms.show(moment, "own")
        cells.append(Asking(moment, replace(own, arm="own_256", tokens=LARGE_BUDGET), 0.0))
        cells.append(Asking(moment, arms.show(moment, "shuffled"), 0.0))
        if arms.can_show(moment, "time_shuffled"):
            cells.append(Asking(moment, arms.show(moment, "time_shuffled"), 0.0))
        level = other_states[moment.student_id, moment.question.id]
        cells.append(Asking(moment, tell_other_state(own, moment, level, rng), 0.0))

        # what a memory may do wrong, beside a second answer without memory
        stale, wrong = recall_stale(arms, moment), state_wrong_answer(own, moment)
        for memory in (arms.show(moment, "random"), stale, wrong):
            cells.append(Asking(moment, memory, 1.0, sample=1))
        cells.append(Asking(moment, arms.show(moment, "none"), 1.0, sample=1))
    return cells


def tell_other_state(
    own: StudentMemory, moment: Moment, level: SupportLevel, rng: random.Random
) -> StudentMemory:
    """The memory with another line about the skill at hand."""
    line, _ = draw_skill_line(moment.question.skill, rng, level)
    lines = [line if shown.startswith(AT_HAND) else shown for shown in own.lines]
    return replace(own, arm="other_state", lines=tuple(lines))


def follow_evidence(
    arms: MemoryArms,
    exercises: Sequence[Exercise],
    counts: Sequence[int],
    name: str,
    seed: int,
    start: int = 0,
) -> list[Asking]:
    """Every exercise for one student, after so many interactions each time.

    Args:
        start: interactions that the condition's name does not count.
    """
    rng = random.Random(f"evidence {seed}")
    students = sorted(arms.profiles)
    cells = []
    for exercise in exercises:
        student, question = rng.choice(students), question_of(exercise)
        for count in counts:
            arm = f"{name}_{count - start}"
            moment, memory = recall_after(arms, student, question, count, number=1000 * count, arm=arm)
            cells.append(Asking(moment, memory, 0.0))
    return cells
