"""Fitting mastery to answers: a regression with scikit-learn, knowledge tracing by expectation maximization.

pyBKT fits knowledge tracing one skill at a time. Here a step of all chains of all skills is one array
operation, so that half a million answers take seconds.
"""

import numpy as np

from cot.utils.errors import UserError
from cot.utils.mastery import DEFAULT_PARAMETERS
from cot.utils.mastery_model import (
    CODES,
    NUMBERS,
    AnswerTrace,
    Regression,
    SkillTracing,
    SkillWeights,
    Tracing,
)
from rl.responses import Chains, Responses

C = 1.0  # inverse of the penalty on squared weights
PARAMETERS = ("p_init", "p_transit", "p_slip", "p_guess")
START = (0.5, 0.1, 0.15, 0.3)
LIMITS = np.array([[0.001, 0.999], [0.001, 0.999], [0.001, 0.49], [0.001, 0.49]])
PRIOR_ANSWERS = 20.0  # of all skills taken as one, that count beside a skill's own
MAX_PASSES, FITTED = 200, 1e-4  # of expectation maximization; the largest change that ends it


# --- regression -------------------------------------------------------------------------------------------


def share_right(responses: Responses) -> tuple[np.ndarray, float]:
    """(skills,) share of right answers in each, and over all: (right + 1) / (n + 2).

    A skill without answers has the share over all.
    """
    count = np.bincount(responses.skill, minlength=len(responses.skills))
    right = np.bincount(responses.skill, responses.correct, minlength=len(responses.skills))
    overall = float((responses.correct.sum() + 1) / (len(responses) + 2))
    return np.where(count > 0, (right + 1) / (count + 2), overall), overall


def describe_answers(
    responses: Responses, means: np.ndarray, otherwise: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the regression reads before each answer.

    Args:
        means: (skills,) share of right answers.
        otherwise: the same over all.

    Returns:
        (N, len(NUMBERS)) float64, and (N, len(CODES)) int64.
    """
    numbers = np.empty((len(responses), len(NUMBERS)))
    codes = np.empty((len(responses), len(CODES)), dtype=np.int64)
    names = [responses.skills[place] for place in responses.skill.tolist()]
    by_skill = dict(zip(responses.skills, means.tolist(), strict=True))
    current, trace = None, AnswerTrace(by_skill, otherwise)
    rows = zip(responses.student.tolist(), names, responses.correct.tolist(), strict=True)
    for place, (student, skill, correct) in enumerate(rows):
        if student != current:
            current, trace = student, AnswerTrace(by_skill, otherwise)
        numbers[place], codes[place] = trace.describe(skill)
        trace.add(skill, correct)
    return numbers, codes


def fit_regression(responses: Responses) -> Regression:
    """Logistic regression with squared weights penalized by 1 / (2 C).

    Every skill has an intercept and weights of its wins and fails of its own, beside those that all share: a
    skill with few answers stays near the others.

    Raises:
        UserError: all answers are right, or all are wrong.

    Source: `sklearn.linear_model.LogisticRegression`; see `AnswerTrace` for what is read.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    if responses.correct.all() or not responses.correct.any():
        raise UserError("all answers are right, or all are wrong: there is nothing to tell apart")
    means, overall = share_right(responses)
    numbers, codes = describe_answers(responses, means, overall)
    count, skills = len(responses), len(responses.skills)

    # one column for each number and class, then three for each skill
    rows = np.arange(count)
    own = [
        sparse.csr_matrix((values, (rows, responses.skill)), (count, skills))
        for values in (np.ones(count), numbers[:, 0], numbers[:, 1])
    ]
    classes = [
        sparse.csr_matrix((np.ones(count), (rows, codes[:, place])), (count, size))
        for place, size in enumerate(CODES.values())
    ]
    design = sparse.hstack([sparse.csr_matrix(numbers), *classes, *own]).tocsr()
    # Newton's steps, few and exact: there are far more answers than columns
    fitted = LogisticRegression(C=C, solver="newton-cholesky").fit(design, responses.correct)

    sizes = [len(NUMBERS), *CODES.values(), skills, skills, skills]
    shared, *tables, intercepts, wins, fails = np.split(fitted.coef_[0], np.cumsum(sizes)[:-1])
    counts = np.bincount(responses.skill, minlength=skills)
    return Regression(
        mean_right=overall,
        intercept=float(fitted.intercept_[0]),
        numbers=dict(zip(NUMBERS, shared.tolist(), strict=True)),
        **{name: table.tolist() for name, table in zip(CODES, tables, strict=True)},
        skills=[
            SkillWeights(
                skill=responses.skills[place],
                answers=int(counts[place]),
                mean_right=float(means[place]),
                intercept=float(intercepts[place]),
                wins=float(wins[place]),
                fails=float(fails[place]),
            )
            for place in np.flatnonzero(counts)
        ],
    )


def predict_regression(fit: Regression, responses: Responses) -> np.ndarray:
    """(N,) P(right) before each answer: `MasteryModel.expect` of all at once."""
    known = {part.skill: part for part in fit.skills}
    parts = [known.get(name) for name in responses.skills]
    means = np.array([part.mean_right if part else fit.mean_right for part in parts])
    own = np.array([[part.intercept, part.wins, part.fails] if part else [0.0] * 3 for part in parts])

    numbers, codes = describe_answers(responses, means, fit.mean_right)
    logits = fit.intercept + numbers @ np.array([fit.numbers[name] for name in NUMBERS])
    for place, name in enumerate(CODES):
        logits += np.array(getattr(fit, name))[codes[:, place]]
    intercepts, wins, fails = own[responses.skill].T
    logits += intercepts + wins * numbers[:, 0] + fails * numbers[:, 1]
    return 1 / (1 + np.exp(-logits))


# --- knowledge tracing ------------------------------------------------------------------------------------


def fit_tracing(responses: Responses) -> Tracing:
    """Parameters for all skills taken as one, then for each skill, where the former count as 20 answers.

    Source: Corbett and Anderson 1995; expectation maximization as for any hidden Markov model (Baum and
    Welch), here with two states of which the known one is never left.
    """
    chains = Chains(responses)
    as_one = np.zeros(len(responses), dtype=np.int64)
    start = np.array([START])
    pooled = _maximize(chains, as_one, start, prior=start, prior_answers=0.0)
    each = np.repeat(pooled, len(responses.skills), axis=0)
    own = _maximize(chains, chains.skill, each, prior=each, prior_answers=PRIOR_ANSWERS)

    counts = np.bincount(responses.skill, minlength=len(responses.skills))
    return Tracing(
        pooled=_skill_tracing("", len(responses), pooled[0]),
        skills=[
            _skill_tracing(responses.skills[place], counts[place], own[place])
            for place in np.flatnonzero(counts)
        ],
    )


def _skill_tracing(skill: str, count: int, values: np.ndarray) -> SkillTracing:
    return SkillTracing(
        skill=skill, answers=int(count), **dict(zip(PARAMETERS, values.tolist(), strict=True))
    )


def _maximize(
    chains: Chains, skill: np.ndarray, start: np.ndarray, prior: np.ndarray, prior_answers: float
) -> np.ndarray:
    """(skills, 4) parameters at which another pass changes none by more than `FITTED`, or after `MAX_PASSES`.

    Args:
        skill: (N,) of each answer, in the layout of the chains.
        start, prior: (skills, 4), in the order of `PARAMETERS`.
        prior_answers: how many observations the prior counts for, in each parameter.
    """
    values = start
    for _ in range(MAX_PASSES):
        seen, out_of = _expect_counts(chains, skill, values)
        before = values
        values = (seen + prior_answers * prior) / np.maximum(out_of + prior_answers, 1e-9)
        values = np.clip(values, LIMITS[:, 0], LIMITS[:, 1])
        if np.abs(values - before).max() < FITTED:
            break
    return values


def _expect_counts(chains: Chains, skill: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts of each parameter's event, and out of how many: (skills, 4) each."""
    p_init, p_transit, p_slip, p_guess = values[skill].T
    right = chains.correct
    before, after = _filter(chains, p_init, p_transit, p_slip, p_guess)

    # P(known) at each answer, given all answers of its chain, from the last step to the first
    smoothed, learned = after.copy(), np.zeros(len(after))
    has_next = np.zeros(len(after))
    for (begin, _), (next_begin, active) in reversed(list(zip(chains.steps, chains.steps[1:], strict=False))):
        now, then = slice(begin, begin + active), slice(next_begin, next_begin + active)
        share = smoothed[then] / before[then]
        smoothed[now] = after[now] * share
        learned[now] = (1 - after[now]) * p_transit[now] * share
        has_next[now] = 1.0

    first = np.zeros(len(after))
    first[: chains.steps[0][1]] = 1.0
    unknown = 1 - smoothed
    seen = [first * smoothed, learned, smoothed * ~right, unknown * right]
    out_of = [first, has_next * unknown, smoothed, unknown]
    size = len(values)
    return (
        np.stack([np.bincount(skill, part, minlength=size) for part in seen], axis=1),
        np.stack([np.bincount(skill, part, minlength=size) for part in out_of], axis=1),
    )


def _filter(chains: Chains, p_init, p_transit, p_slip, p_guess) -> tuple[np.ndarray, np.ndarray]:
    """P(known) before each answer, and after it was seen, without what is learned from it; (N,) each."""
    right = chains.correct
    if_known = np.where(right, 1 - p_slip, p_slip)
    if_unknown = np.where(right, p_guess, 1 - p_guess)
    before, after = p_init.copy(), np.empty(len(right))
    for number, (begin, active) in enumerate(chains.steps):
        now = slice(begin, begin + active)
        known = before[now] * if_known[now]
        total = known + (1 - before[now]) * if_unknown[now]
        after[now] = np.divide(known, total, out=before[now].copy(), where=total > 0)
        if number + 1 < len(chains.steps):
            next_begin, left = chains.steps[number + 1]
            posterior = after[begin : begin + left]
            learned = (1 - posterior) * p_transit[begin : begin + left]
            before[next_begin : next_begin + left] = posterior + learned
    return before, after


def predict_tracing(fit: Tracing | None, responses: Responses) -> np.ndarray:
    """(N,) P(right) before each answer.

    Args:
        fit: None for the default parameters.
    """
    default = DEFAULT_PARAMETERS if fit is None else fit.pooled.parameters
    own = {} if fit is None else {part.skill: part.parameters for part in fit.skills}
    each = [own.get(name, default) for name in responses.skills]
    values = np.array([[getattr(parameters, name) for name in PARAMETERS] for parameters in each])

    chains = Chains(responses)
    p_init, p_transit, p_slip, p_guess = values[chains.skill].T
    known, _ = _filter(chains, p_init, p_transit, p_slip, p_guess)
    return chains.back(known * (1 - p_slip) + (1 - known) * p_guess)
