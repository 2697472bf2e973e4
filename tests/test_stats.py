"""Intervals and tests, against hand computations and SciPy."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from cot.utils.stats import (
    clustered_mean,
    clustered_share,
    fisher_z,
    holm,
    mcnemar_exact,
    mean_interval,
    permutation_test,
    spearman,
    wilson_interval,
)


def crossed(questions, students):
    """The ways of a full design, question by question."""
    return np.repeat(np.arange(questions), students), np.tile(np.arange(students), questions)


def test_wilson_interval_by_hand_and_where_all_is_right_or_wrong():
    # centre (k + z²/2) / (n + z²), half width z / (n + z²) * sqrt(k(n-k)/n + z²/4), z = 1.959964
    z, k, n = 1.959963984540054, 8, 10
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert wilson_interval(k, n) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459))  # [0, z² / (n + z²)]
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.841459, 1.0))  # [n / (n + z²), 1]
    assert wilson_interval(0, 0) is None


def test_clusters_of_one_way_are_as_many_values_as_their_means():
    """Five questions of four answers each: Student's t over the five means."""
    means = [0.0, 0.25, 0.25, 0.75, 1.0]
    values = np.array([float(place < 4 * mean) for mean in means for place in range(4)])
    found = clustered_mean(values, [np.repeat(np.arange(5), 4)])
    expected = scipy.stats.t.interval(0.95, 4, np.mean(means), scipy.stats.sem(means))
    assert (found["n"], found["mean"]) == (20, pytest.approx(0.45))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["p"] == pytest.approx(scipy.stats.ttest_1samp(means, 0).pvalue)
    cut = clustered_mean(values, [np.repeat(np.arange(5), 4)], (0.0, 0.5))
    assert (cut["low"], cut["high"]) == (0.0, 0.5)


@pytest.mark.parametrize("of_students", [2.0, 0.0])
def test_students_add_what_they_have_beyond_noise(of_students):
    """Balanced questions x students by the mean squares of a two-way table (Clark 1973)."""
    rng = np.random.default_rng(1)
    table = rng.normal(0, 1, (6, 1)) + rng.normal(0, 1, (1, 4)) * of_students + rng.normal(0, 0.5, (6, 4))
    mean, q, s = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - q[:, None] - s[None, :] + mean  # (Q, S)
    square_q, square_s = 4 * ((q - mean) ** 2).sum() / 5, 6 * ((s - mean) ** 2).sum() / 3
    noise = (rest**2).sum() / 15
    assert (square_s > noise) == (of_students > 0)

    added = max(0, square_s - noise)
    variance = (square_q + added) / 24
    free = (24 * variance) ** 2 / (square_q**2 / 5 + added * square_s / 3)
    half = scipy.stats.t.ppf(0.975, free) * math.sqrt(variance)
    found = clustered_mean(table.ravel(), crossed(6, 4))
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half))
    assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(mean) / math.sqrt(variance), free))


def test_a_text_that_students_share_counts_once():
    questions, students = crossed(30, 8)
    text = np.random.default_rng(1).integers(0, 2, 30).astype(float)
    found = clustered_mean(text[questions], (questions, students))
    assert found == pytest.approx(clustered_mean(text, [np.arange(30)]) | {"n": 240})


def test_a_mean_without_spread_clusters_or_values():
    same = clustered_mean(np.full(40, 0.5), crossed(10, 4))
    assert same == {"n": 40, "mean": 0.5, "low": 0.5, "high": 0.5, "p": 2**-9}  # ten equal signs, two-sided
    assert clustered_mean(np.zeros(40), crossed(10, 4))["p"] == 1.0
    lacking = {"low": None, "high": None, "p": None}
    one = clustered_mean(np.array([0.25]), [np.zeros(1, int), np.zeros(1, int)])
    assert one == {"n": 1, "mean": 0.25} | lacking
    assert clustered_mean(np.zeros(0), [np.zeros(0, int)]) == {"n": 0, "mean": None} | lacking


def test_a_share_is_wilsons_of_as_many_answers_as_the_clusters_are_worth():
    """Ten questions of four equal answers are ten answers; t of nine degrees stands for the normal."""
    questions, students = crossed(10, 4)
    found = clustered_share((questions < 3).astype(float), (questions, students))
    variance, t = 0.3 * 0.7 / 9, scipy.stats.t.ppf(0.975, 9)
    worth = 0.3 * 0.7 / variance
    centre = (0.3 + t**2 / (2 * worth)) / (1 + t**2 / worth)
    half = t * math.sqrt(0.21 / worth + t**2 / (4 * worth**2)) / (1 + t**2 / worth)
    assert (found["n"], found["mean"]) == (40, pytest.approx(0.3))
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half))


def test_a_share_stays_within_0_and_1_and_has_an_interval_when_all_is_right():
    found = clustered_share(np.ones(40), crossed(10, 4))
    assert found["high"] == 1.0
    assert found["low"] == pytest.approx(10 / (10 + scipy.stats.t.ppf(0.975, 9) ** 2))


def test_several_tests_are_corrected_together_and_discordant_pairs_have_an_exact_test():
    # sorted .005 .01 .03 .04: 4*.005 = .02, 3*.01 = .03, 2*.03 = .06, max(1*.04, .06) = .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert mcnemar_exact(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)  # 2 * P(X <= 1), X ~ Binomial(6, 1/2)
    assert mcnemar_exact(3, 3) == mcnemar_exact(0, 0) == 1.0


def test_the_permutation_test_is_that_of_all_sign_flips():
    differences = np.array([0.4, 0.1, -0.2, 0.5, 0.3, 0.2])
    found = permutation_test(differences, np.arange(6), n_permutations=20_000)
    flips = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=6)]
    reached = sum(flip >= differences.sum() - 1e-12 for flip in flips)
    assert (found["n"], found["statistic"]) == (6, pytest.approx(1.3 / 6))
    assert found["p"] == pytest.approx(reached / 64, abs=0.01)


def test_no_difference_has_p_1_and_pairs_of_one_cluster_swap_together():
    noise = permutation_test(np.full(6, 1e-8), np.arange(6))  # float32's
    assert noise == {"n": 6, "statistic": 0.0, "p": 1.0}
    assert permutation_test(np.full(40, 0.5), np.arange(40))["p"] == pytest.approx(1 / 2001)
    # three clusters of equal pairs: all signs alike in one of eight, and never rarer
    p = permutation_test(np.full(30, 0.5), np.repeat(np.arange(3), 10), n_permutations=20_000)["p"]
    assert p == pytest.approx(1 / 8, abs=0.01)


def test_rank_correlation_is_scipys_and_missing_where_it_does_not_exist():
    x, y = [0.1, 0.4, 0.35, 0.8, 0.9], [3, 3, 2, 1, 1]
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) is None and spearman([1] * 5, y) is None


def test_fisher_and_the_interval_of_a_mean():
    assert fisher_z(0.5) == pytest.approx(0.549306)  # ln(1.5 / 0.5) / 2
    assert fisher_z(-1.0) == -fisher_z(1.0) == pytest.approx(math.atanh(-0.99))
    values = [0.1, -0.4, 0.3, 0.2]
    found = mean_interval(values)
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert mean_interval([0.2]) == {"n": 1, "mean": 0.2, "low": None, "high": None}
