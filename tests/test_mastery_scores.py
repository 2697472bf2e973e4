"""Predictors of a student's next answer: nothing of the future is read, scores are the field's own."""

import numpy as np
import pytest
from conftest import make_responses, simulate_responses
from sklearn.metrics import log_loss, roc_auc_score

from cot.utils.mastery import SkillState, sort_skills
from cot.utils.stats import auc_values
from rl.mastery_fit import fit_regression, fit_tracing, share_right
from rl.mastery_scores import judge_states, log_losses, predict_all, score_all
from rl.responses import Responses


@pytest.fixture(scope="module")
def fitted():
    """Responses of 300 students, and what is fitted to them."""
    responses = simulate_responses(students=300, length=8, seed=1)
    return responses, fit_regression(responses), fit_tracing(responses)


def test_no_prediction_depends_on_the_answer_or_on_a_later_one(fitted):
    responses, regression, tracing = fitted
    other = simulate_responses(students=40, length=8, seed=3)
    before = predict_all(responses, other, regression, tracing)
    for cut in (0, 5, 11):
        later = other.places() >= cut
        changed = Responses(other.student, other.skill, other.correct ^ later, other.skills)
        after = predict_all(responses, changed, regression, tracing)
        seen = other.places() <= cut
        for name in before:
            np.testing.assert_array_equal(before[name][seen], after[name][seen], err_msg=name)


def test_the_simple_predictors_are_their_formulas(fitted):
    fitting, regression, tracing = fitted
    responses = make_responses("a1 b0 a0", skills=("a", "b"))
    responses = Responses(responses.student, responses.skill, responses.correct, fitting.skills)
    means, overall = share_right(fitting)
    found = predict_all(fitting, responses, regression, tracing)
    # of all answers so far: none, one of one right, one of two right
    student = [overall, (1 + 5 * overall) / (1 + 5), (1 + 5 * overall) / (2 + 5)]
    assert found["student_mean"].tolist() == pytest.approx(student)
    assert found["skill_mean"].tolist() == pytest.approx([means[0], means[1], means[0]])
    blend = [means[0], means[1], (1 + 5 * means[0]) / (1 + 5)]
    assert found["blend"].tolist() == pytest.approx(blend)


def test_area_and_loss_are_scikit_learns_with_ties_and_without():
    rng = np.random.default_rng(0)
    outcomes = rng.random(400) < 0.7
    for scores in (rng.random(400), rng.integers(1, 6, 400) / 6):
        assert auc_values(outcomes, scores).mean() == pytest.approx(roc_auc_score(outcomes, scores))
        assert log_losses(outcomes, scores).mean() == pytest.approx(log_loss(outcomes, scores))


def test_calibration_is_the_mean_distance_of_prediction_and_share():
    responses = make_responses("a1 a0 a1 a1", "a1 a1")
    predicted = np.array([0.75, 0.75, 0.71, 0.79, 1.0, 0.95])
    found = score_all(responses, {"regression": predicted})["predictors"]["regression"]
    # .7 to .8: predicted .75, right 3 of 4; .9 to 1: predicted .975, right 2 of 2
    assert [row["answers"] for row in found["calibration"]] == [4, 2]
    assert [row["predicted"] for row in found["calibration"]] == pytest.approx([0.75, 0.975])
    assert found["calibration_error"] == pytest.approx(0.0 * 4 / 6 + 0.025 * 2 / 6)


def test_the_states_judged_are_those_that_a_prompt_tells():
    # the first answer in a skill is told no state
    predicted = np.array([0.9, 0.2, 0.4099, 0.4101, 0.8649, 0.8651])
    responses = make_responses("a1 a1 a0 a1 a1 a0")
    found = {row["state"]: row["answers"] for row in judge_states(responses, predicted)}
    assert found == {"struggling": 2, "in progress": 2, "mastered": 1}
    model = sort_skills(
        SkillState(str(number), mastery=(p - 0.2) / 0.7, exercises=1, right=1)
        for number, p in enumerate(predicted[1:])
    )
    assert [len(model.struggling), len(model.in_progress), len(model.mastered)] == [2, 2, 1]
