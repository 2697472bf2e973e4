"""How students answer and learn: as their parameters and needs say, and seeded."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from cot.utils.manners import record_manners
from cot.utils.mastery import BKTParameters, mastery_by_skill
from cot.utils.paths import PROFILES_DIR
from cot.utils.student_files import load_profiles
from cot.utils.students import Profile
from cot.utils.textbook import load_chapters
from rl.student_model import (
    Student,
    combinations,
    draw_parameters,
    generate_student,
    needs_of,
    simulate_history,
    student_grade,
)

CHAPTERS = load_chapters()
BY_ID = {chapter.id: chapter for chapter in CHAPTERS}
PROFILES = load_profiles(PROFILES_DIR)
FIXED = BKTParameters(p_init=0.3, p_transit=0.15, p_slip=0.1, p_guess=0.2)


def profile(grade_level="4th grade", **changes) -> Profile:
    fields = {"student_id": "S1", "grade_level": grade_level, "strengths": [], "challenges": []}
    return Profile(**fields | changes)


def exercise(number: int, skill="unit", chapter="addition"):
    return SimpleNamespace(chapter=chapter, skill=skill, question=f"Question {number}?")


@pytest.mark.parametrize("student_id", ["S001", "S006"])
def test_a_history_is_a_seeded_walk_through_the_chapters_up_to_one_grade_above(student_id):
    student = PROFILES[student_id]
    history = simulate_history(student, CHAPTERS, seed=3)
    assert history == simulate_history(student, CHAPTERS, seed=3) != simulate_history(student, CHAPTERS, 4)
    times = [item.time for item in history]
    assert times == sorted(set(times))
    within = [chapter for chapter in CHAPTERS if chapter.grade <= student_grade(student) + 1]
    assert [item.chapter for item in history] == [chapter.id for chapter in within for _ in range(15)]
    for item in history:
        helps = {m.id: m.what_helps for m in BY_ID[item.chapter].misconceptions}
        assert item.skill in {skill.id for skill in BY_ID[item.chapter].skills}
        assert item.correct == (item.error_type is None)
        assert item.error_type is None or item.error_type in helps
        assert item.what_helped is None or item.what_helped == helps[item.error_type]
    assert {item.correct for item in history} == {True, False}
    assert any(item.what_helped for item in history)


# --- one student ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "chapter_id", "p_init", "p_transit"),
    [
        (profile("6th grade"), "averages", 0.3, 0.2),
        (profile("5th grade"), "averages", 0.15, 0.2),  # one grade above: .3 - .15
        (profile("8th grade"), "averages", 0.6, 0.2),  # two below: .3 + 2 * .15
        (profile("6th grade", strengths=["averages"]), "averages", 0.5, 0.3),
        (profile("6th grade", challenges=["finding an average"]), "averages", 0.1, 0.1),
        (profile("6th grade", strengths=["percent"]), "averages", 0.3, 0.2),
        (profile("8th grade"), "addition", 0.75, 0.2),  # at most
        (profile("2nd grade"), "averages", 0.05, 0.2),  # at least
    ],
)
def test_parameters_lie_around_what_the_profile_suggests(student, chapter_id, p_init, p_transit):
    drawn = [draw_parameters(student, BY_ID[chapter_id], random.Random(seed)) for seed in range(50)]
    for name, value in [("p_init", p_init), ("p_transit", p_transit), ("p_slip", 0.08), ("p_guess", 0.15)]:
        values = [getattr(parameters, name) for parameters in drawn]
        assert all(0.8 * value - 1e-9 <= found <= 1.2 * value + 1e-9 for found in values)
        assert np.mean(values) == pytest.approx(value, rel=0.06)  # 50 of +-20 %: 1.6 % standard error


def test_a_student_shows_the_parameters_given():
    known_first, learned, unknown_steps, right = 0, 0, 0, Counter()
    for seed in range(1000):
        student, before = Student(profile(), CHAPTERS[:1], seed, FIXED), None
        for number in range(4):
            answer = student.answer(exercise(number))
            after = student.known["unit"]
            if before is None:
                known_first += answer.correct
            else:  # `known` before this answer was seen
                right[before, answer.correct] += 1
                unknown_steps, learned = unknown_steps + (not before), learned + (after and not before)
                assert not (before and not after)  # nothing is unlearned
            before = after
    slip = right[True, False] / (right[True, True] + right[True, False])
    guess = right[False, True] / (right[False, True] + right[False, False])
    # standard errors at most .011 (1000 to 2000 draws): four of them
    assert learned / unknown_steps == pytest.approx(0.15, abs=0.044)
    assert slip == pytest.approx(0.1, abs=0.044)
    assert guess == pytest.approx(0.2, abs=0.044)
    assert known_first / 1000 == pytest.approx(0.3 * 0.9 + 0.7 * 0.2, abs=0.062)  # right at once: .41


def test_the_students_mastery_is_that_of_the_answers():
    student = Student(profile(), CHAPTERS, 0, FIXED)
    history = [student.answer(exercise(n, skill=f"skill {n % 2}")) for n in range(20)]
    expected = mastery_by_skill(history, FIXED)
    assert student.mastery == {skill: pytest.approx(value, abs=1e-12) for skill, value in expected.items()}


def test_a_student_leans_to_one_misconception_of_a_chapter():
    wrong = BKTParameters(0.0, 0.0, 0.0, 0.0)
    leanings = set()
    for seed in range(10):
        student = Student(profile(), CHAPTERS, seed, wrong)
        errors = Counter(student.answer(exercise(n)).error_type for n in range(200))
        favourite, count = errors.most_common(1)[0]
        leanings.add(favourite)
        # .7 and a third of the rest: .8 of 200 = 160, standard deviation 5.7
        assert 137 <= count <= 183
        assert set(errors) <= {m.id for m in BY_ID["addition"].misconceptions}
    assert len(leanings) == 3


# --- generated students, who never say what they need -----------------------------------------------------


@pytest.fixture(scope="module")
def generated():
    """Eighty of them, with 60 exercises each."""
    return [generate_student(number, CHAPTERS[:5], seed=0) for number in range(80)]


def share(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.slow
def test_no_profile_says_what_a_generated_student_needs(generated):
    for student in generated:
        assert student.profile.explanation_style is None and student.profile.learning_preferences == []
        assert needs_of(student.profile) is None and needs_of(student.truth) in combinations("seen")


def test_an_explanation_that_fits_makes_right_answers_likelier(generated):
    right = {reached: [] for reached in (1.0, 0.6, 0.4, 0.0)}  # style and hint, the style, the hint, neither
    for student in generated:
        for item in student.history:
            right[needs_of(student.truth).met_by(item.manner)].append(item.correct)
    both, style, hint, neither = (share(found) for found in right.values())
    assert both > style + 0.1 > hint + 0.15 and hint > neither + 0.15


def test_what_worked_shows_what_is_needed_and_another_students_record_does_not(generated):
    best = [record_manners(student.history).styles[0].value for student in generated]
    needed = [student.truth.explanation_style for student in generated]
    assert share(one == other for one, other in zip(best, needed, strict=True)) > 0.55  # chance: 0.2
    assert share(one == other for one, other in zip(best[1:] + best[:1], needed, strict=True)) < 0.32


def test_nobody_has_an_unseen_pair_in_training_but_its_halves_occur():
    seen, unseen = combinations("seen"), combinations("unseen")
    assert not set(seen) & set(unseen) and len(seen) + len(unseen) == 10
    assert {needs.style for needs in unseen} <= {needs.style for needs in seen}
    assert {needs.hint for needs in seen} == {True, False}
    found = {needs_of(generate_student(n, CHAPTERS[:1], 0, "unseen", 1).truth) for n in range(40)}
    assert found == set(unseen)


@pytest.mark.slow
def test_after_a_change_the_newer_need_is_the_truth_and_decides_what_helps():
    right = {False: [], True: []}  # late or early, in the newer style
    for number in range(60):
        student = generate_student(number, CHAPTERS[:5], 0, interactions_per_chapter=20, changes_after=50)
        for place, item in enumerate(student.history):
            if item.manner.style == student.truth.explanation_style:
                right[place >= 50].append(item.correct)
    assert share(right[True]) > share(right[False]) + 0.15
