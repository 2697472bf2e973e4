"""Intervals and tests, pure functions of numbers.

Every function returns plain floats, and None where a number does not exist; none raises on a run in which
all is right, all is wrong, or nothing is left. An interval is always `{"n", "mean", "low", "high"}`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
MIN_MOMENTS = 4  # of one student, below which a rank correlation says nothing
MAX_CORRELATION = 0.99  # beyond, Fisher's z grows without bound; a student counts at most atanh(0.99)
EQUAL_BELOW = 1e-6  # differences of cosine distances that are float32's noise

Interval = dict[str, float | int | None]


def wilson_interval(k: int, n: int) -> tuple[float, float] | None:
    """95 % Wilson score interval of the proportion k / n, in [0, 1]; None for n = 0.

    Source: Wilson 1927, through `scipy.stats.binomtest`.
    """
    from scipy.stats import binomtest

    if n == 0:
        return None
    interval = binomtest(k, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def proportion(outcomes: Sequence[bool], students: Sequence[str], questions: Sequence[str]) -> Interval:
    """A share of right answers with its interval.

    Answers to one question are not independent: the interval is Wilson's where every question occurs once,
    and the two-way cluster bootstrap's where one repeats.

    Args:
        outcomes: one an answer.
        students, questions: the answer's ids, as long as outcomes.
    """
    n, right = len(outcomes), sum(outcomes)
    if len(set(questions)) < n:
        return two_way_cluster_bootstrap([float(outcome) for outcome in outcomes], students, questions)
    low, high = wilson_interval(right, n) or (None, None)
    return {"n": n, "mean": right / n if n else None, "low": low, "high": high}


def two_way_cluster_bootstrap(
    values: Sequence[float | None],
    students: Sequence[str],
    questions: Sequence[str],
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a metric over the cells of a students x questions design, with an interval that respects both.

    Students and questions are resampled independently with replacement; a cell weighs the product of how
    often its student and its question were drawn. A resample that draws no cell is dropped.

    Args:
        values: one per cell, in any order; None and NaN are missing.
        students, questions: the cell's ids, as long as values.

    Returns:
        n cells, mean, and the 95 % percentile interval low, high; all but n are None for n = 0.

    Source: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2).
    """
    cells = [
        (float(value), student, question)
        for value, student, question in zip(values, students, questions, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not cells:
        return {"n": 0, "mean": None, "low": None, "high": None}
    numbers = np.array([value for value, _, _ in cells])
    student_ids, student_index = np.unique([student for _, student, _ in cells], return_inverse=True)
    question_ids, question_index = np.unique([question for _, _, question in cells], return_inverse=True)
    shape = len(student_ids), len(question_ids)
    totals, counts = np.zeros(shape), np.zeros(shape)  # (S, Q)
    np.add.at(totals, (student_index, question_index), numbers)
    np.add.at(counts, (student_index, question_index), 1.0)
    student_draws, question_draws = _draw_clusters(shape, n_resamples, seed)  # (B, S), (B, Q)
    weighted_totals = ((student_draws @ totals) * question_draws).sum(axis=1)  # (B,)
    weights = ((student_draws @ counts) * question_draws).sum(axis=1)
    means = weighted_totals[weights > 0] / weights[weights > 0]
    low, high = _percentiles(means) if len(means) else (None, None)
    return {"n": len(cells), "mean": float(numbers.mean()), "low": low, "high": high}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given: the k-th smallest of m times m - k + 1, never decreasing.

    Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03])  # 3 * 0.01, then 2 * 0.03, then max(1 * 0.04, 0.06)
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def mean_interval(values: Sequence[float]) -> Interval:
    """n, mean, and the 95 % interval of the mean by Student's t; the interval needs two values."""
    from scipy.stats import t

    n = len(values)
    mean = float(np.mean(values)) if n else None
    if n < 2:
        return {"n": n, "mean": mean, "low": None, "high": None}
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts; 1.0 where both are 0.

    Source: McNemar 1947 in its exact binomial form, through `scipy.stats.binomtest`.

    >>> mcnemar_exact(0, 5)  # 2 * 0.5**5
    0.0625
    """
    from scipy.stats import binomtest

    return float(binomtest(min(b, c), b + c).pvalue) if b + c else 1.0


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided Wilcoxon signed-rank p-value; 1.0 where all are 0, None without any.

    Source: Wilcoxon 1945, through `scipy.stats.wilcoxon` (zeros dropped).
    """
    from scipy.stats import wilcoxon

    if not differences:
        return None
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def permutation_test(differences: np.ndarray, n_permutations: int = 2000, seed: int = 0) -> Interval:
    """Is the mean of paired differences above 0? Their signs are swapped at random, pair by pair.

    p = (1 + #{T* >= T}) / (1 + B), one-sided.

    Args:
        differences: (N,); those below `EQUAL_BELOW` count as 0.

    Returns:
        n, statistic T (the mean), p in (0, 1]; the last two None for n = 0.

    Source: the permutation test of Borchers and Shou 2025 (arXiv 2504.05570).
    """
    n = len(differences)
    if n == 0:
        return {"n": 0, "statistic": None, "p": None}
    differences = np.where(np.abs(differences) < EQUAL_BELOW, 0.0, differences)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(n_permutations, n))
    permuted = signs @ differences / n  # (B,)
    statistic = float(differences.mean())
    reached = int((permuted >= statistic - 1e-12).sum())
    return {"n": n, "statistic": statistic, "p": (1 + reached) / (1 + n_permutations)}


def cosine_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair of rows, in [0, 2], (N,).

    Args:
        first, second: unit vectors (N, D).
    """
    return np.clip(1.0 - np.einsum("nd,nd->n", first, second, dtype=np.float64), 0.0, 2.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1]; None below `MIN_MOMENTS` pairs or where either side is constant."""
    from scipy.stats import spearmanr

    if len(x) < MIN_MOMENTS or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(spearmanr(x, y).statistic)


def fisher_z(correlation: float) -> float:
    """atanh of the correlation, cut at `MAX_CORRELATION`."""
    return math.atanh(max(-MAX_CORRELATION, min(MAX_CORRELATION, correlation)))


@lru_cache(maxsize=16)  # the many metrics of one run ask for the same draws
def _draw_clusters(shape: tuple[int, int], n_resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """How often each student and each question is drawn in each resample, (B, S) and (B, Q)."""
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(size, np.full(size, 1 / size), size=n_resamples) for size in shape)


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
