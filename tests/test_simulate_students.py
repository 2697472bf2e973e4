"""Simulated students: seeded, learning as their parameters say, asked nothing that an evaluation asks."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from cot.utils.cli import PROFILES_DIR, REPO_ROOT
from cot.utils.errors import UserError
from cot.utils.mastery import BKTParameters, mastery_by_skill
from cot.utils.students import MemoryLog, Profile, load_profiles
from cot.utils.textbook import generate_exercises, load_chapters
from rl.simulate_students import LEANING, Student, draw_parameters, simulate_history, student_grade

CHAPTERS = load_chapters()
PROFILES = load_profiles(PROFILES_DIR)
FIXED = BKTParameters(p_init=0.3, p_transit=0.15, p_slip=0.1, p_guess=0.2)


def profile(grade_level="4th grade", strengths=(), challenges=(), student_id="S1") -> Profile:
    return Profile(
        student_id=student_id,
        grade_level=grade_level,
        strengths=list(strengths),
        challenges=list(challenges),
        learning_preferences=[],
        explanation_style="numbered_steps",
    )


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


@pytest.mark.slow
def test_no_exercise_of_a_memory_is_in_an_evaluation():
    remembered = {
        item.question
        for seed in range(5)
        for student in PROFILES.values()
        for item in simulate_history(student, CHAPTERS, seed)
    }
    log = MemoryLog(PROFILES_DIR / "memory")
    remembered |= {item.question for student_id in log.students() for item in log.read(student_id)}
    asked = {
        drawn.question
        for chapter in CHAPTERS
        for wording in ("usual", "novel")
        for seed in range(20)
        for drawn in generate_exercises(chapter, "test", 30, seed, wording)
    }
    assert len(remembered) > 3000
    assert len(asked) > 5000
    assert not remembered & asked


def test_the_bundled_logs_are_what_the_documented_command_writes(tmp_path):
    for path in PROFILES_DIR.glob("*.json"):
        shutil.copy(path, tmp_path)
    command = [sys.executable, "rl/simulate_students.py", "--seed", "0", "--profiles_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(PROFILES)
    for student_id in PROFILES:
        bundled = (PROFILES_DIR / "memory" / f"{student_id}.jsonl").read_bytes()
        assert (tmp_path / "memory" / f"{student_id}.jsonl").read_bytes() == bundled
        assert 60 <= len(bundled.splitlines()) <= 180  # 4 to 12 chapters of 15


# --- the script ------------------------------------------------------------------------------------------


def run_script(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO_ROOT / "rl" / "simulate_students.py"), *flags]
    return subprocess.run(command, cwd="/", capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "S9.json").write_text(profile(student_id="S9").model_dump_json())
    return tmp_path


def test_existing_logs_are_kept_unless_told(folder):
    flags = ["--profiles_dir", str(folder), "--interactions_per_chapter", "2"]
    assert run_script(*flags).returncode == 0
    path = folder / "memory" / "S9.jsonl"
    before = path.read_bytes()
    assert len(before.splitlines()) == 14  # 7 chapters up to grade 5, two exercises each
    refused = run_script(*flags, "--seed", "1")
    assert (refused.returncode, path.read_bytes()) == (2, before)
    assert refused.stderr.count("\n") == 1 and "S9; --overwrite replaces it" in refused.stderr
    assert run_script(*flags, "--seed", "1", "--overwrite").returncode == 0
    assert path.read_bytes() != before
    assert run_script(*flags, "--overwrite").returncode == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--interactions_per_chapter", "0"], ["--over"]])
def test_a_wrong_flag_is_one_line(flags):
    done = run_script(*flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert flags[0] in done.stderr


def test_a_grade_without_a_number_names_the_profile(folder):
    (folder / "S9.json").write_text(json.dumps(profile("fourth grade", student_id="S9").model_dump()))
    done = run_script("--profiles_dir", str(folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "profiles/S9.json: grade_level: expected such as '5th grade', got 'fourth grade'" in done.stderr


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
        assert LEANING == 0.7 and 137 <= count <= 183
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


# --- parameter recovery ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("pyBKT"), reason="pyBKT absent: pip install -r tests/requirements.txt")
def test_pybkt_recovers_the_parameters_from_simulated_logs():
    """400 students of 20 exercises; each parameter within 0.04, from one random start."""
    with mock.patch("sklearn.metrics._classification._log_loss", side_effect=TypeError):
        # pyBKT 1.4 tries every metric of scikit-learn at import and expects a TypeError from some
        from pyBKT.fit import EM_fit
        from pyBKT.generate import random_model_uni
    answers = []
    for seed in range(400):
        student = Student(profile(), CHAPTERS, seed, FIXED)
        answers += [student.answer(exercise(number)).correct for number in range(20)]
    data = {
        "data": (np.array(answers, dtype=int) + 1)[None, :],  # 1 wrong, 2 right
        "resources": np.ones(len(answers), dtype=int),
        "starts": np.arange(400) * 20 + 1,
        "lengths": np.full(400, 20),
    }
    step = EM_fit.run

    def with_scalar(*args, **kwargs):  # NumPy 2.4 no longer turns a (1, 1) array into a number by itself
        result = step(*args, **kwargs)
        return result | {"total_loglike": result["total_loglike"].item()}

    start = random_model_uni.random_model_uni(1, 1, rand=np.random.RandomState(0))
    with mock.patch.object(EM_fit, "run", with_scalar):
        fitted, _ = EM_fit.EM_fit(start, data, tol=0.01, maxiter=100, parallel=False)
    assert fitted["pi_0"][1][0] == pytest.approx(FIXED.p_init, abs=0.04)
    assert fitted["As"][0, 1, 0] == pytest.approx(FIXED.p_transit, abs=0.04)
    assert fitted["slips"][0] == pytest.approx(FIXED.p_slip, abs=0.04)
    assert fitted["guesses"][0] == pytest.approx(FIXED.p_guess, abs=0.04)


def test_the_walk_of_a_student_without_a_grade_is_refused():
    with pytest.raises(UserError, match="grade_level"):
        simulate_history(profile("adult"), CHAPTERS, 0)
