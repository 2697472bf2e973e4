"""Which students a run is about, of a folder or generated ones, and what each memory arm shows of them."""

import argparse
from collections.abc import Sequence

from cot.utils.errors import UserError
from cot.utils.memory_arms import MemoryArms, remember
from cot.utils.student_files import MemoryLog, load_profiles, load_truths, pick_students
from cot.utils.students import Interaction, Profile
from cot.utils.textbook import load_chapters
from rl.student_model import GENERATED_CHAPTERS, SimulatedStudent, generate_student, generate_unseen

LONG_HISTORY = 20  # interactions a chapter: at most of a student's moments they tell something
UNSEEN_SEED = 1_000_000  # added to the seed of students whom no training has met


def load_arms(args: argparse.Namespace) -> MemoryArms:
    """The students to train for and what each memory arm shows of them.

    Raises:
        UserError: no such profile, or a single student where another one's memory is needed.
    """
    profiles, histories, truths = load_students(args)
    if args.memory != "none" and len(profiles) < 2:
        raise UserError(f"--students {min(profiles)}: shuffled memory and the margin need a second student")

    embedder = None
    if args.top_k:
        from cot.utils.progress import tell_how_far
        from cot.utils.retrieval import load_embedder

        embedder = load_embedder(watch=tell_how_far("texts embedded"))
    return remember(args, profiles, histories, truths, embedder)


def load_students(
    args: argparse.Namespace, unseen: bool = False, with_logs: bool = True
) -> tuple[dict[str, Profile], dict[str, Sequence[Interaction]], dict[str, Profile]]:
    """Profiles, histories, and the profiles against which texts are judged, by student id.

    Args:
        args: `students, profiles_dir, seed, memory_level`; `generated:N` makes N students from the seed.
        unseen: of generated students, others than the seed gives a training; half of them with pairs of needs
            that no training has.
        with_logs: read what the students' logs hold; without, the histories are empty.

    Raises:
        UserError: no such profile, or not a number behind `generated:`.
    """
    if count := count_generated(args.students):
        chapters = load_chapters()[:GENERATED_CHAPTERS]
        if unseen:
            seed = args.seed + UNSEEN_SEED
            found = generate_unseen(count, chapters, seed, interactions_per_chapter=LONG_HISTORY)
        else:
            found = [
                generate_student(number, chapters, args.seed, interactions_per_chapter=LONG_HISTORY)
                for number in range(count)
            ]
        return describe_students(found, args.memory_level)

    profiles = load_profiles(args.profiles_dir)
    names = pick_students(args.students, profiles)
    log = MemoryLog(args.profiles_dir / "memory")
    truths = load_truths(args.profiles_dir, profiles)
    return (
        {name: profiles[name] for name in names},
        {name: log.read(name) if with_logs else [] for name in names},
        {name: truths[name] for name in names},
    )


def count_generated(students: Sequence[str]) -> int:
    """How many students `--students generated:N` asks for; 0 where it names other ones.

    Raises:
        UserError: not a number of at least 2.

    >>> count_generated(["generated:256"]), count_generated(["S001", "S002"])
    (256, 0)
    """
    kind, colon, number = students[0].partition(":")
    if kind != "generated" or not colon:
        return 0
    if len(students) > 1 or not number.isdecimal() or int(number) < 2:
        raise UserError(f"--students {' '.join(students)}: expected generated:N with N of at least 2")
    return int(number)


def arms_of(students: Sequence[SimulatedStudent], level: str, embedder=None, **settings) -> MemoryArms:
    """What each memory arm shows of generated students.

    Args:
        level: of memory; at the level `stated` the students say what they need.
        settings: further arguments of `MemoryArms`.
    """
    profiles, histories, truths = describe_students(students, level)
    return MemoryArms(profiles, histories, embedder, level=level, truths=truths, **settings)


def describe_students(students: Sequence[SimulatedStudent], level: str) -> tuple[dict, dict, dict]:
    """Profiles, histories and truths of generated students by id, as `load_students` gives them."""
    return (
        {s.student_id: s.truth if level == "stated" else s.profile for s in students},
        {s.student_id: s.history for s in students},
        {s.student_id: s.truth for s in students},
    )
