"""How a simulated student answers and learns, what it needs, and students generated from a seed.

A student knows a skill or not (Bayesian knowledge tracing as a generative model, Corbett and Anderson 1995):
right with 1 - slip where known and with guess where not, then learned with p_transit. The parameters of a
chapter are drawn around values that depend on the student's grade, strengths and challenges. A wrong answer
shows one of the chapter's misconceptions, mostly the one this student leans to.

A generated student needs a style, and a hint or none, which it never says. Every exercise follows an
explanation, and one that fits makes a right answer and learning likelier. So what it needs shows in what
happened, and nowhere else.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cot.utils.errors import UserError
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.manners import support_target
from cot.utils.mastery import BKTParameters, update_mastery
from cot.utils.students import HINT_IN_WORDS, SUPPORT_LEVELS, Interaction, Manner, Profile
from cot.utils.textbook import (
    Chapter,
    Exercise,
    Misconception,
    generate_exercise,
    generate_exercises,
)

START = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
EXERCISES_PER_DAY = 6
STYLE_HELPS, HINT_HELPS = 0.6, 0.4  # shares of an explanation that reach a student where they fit
UNSEEN_PAIRS = (("numbered_steps", True), ("guiding_questions", False), ("equations_first", True))
GRADES = ("3rd grade", "4th grade", "5th grade", "6th grade")  # of generated students
GENERATED_CHAPTERS = 5  # of the textbook, from its beginning: those that the small policy can explain
INTERACTIONS_PER_CHAPTER = 12  # of generated students
ROUNDS = 3  # in which a generated student goes through its chapters
LEANING = 0.7  # share of a student's errors in a chapter that show the one misconception
TOPIC_WORD = re.compile(r"[a-z]{5}")  # a word's first five letters: "ratios" speaks of "ratio"


def student_grade(profile: Profile) -> int:
    """The grade as a number.

    Raises:
        UserError: `grade_level` does not begin with one.
    """
    if not (digits := re.match("[0-9]+", profile.grade_level)):
        raise UserError(
            f"profiles/{profile.student_id}.json: grade_level: expected such as '5th grade', "
            f"got {profile.grade_level!r}"
        )
    return int(digits[0])


def draw_parameters(profile: Profile, chapter: Chapter, rng: random.Random | None) -> BKTParameters:
    """How this student learns this chapter: each value within 20 % of what the profile suggests.

    p_init 0.3 in a chapter of the student's grade, 0.15 more for each grade below and less above; a strength
    that names the chapter's topic adds 0.2 and makes learning 1.5 times as likely, a challenge takes 0.2 and
    halves it.

    Args:
        rng: None for the values that the profile suggests.
    """
    topic = _topic_words(f"{chapter.id} {chapter.title}")
    strong = bool(topic & _topic_words(" ".join(profile.strengths)))
    weak = bool(topic & _topic_words(" ".join(profile.challenges)))
    p_init = 0.3 + 0.15 * (student_grade(profile) - chapter.grade) + 0.2 * strong - 0.2 * weak
    p_transit = 0.2 * (1.5 if strong else 1.0) * (0.5 if weak else 1.0)

    def near(value: float) -> float:
        return value * (rng.uniform(0.8, 1.2) if rng else 1.0)

    return BKTParameters(
        p_init=near(min(max(p_init, 0.05), 0.75)),
        p_transit=near(p_transit),
        p_slip=near(0.08),
        p_guess=near(0.15),
    )


def _topic_words(text: str) -> set[str]:
    return {word[:5] for word in re.findall("[a-z]+", text.lower()) if TOPIC_WORD.match(word)}


@dataclass(frozen=True)
class Needs:
    """What a simulated student needs in an explanation. It stands in no profile and in no prompt.

    Attributes:
        style: the explanation style that helps.
        hint: whether a hint helps.
    """

    style: str
    hint: bool

    def met_by(self, manner: Manner) -> float:
        """How much of an explanation reaches the student, in [0, 1]: all of it where the manner fits.

        >>> Needs("equations_first", hint=True).met_by(Manner(style="equations_first", hint=False))
        0.6
        """
        return STYLE_HELPS * (manner.style == self.style) + HINT_HELPS * (manner.hint == self.hint)


def odds_after(parameters: BKTParameters, reached: float, is_supported: bool) -> tuple[float, float, float]:
    """P(right) of a student who knows the skill, of one who does not, and P(learning), after an explanation.

    P(right) = guess + (1 - slip - guess) k, where k is how much of the explanation reached the student, and
    halfway between that and 1 where it knows the skill already. P(learning) is p_transit times 0.4 to 2.0 by
    the same measure, and half of that where the support is not what the student's mastery asks for.

    Args:
        reached: in [0, 1], of `Needs.met_by`.
    """
    span = 1 - parameters.p_slip - parameters.p_guess
    if_known, if_not = (parameters.p_guess + span * share for share in ((1 + reached) / 2, reached))
    return if_known, if_not, parameters.p_transit * (0.4 + 1.6 * reached) * (1.0 if is_supported else 0.5)


@dataclass(frozen=True)
class SimulatedStudent:
    """A generated student.

    Attributes:
        profile: what a prompt may show: no wishes.
        truth: the same with its needs as wishes, for judging texts.
        history: what happened to it, in time order, each with the manner of the explanation before it.
    """

    profile: Profile
    truth: Profile
    history: tuple[Interaction, ...]

    @property
    def student_id(self) -> str:
        return self.profile.student_id


class Student:
    """A simulated student at a moment in time; the same seed and exercises give the same answers.

    Attributes:
        known: per practised skill, whether the student has learned it (what no observer sees).
        known_before: the same before a skill's first exercise; a caller may set it to a later moment.
        mastery: per practised skill, P(L') after the answers so far under the student's own parameters.
        clock: when the next exercise begins.

    Args:
        chapters: those whose exercises are going to be asked.
        parameters: the same for all chapters, instead of drawn ones.
        needs: None for a student whom every explanation helps alike.
    """

    def __init__(
        self,
        profile: Profile,
        chapters: Sequence[Chapter],
        seed: int,
        parameters: BKTParameters | None = None,
        start: datetime = START,
        needs: Needs | None = None,
    ) -> None:
        self.student_id, self.needs = profile.student_id, needs
        self.known: dict[str, bool] = {}
        self.known_before: dict[str, bool] = {}
        self.mastery: dict[str, float] = {}
        self.clock = start
        self._rng = random.Random(f"answers {seed} {profile.student_id}")
        self._manners = random.Random(f"manners {seed} {profile.student_id}")
        self._answered = 0
        self._misconceptions = {chapter.id: chapter.misconceptions for chapter in chapters}
        self._parameters: dict[str, BKTParameters] = {}
        self._leaning: dict[str, Misconception] = {}
        for chapter in chapters:
            # its own generator, so that a student is the same whichever chapters are asked
            rng = random.Random(f"student {seed} {profile.student_id} {chapter.id}")
            self._parameters[chapter.id] = parameters or draw_parameters(profile, chapter, rng)
            self._leaning[chapter.id] = rng.choice(chapter.misconceptions)

    def answer(self, exercise: Exercise, manner: Manner | None = None, is_sound: bool = True) -> Interaction:
        """Work on one exercise after an explanation, and learn from it.

        Of a student with needs `odds_after` tells how likely it is right, and how likely it learns.

        Args:
            manner: of the explanation; where a student with needs is given none, one is drawn at random.
            is_sound: whether the explanation is right; nothing of a wrong one reaches the student.
        """
        if self.needs and manner is None:
            manner = draw_manner(self._manners)
        parameters = self._parameters[exercise.chapter]
        skill, rng = exercise.skill, self._rng
        known = self.known.setdefault(skill, rng.random() < parameters.p_init)
        self.known_before.setdefault(skill, known)
        needed = support_target(self.mastery.get(skill))
        before = self.mastery.get(skill, parameters.p_init)
        p_right = 1 - parameters.p_slip if known else parameters.p_guess
        p_learn = parameters.p_transit
        if self.needs and manner:
            reached = self.needs.met_by(manner) * is_sound
            if_known, if_not, p_learn = odds_after(parameters, reached, manner.support == needed)
            p_right = if_known if known else if_not
        correct = rng.random() < p_right
        learned = not known and rng.random() < p_learn
        error = None if correct else self._err(exercise.chapter)
        self.known[skill] = known or learned
        self.mastery[skill] = update_mastery(before, correct, parameters)
        time = self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._advance_clock()
        return Interaction(
            student_id=self.student_id,
            time=time,
            chapter=exercise.chapter,
            skill=skill,
            question=exercise.question,
            correct=correct,
            error_type=error.id if error else None,
            what_helped=error.what_helps if error and learned else None,
            manner=manner,
        )

    def _err(self, chapter_id: str) -> Misconception:
        if self._rng.random() < LEANING:
            return self._leaning[chapter_id]
        return self._rng.choice(self._misconceptions[chapter_id])

    def _advance_clock(self) -> None:
        """A few minutes on, or to the afternoon of one of the next three days."""
        self._answered += 1
        self.clock += timedelta(seconds=self._rng.randint(60, 400))
        if self._answered % EXERCISES_PER_DAY == 0:
            next_day = self.clock + timedelta(days=self._rng.randint(1, 3))
            self.clock = next_day.replace(hour=START.hour, minute=START.minute, second=START.second)


def simulate_history(
    profile: Profile, chapters: Sequence[Chapter], seed: int, interactions_per_chapter: int = 15
) -> list[Interaction]:
    """A student's walk through the chapters up to the grade above theirs, in order, on train exercises.

    Raises:
        UserError: a grade level without a number, or more exercises than a chapter has.
    """
    student = Student(profile, chapters, seed)
    exercise_seed = random.Random(f"exercises {seed} {profile.student_id}").getrandbits(32)
    return [
        student.answer(exercise)
        for chapter in chapters
        if chapter.grade <= student_grade(profile) + 1
        for exercise in generate_exercises(chapter, "train", interactions_per_chapter, exercise_seed)
    ]


def draw_manner(rng: random.Random) -> Manner:
    """A manner at random, each style, hint or none, and each amount of support alike."""
    return Manner(
        style=rng.choice(list(EXPLANATION_STYLES)),
        hint=rng.random() < 0.5,
        support=rng.choice(SUPPORT_LEVELS),
    )


def needs_of(truth: Profile) -> Needs | None:
    """What helps a student who is known this well; None where not both style and hint are known."""
    hints = [hint for hint, words in HINT_IN_WORDS.items() if words in truth.learning_preferences]
    return Needs(truth.explanation_style, hints[0]) if truth.explanation_style and hints else None


def combinations(pairs: str) -> list[Needs]:
    """The needs that generated students may have: the `seen` ones, or those that are kept for evaluation.

    Each style and each hint occurs among the seen ones: what is unseen is the pair.
    """
    every = [Needs(style, hint) for style in EXPLANATION_STYLES for hint in (True, False)]
    unseen = [Needs(style, hint) for style, hint in UNSEEN_PAIRS]
    return unseen if pairs == "unseen" else [needs for needs in every if needs not in unseen]


def generate_student(
    number: int,
    chapters: Sequence[Chapter],
    seed: int,
    pairs: str = "seen",
    interactions_per_chapter: int = INTERACTIONS_PER_CHAPTER,
    changes_after: int | None = None,
) -> SimulatedStudent:
    """A student without wishes, whose history shows what it needs; a function of the arguments alone.

    Args:
        number: of the student, which with `pairs` gives its id: S0007 of the seen pairs, U0007 of the unseen.
        chapters: through which it goes in `ROUNDS` rounds, on train exercises.
        pairs: `seen` or `unseen`: which pairs of needs it may have.
        changes_after: interactions after which its needs become others, for good; None for never.
    """
    rng = random.Random(f"generated {seed} {pairs} {number}")
    student_id = f"{'S' if pairs == 'seen' else 'U'}{number:04d}"
    profile = Profile(student_id=student_id, grade_level=rng.choice(GRADES), strengths=[], challenges=[])
    needs = rng.choice(combinations(pairs))
    later = rng.choice([other for other in combinations(pairs) if other.style != needs.style])

    student = Student(profile, chapters, seed, needs=needs)
    history: list[Interaction] = []
    for number_of_round in range(ROUNDS):
        exercises = (interactions_per_chapter + number_of_round) // ROUNDS
        for chapter in [chapter for chapter in chapters for _ in range(exercises)]:
            if len(history) == changes_after:
                student.needs = later
            train = [template for template in chapter.templates if template.split == "train"]
            history.append(student.answer(generate_exercise(chapter, rng.choice(train), rng)))

    assert student.needs is not None
    return SimulatedStudent(profile, tell_needs(profile, student.needs), tuple(history))


def generate_unseen(
    count: int, chapters: Sequence[Chapter], seed: int, first: int = 0, **settings
) -> list[SimulatedStudent]:
    """Students of whom every second one has a pair of needs that no training has.

    Args:
        first: number of the first.
        settings: further arguments of `generate_student`.
    """
    pairs = [("seen", "unseen")[number % 2] for number in range(count)]
    return [
        generate_student(first + number, chapters, seed, pair, **settings)
        for number, pair in enumerate(pairs)
    ]


def tell_needs(profile: Profile, needs: Needs) -> Profile:
    """The profile with its needs as wishes: for judging texts, never for a prompt."""
    wishes = {"explanation_style": needs.style, "learning_preferences": [HINT_IN_WORDS[needs.hint]]}
    return profile.model_copy(update=wishes)
