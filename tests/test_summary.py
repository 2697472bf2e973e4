import pytest

from cot.utils.cli import PROFILES_DIR
from cot.utils.profiles import load_profiles
from cot.utils.summary import summarize

NUMBERED = "1. 2 + 3 = 5\n2. 5 + 1 = 6\n#### 6"


def record(question="q0", student=None, arm=None, correct=True, sample=0, **changes):
    made = {
        "question_id": question,
        "gold_solution": "#### 6",
        "generated_text": NUMBERED,
        "temperature": 0.0,
        "sample": sample,
        "predicted_answer": "6" if correct else "7",
        "correct": correct,
        "strict_correct": correct,
        "flexible_correct": True,
        "truncated": False,
        "output_tokens": 10,
        "perplexity": 2.0,
        "mean_nll": 0.5,
        "error": None,
    }
    if student:
        made |= {"student_id": student, "memory_arm": arm, "fidelity": 0.5, "retrieved_memories": []}
    return made | changes


def test_counts_intervals_and_metrics():
    failed = record(correct=None, error={"type": "x", "message": "y"}, generated_text="", truncated=None)
    rows = [
        record(),
        record("q1", correct=False, output_tokens=30, mean_nll=1.5, perplexity=4.0),
        record(
            "q2", correct=False, predicted_answer=None, truncated=True, generated_text=" ", output_tokens=0
        ),
        failed,
    ]
    summary = summarize(rows)
    assert (summary["n"], summary["errors"], summary["truncated"]) == (3, 1, 1)
    assert (summary["unparsed"], summary["empty"]) == (1, 1)
    canonical = summary["accuracy"]["canonical"]
    assert canonical["correct"] == 1 and canonical["value"] == pytest.approx(1 / 3)
    # Wilson, k=1, n=3, z=1.959964: centre (1/3 + z²/6)/(1 + z²/3) = .426904, half width .365563
    assert canonical["low"] == pytest.approx(0.061492, abs=1e-5)
    assert canonical["high"] == pytest.approx(0.792345, abs=1e-5)
    assert summary["accuracy"]["flexible"]["value"] == 1.0
    assert summary["metrics"]["output_tokens"] == {"n": 3, "mean": pytest.approx(40 / 3), "median": 10}
    assert summary["token_weighted_nll"] == pytest.approx((10 * 0.5 + 30 * 1.5) / 40)


@pytest.mark.parametrize("rows", [[], [record(error={"type": "x", "message": "y"}, truncated=None)]])
def test_no_valid_sample_gives_nulls_and_no_crash(rows):
    summary = summarize(rows)
    assert summary["n"] == 0
    assert summary["accuracy"]["canonical"] == {"correct": 0, "value": None, "low": None, "high": None}
    assert summary["token_weighted_nll"] is None


def test_repeats_give_pass_at_k_and_a_majority():
    outcomes = {"q0": [True, True, False], "q1": [False, False, True]}
    rows = [
        record(question, correct=correct, sample=sample)
        for question, group in outcomes.items()
        for sample, correct in enumerate(group)
    ]
    repeats = summarize(rows)["repeats"]
    assert (repeats["prompts"], repeats["samples"]) == (2, 3)
    assert repeats["pass_at_1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert repeats["pass_at_3"] == 1.0  # each has a correct one
    assert repeats["majority_vote"]["correct"] == 1  # 6, 6, 7 and 7, 7, 6


def test_arms_are_compared_on_the_same_items():
    profiles = load_profiles(PROFILES_DIR)
    own = {("S001", "q0"): True, ("S001", "q1"): True, ("S003", "q0"): False, ("S003", "q1"): True}
    none = {("S001", "q0"): True, ("S001", "q1"): False, ("S003", "q0"): True, ("S003", "q1"): False}
    rows = [
        record(question, student, arm, correct)
        for arm, cells in (("own", own), ("none", none))
        for (student, question), correct in cells.items()
    ]
    summary = summarize(rows, profiles)
    (comparison,) = summary["comparisons"]
    assert (comparison["arm"], comparison["reference"], comparison["n"]) == ("own", "none", 4)
    assert comparison["difference"] == pytest.approx(3 / 4 - 2 / 4)
    assert comparison["breakage"] == pytest.approx(1 / 2)  # of the two that none got right, own broke one
    assert comparison["repair"] == pytest.approx(2 / 2)
    assert comparison["mcnemar_p"] == pytest.approx(1.0)  # 2 against 1 of 3 discordant: 2 * P(X <= 1) = 1
    assert summary["by_profile"]["S001"]["n"] == 4
    assert summary["by_memory_arm"]["own"]["accuracy"]["canonical"]["correct"] == 3


def test_specificity_judges_each_text_against_each_student():
    profiles = load_profiles(PROFILES_DIR)
    asking = "What do both have? They have 2 + 3 = 5. What is one more? It is 5 + 1 = 6.\n#### 6"
    fitting = {"S001": f"Hint: think of adding.\n{NUMBERED}", "S003": asking}
    rows = [record("q0", student, "own", generated_text=text) for student, text in fitting.items()]
    same = [record("q0", student, "none", generated_text=NUMBERED) for student in fitting]
    found = summarize(rows + same, profiles)["memory_specificity"]
    assert found["own"]["specificity"] > 0
    assert found["own"]["top1"] == 1.0
    assert found["none"]["specificity"] == pytest.approx(
        0.0
    )  # one text for all fits each as well as the other
    assert found["none"]["top1"] == found["none"]["chance"] == 0.5


def test_a_leak_would_be_seen():
    profiles = load_profiles(PROFILES_DIR)
    mine = {"id": "a", "score": 0.5, "student_id": "S001"}
    rows = [record("q0", "S001", "own", retrieved_memories=[mine, mine | {"student_id": "S002"}])]
    assert summarize(rows, profiles)["leak_rate"] == 0.5
