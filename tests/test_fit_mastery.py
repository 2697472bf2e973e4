"""Fitting: planted parameters come back, nothing of the future is read, scores are the field's own."""

import itertools
import json
import random

import numpy as np
import pytest
from conftest import read_strictly, run_here
from sklearn.metrics import log_loss, roc_auc_score

from cot.utils.mastery import BKTParameters, SkillState, expect_right, sort_skills, update_mastery
from cot.utils.mastery_model import MasteryModel, load_mastery_model
from cot.utils.stats import auc_values
from cot.utils.student_files import MemoryLog
from cot.utils.students import Interaction
from rl.fit_mastery import main
from rl.mastery_fit import fit_regression, fit_tracing, predict_regression, predict_tracing, share_right
from rl.mastery_scores import PREDICTORS, judge_states, log_losses, predict_all, score_all
from rl.responses import Responses, read_responses

PLANTED = {
    "easy": BKTParameters(p_init=0.6, p_transit=0.3, p_slip=0.05, p_guess=0.3),
    "hard": BKTParameters(p_init=0.2, p_transit=0.1, p_slip=0.2, p_guess=0.1),
}


def simulate(students: int, length: int, seed: int = 0, skills=PLANTED) -> Responses:
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
    return Responses(np.array(student), np.array(skill), np.array(correct), tuple(names))


def answers_of(*students: str, skills=("a",)) -> Responses:
    """Each student as a text such as `a1 b0`: skill and outcome."""
    rows = [
        (number, skills.index(item[0]), item[1] == "1")
        for number, text in enumerate(students)
        for item in text.split()
    ]
    student, skill, correct = zip(*rows, strict=True)
    return Responses(np.array(student), np.array(skill), np.array(correct), tuple(skills))


def write_logs(folder, responses: Responses, prefix: str = "S") -> None:
    """The answers as logs of students S000, S001, …, an answer a minute."""
    items = [
        Interaction(
            student_id=f"{prefix}{student:03}",
            time=f"2026-01-01T{place // 60:02}:{place % 60:02}:00Z",
            chapter=None,
            skill=responses.skills[skill],
            question=None,
            correct=bool(correct),
        )
        for place, (student, skill, correct) in enumerate(
            zip(responses.student, responses.skill, responses.correct, strict=True)
        )
    ]
    MemoryLog(folder / "memory").append(items)


# --- answers ----------------------------------------------------------------------------------------------


def test_answers_are_read_from_logs_in_order_and_by_skill_name(tmp_path):
    wanted = answers_of("b1 a0 b0", "a1", skills=("a", "b"))
    write_logs(tmp_path, wanted)
    (tmp_path / "memory" / "S0005.jsonl").touch()  # a student without answers
    found = read_responses(tmp_path, "--input")
    assert found.skills == ("a", "b")
    for name in ("student", "skill", "correct"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
    assert (
        found.fingerprint == wanted.fingerprint != answers_of("b1 a0 b1", "a1", skills=("a", "b")).fingerprint
    )


# --- knowledge tracing ------------------------------------------------------------------------------------


def test_planted_parameters_of_knowledge_tracing_come_back():
    fitted = fit_tracing(simulate(students=2000, length=8))
    for part in fitted.skills:
        planted = PLANTED[part.skill]
        for name in ("p_init", "p_transit", "p_slip", "p_guess"):
            assert getattr(part, name) == pytest.approx(getattr(planted, name), abs=0.06), (part.skill, name)
        assert part.answers == 2000 * 8
    assert fitted.pooled.answers == 2000 * 16


def test_tracing_predicts_what_update_mastery_gives_answer_by_answer():
    responses = simulate(students=20, length=6)
    fitted = fit_tracing(responses)
    own = {part.skill: part.parameters for part in fitted.skills}
    expected, known = [], {}
    for student, skill, correct in zip(responses.student, responses.skill, responses.correct, strict=True):
        parameters = own[responses.skills[skill]]
        p = known.get((student, skill), parameters.p_init)
        expected.append(expect_right(p, parameters))
        known[student, skill] = update_mastery(p, correct, parameters)
    np.testing.assert_allclose(predict_tracing(fitted, responses), expected, atol=1e-12)
    # (0.3 x .9 + .7 x .2), of the default parameters, before any answer
    assert predict_tracing(None, responses)[0] == pytest.approx(0.41)


# --- regression -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """Responses of 300 students, and what is fitted to them."""
    responses = simulate(students=300, length=8, seed=1)
    return responses, fit_regression(responses), fit_tracing(responses)


def test_a_prompts_estimate_is_the_prediction_that_was_judged(fitted):
    responses, regression, tracing = fitted
    model = MasteryModel(predictor="regression", fitted_on={}, regression=regression, tracing=tracing)
    predicted = predict_regression(regression, responses)
    for student in (0, 7):
        places, trace = np.flatnonzero(responses.student == student), model.start()
        for place in places:
            skill = responses.skills[responses.skill[place]]
            assert model.expect(trace, skill) == pytest.approx(predicted[place], abs=1e-12)
            trace.add(skill, bool(responses.correct[place]))


def test_no_prediction_depends_on_the_answer_or_on_a_later_one(fitted):
    responses, regression, tracing = fitted
    other = simulate(students=40, length=8, seed=3)
    before = predict_all(responses, other, regression, tracing)
    for cut in (0, 5, 11):
        later = other.places() >= cut
        changed = Responses(other.student, other.skill, other.correct ^ later, other.skills)
        after = predict_all(responses, changed, regression, tracing)
        seen = other.places() <= cut
        for name in PREDICTORS:
            np.testing.assert_array_equal(before[name][seen], after[name][seen], err_msg=name)


def test_the_simple_predictors_are_their_formulas(fitted):
    fitting, regression, tracing = fitted
    responses = answers_of("a1 b0 a0", skills=("a", "b"))
    responses = Responses(responses.student, responses.skill, responses.correct, fitting.skills)
    means, overall = share_right(fitting)
    found = predict_all(fitting, responses, regression, tracing)
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


def test_calibration_is_the_mean_distance_of_prediction_and_share():
    responses = answers_of("a1 a0 a1 a1", "a1 a1")
    predicted = np.array([0.75, 0.75, 0.71, 0.79, 1.0, 0.95])
    found = score_all(responses, {"regression": predicted})["predictors"]["regression"]
    # .7 to .8: predicted .75, right 3 of 4; .9 to 1: predicted .975, right 2 of 2
    assert [row["answers"] for row in found["calibration"]] == [4, 2]
    assert [row["predicted"] for row in found["calibration"]] == pytest.approx([0.75, 0.975])
    assert found["calibration_error"] == pytest.approx(0.0 * 4 / 6 + 0.025 * 2 / 6)


def test_the_states_judged_are_those_that_a_prompt_tells():
    # the first answer in a skill is told no state
    predicted = np.array([0.9, 0.2, 0.4099, 0.4101, 0.8649, 0.8651])
    responses = answers_of("a1 a1 a0 a1 a1 a0")
    found = {row["state"]: row["answers"] for row in judge_states(responses, predicted)}
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


def test_the_script_writes_the_same_file_again_and_prompts_can_use_it(logs, tmp_path):
    files = []
    for name in ("a.json", "b.json"):
        code, stdout, stderr = run_here(main, "--input", logs / "fitting", "--output", tmp_path / name)
        assert code == 0 and "480 answers of 40 students in 2 skills" in stdout, stderr
        files.append(read_strictly(tmp_path / name))
        assert json.dumps(files[-1], indent=2, ensure_ascii=False) + "\n" == (tmp_path / name).read_text()
        files[-1]["fitted_on"].pop("finished")
    assert files[0] == files[1]
    model = load_mastery_model(tmp_path / "a.json")
    assert (model.predictor, model.evaluation) == ("tracing", None)
    assert [model.fitted_on[name] for name in ("students", "answers", "skills")] == [40, 480, 2]
    assert set(model.estimate(MemoryLog(logs / "fitting" / "memory").read("S003"))) == {"easy", "hard"}


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
    flags = ["--input", tmp_path / "tracing", "--output", tmp_path / "m.json", "--predictor", "regression"]
    assert run_here(main, *flags)[0] == 0
    named = load_mastery_model(tmp_path / "m.json")
    assert (named.predictor, named.fitted_on["held_out_log_loss"]) == ("regression", None)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("folder", "flags", "message"),
    [
        ("gone", [], "--input gone: no memory/<student_id>.jsonl there"),
        ("fitting", ["--output", "m.txt"], "--output m.txt: expected a name that ends in .json"),
        ("fitting", ["--output", "gone/m.json"], "--output gone/m.json: no such folder"),
        ("fitting", ["--test", "test"], "--test: it is read with --evaluate alone"),
        ("right", [], "all answers are right, or all are wrong"),
        (
            "few",
            ["--evaluate", "--predictor", "tracing"],
            "--evaluate: 5 folds need 5 students, --input has 2",
        ),
        ("few", [], "--predictor auto: it needs 5 students, --input has 2; name one"),
        ("torn", [], "torn/memory/S000.jsonl: line 1: not JSON"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(logs, monkeypatch, tmp_path, folder, flags, message):
    monkeypatch.chdir(tmp_path)
    for name in ("fitting", "test"):
        (tmp_path / name).symlink_to(logs / name)
    write_logs(tmp_path / "right", answers_of("a1 a1", "a1"))
    write_logs(tmp_path / "few", answers_of("a1 a0", "a1"))
    (tmp_path / "torn" / "memory").mkdir(parents=True)
    (tmp_path / "torn" / "memory" / "S000.jsonl").write_text("{\n{}\n")
    code, _, stderr = run_here(main, "--output", "m.json", "--input", folder, *flags)
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {message}")
