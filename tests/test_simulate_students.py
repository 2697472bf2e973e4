"""Simulated students: seeded, learning as their parameters say, asked nothing that an evaluation asks."""

import random
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_here, run_script

from cot.utils.manners import record_manners
from cot.utils.mastery import BKTParameters, mastery_by_skill
from cot.utils.paths import PROFILES_DIR
from cot.utils.student_files import MemoryLog, load_profiles, load_truths
from cot.utils.students import Profile
from cot.utils.textbook import generate_exercises, load_chapters
from rl.simulate_students import main
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
PROFILES = load_profiles(PROFILES_DIR)
FIXED = BKTParameters(p_init=0.3, p_transit=0.15, p_slip=0.1, p_guess=0.2)


def profile(grade_level="4th grade", **changes) -> Profile:
    fields = {"student_id": "S1", "grade_level": grade_level, "strengths": [], "challenges": []}
    fields |= {"learning_preferences": [], "explanation_style": "numbered_steps"}
    return Profile(**fields | changes)


def exercise(number: int, skill="unit", chapter="addition"):
    return SimpleNamespace(chapter=chapter, skill=skill, question=f"Question {number}?")


# --- histories -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student_id", sorted(PROFILES))
def test_a_history_is_a_walk_through_the_chapters_up_to_one_grade_above(student_id):
    student = PROFILES[student_id]
    history = simulate_history(student, CHAPTERS, seed=3)
    assert history == simulate_history(student, CHAPTERS, seed=3)
    assert history != simulate_history(student, CHAPTERS, seed=4)
    times = [item.time for item in history]
    assert times == sorted(set(times))
    within = [chapter for chapter in CHAPTERS if chapter.grade <= student_grade(student) + 1]
    assert [item.chapter for item in history] == [chapter.id for chapter in within for _ in range(15)]
    chapters = {chapter.id: chapter for chapter in CHAPTERS}
    for item in history:
        helps = {m.id: m.what_helps for m in chapters[item.chapter].misconceptions}
        assert item.skill in {skill.id for skill in chapters[item.chapter].skills}
        assert item.correct == (item.error_type is None)
        assert item.error_type is None or item.error_type in helps
        assert item.what_helped is None or item.what_helped == helps[item.error_type]
    assert {item.correct for item in history} == {True, False}
    assert any(item.what_helped for item in history)


def test_no_exercise_of_a_memory_is_in_an_evaluation():
    log = MemoryLog(PROFILES_DIR / "memory")
    remembered = {item.question for student_id in log.students() for item in log.read(student_id)}
    trained, asked = (
        {
            exercise.question
            for chapter in CHAPTERS
            for wording in ("usual", "novel")
            for seed in range(5)
            for exercise in generate_exercises(chapter, split, 30, seed, wording)
        }
        for split in ("train", "test")
    )
    assert not remembered & asked
    assert remembered & trained  # so that the two could meet


# --- the script ------------------------------------------------------------------------------------------


def test_the_bundled_logs_are_what_the_documented_command_writes(tmp_path):
    for path in PROFILES_DIR.glob("*.json"):
        shutil.copy(path, tmp_path)
    done = run_script("rl/simulate_students.py", "--seed", 0, "--profiles_dir", tmp_path, cwd="/")
    assert (done.returncode, len(done.stdout_text.splitlines())) == (0, len(PROFILES))
    for student_id in PROFILES:
        bundled = (PROFILES_DIR / "memory" / f"{student_id}.jsonl").read_bytes()
        assert (tmp_path / "memory" / f"{student_id}.jsonl").read_bytes() == bundled
        assert 60 <= len(bundled.splitlines()) <= 180  # 4 to 12 chapters of 15


def test_existing_logs_are_kept_unless_told(tmp_path):
    (tmp_path / "S1.json").write_text(profile().model_dump_json())
    path = tmp_path / "memory" / "S1.jsonl"

    def simulate(*flags):
        return run_here(main, "--profiles_dir", tmp_path, "--interactions_per_chapter", 2, *flags)

    assert simulate()[0] == 0
    before = path.read_bytes()
    assert len(before.splitlines()) == 14  # 7 chapters up to grade 5, two exercises each

    code, _, error = simulate("--seed", 1)
    assert (code, path.read_bytes()) == (2, before)
    assert error.count("\n") == 1 and "S1; --overwrite replaces it" in error

    assert simulate("--seed", 1, "--overwrite")[0] == 0
    other = path.read_bytes()
    assert (len(other.splitlines()), other == before) == (14, False)
    assert simulate("--overwrite")[0] == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--interactions_per_chapter", "0"]])
def test_a_number_that_is_too_small_names_its_flag(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_grade_without_a_number_names_the_profile(tmp_path):
    (tmp_path / "S1.json").write_text(profile("fourth grade").model_dump_json())
    code, _, error = run_here(main, "--profiles_dir", tmp_path)
    assert code == 2
    assert error == (
        "error: profiles/S1.json: grade_level: expected such as '5th grade', got 'fourth grade'\n"
    )


# --- one student -----------------------------------------------------------------------------------------


def chapter(chapter_id: str):
    return next(chapter for chapter in CHAPTERS if chapter.id == chapter_id)


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
    drawn = [draw_parameters(student, chapter(chapter_id), random.Random(seed)) for seed in range(50)]
    for name, value in [("p_init", p_init), ("p_transit", p_transit), ("p_slip", 0.08), ("p_guess", 0.15)]:
        values = [getattr(parameters, name) for parameters in drawn]
        assert all(0.8 * value - 1e-9 <= found <= 1.2 * value + 1e-9 for found in values)
        assert np.mean(values) == pytest.approx(value, rel=0.06)  # 50 of +-20 %: 1.6 % standard error
        assert len(set(values)) == 50


def test_a_student_shows_the_parameters_given():
    known_first, learned, unknown_steps, right = 0, 0, 0, Counter()
    for seed in range(2000):
        student = Student(profile(), CHAPTERS, seed, FIXED)
        before = None
        for number in range(4):
            answer = student.answer(exercise(number))
            after = student.known["unit"]
            if before is not None:  # `known` before this answer was seen
                right[before, answer.correct] += 1
                if not before:
                    unknown_steps, learned = unknown_steps + 1, learned + after
                assert not (before and not after)  # nothing is unlearned
            before = after
        known_first += Student(profile(), CHAPTERS, seed, BKTParameters(0.3, 0.0)).answer(exercise(0)).correct
    slip = right[True, False] / (right[True, True] + right[True, False])
    guess = right[False, True] / (right[False, True] + right[False, False])
    # standard errors at most .0085 (2000 to 4000 draws): four of them
    assert learned / unknown_steps == pytest.approx(0.15, abs=0.03)
    assert slip == pytest.approx(0.1, abs=0.03)
    assert guess == pytest.approx(0.2, abs=0.03)
    assert known_first / 2000 == pytest.approx(0.3 * 0.9 + 0.7 * 0.2, abs=0.044)  # right at once: .41


def test_the_students_mastery_is_that_of_the_answers():
    student = Student(profile(), CHAPTERS, 0, FIXED)
    history = [student.answer(exercise(n, skill=f"skill {n % 2}")) for n in range(20)]
    expected = mastery_by_skill(history, FIXED)
    assert student.mastery == {skill: pytest.approx(value, abs=1e-12) for skill, value in expected.items()}


def test_a_student_leans_to_one_misconception_of_a_chapter():
    wrong = BKTParameters(0.0, 0.0, 0.0, 0.0)
    leanings = set()
    for seed in range(20):
        student = Student(profile(), CHAPTERS, seed, wrong)
        errors = Counter(student.answer(exercise(n)).error_type for n in range(200))
        favourite, count = errors.most_common(1)[0]
        leanings.add(favourite)
        # .7 and a third of the rest: .8 of 200 = 160, standard deviation 5.7
        assert 137 <= count <= 183
        assert set(errors) <= {m.id for m in chapter("addition").misconceptions}
    assert len(leanings) == 3


def test_what_helped_stands_where_the_skill_was_learned_from_an_error():
    for seed in range(50):
        student = Student(profile(), CHAPTERS, seed, BKTParameters(0.0, 0.5, 0.1, 0.2))
        for number in range(10):
            before = student.known.get("unit", False)
            answer = student.answer(exercise(number))
            learned = student.known["unit"] and not before
            assert (answer.what_helped is not None) == (learned and not answer.correct)


def test_a_student_is_the_same_whichever_chapters_are_asked():
    some = Student(PROFILES["S004"], CHAPTERS[:3], 0)
    everything = Student(PROFILES["S004"], CHAPTERS, 0)
    asked = generate_exercises(CHAPTERS[1], "train", 10, 0)
    assert [some.answer(e) for e in asked] == [everything.answer(e) for e in asked]


# ---- generated students, who never say what they need


@pytest.fixture(scope="module")
def generated():
    """Two hundred of them, with 25 exercises each."""
    chapters = load_chapters()[:5]
    return [generate_student(number, chapters, seed=0) for number in range(200)]


def share_right(students, fits) -> float:
    """Of the exercises whose manner fits the student in a way, the share that was answered rightly."""
    items = [
        item.correct
        for student in students
        for item in student.history
        if fits(needs_of(student.truth), item.manner)
    ]
    return sum(items) / len(items)


def test_no_profile_says_what_a_generated_student_needs(generated):
    for student in generated:
        assert student.profile.explanation_style is None and student.profile.learning_preferences == []
        assert needs_of(student.profile) is None and needs_of(student.truth) in combinations("seen")


def test_an_explanation_that_fits_makes_right_answers_likelier(generated):
    both = share_right(generated, lambda needs, manner: needs.met_by(manner) == 1)
    style = share_right(generated, lambda needs, manner: needs.met_by(manner) == 0.6)
    hint = share_right(generated, lambda needs, manner: needs.met_by(manner) == 0.4)
    neither = share_right(generated, lambda needs, manner: needs.met_by(manner) == 0)
    assert both > style + 0.1 > hint + 0.15 and hint > neither + 0.15


def test_what_worked_shows_what_is_needed_and_another_students_record_does_not(generated):
    records = [record_manners(student.history) for student in generated]
    own = [
        record.styles[0].value == student.truth.explanation_style
        for record, student in zip(records, generated, strict=True)
    ]
    others = [
        record.styles[0].value == student.truth.explanation_style
        for record, student in zip(records[1:] + records[:1], generated, strict=True)
    ]
    assert sum(own) / len(own) > 0.55 and sum(others) / len(others) < 0.3  # chance: 0.2


def test_nobody_has_an_unseen_pair_in_training_but_its_halves_occur(generated):
    seen, unseen = combinations("seen"), combinations("unseen")
    assert not set(seen) & set(unseen) and len(seen) + len(unseen) == 10
    assert {needs.style for needs in unseen} <= {needs.style for needs in seen}
    assert {needs.hint for needs in seen} == {True, False}
    chapters = load_chapters()[:1]
    found = {needs_of(generate_student(n, chapters, 0, "unseen", 1).truth) for n in range(40)}
    assert found == set(unseen)


def test_after_a_change_the_newer_need_is_the_truth_and_decides_what_helps():
    chapters = load_chapters()[:5]
    students = [
        generate_student(n, chapters, 0, interactions_per_chapter=20, changes_after=50) for n in range(60)
    ]
    late = [
        item.correct
        for student in students
        for item in student.history[50:]
        if item.manner.style == student.truth.explanation_style
    ]
    early = [
        item.correct
        for student in students
        for item in student.history[:50]
        if item.manner.style == student.truth.explanation_style
    ]
    assert sum(late) / len(late) > sum(early) / len(early) + 0.15


def test_the_generated_files_hold_the_needs_in_one_place_only(tmp_path):
    flags = ["--generate", 4, "--profiles_dir", tmp_path / "students", "--interactions_per_chapter", 2]
    code, _, stderr = run_here(main, *flags)
    assert code == 0, stderr
    profiles = load_profiles(tmp_path / "students")
    truths = load_truths(tmp_path / "students", profiles)
    assert len(profiles) == len(truths) == 4
    assert all(needs_of(truth) and not needs_of(profiles[name]) for name, truth in truths.items())
    assert all(len(MemoryLog(tmp_path / "students" / "memory").read(name)) == 10 for name in profiles)
    code, _, stderr = run_here(main, *flags)
    assert code == 2 and "it holds profiles" in stderr
