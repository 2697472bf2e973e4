"""How well the next answer of students is predicted whom nothing was fitted on, one row an answer.

All intervals are over students: answers of one student hang together (`cot/utils/stats.py`).
"""

import math
from collections.abc import Mapping

import numpy as np

from cot.utils.mastery import DEFAULT_PARAMETERS, MASTERED_FROM, expect_right
from cot.utils.mastery_model import Regression, Tracing
from cot.utils.stats import auc_values, clustered_mean, clustered_share
from rl.mastery_fit import fit_regression, fit_tracing, predict_regression, predict_tracing, share_right
from rl.responses import FOLDS, Responses, draw_folds

BINS = 10  # of a calibration table, equally wide
BLEND = 5  # answers that a share of all students counts for, beside the student's own record
PREDICTORS = {
    "student_mean": "(right + 5 x the share over all) / (n + 5), of all of the student's answers",
    "skill_mean": "the skill's share of right answers",
    "blend": "(right + 5 x the skill's share) / (n + 5), of the student's answers in the skill",
    "default_tracing": "knowledge tracing with the default parameters",
    "fitted_tracing": "knowledge tracing with parameters fitted for each skill",
    "regression": "logistic regression",
}


def predict_all(
    fitting: Responses, responses: Responses, regression: Regression, tracing: Tracing
) -> dict[str, np.ndarray]:
    """P(right) before each answer by every predictor, (N,) each.

    Args:
        fitting: what the others were fitted on; its skills are the first of `responses.skills`.
    """
    means, overall = share_right(fitting)
    means = np.concatenate([means, np.full(len(responses.skills) - len(means), overall)])
    before = responses.places()
    firsts = np.searchsorted(responses.student, np.arange(responses.students))
    sums = np.concatenate([[0], np.cumsum(responses.correct)])
    right_before = sums[:-1] - sums[firsts][responses.student]

    count, right = responses.counts_in_skill()
    own = means[responses.skill]
    return {
        "student_mean": (right_before + BLEND * overall) / (before + BLEND),
        "skill_mean": own,
        "blend": (right + BLEND * own) / (count + BLEND),
        "default_tracing": predict_tracing(None, responses),
        "fitted_tracing": predict_tracing(tracing, responses),
        "regression": predict_regression(regression, responses),
    }


def predict_folds(responses: Responses, seed: int, tell=print) -> dict[str, np.ndarray]:
    """The same for every answer, by models fitted on the four folds of students that its own is not in."""
    folds = draw_folds(responses.students, seed)
    predicted = {name: np.empty(len(responses)) for name in PREDICTORS}
    for fold in range(FOLDS):
        fitting = responses.of(folds != fold)
        held_out = responses.of(folds == fold)
        found = predict_all(fitting, held_out, fit_regression(fitting), fit_tracing(fitting))
        for name, values in found.items():
            predicted[name][folds[responses.student] == fold] = values
        tell(f"fold {fold + 1} of {FOLDS}: {len(held_out)} answers of {held_out.students} students")
    return predicted


def score_all(responses: Responses, predicted: Mapping[str, np.ndarray]) -> dict:
    """Every predictor's scores, and what the regression gains over each other one.

    Returns:
        `students, answers, predictors, gains`; intervals as in `stats`.
    """
    areas = {name: auc_values(responses.correct, values) for name, values in predicted.items()}
    losses = {name: log_losses(responses.correct, values) for name, values in predicted.items()}
    predictors = {
        name: {
            "auc": _interval(areas[name], responses, (0.0, 1.0)),
            "log_loss": _interval(losses[name], responses, (0.0, math.inf)),
            **calibrate(responses, values),
        }
        for name, values in predicted.items()
    }
    gains = [
        {
            "predictor": "regression",
            "against": name,
            "auc": _interval(areas["regression"] - areas[name], responses, (-1.0, 1.0)),
            "log_loss": _interval(losses["regression"] - losses[name], responses, (-math.inf, math.inf)),
        }
        for name in predicted
        if name != "regression"
    ]
    return {
        "students": responses.students,
        "answers": len(responses),
        "predictors": predictors,
        "gains": gains,
    }


def _interval(values: np.ndarray, responses: Responses, limits: tuple[float, float]) -> dict:
    found = clustered_mean(values, [responses.student], limits)
    return {name: found[name] for name in ("mean", "low", "high")}


def log_losses(correct: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N,) minus the log of the probability given to what happened, in nats.

    >>> log_losses(np.array([True, False]), np.array([0.5, 0.2])).round(4).tolist()  # ln 2, -ln .8
    [0.6931, 0.2231]
    """
    given = np.clip(np.where(correct, predicted, 1 - predicted), 1e-15, 1.0)
    return -np.log(given)


def calibrate(responses: Responses, predicted: np.ndarray) -> dict:
    """How far what was predicted is from what happened, in `BINS` classes of predictions.

    Returns:
        `calibration_error`, the mean distance between a class's prediction and its share of right answers,
        each answer counting once; and `calibration`, for each class that occurs `predicted` (its mean),
        `right` (share, with its interval) and `answers`.
    """
    classes = np.minimum((predicted * BINS).astype(int), BINS - 1)
    table, distance = [], 0.0
    for place in np.unique(classes):
        there = classes == place
        share = clustered_share(responses.correct[there].astype(float), [responses.student[there]])
        mean = float(predicted[there].mean())
        distance += abs(mean - share["mean"]) * share["n"] / len(predicted)
        row = {"predicted": mean, "right": {name: share[name] for name in ("mean", "low", "high")}}
        table.append(row | {"answers": share["n"]})
    return {"calibration_error": distance, "calibration": table}


def judge_states(responses: Responses, predicted: np.ndarray) -> list[dict]:
    """What a prompt's words mean: the share of right answers in skills met before, by the state told.

    Returns:
        For each state that occurs `state`, `answers`, `right` (share, with its interval).
    """
    struggling = predicted < expect_right(DEFAULT_PARAMETERS.p_init)
    mastered = predicted >= expect_right(MASTERED_FROM)
    states = {"struggling": struggling, "in progress": ~struggling & ~mastered, "mastered": mastered}
    met_before = responses.counts_in_skill()[0] > 0

    table = []
    for state, there in states.items():
        chosen = there & met_before
        share = clustered_share(responses.correct[chosen].astype(float), [responses.student[chosen]])
        right = {name: share[name] for name in ("mean", "low", "high")}
        table.append({"state": state, "answers": share["n"], "right": right})
    return [row for row in table if row["answers"]]
