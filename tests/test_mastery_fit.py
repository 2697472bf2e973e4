"""Fitting: planted parameters come back, and a prompt's estimate is the prediction that was judged."""

import numpy as np
import pytest
from conftest import PLANTED_SKILLS, simulate_responses

from cot.utils.mastery import expect_right, update_mastery
from cot.utils.mastery_model import MasteryModel
from rl.mastery_fit import fit_regression, fit_tracing, predict_regression, predict_tracing


def test_planted_parameters_of_knowledge_tracing_come_back():
    fitted = fit_tracing(simulate_responses(students=2000, length=8))
    for part in fitted.skills:
        planted = PLANTED_SKILLS[part.skill]
        for name in ("p_init", "p_transit", "p_slip", "p_guess"):
            assert getattr(part, name) == pytest.approx(planted[name], abs=0.06), (part.skill, name)
        assert part.answers == 2000 * 8
    assert fitted.pooled.answers == 2000 * 16


def test_tracing_predicts_what_update_mastery_gives_answer_by_answer():
    responses = simulate_responses(students=20, length=6)
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


def test_a_prompts_estimate_is_the_prediction_that_was_judged():
    responses = simulate_responses(students=300, length=8, seed=1)
    regression, tracing = fit_regression(responses), fit_tracing(responses)
    model = MasteryModel(predictor="regression", fitted_on={}, regression=regression, tracing=tracing)
    predicted = predict_regression(regression, responses)
    for student in (0, 7):
        places, trace = np.flatnonzero(responses.student == student), model.start()
        for place in places:
            skill = responses.skills[responses.skill[place]]
            assert model.expect(trace, skill) == pytest.approx(predicted[place], abs=1e-12)
            trace.add(skill, bool(responses.correct[place]))
