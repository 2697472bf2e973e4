"""Pairs of arms and policies, fit to the right student, adaptation: on planted records, by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from conftest import planted_record

from cot.utils.comparisons import (
    adaptivity,
    compare_all,
    decide,
    decide_all,
    fit_to_students,
    judge_fits,
    track_progress,
)
from cot.utils.fidelity import fidelity
from cot.utils.paths import PROFILES_DIR
from cot.utils.student_files import load_profiles

PROFILES = load_profiles(PROFILES_DIR)
FAILED = {"error": {"type": "x", "message": "y"}}
OWN = {("S001", "q0"): True, ("S001", "q1"): True, ("S003", "q0"): False, ("S003", "q1"): True}
NONE = {("S001", "q0"): True, ("S001", "q1"): False, ("S003", "q0"): True, ("S003", "q1"): False}


def planted(arm, outcomes, policy="base", **changes):
    """Records of an arm; `outcomes` by (student, question)."""
    return [
        planted_record(question, student, arm, correct, policy=policy, **changes)
        for (student, question), correct in outcomes.items()
    ]


# --- pairs ------------------------------------------------------------------------------------------------


def test_arms_are_compared_answer_by_answer():
    records = planted("own", OWN, fidelity=1.0) + planted("none", NONE, fidelity=0.0)
    (found,) = compare_all(records, ["base"], ["own", "none"])
    assert (found["n"], found["clusters"], found["reference_right"]) == (4, 2, 2)
    assert (found["broken"], found["repaired"]) == (1, 2)  # S003/q0 broken, S001/q1 and S003/q1 repaired
    assert found["breakage"] == pytest.approx(1 / 2)  # of the two that none got right, own broke one
    assert found["repair"] == pytest.approx(2 / 2)

    accuracy = found["metrics"]["correct"]
    assert set(accuracy) == {"n", "mean", "low", "high", "p", "p_holm"}
    assert accuracy["mean"] == pytest.approx(3 / 4 - 2 / 4)
    # differences 0 and -1 at q0, 1 and 1 at q1: means -1/2 and 1, so 1/4 +- 12.7 * 3/4, cut at -1 and 1
    assert (accuracy["low"], accuracy["high"]) == (-1.0, 1.0)
    assert accuracy["p"] == pytest.approx(scipy.stats.ttest_1samp([-0.5, 1.0], 0).pvalue)

    tests = [metric["p"] for metric in found["metrics"].values() if metric["p"] is not None]
    # the smallest of them: 2 of 2 questions' signs, two-sided
    assert found["metrics"]["fidelity"]["p"] == min(tests) == pytest.approx(0.5)
    assert found["metrics"]["fidelity"]["p_holm"] == pytest.approx(min(1, 0.5 * len(tests)))


def test_where_each_question_occurs_once_accuracy_has_the_exact_test():
    sides = {"own": (True, True, True, False), "none": (False, False, True, True)}
    records = []
    for arm, outcomes in sides.items():
        records += planted(arm, {("S001", f"q{number}"): right for number, right in enumerate(outcomes)})
    (found,) = compare_all(records, ["base"], ["own", "none"])
    assert found["metrics"]["correct"]["p"] == 1.0  # 2 against 1 of 3 discordant: 2 * P(X <= 1) = 1


def test_a_pair_that_students_share_is_one_pair():
    """Without memory two policies' texts are the same for every student, but their fit is not."""
    rows = [
        planted_record(f"q{number}", student, "none", policy=policy, prompt=f"q{number}", fidelity=fidelity)
        for policy in ("base", "ipo")
        for number in range(5)
        for student, fidelity in (("S001", 0.0), ("S003", 1.0))
    ]
    (found,) = compare_all(rows, ["base", "ipo"], ["none"])
    assert (found["n"], found["reference_right"], found["metrics"]["correct"]["n"]) == (5, 5, 5)
    assert found["metrics"]["fidelity"]["n"] == 10


def test_pairs_that_only_one_side_has_do_not_count():
    records = planted("own", {**OWN, ("S004", "q9"): True}) + planted("none", NONE)
    assert compare_all(records, ["base"], ["own", "none"])[0]["n"] == 4
    records = planted("own", OWN) + planted("none", NONE, **FAILED)
    (found,) = compare_all(records, ["base"], ["own", "none"])
    assert (found["n"], found["breakage"], found["metrics"]["correct"]["p"]) == (0, None, None)


@pytest.mark.parametrize(
    ("policies", "arms", "expected"),
    [
        (
            ["base"],
            ["own", "none", "shuffled", "random"],
            [
                *(f"memory: base own, base {arm}" for arm in ("none", "shuffled", "random")),
                *(f"memory: base {arm}, base none" for arm in ("shuffled", "random")),
            ],
        ),
        (
            ["base", "ipo", "no_memory"],
            ["own", "none"],
            [
                *(f"memory: {policy} own, {policy} none" for policy in ("base", "ipo", "no_memory")),
                *(f"training: ipo {arm}, base {arm}" for arm in ("own", "none")),
                *(f"training: no_memory {arm}, base {arm}" for arm in ("own", "none")),
                *(f"training: ipo {arm}, no_memory {arm}" for arm in ("own", "none")),
                # each as it was prompted
                "training: ipo own, no_memory none",
                "training: no_memory own, ipo none",
                *(f"interaction: {policy} own - none, base own - none" for policy in ("ipo", "no_memory")),
            ],
        ),
    ],
    ids=["arms", "policies"],
)
def test_who_is_compared_with_whom(policies, arms, expected):
    records = [row for policy in policies for arm in arms for row in planted(arm, OWN, policy)]
    found = compare_all(records, policies, arms)
    template = "{kind}: {policy} {arm}, {reference_policy} {reference_arm}"
    assert [template.format(**comparison) for comparison in found] == expected


@pytest.mark.parametrize(("base_own", "gain"), [(NONE, 1 / 4), (OWN, 0)])
def test_what_training_adds_and_what_memory_gains_more(base_own, gain):
    """With own memory ipo is right in 3/4, the base in 2/4 or 3/4; without, both in 2/4."""
    records = planted("own", base_own) + planted("none", NONE)
    records += planted("own", OWN, "ipo") + planted("none", NONE, "ipo")
    found = {c["kind"]: c for c in reversed(compare_all(records, ["base", "ipo"], ["own", "none"]))}
    for kind in ("training", "interaction"):
        assert found[kind]["metrics"]["correct"]["mean"] == pytest.approx(gain)


# --- verdicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "bounds", "verdict"),
    [
        ({"low": 0.01, "high": 0.3}, {}, "yes"),
        ({"low": 0.01, "high": 0.3, "p_holm": 0.2}, {}, "undecided"),
        ({"low": 0.01, "high": 0.3, "n": 19}, {}, "undecided"),
        ({"low": 0.01, "high": 0.3, "n": 20, "clusters": 9}, {}, "undecided"),
        ({"low": 0.01, "high": 0.3, "n": 20, "clusters": 10}, {}, "yes"),
        ({"low": -0.2, "high": 0.04}, {}, "no"),
        ({"low": -0.2, "high": 0.06}, {}, "undecided"),
        ({"low": None, "high": None}, {}, "undecided"),
        ({"low": 0.41, "high": 0.6}, {"above": 0.4, "below": 0.4}, "yes"),
        ({"low": 0.3, "high": 0.5}, {"above": 0.4, "below": 0.4}, "undecided"),
    ],
)
def test_one_rule_decides(effect, bounds, verdict):
    assert decide({"n": 50} | effect, **bounds) == verdict


def test_a_verdict_over_accuracy_and_fidelity_says_yes_only_without_harm():
    gain, none = {"n": 50, "low": 0.1, "high": 0.2}, {"n": 50, "low": -0.01, "high": 0.01}
    harm = {"n": 50, "low": -0.2, "high": -0.1}
    assert decide_all([gain, none]) == "yes"
    assert decide_all([gain, harm]) == "undecided"
    assert decide_all([none, none]) == decide_all([none, harm]) == "no"
    assert decide_all([none, {"n": 50, "low": -0.1, "high": 0.2}]) == "undecided"


# --- fit to the right student -----------------------------------------------------------------------------

NUMBERED = "1. 2 + 3 = 5\n2. 5 + 1 = 6\n#### 6"
ASKING = "What do both have? They have 2 + 3 = 5. What is one more? It is 5 + 1 = 6.\n#### 6"


def test_specificity_and_identification_judge_each_text_against_each_student():
    texts = {"S001": f"Hint: think of adding.\n{NUMBERED}", "S003": ASKING}
    own = [planted_record("q0", student, "own", generated_text=text) for student, text in texts.items()]
    own += [planted_record("q0", "S001", "own", sample=1), planted_record("q1", "S003", "own", **FAILED)]
    specificity, identification = fit_to_students(own, PROFILES)
    gains = [
        fidelity(texts[student], PROFILES[student]) - fidelity(texts[other], PROFILES[student])
        for student, other in (("S001", "S003"), ("S003", "S001"))
    ]
    assert specificity["n"] == 2 and specificity["mean"] == pytest.approx(sum(gains) / 2) and min(gains) > 0
    assert identification == {"n": 2, "top1": 1.0, "mrr": 1.0, "chance": 0.5}


def test_a_record_says_itself_which_checks_its_text_meets():
    met = {"S001": ["numbered_steps", "a hint first"], "S003": []}
    own = [planted_record("q0", student, "own", checks_met=checks) for student, checks in met.items()]
    fits = judge_fits(own, {"S001": PROFILES["S001"]})
    assert [fit["specificity"] for fit in fits] == [1.0, None]  # 2 of 2 wishes, none by the other's text


def test_one_text_for_all_gives_exactly_chance():
    same = [planted_record("q0", student, "none", generated_text=NUMBERED) for student in ("S001", "S003")]
    specificity, identification = fit_to_students(same, PROFILES)
    assert specificity["mean"] == pytest.approx(0.0)
    # S001 and S003 have two checkable wishes each of which NUMBERED meets as many: both tie at rank 1.5
    assert identification["top1"] == identification["chance"] == 0.5
    assert identification["mrr"] == pytest.approx(1 / 1.5)


# --- adaptation -------------------------------------------------------------------------------------------


class Compass:
    """An embedder for texts that are angles in degrees."""

    def encode(self, texts):
        angles = np.radians([float(text) for text in texts]).reshape(-1)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def angles(arm, *by_sample, questions=1, **changes):
    """Records whose texts are these angles, sample by sample, at every question."""
    shared = {"temperature": 0.7} | changes
    return [
        planted_record(f"q{number}", "S001", arm, sample=sample, generated_text=str(angle), **shared)
        for sample, angle in enumerate(by_sample)
        for number in range(questions)
    ]


@pytest.mark.parametrize(
    ("again", "ablated", "statistic", "p"),
    [
        (0, 57, 1 - math.cos(math.radians(57)), 1 / 2001),
        (0, 0, 0.0, 1.0),
        (57, 57, 0.0, 1.0),  # as far when sampled again
    ],
)
def test_texts_that_move_with_the_memory_are_adaptive_and_others_are_not(again, ablated, statistic, p):
    records = angles("own", 0, again, questions=40) + angles("none", 0, ablated, questions=40)
    found = adaptivity(records, Compass())["none"]
    assert (found["n"], found["same_prompt_share"]) == (40, 1.0)
    assert (found["statistic"], found["p"]) == pytest.approx((statistic, p), abs=1e-5)


def test_adaptivity_needs_a_temperature_and_two_samples_and_tells_the_share_of_equal_prompts():
    for samples, temperature in (([0], 0.7), ([0, 0], 0.0)):
        records = [row for arm in ("own", "none") for row in angles(arm, *samples, temperature=temperature)]
        assert adaptivity(records, Compass())["none"]["n"] == 0
    other = angles("time_shuffled", 0, questions=2)
    other[0]["prompt"] = "another"
    found = adaptivity(angles("own", 0, questions=2) + other, Compass())
    assert found["time_shuffled"]["same_prompt_share"] == 0.5


def test_progress_is_tracked_where_support_falls_with_mastery():
    mastery = [0.3, 0.5, 0.7, 0.9, 0.95]
    own = {f"S{i}": (mastery, [4, 4, 3, 2, 1 + i % 2]) for i in range(4)}
    control = {f"S{i}": (mastery, [2, 4, 1, 3, 2 + i % 2]) for i in range(4)}
    constant = {"S9": (mastery, [2] * 5)}  # tracks nothing, and does not count
    found = track_progress(own | constant, control)

    def z(series):
        return [np.arctanh(np.clip(scipy.stats.spearmanr(*s).statistic, -0.99, 0.99)) for s in series]

    zs, others = z(own.values()), z(control.values())
    assert found["n"] == 4 and found["mean"] == pytest.approx(np.tanh(np.mean(zs)))
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(zs), scipy.stats.sem(zs))
    assert (found["low"], found["high"]) == pytest.approx((np.tanh(low), np.tanh(high)))
    versus = found["versus_time_shuffled"]
    assert versus["mean"] == pytest.approx(np.mean(zs) - np.mean(others)) and versus["high"] < 0
    assert track_progress(constant) | {"n": 0, "mean": None} == track_progress(constant)
