"""The closed loop: manners are recognised, students learn from them, and a stopped walk continues."""

import random

import pytest
from conftest import only, read_strictly, run_here

import evaluate_rl
from cot.utils.students import Manner
from cot.utils.textbook import pick_chapters
from rl import simulate_students
from rl.closed_loop import draw_course, read_manner, start_walk, summarize_walks, teach_without_model
from rl.explanations import calculations, draw_phrasing, explain
from rl.student_model import generate_student

CHAPTERS = pick_chapters(["addition", "subtraction", "multiplication"])


@pytest.fixture(scope="module")
def truths():
    students = [generate_student(number, CHAPTERS[:1], 0, interactions_per_chapter=1) for number in range(40)]
    return {student.truth.student_id: student.truth for student in students}


def walk(tutor: str, truths, seed: int = 0) -> list[dict]:
    learners = start_walk(truths, CHAPTERS, seed)
    teach_without_model(tutor, learners, draw_course(CHAPTERS, 6, seed), seed)
    return [learner.describe() for learner in learners]


def test_the_manner_that_an_explanation_was_written_in_is_found_in_it():
    rng = random.Random(0)
    steps = calculations("<<14+23=37>> <<37-5=32>>")
    for _ in range(200):
        written = draw_phrasing(rng)
        found = read_manner(explain(steps, written), gold_steps=2)
        assert found == Manner(style=written.style, hint=written.hint, support=written.support), written


def test_students_learn_most_from_a_tutor_who_knows_what_they_need(truths):
    walks = {tutor: walk(tutor, truths) for tutor in ("random", "oracle")}
    summary = summarize_walks(walks, against="random")
    oracle, chance = summary["tutors"]["oracle"], summary["tutors"]["random"]
    assert oracle["fit"]["mean"] == oracle["support_fit"]["mean"] == 1.0
    # a style fits one time in five, a hint one in two: 0.6 / 5 + 0.4 / 2
    assert chance["fit"]["mean"] == pytest.approx(0.32, abs=0.05)
    (gain,) = summary["gains"]
    assert (gain["tutor"], gain["against"], gain["verdict"]) == ("oracle", "random", "yes")
    assert gain["effect"]["low"] > 0 and gain["effect"]["n"] == gain["effect"]["clusters"] == 40


def test_every_tutor_meets_the_same_students(truths):
    assert walk("oracle", truths) == walk("oracle", truths) != walk("oracle", truths, seed=1)
    one, other = start_walk(truths, CHAPTERS, 0), start_walk(truths, CHAPTERS, 0)
    exercise = draw_course(CHAPTERS, 1, 0)[0]
    for learner, twin in zip(one, other, strict=True):
        learner.meet(exercise, Manner(style="numbered_steps", hint=True, support="brief"), is_sound=True)
        twin.meet(exercise, Manner(), is_sound=True)
        assert learner.student.known_before == twin.student.known_before


def test_practice_comes_before_the_walk_and_is_no_gain_of_it(truths):
    learners = start_walk(truths, CHAPTERS, 0, practice=4)
    for learner in learners:
        student = learner.student
        assert len(learner.history) == 4 * len(CHAPTERS) and learner.steps == []
        assert all(
            item.manner is not None and item.time < f"{student.clock:%Y-%m-%dT%H:%M:%SZ}"
            for item in learner.history
        )
        assert student.known_before == student.known
    # explanations drawn at random fit one time in five in style: someone learned something before it began
    fresh = start_walk(truths, CHAPTERS, 0)
    assert any(any(learner.student.known.values()) for learner in learners)
    assert all(learner.history == [] and learner.student.known == {} for learner in fresh)


def test_nothing_of_a_wrong_explanation_reaches_a_student(truths):
    course = draw_course(CHAPTERS, 6, 0)
    right = {}
    for is_sound in (True, False):
        learners = start_walk(truths, CHAPTERS, 0)
        for exercise in course:
            for learner in learners:
                needs = learner.student.needs
                fitting = Manner(style=needs.style, hint=needs.hint, support="guided")
                learner.meet(exercise, fitting, is_sound)
        right[is_sound] = [step["right"] for learner in learners for step in learner.steps]
    assert sum(right[True]) > 1.5 * sum(right[False])


@pytest.mark.slow
def test_a_walk_with_a_policy_fills_its_memory_and_continues_where_it_was_stopped(tiny_tutor, tmp_path):
    students = tmp_path / "students"
    assert run_here(simulate_students.main, "--generate", 3, "--profiles_dir", students)[0] == 0
    flags = ["--closed_loop", "--base", tiny_tutor, "--trained", f"again={tiny_tutor}", "--device", "cpu"]
    flags += ["--profiles_dir", students, "--memory_level", "history", "--chapters", "addition"]
    flags += ["--exercises_per_chapter", 2, "--practice", 0, "--max_new_tokens", 12, "--output_dir"]

    code, _, stderr = run_here(evaluate_rl.main, *flags, tmp_path / "whole")
    assert code == 0, stderr
    summary = read_strictly(only(tmp_path / "whole", "summary_*.json"))["summary"]
    assert list(summary["tutors"]) == ["random", "oracle", "base", "again"]
    assert summary["tutors"]["base"] == summary["tutors"]["again"]  # one model under two names
    assert summary["rows_done"] == 2 * 3 * 2
    records = read_strictly(only(tmp_path / "whole", "results_*.json"))["results"]
    first, last = records[0]["prompt"], records[-1]["prompt"]
    assert "after" not in first and "after 1 exercise" in last

    # a journal that ends in the middle is what a kill leaves
    journal = only(tmp_path / "whole", "journal_*.jsonl")
    broken = tmp_path / "broken" / "evaluation"
    broken.mkdir(parents=True)
    lines = journal.read_text().splitlines(keepends=True)
    (broken / journal.name).write_text("".join(lines[:2]))
    code, _, stderr = run_here(evaluate_rl.main, *flags, tmp_path / "broken")
    assert code == 0, stderr
    assert (
        read_strictly(only(tmp_path / "broken", "summary_*.json"))["summary"]["tutors"] == summary["tutors"]
    )


def test_students_of_whom_it_is_not_known_what_they_need_are_refused(tiny_tutor, tmp_path):
    students = tmp_path / "students"
    run_here(simulate_students.main, "--generate", 2, "--profiles_dir", students)
    (students / "truth.json").unlink()
    flags = ["--closed_loop", "--base", tiny_tutor, "--trained", f"again={tiny_tutor}", "--memory", "own"]
    code, _, stderr = run_here(evaluate_rl.main, *flags, "--profiles_dir", students, "--output_dir", tmp_path)
    assert code == 2 and "--closed_loop: what S0000 needs is not known" in stderr
