"""Intervals and tests, pure functions of numbers.

Every function returns plain floats, and None where a number does not exist; none raises on a run in which
all is right, all is wrong, or nothing is left. An interval is always `{"n", "mean", "low", "high"}`.
"""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
MIN_MOMENTS = 4  # of one student, below which a rank correlation says nothing
MAX_CORRELATION = 0.99  # beyond, Fisher's z grows without bound; a student counts at most atanh(0.99)
EQUAL_BELOW = 1e-6  # differences of cosine distances that are float32's noise
ROUNDING = 1e-12  # of the largest value, below which a standard error is the noise of sums
MAX_PASSES, FITTED = 100, 1e-9  # of an additive fit: passes over the ways, and the change that ends them

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


def clustered_share(outcomes: np.ndarray, ways: Sequence[np.ndarray]) -> Interval:
    """A share with its 95 % interval within [0, 1], where answers hang together in clusters.

    Wilson's interval of as many independent answers as the clusters are worth, p(1 - p) / variance of the
    share, with Student's t for the normal quantile. Where all are right or all are wrong, nothing tells how
    far the answers of a cluster are alike, and each cluster of the first way counts once.

    Args:
        outcomes: (N,) of 0 and 1.
        ways: as of `clustered_mean`.

    Source: Korn and Graubard 1998 (effective sample size, t for z), in Wilson's form as Franco, Little,
    Louis and Slud 2019 recommend for clustered samples.
    """
    n = len(outcomes)
    spread = _spread_of_mean(outcomes, ways)
    share = float(outcomes.mean()) if n else None
    if spread is None:
        return {"n": n, "mean": share, "low": None, "high": None}

    error, free = spread
    worth = share * (1 - share) / error**2 if error else n
    if share in (0.0, 1.0):
        worth = len(np.unique(ways[0]))
        free = max(1.0, worth - 1.0)
    t = _t_quantile(free)
    centre = (share + t**2 / (2 * worth)) / (1 + t**2 / worth)
    half = t * math.sqrt(share * (1 - share) / worth + t**2 / (4 * worth**2)) / (1 + t**2 / worth)
    return {"n": n, "mean": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def clustered_mean(
    values: np.ndarray, ways: Sequence[np.ndarray], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """A mean with its 95 % interval and the p-value of its being 0, where values hang together in clusters.

    It is a cluster bootstrap's interval in closed form, mended where the bootstrap fails with few clusters.
    The clusters of a way imply a variance V: their squared totals of residuals, each divided by 1 - its share
    of the values (CR2; for equal clusters the bootstrap's times G / (G - 1)). The first way's counts in full.
    Every further way adds what its V has above the noise of single cells, V_0, which the first way's holds
    already and a bootstrap over two ways counts three times; an additive fit of the ways tells it. Interval
    and p-value are Student's t with Satterthwaite's degrees of freedom,

        (V_1 + sum(V_w - V_0))^2 / (V_1^2 / (G_1 - 1) + sum((V_w - V_0) V_w / (G_w - 1)))

    where sums are over further ways with V_w > V_0, and G is the number of clusters, or of equal ones worth
    as much. The last factor is V_w without its noise times V_w, between what Satterthwaite would count and
    nothing; `tests/simulate_statistics.py` shows how often the result rejects and covers.

    Args:
        values: (N,).
        ways: for each way, questions first and then such as students, the cluster (N,) of each value, from 0.
            A way with a single cluster is no factor.
        limits: of what is averaged; the interval is cut there.

    Returns:
        `n, mean, low, high, p`; all but n None for n = 0, the last three also where no way has two clusters.
        Without any spread the interval is the mean, and p that of G equal signs, 2 ** (1 - G).

    Source: Owen 2007, "The pigeonhole bootstrap" (two ways, and the overcount); Cameron, Gelbach and Miller
    2011 (V of several ways, less their overlap); Bell and McCaffrey 2002 (CR2); Satterthwaite 1946; Clark
    1973 (quasi-F over items and subjects: the balanced case).

    >>> values, questions = np.array([1.0, 1.0, 0.0, 0.0, 0.5, 0.5]), np.array([0, 0, 1, 1, 2, 2])
    >>> found = clustered_mean(values, [questions])  # three questions: 0.5 +- 4.303 * 0.5 / sqrt(3)
    >>> round(found["low"], 3), round(found["high"], 3), found["p"] > 0.05
    (-0.742, 1.742, True)
    """
    n = len(values)
    mean = float(values.mean()) if n else None
    spread = _spread_of_mean(values, ways)
    if spread is None:
        return {"n": n, "mean": mean, "low": None, "high": None, "p": None}

    error, free = spread
    if not error:
        clusters = max(len(np.unique(way)) for way in ways)
        return {"n": n, "mean": mean, "low": mean, "high": mean, "p": 2.0 ** (1 - clusters) if mean else 1.0}
    half = _t_quantile(free) * error
    low, high = max(limits[0], mean - half), min(limits[1], mean + half)
    return {"n": n, "mean": mean, "low": low, "high": high, "p": _t_tails(mean / error, free)}


def auc_values(outcomes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) values whose mean is the area under the ROC curve, and whose spread is its spread.

    The area is the chance that a positive has a higher score than a negative, ties counting half. With V the
    share of the other kind that an observation stands right to, its value is AUC + (V - AUC) N / (number of
    its kind): `clustered_mean` of these is the area with its interval over clusters.

    Args:
        outcomes: (N,) of 0 and 1, both kinds among them.
        scores: (N,).

    Source: Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data" (DeLong's for clusters).

    >>> values = auc_values(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    >>> float(values.mean()), values.tolist()  # 3 of 4 pairs are in order: V is 1, .5, .5, 1
    (0.75, [1.25, 0.25, 0.25, 1.25])
    """
    from scipy.stats import rankdata

    positive = outcomes.astype(bool)
    n, positives = len(outcomes), int(positive.sum())
    negatives = n - positives
    ranks = rankdata(scores)
    own = np.empty(n)  # among its own kind
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    below = ranks - own  # of the other kind, ties counting half
    placed = np.where(positive, below / negatives, 1 - below / positives)
    area = float(placed[positive].mean())
    return area + (placed - area) * np.where(positive, n / positives, n / negatives)


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
    n = len(values)
    mean = float(np.mean(values)) if n else None
    if n < 2:
        return {"n": n, "mean": mean, "low": None, "high": None}
    half = _t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts; 1.0 where both are 0.

    Source: McNemar 1947 in its exact binomial form, through `scipy.stats.binomtest`.

    >>> mcnemar_exact(0, 5)  # 2 * 0.5**5
    0.0625
    """
    from scipy.stats import binomtest

    return float(binomtest(min(b, c), b + c).pvalue) if b + c else 1.0


def permutation_test(
    differences: np.ndarray, clusters: np.ndarray, n_permutations: int = 2000, seed: int = 0
) -> Interval:
    """Is the mean of paired differences above 0? Their signs are swapped at random, cluster by cluster.

    p = (1 + #{T* >= T}) / (1 + B), one-sided.

    Args:
        differences: (N,); those below `EQUAL_BELOW` count as 0.
        clusters: (N,), from 0: pairs of one cluster hang together, so that their signs swap together.

    Returns:
        n, statistic T (the mean), p in (0, 1]; the last two None for n = 0.

    Source: the permutation test of Borchers and Shou 2025 (arXiv 2504.05570).
    """
    n = len(differences)
    if n == 0:
        return {"n": 0, "statistic": None, "p": None}
    differences = np.where(np.abs(differences) < EQUAL_BELOW, 0.0, differences)
    totals = np.bincount(clusters, differences)  # (C,)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(n_permutations, len(totals)))
    permuted = signs @ totals / n  # (B,)
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


def _spread_of_mean(values: np.ndarray, ways: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Standard error of the mean and its degrees of freedom; None where no way has two clusters."""
    n = len(values)
    ways = [way for way in map(_renumbered, ways) if n and way.max() > 0]
    if not ways:
        return None
    residuals = values - values.mean()
    variance, doubt = _variance_over(ways[0], residuals)

    noise = _noise_of_cells(residuals, ways) if len(ways) > 1 else 0.0
    for way in ways[1:]:
        own, own_doubt = _variance_over(way, residuals)
        if own > noise:
            variance += own - noise
            doubt += own_doubt * (own - noise) / own

    if variance <= (ROUNDING * float(np.abs(values).max())) ** 2:
        return 0.0, 1.0
    return math.sqrt(variance), variance**2 / doubt


def _variance_over(way: np.ndarray, residuals: np.ndarray) -> tuple[float, float]:
    """Variance of the mean that the clusters of a way imply, and its square over its degrees of freedom."""
    n = len(residuals)
    sizes, totals = np.bincount(way), np.bincount(way, residuals)
    variance = float((totals**2 / (1 - sizes / n)).sum()) / n**2
    worth = n**2 / float((sizes.astype(float) ** 2).sum())  # equal clusters that say as much
    return variance, variance**2 / max(1.0, worth - 1)


def _noise_of_cells(residuals: np.ndarray, ways: Sequence[np.ndarray]) -> float:
    """Variance of the mean that comes from what cells have beyond their clusters, by an additive fit.

    0 where the fit leaves nothing over, as with one question for each student: then there is no telling.
    """
    n = len(residuals)
    cell = ways[0].astype(np.int64)
    for way in ways[1:]:
        cell = cell * (int(way.max()) + 1) + way
    _, first, cell = np.unique(cell, return_index=True, return_inverse=True)
    free = len(first) - 1 - sum(int(way.max()) for way in ways)
    if free <= 0:
        return 0.0

    sizes = np.bincount(cell)
    rest = np.bincount(cell, residuals) / sizes  # (cells,)
    clusters = [way[first] for way in ways]
    weights = [np.bincount(cluster, sizes) for cluster in clusters]
    for _ in range(MAX_PASSES):
        before = rest
        for cluster, weight in zip(clusters, weights, strict=True):
            rest = rest - (np.bincount(cluster, sizes * rest) / weight)[cluster]
        if np.abs(rest - before).max() < FITTED:
            break
    return float(((sizes * rest) ** 2).sum()) / n**2 * len(first) / free


def _renumbered(way: np.ndarray) -> np.ndarray:
    """The same clusters, counted from 0 without gaps."""
    if not len(way):
        return way
    return (np.cumsum(np.bincount(way) > 0) - 1)[way]


def _t_quantile(free: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(free, (1 + CONFIDENCE) / 2))


def _t_tails(t: float, free: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(free, -abs(t)))
