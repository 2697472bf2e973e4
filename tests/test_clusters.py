"""A shared text is one observation, templates are clusters; how often intervals hold under a true null."""

import pytest
from conftest import planted_record
from simulate_statistics import simulate

from cot.utils.clusters import effect_of, mean_of, observe, share_of
from cot.utils.stats import wilson_interval

STUDENTS = ("S001", "S002", "S003")


def asked(arm, **changes):
    """Four questions to three students; without memory all see one prompt."""
    return [
        planted_record(f"q{q}", s, arm, q == 0, prompt=f"q{q} {s if arm == 'own' else ''}", **changes)
        for q in range(4)
        for s in STUDENTS
    ]


def test_a_text_that_students_share_is_one_observation():
    assert len(observe(asked("own"))) == 12
    none = observe(asked("none"))
    assert (len(none), none.clusters) == (4, 4)
    low, high = wilson_interval(1, 4)
    assert share_of(none) == {"n": 4, "mean": 0.25, "low": low, "high": high}
    # what depends on the student has a value for each
    assert mean_of(observe(asked("none"), by_student=True), "fidelity")["n"] == 12


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (asked("none") + asked("none", sample=1), 4),  # decoding is greedy
        (asked("none", temperature=0.7) + asked("none", temperature=0.7, sample=1), 8),
        (asked("none") + asked("none", policy="ipo"), 8),
        (asked("none") + asked("none", temperature=0.6), 8),
    ],
)
def test_other_samples_policies_and_temperatures_are_other_texts(rows, texts):
    assert len(observe(rows)) == texts


def test_a_pair_is_shared_where_both_texts_are():
    assert len(observe(asked("none"), asked("none", policy="ipo"))) == 4
    assert len(observe(asked("own"), asked("none"))) == 12


def test_exercises_of_a_template_are_one_cluster_and_other_questions_their_own():
    rows = [planted_record(f"addition/t{n % 2}/{n}") for n in range(6)]
    assert observe(rows).clusters == 2
    assert observe(rows, templates=False).clusters == 6
    file = [planted_record(f"my/set-{n}", chapter=None) for n in range(6)]
    assert observe(file).clusters == 6


def test_students_are_a_factor_only_where_a_question_is_asked_for_several():
    assert len(observe(asked("own")).ways) == 2
    nearest = [planted_record(f"q{q}", STUDENTS[q % 3], "own") for q in range(6)]
    assert len(observe(nearest).ways) == 1
    assert len(observe([planted_record(f"q{q}") for q in range(6)]).ways) == 1


def test_what_has_no_value_is_left_out_of_both_sides():
    one, other = asked("own", fidelity=0.75), asked("own", fidelity=0.5)
    one[0]["fidelity"] = other[5]["fidelity"] = None
    found = effect_of(observe(one, other), "fidelity", (1, -1))
    assert (found["n"], found["mean"]) == (10, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "runs"), [("sweep", 150), ("evaluation, templates differ", 50), ("experiment, 5 seeds", 25)]
)
def test_what_is_true_is_rejected_and_missed_in_5_of_100_runs(design, runs):
    """At most 5 % and 3.5 standard errors: of 150 runs 16.8, of 50 7.9, of 25 5.1."""
    most = 0.05 + 3.5 * (0.05 * 0.95 / runs) ** 0.5
    found = simulate(design, runs, seed=0)
    for (quantity, way), shares in found.items():
        if way == "clusters":
            assert shares["rejects"] is None or shares["rejects"] <= most, quantity
            assert shares["covers"] >= 1 - most, quantity
    if design == "sweep":  # what was wrong: answers taken for independent
        assert found["correct, own − none", "answers"]["rejects"] > 0.2
        assert found["correct, none", "answers"]["covers"] < 0.65
