"""Simulate students who walk through the textbook, and write what happened to them as their memory.

A student knows a skill or not (Bayesian knowledge tracing as a generative model, Corbett and Anderson 1995):
right with 1 - slip where known and with guess where not, then learned with p_transit. The parameters of a
chapter are drawn around values that depend on the student's grade, strengths and challenges. A wrong answer
shows one of the chapter's misconceptions, mostly the one this student leans to; what helps against it is
recorded where the student learned the skill from that exercise. Only exercises of the train split are used,
so what stands in a memory is never asked in an evaluation.

Reads `profiles/*.json` and `data/textbook/`; writes `profiles/memory/<student_id>.jsonl`, one line per
exercise: `student_id, time, chapter, skill, question, correct, error_type, what_helped`.

    python rl/simulate_students.py --seed 0 --profiles_dir /tmp/my_profiles --interactions_per_chapter 2
    python rl/simulate_students.py --seed 0 --overwrite
"""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import PROFILES_DIR, OneLineParser, number, script_frame
from cot.utils.errors import EXIT_OK, UserError
from cot.utils.mastery import BKTParameters, update_mastery
from cot.utils.students import Interaction, MemoryLog, Profile, load_profiles
from cot.utils.textbook import Chapter, Exercise, Misconception, generate_exercises, load_chapters

START = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
EXERCISES_PER_DAY = 6
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


def draw_parameters(profile: Profile, chapter: Chapter, rng: random.Random) -> BKTParameters:
    """How this student learns this chapter: each value within 20 % of what the profile suggests.

    p_init 0.3 in a chapter of the student's grade, 0.15 more for each grade below and less above; a strength
    that names the chapter's topic adds 0.2 and makes learning 1.5 times as likely, a challenge takes 0.2 and
    halves it.
    """
    topic = _topic_words(f"{chapter.id} {chapter.title}")
    strong = bool(topic & _topic_words(" ".join(profile.strengths)))
    weak = bool(topic & _topic_words(" ".join(profile.challenges)))
    p_init = 0.3 + 0.15 * (student_grade(profile) - chapter.grade) + 0.2 * strong - 0.2 * weak
    p_transit = 0.2 * (1.5 if strong else 1.0) * (0.5 if weak else 1.0)

    def near(value: float) -> float:
        return value * rng.uniform(0.8, 1.2)

    return BKTParameters(
        p_init=near(min(max(p_init, 0.05), 0.75)),
        p_transit=near(p_transit),
        p_slip=near(0.08),
        p_guess=near(0.15),
    )


def _topic_words(text: str) -> set[str]:
    return {word[:5] for word in re.findall("[a-z]+", text.lower()) if TOPIC_WORD.match(word)}


class Student:
    """A simulated student at a moment in time; the same seed and exercises give the same answers.

    Attributes:
        known: per practised skill, whether the student has learned it (what no observer sees).
        mastery: per practised skill, P(L') after the answers so far under the student's own parameters.
        clock: when the next exercise begins.

    Args:
        chapters: those whose exercises are going to be asked.
        parameters: the same for all chapters, instead of drawn ones.
    """

    def __init__(
        self,
        profile: Profile,
        chapters: Sequence[Chapter],
        seed: int,
        parameters: BKTParameters | None = None,
        start: datetime = START,
    ) -> None:
        self.student_id = profile.student_id
        self.known: dict[str, bool] = {}
        self.mastery: dict[str, float] = {}
        self.clock = start
        self._rng = random.Random(f"answers {seed} {profile.student_id}")
        self._answered = 0
        self._misconceptions = {chapter.id: chapter.misconceptions for chapter in chapters}
        self._parameters: dict[str, BKTParameters] = {}
        self._leaning: dict[str, Misconception] = {}
        for chapter in chapters:
            # its own generator, so that a student is the same whichever chapters are asked
            rng = random.Random(f"student {seed} {profile.student_id} {chapter.id}")
            self._parameters[chapter.id] = parameters or draw_parameters(profile, chapter, rng)
            self._leaning[chapter.id] = rng.choice(chapter.misconceptions)

    def answer(self, exercise: Exercise) -> Interaction:
        """Work on one exercise, and learn from it."""
        parameters = self._parameters[exercise.chapter]
        skill, rng = exercise.skill, self._rng
        known = self.known.setdefault(skill, rng.random() < parameters.p_init)
        correct = rng.random() < (1 - parameters.p_slip if known else parameters.p_guess)
        learned = not known and rng.random() < parameters.p_transit
        error = None if correct else self._err(exercise.chapter)
        self.known[skill] = known or learned
        self.mastery[skill] = update_mastery(self.mastery.get(skill, parameters.p_init), correct, parameters)
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


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Simulate the students' way through the textbook.")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of exercises, parameters and answers")
    parser.add_argument(
        "--profiles_dir", type=Path, default=PROFILES_DIR, help="logs lie in <profiles_dir>/memory/"
    )
    parser.add_argument(
        "--interactions_per_chapter", type=number(int, 1), default=15, help="exercises in each chapter"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace logs that exist")
    parser.add_argument("--debug", action="store_true", help="add the traceback to an error")
    return parser


def simulate_all(args: argparse.Namespace) -> int:
    profiles, chapters = load_profiles(args.profiles_dir), load_chapters()
    log = MemoryLog(args.profiles_dir / "memory")
    existing = sorted(set(log.students()) & set(profiles))
    if existing and not args.overwrite:
        raise UserError(f"{log.folder}: a log exists for {', '.join(existing)}; --overwrite replaces it")
    histories = {
        student_id: simulate_history(profile, chapters, args.seed, args.interactions_per_chapter)
        for student_id, profile in profiles.items()
    }
    for student_id, history in histories.items():
        path = log.folder / f"{student_id}.jsonl"
        path.unlink(missing_ok=True)
        log.append(history)
        right = sum(interaction.correct for interaction in history)
        print(f"{path}: {len(history)} exercises, {right} right")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = simulate_all(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
