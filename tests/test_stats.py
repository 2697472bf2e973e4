"""Intervals and tests, against hand computations and SciPy."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.stats import (
    cosine_distances,
    fisher_z,
    holm,
    mcnemar_exact,
    mean_interval,
    permutation_test,
    proportion,
    spearman,
    two_way_cluster_bootstrap,
    wilcoxon_p,
    wilson_interval,
)


def test_wilson_interval_by_hand():
    # centre (k + z²/2) / (n + z²), half width z / (n + z²) * sqrt(k(n-k)/n + z²/4), z = 1.959964
    z, k, n = 1.959963984540054, 8, 10
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert wilson_interval(k, n) == pytest.approx((centre - half, centre + half))


def test_wilson_interval_exists_when_all_is_right_or_wrong():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459))  # [0, z² / (n + z²)]
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.841459, 1.0))
    assert wilson_interval(0, 0) is None


def test_mcnemar_by_hand():
    assert mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)  # 2 * P(X <= 1), X ~ Binomial(6, 1/2)
    assert mcnemar_exact(5, 1) == mcnemar_exact(1, 5)
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


def test_a_share_is_wilsons_where_each_question_occurs_once_and_clustered_where_one_repeats():
    once = proportion([True] * 8 + [False] * 2, ["s"] * 10, [f"q{n}" for n in range(10)])
    assert once == {"n": 10, "mean": 0.8, "low": pytest.approx(0.490162), "high": pytest.approx(0.943318)}
    # ten answers to one question are one question: no interval over questions can be narrower than none
    outcomes, questions = [True] * 10 + [False] * 10, ["q0"] * 10 + ["q1"] * 10
    repeated = proportion(outcomes, [f"s{n % 10}" for n in range(20)], questions)
    assert (repeated["n"], repeated["mean"]) == (20, 0.5)
    assert (repeated["low"], repeated["high"]) == (0.0, 1.0)
    assert proportion([], [], []) == {"n": 0, "mean": None, "low": None, "high": None}


def test_cluster_bootstrap_equals_explicit_resampling_of_cells():
    students, questions = ["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"]  # (c, y) is missing
    values = [1.0, 0.0, 0.5, 0.25, 2.0]
    result = two_way_cluster_bootstrap(values, students, questions, n_resamples=500, seed=3)
    rng = np.random.default_rng(3)
    student_draws = rng.multinomial(3, [1 / 3] * 3, size=500)
    question_draws = rng.multinomial(2, [1 / 2] * 2, size=500)
    means = []
    for draw_s, draw_q in zip(student_draws, question_draws, strict=True):
        copies = []
        for value, student, question in zip(values, students, questions, strict=True):
            copies += [value] * int(draw_s["abc".index(student)] * draw_q["xy".index(question)])
        means += [sum(copies) / len(copies)] if copies else []  # three times c and twice y draw no cell
    assert len(means) < 500
    assert result["n"] == 5
    assert result["mean"] == pytest.approx(3.75 / 5)
    assert (result["low"], result["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_cluster_bootstrap_is_wider_than_independent_cells_when_students_differ():
    students = [str(student) for student in range(8) for _ in range(50)]
    questions = [str(question) for _ in range(8) for question in range(50)]
    values = [float(int(student) % 2) for student in students]  # all variance lies between students
    result = two_way_cluster_bootstrap(values, students, questions)
    # 8 students of variance 1/4: standard error sqrt(.25 / 8) = 0.177; 400 cells alone would give 0.025
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * 0.177, rel=0.2)


def test_cluster_bootstrap_without_spread_clusters_or_cells():
    assert two_way_cluster_bootstrap([0.5] * 4, ["a", "a", "b", "b"], ["x", "y"] * 2) == {
        "n": 4,
        "mean": 0.5,
        "low": 0.5,
        "high": 0.5,
    }
    assert two_way_cluster_bootstrap([0.25], ["a"], ["x"])["low"] == 0.25
    assert two_way_cluster_bootstrap([None, math.nan, 1.0], ["a", "b", "c"], ["x"] * 3)["n"] == 1
    assert two_way_cluster_bootstrap([], [], []) == {"n": 0, "mean": None, "low": None, "high": None}


def test_holm_by_hand():
    # sorted .005 .01 .03 .04: 4*.005 = .02, 3*.01 = .03, 2*.03 = .06, max(1*.04, .06) = .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    by_p = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
@settings(max_examples=60, deadline=None)
def test_every_run_gives_strict_json(pairs):
    values, questions = [float(a) for a, _ in pairs], ["q"] * len(pairs)
    cells = two_way_cluster_bootstrap(values, list(map(str, pairs)), questions, n_resamples=50)
    share = proportion([a for a, _ in pairs], list(map(str, pairs)), questions)
    assert json.loads(json.dumps([cells, share], allow_nan=False)) == [cells, share]


def test_the_signed_rank_test_is_scipys_and_exists_without_differences():
    differences = [0.3, -0.1, 0.4, 0.2, 0.5, -0.2, 0.7]
    assert wilcoxon_p(differences) == pytest.approx(scipy.stats.wilcoxon(differences).pvalue)
    assert wilcoxon_p([0.0, 0.0]) == 1.0
    assert wilcoxon_p([]) is None


def test_the_permutation_test_is_scipys_over_all_sign_flips():
    differences = np.array([0.4, 0.1, -0.2, 0.5, 0.3, 0.2])
    found = permutation_test(differences, n_permutations=20_000)
    exact = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    flips = [np.dot(signs, differences) / 6 for signs in itertools.product((1, -1), repeat=6)]
    by_hand = sum(flip >= differences.mean() - 1e-12 for flip in flips) / 64
    assert exact.pvalue == pytest.approx(by_hand)
    assert found["statistic"] == pytest.approx(differences.mean()) and found["n"] == 6
    assert found["p"] == pytest.approx(by_hand, abs=0.01)


def test_no_difference_has_p_1_and_one_everywhere_the_smallest():
    assert permutation_test(np.full(6, 1e-8)) == {"n": 6, "statistic": 0.0, "p": 1.0}  # float32's noise
    assert permutation_test(np.full(40, 0.5))["p"] == pytest.approx(1 / 2001)
    assert permutation_test(np.zeros(0)) == {"n": 0, "statistic": None, "p": None}


def test_under_the_null_small_p_values_are_rare():
    rng = np.random.default_rng(3)
    draws = [permutation_test(rng.normal(0, 0.5, 20), n_permutations=500)["p"] for _ in range(200)]
    assert sum(p <= 0.05 for p in draws) <= 20  # 10 expected of 200, standard deviation 3


def test_distance_is_one_minus_the_cosine():
    angles = np.radians([[0, 60], [0, 90], [0, 180], [30, 30]])
    first, second = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in angles.T)
    assert cosine_distances(first, second) == pytest.approx([0.5, 1, 2, 0], abs=1e-6)


def test_rank_correlation_is_scipys_and_missing_where_it_does_not_exist():
    x, y = [0.1, 0.4, 0.35, 0.8, 0.9], [3, 3, 2, 1, 1]
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) is None and spearman([1] * 5, y) is None


def test_fisher_and_the_interval_of_a_mean():
    assert fisher_z(0.5) == pytest.approx(0.549306)  # ln(1.5 / 0.5) / 2
    assert fisher_z(-1.0) == -fisher_z(1.0) == pytest.approx(math.atanh(-0.99))
    values = [0.1, -0.4, 0.3, 0.2]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    found = mean_interval(values)
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert mean_interval([0.2]) == {"n": 1, "mean": 0.2, "low": None, "high": None}
    assert mean_interval([])["mean"] is None
