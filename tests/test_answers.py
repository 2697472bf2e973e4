"""The three scorers, on the traps that GSM8K answers are known for."""

import json
import math
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.answers import (
    GoldError,
    final_answer,
    gold_answer,
    majority_vote,
    pass_at_k,
    plain_text,
    score_answer,
)

GSM8K = Path(__file__).resolve().parents[1] / ".." / "shared" / "gsm8k"
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)  # lone surrogates included
ANSWER_LIKE = st.text(alphabet="0123456789#$.,-/ \n*=x%\\{}boxedansweriu½−\ud800", max_size=80)


@pytest.mark.parametrize(
    ("text", "predicted"),
    [
        ("#### 18", "18"),
        ("#### 18.00", "18"),
        ("#### $18", "18"),
        ("#### **18**", "18"),
        ("**#### 18**", "18"),
        ("#### 18.", "18"),
        ("#### 18...", "18"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("##### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### 12,34,567", "1234567"),
        ("#### 1\u202f234", "1234"),
        ("#### 3/4", "3/4"),
        ("#### 6/8", "3/4"),
        ("#### 10/5", "2"),
        ("#### 1 1/2 cups", "3/2"),
        ("#### 2½", "5/2"),
        ("#### 1/2 cup", "1/2"),
        ("#### -3", "-3"),
        ("#### −3", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("#### -0", "0"),
        ("#### 10", "10"),
        ("#### 0.50", "0.5"),
        ("#### .5", "0.5"),
        ("#### 50%", "50"),
        ("#### 5 dollars", "5"),
        ("#### １８", "18"),
        ("#### 1.5e3", "1500"),
        ("#### x = 5", "5"),
        ("#### 9 * 2 = 18", "18"),
        ("#### 50% of 36 = 18", "18"),
        ("#### 18 (9 * 2 = 18)", "18"),
        ("The answer is 8", "8"),
        ("the answer is: $18.", "18"),
        ("The answer is 18. 20 eggs remain.", "18"),
        ("**Final Answer:** 18 eggs, then 3", "18"),
        (r"so \boxed{\frac{3}{4}} of 20 eggs", "3/4"),
        (r"\boxed{1{,}234 \text{ eggs}} in 7 days", "1234"),
        (r"\boxed{\text{18}}", "18"),
        ("She has 20 eggs, eats 2 and keeps 18 eggs...", "18"),
        ("it falls to -3", "-3"),
        ("that is 20 -3", "3"),
        ("that is 20 - 3", "3"),
        ("#### 5\n#### 5.00", "5"),
    ],
)
def test_answer_is_read_as_a_reader_would(text, predicted):
    score = score_answer(text, "7")
    assert (score.predicted, score.reason) == (predicted, None)


@pytest.mark.parametrize(
    ("text", "predicted"),
    [
        ("The answer is 3. \\boxed{4}\n#### 5\n6", "5"),  # hashes first
        ("The answer is 3. \\boxed{4}\n6", "4"),  # then the box
        ("The answer is 2.\nThe answer is 3.\n6", "3"),  # then the last phrase
        ("3 and 6", "6"),  # then the last number
        ("#### Step 1: add\n7\n#### Step 2: boxed\n\\boxed{9}", "9"),  # headings are no answers
        ("#### She has 9 eggs", "9"),
        ("####", None),
    ],
)
def test_markers_are_tried_in_order(text, predicted):
    assert score_answer(text, "7").predicted == predicted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("no idea", "no_number"),
        ("#### ...", "no_number"),
        ("the answer is ...", "no_number"),
        ("#### 17\n#### 18", "conflicting_answers"),
        ("#### 18\n#### 17\n#### 18", "conflicting_answers"),
        ("#### 18 or 20", "conflicting_answers"),
        ("#### 18 or 20\n#### 18", "conflicting_answers"),
        ("#### 18 eggs or 20 eggs", "conflicting_answers"),
        ("#### 18, 20", "conflicting_answers"),
        ("#### 18 - 3", "expression"),
        ("#### 18+0", "expression"),
        ("#### 10^3", "expression"),
        ("#### 1/2/3", "expression"),
        ("#### 1.234.567", "malformed_number"),
        ("#### 1,2", "malformed_number"),
        ("#### 3/0", "division_by_zero"),
        ("#### " + "9" * 5000, "number_too_long"),  # above Python's limit of 4,300 digits
        ("#### 1e400", "number_too_long"),
    ],
)
def test_what_does_not_parse_has_a_reason_and_is_wrong(text, reason):
    score = score_answer(text, "18")
    assert (score.predicted, score.correct, score.reason) == (None, False, reason)


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 18.00", "#### 18", True),
        ("#### 234", "#### 1,234", False),
        ("#### 1234", "#### 1,234", True),
        ("#### 4", "#### 3/4", False),
        ("#### 0.75", "#### 3/4", True),
        ("#### 3", "#### -3", False),
        ("#### 1", "#### 10", False),
        ("#### 10", "#### 1", False),
        ("#### 0.1", "0.10", True),
        ("#### 0.1000000000000000000000000001", "0.1", False),  # a float could not tell
        ("#### 0.333", "1/3", False),
    ],
)
def test_comparison_is_exact(text, gold, correct):
    assert score_answer(text, gold).correct is correct


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        # gold "... #### 1,234": both sides lose "," and "$", all up to "#### ", one trailing "."
        ("a\n#### 1,234.", True, True),
        ("#### 1,234\n#### 7", True, False),  # strict takes the first, flexible the last
        ("#### 7\n#### 1,234", False, True),
        ("####1234", False, True),
        ("#### $1234", False, True),
        ("#### 1234.00", False, False),  # a string comparison
        ("it is 1234...", False, False),  # only one period goes
        ("it is 1234 eggs ...", False, False),  # "..." is what the flexible filter takes
        ("it is 1234 in 5", False, False),
        ("none", False, False),
        ("", False, False),
    ],
)
def test_strict_and_flexible_follow_the_harness(text, strict, flexible):
    score = score_answer(text, "She pays $1,000 + $234.\n#### 1,234")
    assert (score.strict_correct, score.flexible_correct) == (strict, flexible)


def harness_exact_match(extracted: str, gold: str) -> bool:
    """lm-evaluation-harness's `exact_match` with the `regexes_to_ignore` of gsm8k.yaml, as written there."""
    sides = []
    for side in (extracted, gold):
        for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
            side = re.sub(pattern, "", side)
        sides.append(side.lower())
    return sides[0] == sides[1]


@given(st.one_of(ANY_TEXT, ANSWER_LIKE), st.sampled_from(["18", "#### 1,234", "a $2.\n#### $3.", "#### 0.5"]))
@settings(max_examples=200, deadline=None)
def test_strict_and_flexible_equal_the_harness_own_regular_expressions(text, gold):
    for answer in (text, f"{text}#### {gold.rpartition(' ')[2]}"):
        strict = re.findall(r"#### (\-?[0-9\.\,]+)", answer) or ["[invalid]"]
        flexible = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", answer) or [("[invalid]",)]
        score = score_answer(answer, gold)
        assert score.strict_correct == harness_exact_match(strict[0], gold)
        assert score.flexible_correct == harness_exact_match(next(filter(None, flexible[-1])), gold)


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        ("2+2 = <<2+2=4>>4\n#### 4", 4),
        ("#### 1,200", 1200),
        ("#### $1,200.50", Fraction(2401, 2)),
        ("#### -3.", -3),
        ("72", 72),
        (" 3/4 ", Fraction(3, 4)),
        ("50%", 50),
    ],
)
def test_gold_answers(gold, value):
    assert gold_answer(gold) == value


@pytest.mark.parametrize(
    "gold", ["", "####", "#### none", "She has 18 eggs", "#### 18 or 20", "#### 3/0", "1.2.3"]
)
def test_gold_that_does_not_parse_is_an_error_of_the_data(gold):
    with pytest.raises(GoldError, match="gold answer is not a number"):
        gold_answer(gold)
    with pytest.raises(GoldError):
        score_answer("#### 18", gold)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gold_solution_of_gsm8k_scores_itself_as_right(split):
    path = GSM8K / f"{split}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} absent")
    for line in path.read_text(encoding="utf-8").splitlines():
        gold = json.loads(line)["answer"]
        score = score_answer(gold, gold)
        assert score.correct and score.strict_correct and score.flexible_correct, gold


@given(st.one_of(ANY_TEXT, ANSWER_LIKE))
@settings(max_examples=250, deadline=None)
def test_any_text_is_scored_without_an_exception(text):
    score = score_answer(text, "18")
    assert (score.predicted is None) == (score.reason is not None)
    if score.predicted is not None:
        assert score_answer(f"#### {score.predicted}", score.predicted).correct  # what is predicted re-reads


@given(st.integers(-(10**12), 10**12))
def test_every_integer_survives_all_spellings(number):
    for spelling in (
        f"#### {number}",
        f"#### {number:,}",
        f"The answer is ${number:,}.00.",
        f"\\boxed{{{number}}}",
    ):
        assert score_answer(spelling, str(number)).correct


NOISE = {
    "digits": "9" * 10**6,
    "hashes": "#" * 10**6,
    "answers": "####1" * 200_000,
    "boxes": "\\boxed{" * 140_000,
    "numbers": "1 " * 500_000,
    "dots": "." * 10**6,
    "fractions": "\\frac{" * 160_000,
}


@pytest.mark.parametrize("text", NOISE.values(), ids=NOISE)
def test_a_megabyte_of_noise_takes_linear_time(text):
    started = time.process_time()
    score_answer(text, "18")
    assert time.process_time() - started < 5  # 0.1 to 0.5 s measured; a quadratic search takes hours


def test_pass_at_k_counts_draws_that_miss():
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # C(3,3) = 1 of C(5,3) = 10 draws miss both
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)  # k = 1 is c / n
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(5, 3, 3) == 1.0  # n - c = 2 wrong ones cannot fill 3 draws
    assert math.isfinite(pass_at_k(5000, 1, 2500))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(n, c, k)


def test_majority_vote_counts_values_and_ignores_none():
    assert majority_vote(["1", "2", "2", None, None, None]) == "2"
    assert majority_vote(["3", "1", "1", "3"]) == "3"  # a tie: first seen
    assert majority_vote(["7", "0.5", "1/2"]) == "0.5"  # two votes for one value
    assert majority_vote([None]) is None
    assert majority_vote([]) is None


def test_the_final_answer_has_its_exact_value_and_plain_text():
    assert final_answer("#### −1 1/2 cups") == (Fraction(-3, 2), "-3/2", None)
    assert final_answer("#### $1,234.50") == (Fraction(2469, 2), "1234.5", None)
    assert final_answer("#### 17\n#### 18") == (None, None, "conflicting_answers")


def test_one_spelling_for_signs_fractions_and_latex():
    assert plain_text(r"$1{,}234 \times −½ \div \frac{3}{4} of \text{18}") == "$1,234 × - 1/2 ÷  3/4 of {18}"
