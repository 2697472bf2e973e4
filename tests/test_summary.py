"""What records add up to, by hand."""

import pytest
from conftest import planted_record

from cot.utils.paths import PROFILES_DIR
from cot.utils.stats import wilson_interval
from cot.utils.student_files import load_profiles
from cot.utils.summary import describe_arm, describe_policies, leak_rate, look_at, summarize

FAILED = {"error": {"type": "x", "message": "y"}, "correct": None, "truncated": None}
EMPTY = {"generated_text": "", "output_tokens": 1, "mean_nll": None, "perplexity": None}  # an end token alone


def test_counts_intervals_and_metrics():
    unread = {"correct": False, "predicted_answer": None, "truncated": True}
    rows = [
        planted_record("q0"),
        planted_record("q1", correct=False, output_tokens=30, mean_nll=1.5, perplexity=4.0),
        planted_record("q2", **unread, **EMPTY),
        planted_record("q3", **FAILED, generated_text=""),
    ]
    summary = summarize(rows, profiles={})
    assert (summary["n"], summary["errors"], summary["truncated"]) == (3, 1, 1)
    assert (summary["unparsed"], summary["empty"]) == (1, 1)
    # Wilson, k=1, n=3, z=1.959964: centre (1/3 + z²/6)/(1 + z²/3) = .426904, half width .365563
    accuracy = summary["accuracy"]["canonical"]
    assert (accuracy["n"], accuracy["mean"]) == (3, pytest.approx(1 / 3))
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.061492, 0.792345), abs=1e-5)
    tokens = summary["metrics"]["output_tokens"]
    assert (tokens["n"], tokens["mean"], tokens["median"]) == (3, pytest.approx(41 / 3), 10)
    assert summary["token_weighted_nll"] == pytest.approx((10 * 0.5 + 30 * 1.5) / 40)
    assert "arms" not in summary


def test_a_text_that_all_students_get_is_one_answer_of_the_arm():
    """Ten questions to eight students: 80 answers with own memory, ten without."""
    rows = [
        planted_record(f"q{q}", f"S00{s}", arm, correct=q < 4, prompt=f"q{q} {s if arm == 'own' else ''}")
        for q in range(10)
        for s in range(1, 9)
        for arm in ("own", "none")
    ]
    arms = summarize(rows, load_profiles(PROFILES_DIR))["arms"]
    assert (arms["own"]["n"], arms["none"]["n"], arms["own"]["accuracy"]["canonical"]["n"]) == (80, 80, 80)
    low, high = wilson_interval(4, 10)
    assert arms["none"]["accuracy"]["canonical"] == {"n": 10, "mean": 0.4, "low": low, "high": high}
    assert arms["none"]["metrics"]["output_tokens"]["n"] == 10
    assert arms["none"]["metrics"]["fidelity"]["n"] == 80  # the same text fits one student and not another


def test_no_valid_sample_gives_nulls_and_no_crash():
    assert summarize([], profiles={})["n"] == 0
    nothing = dict.fromkeys(("mean", "median", "low", "high"))
    assert (
        summarize([planted_record("q0", **EMPTY)], profiles={})["metrics"]["perplexity"] == {"n": 0} | nothing
    )
    summary = summarize([planted_record("q0", "S001", "own", **FAILED)], load_profiles(PROFILES_DIR))
    assert (summary["n"], summary["token_weighted_nll"]) == (0, None)
    assert summary["accuracy"]["canonical"] == {"n": 0, "mean": None, "low": None, "high": None}
    arm = summary["arms"]["own"]
    assert (arm["n"], arm["errors"], arm["alarm"], arm["copies_memory_share"]) == (0, 1, False, None)
    assert arm["memory_specificity"]["mean"] is None


def test_an_arm_of_which_every_answer_failed_is_counted_and_compared_with_nothing():
    fields = ("output_tokens", "perplexity", "mean_nll", "fidelity", "support_fit", "copying", "checks_met")
    failed = FAILED | dict.fromkeys(fields)
    rows = [planted_record(f"q{n}", "S001", "own", sample=k, **failed) for n in range(3) for k in range(2)]
    rows += [planted_record(f"q{n}", "S001", "none", sample=k) for n in range(3) for k in range(2)]
    profiles = load_profiles(PROFILES_DIR)
    summary = summarize(rows, profiles)
    assert (summary["n"], summary["errors"]) == (6, 6)
    own, none = (summary["arms"][arm] for arm in ("own", "none"))
    assert (own["n"], own["errors"], none["n"], none["errors"]) == (0, 6, 6, 0)
    assert own["repeats"] == {"prompts": 0, "samples": 0} and own["correct_per_1000_tokens"] is None
    (compared,) = summary["comparisons"]
    assert (compared["n"], compared["breakage"], compared["repair"]) == (0, None, None)
    assert compared["metrics"]["correct"]["mean"] is None
    described = describe_policies(rows, profiles)["base"]["own"]
    assert (described["n"], described["progress"]) == (0, None)


def test_repeats_give_pass_at_k_and_a_majority():
    outcomes = {"q0": [True, True, False], "q1": [False, False, True]}
    samples = [(question, *pair) for question, group in outcomes.items() for pair in enumerate(group)]
    rows = [planted_record(question, correct=right, sample=sample) for question, sample, right in samples]
    repeats = summarize(rows, profiles={})["repeats"]
    assert (repeats["prompts"], repeats["samples"]) == (2, 3)
    # each has a correct one; the majorities are 6, 6, 7 and 7, 7, 6
    assert (repeats["pass_at_1"], repeats["pass_at_3"]) == (pytest.approx((2 / 3 + 1 / 3) / 2), 1.0)
    assert repeats["majority_vote"]["mean"] == 0.5


def test_an_arm_says_how_its_students_and_chapters_fared():
    rows = [
        planted_record("q0", "S001", "own", correct=True, chapter="addition"),
        planted_record("q1", "S001", "own", correct=False, chapter="money"),
        planted_record("q0", "S003", "own", correct=True, chapter="addition", copying=0.5),
    ]
    found = describe_arm(rows, load_profiles(PROFILES_DIR))
    assert found["by_student"]["S001"] == {"n": 2, "accuracy": 0.5, "fidelity": 0.5, "support_fit": 1.0}
    assert found["by_chapter"]["addition"]["accuracy"] == 1.0
    assert found["copies_memory_share"] == pytest.approx(1 / 3) and found["alarm"] is True
    assert found["correct_per_1000_tokens"] == pytest.approx(1000 * 2 / 30)


def test_policies_are_described_apart_and_own_memory_with_its_progress():
    levels = {"fading": ("worked_out", "guided", "guided", "brief"), "constant": ("guided",) * 4}
    rows = [
        planted_record(
            f"q{moment}",
            student,
            "own",
            moment=moment,
            mastery=0.2 + 0.2 * moment,
            policy=policy,
            support=level,
        )
        for policy, shown in levels.items()
        for student in ("S001", "S003")
        for moment, level in enumerate(shown)
    ]
    found = describe_policies(rows, load_profiles(PROFILES_DIR))
    assert found["fading"]["own"]["progress"]["mean"] == pytest.approx(-((9 / 10) ** 0.5))
    assert found["constant"]["own"]["progress"]["n"] == 0
    assert found["fading"]["own"]["n"] == 8


def test_a_leak_would_be_seen():
    mine = {"id": "a", "score": 0.5, "student_id": "S001"}
    rows = [planted_record("q0", "S001", "own", retrieved_memories=[mine, mine | {"student_id": "S002"}])]
    assert leak_rate(rows) == 0.5
    assert leak_rate([planted_record("q0", "S001", "own")]) is None


def test_the_end_of_a_run_says_what_to_look_at():
    rows = [planted_record(f"q{number}", correct=number < 3) for number in range(10)]
    assert look_at(rows, 256) == ["accuracy 30.0% [10.8%, 60.3%] of 10; cut off 0, unmarked 0, failed 0"]
    cut = [row | {"truncated": True, "answer_mark": None, "correct": False} for row in rows[:3]]
    first, second = look_at(cut + rows[3:], 256)
    assert first.endswith("of 10; cut off 3, unmarked 3, failed 0")
    assert second == "3 of 10 answers were cut off at 256 tokens: try --max_new_tokens 512"
    unmarked = [row | {"answer_mark": "last_number"} for row in rows]
    assert look_at(unmarked, 256)[1] == "10 answers bear no mark: try another --cot_prompt (cot/README.md)"
    failed = [planted_record("q0", **FAILED)]
    assert look_at(failed, 256) == ["accuracy – of 0; cut off 0, unmarked 0, failed 1"]
