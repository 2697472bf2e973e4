"""Fitting: planted parameters come back, nothing of the future is read, scores are the field's own."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from conftest import read_strictly, run_here, run_script
from sklearn.metrics import log_loss, roc_auc_score

from cot.utils.mastery import BKTParameters, SkillState, expect_right, sort_skills, update_mastery
from cot.utils.mastery_model import MasteryModel, load_mastery_model
from cot.utils.stats import auc_values, clustered_mean
from cot.utils.student_files import MemoryLog
from cot.utils.students import Interaction
from rl.answers import Answers, draw_folds, read_answers, use_skills
from rl.fit_mastery import main
from rl.mastery_fit import fit_regression, fit_tracing, predict_regression, predict_tracing, share_right
from rl.mastery_scores import PREDICTORS, judge_states, log_losses, predict_all, score_all

PLANTED = {
    "easy": BKTParameters(p_init=0.6, p_transit=0.3, p_slip=0.05, p_guess=0.3),
    "hard": BKTParameters(p_init=0.2, p_transit=0.1, p_slip=0.2, p_guess=0.1),
}


def simulate(students: int, length: int, seed: int = 0, skills=PLANTED) -> Answers:
    """Students who answer in each skill in turn, as knowledge tracing says."""
    rng = random.Random(seed)
    names = sorted(skills)
    rows = []
    for student in range(students):
        known = {name: rng.random() < skills[name].p_init for name in names}
        for _, (place, name) in itertools.product(range(length), enumerate(names)):
            own = skills[name]
            rows.append((student, place, rng.random() < (1 - own.p_slip if known[name] else own.p_guess)))
            known[name] = known[name] or rng.random() < own.p_transit
    student, skill, correct = zip(*rows, strict=True)
    return Answers(np.array(student), np.array(skill), np.array(correct), tuple(names))


def answers_of(*students: str, skills=("a",)) -> Answers:
    """Each student as a text such as `a1 b0`: skill and outcome."""
    rows = [
        (number, skills.index(item[0]), item[1] == "1")
        for number, text in enumerate(students)
        for item in text.split()
    ]
    student, skill, correct = zip(*rows, strict=True)
    return Answers(np.array(student), np.array(skill), np.array(correct), tuple(skills))


def write_logs(folder, answers: Answers, prefix: str = "S") -> None:
    """The answers as logs of students S000, S001, …, an answer a minute."""
    items = [
        Interaction(
            student_id=f"{prefix}{student:03}",
            time=f"2026-01-01T{place // 60:02}:{place % 60:02}:00Z",
            chapter=None,
            skill=answers.skills[skill],
            question=None,
            correct=bool(correct),
        )
        for place, (student, skill, correct) in enumerate(
            zip(answers.student, answers.skill, answers.correct, strict=True)
        )
    ]
    MemoryLog(folder / "memory").append(items)


# --- answers ----------------------------------------------------------------------------------------------


def test_answers_are_read_from_logs_in_order_and_by_skill_name(tmp_path):
    wanted = answers_of("b1 a0 b0", "a1", skills=("a", "b"))
    write_logs(tmp_path, wanted)
    (tmp_path / "memory" / "S0005.jsonl").touch()  # a student without answers
    found = read_answers(tmp_path, "--input")
    assert found.skills == ("a", "b")
    for name in ("student", "skill", "correct"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
    assert (
        found.fingerprint == wanted.fingerprint != answers_of("b1 a0 b1", "a1", skills=("a", "b")).fingerprint
    )


def test_what_came_before_an_answer_is_counted_in_its_skill_and_overall():
    answers = answers_of("a1 b0 a0 a1", "a1 a0", skills=("a", "b"))
    count, right = answers.counts_in_skill()
    assert count.tolist() == [0, 0, 1, 2, 0, 1]
    assert right.tolist() == [0, 0, 1, 1, 0, 1]
    assert answers.places().tolist() == [0, 1, 2, 3, 0, 1]


def test_some_students_are_numbered_anew_and_skills_as_elsewhere():
    answers = answers_of("a1", "b0 b1", "a0", skills=("a", "b"))
    chosen = answers.of(np.array([False, True, True]))
    assert chosen.student.tolist() == [0, 0, 1] and chosen.skill.tolist() == [1, 1, 0]
    other = use_skills(chosen, ("c", "b"))
    assert other.skills == ("c", "b", "a") and other.skill.tolist() == [1, 1, 2]


def test_folds_are_of_equal_size_and_drawn_by_the_seed():
    folds = draw_folds(23, seed=1)
    assert sorted(np.bincount(folds).tolist()) == [4, 4, 5, 5, 5]
    assert folds.tolist() == draw_folds(23, seed=1).tolist() != draw_folds(23, seed=2).tolist()


# --- knowledge tracing ------------------------------------------------------------------------------------


def test_planted_parameters_of_knowledge_tracing_come_back():
    fitted = fit_tracing(simulate(students=3000, length=8))
    for part in fitted.skills:
        planted = PLANTED[part.skill]
        for name in ("p_init", "p_transit", "p_slip", "p_guess"):
            assert getattr(part, name) == pytest.approx(getattr(planted, name), abs=0.05), (part.skill, name)
        assert part.answers == 3000 * 8
    assert fitted.pooled.answers == 3000 * 16


def test_tracing_predicts_what_update_mastery_gives_answer_by_answer():
    answers = simulate(students=20, length=6)
    fitted = fit_tracing(answers)
    own = {part.skill: part.parameters for part in fitted.skills}
    expected, known = [], {}
    for student, skill, correct in zip(answers.student, answers.skill, answers.correct, strict=True):
        parameters = own[answers.skills[skill]]
        p = known.get((student, skill), parameters.p_init)
        expected.append(expect_right(p, parameters))
        known[student, skill] = update_mastery(p, correct, parameters)
    np.testing.assert_allclose(predict_tracing(fitted, answers), expected, atol=1e-12)
    # (0.3 x .9 + .7 x .2), of the default parameters, before any answer
    assert predict_tracing(None, answers)[0] == pytest.approx(0.41)


def likelihood(chains: list[list[bool]], p_init: float, p_transit: float, slip: float, guess: float) -> float:
    """Log likelihood by all paths: unknown for a number of steps, known from then on."""
    total = 0.0
    for chain in chains:
        paths = []
        for learned in range(len(chain) + 1):  # the place from which on the skill is known
            p = p_init if learned == 0 else (1 - p_init) * (1 - p_transit) ** (learned - 1)
            if 0 < learned < len(chain):
                p *= p_transit
            for place, right in enumerate(chain):
                known = place >= learned
                p *= (1 - slip if right else slip) if known else (guess if right else 1 - guess)
            paths.append(p)
        total += math.log(sum(paths))
    return total


def test_no_parameters_nearby_make_the_answers_likelier():
    answers = simulate(students=150, length=6, skills={"easy": PLANTED["easy"]})
    fitted = fit_tracing(answers).pooled
    values = [fitted.p_init, fitted.p_transit, fitted.p_slip, fitted.p_guess]
    chains = [answers.correct[answers.student == student].tolist() for student in range(150)]
    best = likelihood(chains, *values)
    for place, step in itertools.product(range(4), (-0.03, 0.03)):
        moved = [value + step * (number == place) for number, value in enumerate(values)]
        if all(0.001 <= value < 0.5 + 0.5 * (number < 2) for number, value in enumerate(moved)):
            assert likelihood(chains, *moved) < best, (place, step)


# --- regression -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """Answers of 300 students, and what is fitted to them."""
    answers = simulate(students=300, length=8, seed=1)
    return answers, fit_regression(answers), fit_tracing(answers)


def test_a_prompts_estimate_is_the_prediction_that_was_judged(fitted):
    answers, regression, tracing = fitted
    model = MasteryModel(predictor="regression", fitted_on={}, regression=regression, tracing=tracing)
    predicted = predict_regression(regression, answers)
    for student in (0, 7):
        places, trace = np.flatnonzero(answers.student == student), model.start()
        for place in places:
            skill = answers.skills[answers.skill[place]]
            assert model.expect(trace, skill) == pytest.approx(predicted[place], abs=1e-12)
            trace.add(skill, bool(answers.correct[place]))


def test_the_regression_is_calibrated_on_what_it_was_fitted_on(fitted):
    answers, regression, _ = fitted
    predicted = predict_regression(regression, answers)
    assert predicted.mean() == pytest.approx(answers.correct.mean(), abs=1e-3)
    for skill in (0, 1):
        there = answers.skill == skill
        assert predicted[there].mean() == pytest.approx(answers.correct[there].mean(), abs=2e-3)


def test_it_knows_more_of_new_students_than_the_skills_mean(fitted):
    answers, regression, tracing = fitted
    new = simulate(students=300, length=8, seed=2)
    scores = score_all(new, predict_all(answers, new, regression, tracing))
    gain = next(row for row in scores["gains"] if row["against"] == "skill_mean")
    assert gain["auc"]["low"] > 0 > gain["log_loss"]["high"]
    # the answers come from knowledge tracing, and fitted to others' it predicts them better than its defaults
    losses = {name: scores["predictors"][name]["log_loss"]["mean"] for name in PREDICTORS}
    assert losses["fitted_tracing"] < losses["default_tracing"] - 0.02


def test_the_share_of_a_skill_is_smoothed_and_one_without_answers_has_that_of_all():
    means, overall = share_right(answers_of("a1 a1 a0", skills=("a", "b")))
    assert overall == pytest.approx(3 / 5) and means.tolist() == pytest.approx([3 / 5, 3 / 5])


def test_no_prediction_depends_on_the_answer_or_on_a_later_one(fitted):
    answers, regression, tracing = fitted
    other = simulate(students=40, length=8, seed=3)
    before = predict_all(answers, other, regression, tracing)
    for cut in (0, 5, 11):
        later = other.places() >= cut
        changed = Answers(other.student, other.skill, other.correct ^ later, other.skills)
        after = predict_all(answers, changed, regression, tracing)
        seen = other.places() <= cut
        for name in PREDICTORS:
            np.testing.assert_array_equal(before[name][seen], after[name][seen], err_msg=name)


def test_the_simple_predictors_are_their_formulas(fitted):
    fitting, regression, tracing = fitted
    answers = answers_of("a1 b0 a0", skills=("a", "b"))
    answers = Answers(answers.student, answers.skill, answers.correct, fitting.skills)
    means, overall = share_right(fitting)
    found = predict_all(fitting, answers, regression, tracing)
    # of all answers so far: none, one of one right, one of two right
    student = [overall, (1 + 5 * overall) / (1 + 5), (1 + 5 * overall) / (2 + 5)]
    assert found["student_mean"].tolist() == pytest.approx(student)
    assert found["skill_mean"].tolist() == pytest.approx([means[0], means[1], means[0]])
    blend = [means[0], means[1], (1 + 5 * means[0]) / (1 + 5)]
    assert found["blend"].tolist() == pytest.approx(blend)


# --- scores -----------------------------------------------------------------------------------------------


def test_area_and_loss_are_scikit_learns_with_ties_and_without():
    rng = np.random.default_rng(0)
    outcomes = rng.random(400) < 0.7
    for scores in (rng.random(400), rng.integers(1, 6, 400) / 6):
        assert auc_values(outcomes, scores).mean() == pytest.approx(roc_auc_score(outcomes, scores))
        assert log_losses(outcomes, scores).mean() == pytest.approx(log_loss(outcomes, scores))


def test_the_interval_of_the_area_is_that_of_a_bootstrap_over_students():
    answers = simulate(students=200, length=6, seed=4)
    scores = predict_tracing(None, answers)
    interval = clustered_mean(auc_values(answers.correct, scores), [answers.student])
    rng, by_student = np.random.default_rng(0), np.split(np.arange(len(answers)), 200)
    areas = []
    for _ in range(300):
        drawn = np.concatenate([by_student[student] for student in rng.integers(0, 200, 200)])
        areas.append(roc_auc_score(answers.correct[drawn], scores[drawn]))
    half = (interval["high"] - interval["low"]) / 2
    assert half == pytest.approx(1.97 * np.std(areas), rel=0.15)


def test_calibration_is_the_mean_distance_of_prediction_and_share():
    answers = answers_of("a1 a0 a1 a1", "a1 a1")
    predicted = np.array([0.75, 0.75, 0.71, 0.79, 1.0, 0.95])
    found = score_all(answers, {"regression": predicted})["predictors"]["regression"]
    # .7 to .8: predicted .75, right 3 of 4; .9 to 1: predicted .975, right 2 of 2
    assert [row["answers"] for row in found["calibration"]] == [4, 2]
    assert [row["predicted"] for row in found["calibration"]] == pytest.approx([0.75, 0.975])
    assert found["calibration_error"] == pytest.approx(0.0 * 4 / 6 + 0.025 * 2 / 6)


def test_the_states_judged_are_those_that_a_prompt_tells():
    # the first answer in a skill is told no state
    predicted = np.array([0.9, 0.2, 0.4099, 0.4101, 0.8649, 0.8651])
    answers = answers_of("a1 a1 a0 a1 a1 a0")
    found = {row["state"]: row["answers"] for row in judge_states(answers, predicted)}
    assert found == {"struggling": 2, "in progress": 2, "mastered": 1}
    model = sort_skills(
        SkillState(str(number), mastery=(p - 0.2) / 0.7, exercises=1, right=1)
        for number, p in enumerate(predicted[1:])
    )
    assert [len(model.struggling), len(model.in_progress), len(model.mastered)] == [2, 2, 1]


# --- the script -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder / "fitting", simulate(students=40, length=6, seed=5))
    write_logs(folder / "test", simulate(students=15, length=6, seed=6), prefix="T")
    return folder


@pytest.mark.slow
def test_the_script_writes_a_file_that_prompts_can_use(logs, tmp_path):
    process = run_script("rl/fit_mastery.py", "--input", logs / "fitting", "--output", tmp_path / "m.json")
    assert process.returncode == 0, process.stderr_text
    assert "480 answers of 40 students in 2 skills" in process.stdout_text
    model = load_mastery_model(tmp_path / "m.json")
    assert (model.predictor, model.evaluation) == ("tracing", None)
    assert {name: model.fitted_on[name] for name in ("students", "answers", "skills")} == {
        "students": 40,
        "answers": 480,
        "skills": 2,
    }
    history = MemoryLog(logs / "fitting" / "memory").read("S003")
    assert set(model.estimate(history)) == {"easy", "hard"}


def test_the_predictor_that_prompts_show_is_the_better_one_on_students_held_out(tmp_path):
    # answers of knowledge tracing, and answers that depend on the student alone
    write_logs(tmp_path / "tracing", simulate(students=60, length=6, seed=7))
    rng = random.Random(0)
    able = [rng.choice((0.1, 0.9)) for _ in range(60)]
    texts = [" ".join(f"{rng.choice('ab')}{int(rng.random() < p)}" for _ in range(20)) for p in able]
    write_logs(tmp_path / "regression", answers_of(*texts, skills=("a", "b")))
    for better in ("tracing", "regression"):
        code, stdout, _ = run_here(main, "--input", tmp_path / better, "--output", tmp_path / "m.json")
        model = load_mastery_model(tmp_path / "m.json")
        losses = model.fitted_on["held_out_log_loss"]
        assert (code, model.predictor, min(losses, key=losses.get)) == (0, better, better)
        assert f"predictor: {better} (log loss on a fifth of the students held out: regression" in stdout
        # one that is named is not compared
        flags = ["--input", tmp_path / better, "--output", tmp_path / "m.json", "--predictor", "regression"]
        assert run_here(main, *flags)[0] == 0
        named = load_mastery_model(tmp_path / "m.json")
        assert (named.predictor, named.fitted_on["held_out_log_loss"]) == ("regression", None)


@pytest.mark.parametrize("on_test", [False, True])
def test_the_scores_are_of_students_held_out(logs, tmp_path, on_test):
    flags = ["--input", logs / "fitting", "--output", tmp_path / "m.json", "--evaluate"]
    code, stdout, stderr = run_here(main, *flags, *(["--test", logs / "test"] if on_test else []))
    assert code == 0, stderr
    evaluation = read_strictly(tmp_path / "m.json")["evaluation"]
    assert (evaluation["students"], evaluation["answers"]) == ((15, 180) if on_test else (40, 480))
    assert evaluation["on"]["folds"] == (None if on_test else 5)
    assert list(evaluation["predictors"]) == list(PREDICTORS)
    for name, scores in evaluation["predictors"].items():
        for key in ("auc", "log_loss"):
            interval = scores[key]
            assert interval["low"] <= interval["mean"] <= interval["high"], (name, key)
        assert sum(row["answers"] for row in scores["calibration"]) == evaluation["answers"]
    told = evaluation["predictors"]["regression"]["auc"]["mean"]
    assert f"| regression | {told:.4f} (" in stdout
    assert load_mastery_model(tmp_path / "m.json").evaluation == evaluation
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_logs_give_the_same_file_of_plain_numbers(logs, tmp_path):
    files = []
    for name in ("a.json", "b.json"):
        assert run_here(main, "--input", logs / "fitting", "--output", tmp_path / name)[0] == 0
        files.append(read_strictly(tmp_path / name))
        assert json.dumps(files[-1], indent=2, ensure_ascii=False) + "\n" == (tmp_path / name).read_text()
        files[-1]["fitted_on"].pop("finished")
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "gone", "--output", "m.json"], "--input gone: no memory/<student_id>.jsonl there"),
        (["--input", "fitting", "--output", "m.txt"], "--output m.txt: expected a name that ends in .json"),
        (["--input", "fitting", "--output", "gone/m.json"], "--output gone/m.json: no such folder"),
        (
            ["--input", "fitting", "--output", "m.json", "--test", "test"],
            "--test: it is read with --evaluate alone",
        ),
        (["--input", "right", "--output", "m.json"], "all answers are right, or all are wrong"),
        (
            ["--input", "few", "--output", "m.json", "--evaluate", "--predictor", "tracing"],
            "--evaluate: 5 folds need 5 students, --input has 2",
        ),
        (
            ["--input", "few", "--output", "m.json"],
            "--predictor auto: it needs 5 students, --input has 2; name one",
        ),
        (["--input", "torn", "--output", "m.json"], "torn/memory/S000.jsonl: line 1: not JSON"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(logs, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    for name in ("fitting", "test"):
        (tmp_path / name).symlink_to(logs / name)
    write_logs(tmp_path / "right", answers_of("a1 a1", "a1"))
    write_logs(tmp_path / "few", answers_of("a1 a0", "a1"))
    (tmp_path / "torn" / "memory").mkdir(parents=True)
    (tmp_path / "torn" / "memory" / "S000.jsonl").write_text("{\n{}\n")
    code, _, stderr = run_here(main, *flags)
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {message}")
