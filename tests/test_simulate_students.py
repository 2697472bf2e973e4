"""The script that writes simulated students: the bundled logs, what is kept, where needs stand."""

import json
import shutil

import pytest
from conftest import run_here

from cot.utils.paths import PROFILES_DIR
from cot.utils.student_files import MemoryLog, load_profiles, load_truths
from cot.utils.textbook import generate_exercises, load_chapters
from rl.simulate_students import main
from rl.student_model import needs_of

PROFILE = {"student_id": "S1", "grade_level": "4th grade", "strengths": [], "challenges": []}


@pytest.mark.slow
def test_no_exercise_of_a_memory_is_in_an_evaluation():
    log = MemoryLog(PROFILES_DIR / "memory")
    remembered = {item.question for student_id in log.students() for item in log.read(student_id)}
    trained, asked = (
        {
            exercise.question
            for chapter in load_chapters()
            for wording in ("usual", "novel")
            for seed in range(5)
            for exercise in generate_exercises(chapter, split, 30, seed, wording)
        }
        for split in ("train", "test")
    )
    assert not remembered & asked
    assert remembered & trained  # so that the two could meet


def test_the_bundled_logs_are_what_the_documented_command_writes(tmp_path):
    for path in PROFILES_DIR.glob("*.json"):
        shutil.copy(path, tmp_path)
    code, stdout, _ = run_here(main, "--seed", 0, "--profiles_dir", tmp_path)
    bundled = {path.name: path.read_bytes() for path in (PROFILES_DIR / "memory").glob("*.jsonl")}
    assert (code, len(stdout.splitlines()), len(bundled)) == (0, 8, 8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "memory").glob("*.jsonl")} == bundled
    # 4 to 12 chapters of 15
    assert all(60 <= len(content.splitlines()) <= 180 for content in bundled.values())


def test_existing_logs_are_kept_unless_told(tmp_path):
    (tmp_path / "S1.json").write_text(json.dumps(PROFILE))
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


def test_a_grade_without_a_number_names_the_profile(tmp_path):
    (tmp_path / "S1.json").write_text(json.dumps(PROFILE | {"grade_level": "fourth grade"}))
    code, _, error = run_here(main, "--profiles_dir", tmp_path)
    expected = "profiles/S1.json: grade_level: expected such as '5th grade', got 'fourth grade'"
    assert (code, error) == (2, f"error: {expected}\n")


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
