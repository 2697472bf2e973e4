"""The three scorers, on the traps that GSM8K answers are known for."""

import json
import math
import re
from fractions import Fraction

import pytest
from conftest import REPO_ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.answers import GoldError, final_answer, gold_answer, majority_vote, pass_at_k, score_answer

SHARED = REPO_ROOT.parent / "shared"  # not part of the project
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)  # lone surrogates included
ANSWER_LIKE = st.text(alphabet="0123456789#$.,-/ \n*=x%\\{}boxedansweriu½−\ud800", max_size=80)


def lines_of(path) -> list[dict]:
    """The JSON lines of a shared file."""
    if not path.exists():
        pytest.skip(f"{path} absent")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the canonical scorer ---------------------------------------------------------------------------------

READ = [  # what a careful human reads
    # behind a hash
    ("#### 10", "10"),
    ("#### 18...", "18"),
    ("####\n18", "18"),
    ("#### 18\n1/2 of them are red.", "18"),
    # a `####` that heads a section
    ("#### 1. Eggs per week\n6 * 7 = 42\n#### 2. Eggs sold\n42 - 7 = 35\n\nShe sells 35 eggs.", "35"),
    ("#### Step 1: 4 tables\n4*6 = 24\n#### Step 2: 3 benches\n3*5 = 15\n24 + 15 = 39 seats", "39"),
    ("#### Given 6 crates\n6*10 = 60\n#### Final Answer\n60 bottles", "60"),
    ("#### **1. First** 3 * 5 = 15\n#### **2. Then** 15 + 3 = 18", "18"),
    # several marks, corrections, recited examples, further questions
    ("Each gets \\boxed{6}.\n\nNext, count the friends: 6 * 5 = 30, so they have \\boxed{30} in all.", "30"),
    ("The answer is 14. Wait, I forgot the tip. 14 + 2 = 16. The answer is 16.", "16"),
    ("First we find \\boxed{4}. Half of the rest is 10.\n#### 10", "10"),
    ("#### 18\n\n### Question\nWhat is 2 + 2?\n#### 4", "18"),
    ("#### 18\nFor example, #### 5 would be the format.", "18"),
    ("The answer is 18. Wait, let me check the 3 again. Yes.", "18"),
    # phrases
    ("**Final Answer:** 18 eggs, then 3", "18"),
    ("The answer is not 24 but 26.", "26"),
    ("Answer: Mia pays $45 for 3 tickets.\n", "45"),
    ("The answer is about 33 minutes, give or take 2.", "33"),
    ("Die Antwort ist 12. Wir haben 4 Schritte gebraucht.", "12"),
    ("Answer: 16 - 7 = 9 eggs are left. 9 * 2 = 18", "18"),
    ("Each answer is worth 5 points. She has 15 points.", "15"),
    ("27 is the answer. It took 3 steps.", "27"),
    # boxes
    (r"so \boxed{\dfrac{3}{4}} of 20 eggs", "3/4"),
    (r"\boxed{1{,}234 \text{ eggs}} in 7 days", "1234"),
    (r"\boxed{4\frac{1}{4}}", "17/4"),
    (r"\boxed{9 \times 3 = 27}", "27"),
    (r"\boxed{2.5 \times 10^{4}}", "25000"),
    (r"\boxed{15 + 12} = 27", "27"),
    (r"\boxed{1.8 \text{ million}}", "1800000"),
    # bold, <answer>
    ("There are 4 rows of 6 chairs, so there are **24** chairs in 4 rows.", "24"),
    ("1. **Count 3 boxes:** 3 * 8 = 24\n2. **Add 2 more:** 24 + 2 = 26", "26"),
    ("<answer>\n24\n</answer>\nI took 3 steps.", "24"),
    ("Each costs **$5**. For 4 of them that is 4 * 5 = 20 dollars.", "20"),
    # no mark
    ("That gives 31 stamps (see step 3).", "31"),
    ("Leo has 31 stamps. Let me know if you need more help, I am here 24/7!", "31"),
    ("The garden needs 31 m2 of turf.", "31"),
    ("It takes 459 / 51 = 9 minutes to blink 459 times.", "9"),
    ("Max would also be 10 years old on Aubrey's 8th birthday.", "10"),
    ("So he has 18 left. He originally had 20.", "18"),
    # signs
    ("#### −1 1/2 cups", "-3/2"),
    ("#### -0", "0"),
    ("#### minus 12", "-12"),
    ("#### —12", "-12"),
    ("The answer is -$12.50.", "-12.5"),
    ("Net change—12 points", "12"),
    # digits, separators, fractions, powers
    ("#### $1,234.50", "1234.5"),
    ("#### １８", "18"),
    ("#### 12,34,567", "1234567"),
    ("#### 1\u202f234", "1234"),
    ("#### 45'600", "45600"),
    ("#### 45.600,50", "45600.5"),
    ("#### 7,25 €", "7.25"),
    ("#### 2½", "5/2"),
    ("#### 3 and 3/4", "15/4"),
    ("#### 6.02 x 10^2", "602"),
    ("#### 4³", "64"),
    ("#### 50%", "50"),
    ("#### $2.5k", "2500"),
    # calculations
    ("#### 6 boxes * $4 = $24", "24"),
    ("#### 12 plus 15 = 27", "27"),
    ("#### 16 - 7 = 9, 9 * 2 = $18", "18"),
    ("#### 9*2=<<9*2=18>>18", "18"),
    ("#### 3(9) = 27", "27"),
    # of a thinking model, what follows its reasoning
    ("<think>It is 3 * 9 = 27.\n#### 28</think>\nThe shop sells 27 pens.", "27"),
    ("Maybe \\boxed{5}?</think>\n\\boxed{27}", "27"),
]


@pytest.mark.parametrize(("text", "answer"), READ)
def test_a_text_is_read_as_a_careful_human_reads_it(text, answer):
    assert final_answer(text)[:3] == (Fraction(answer), answer, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n\t", "empty"),
        ("no idea", "no_number"),
        ("The answer is unknown, since 3 is missing.", "no_number"),
        ("The answer is neither 12 nor 18.", "no_number"),
        ("#### ①⑧", "no_number"),
        ("#### 17\n\nThe answer is 18.", "conflicting_answers"),
        ("The answer is 2.\nThe answer is 3.\n6", "conflicting_answers"),
        ("#### 18\n#### 17\n#### 18", "conflicting_answers"),
        ("#### 18 eggs or 20 eggs", "conflicting_answers"),
        ("\\boxed{x=18, y=20}", "conflicting_answers"),
        ("#### Ben 18, Eve 20", "conflicting_answers"),
        ("that is 20 - 3", "expression"),
        ("The answer is half of 36.", "expression"),
        ("\\boxed{2\\sqrt{3}}", "expression"),
        ("#### 1/2/3", "expression"),
        ("#### 1,234,5", "malformed_number"),
        ("#### ($5)", "malformed_number"),  # a loss, as accountants write it, or a remark
        ("#### 3 to 5 days", "range"),
        ("#### 18+", "range"),
        ("#### 2 hours 30 minutes", "several_units"),
        ("#### 2h30", "several_units"),
        ("#### 2 dozen", "several_units"),
        ("#### eighteen", "number_words"),
        ("#### 3/0", "division_by_zero"),
        ("#### " + "9" * 5000, "number_too_long"),  # above Python's limit of 4,300 digits
        ("#### 7^999", "number_too_long"),
        ("<think>First, 9 * 2 = 18, so the answer is 18", "thinking_cut_off"),
    ],
)
def test_what_does_not_parse_has_a_reason_and_is_wrong(text, reason):
    score = score_answer(text, "18")
    assert (score.predicted, score.correct, score.reason) == (None, False, reason)


@pytest.mark.parametrize(
    ("text", "predicted", "mark"),
    [
        ("The answer is 3. Twice that is 4.\n#### 4\nHalf of 10 is \\boxed{5}\n6", "5", "boxed"),
        ("#### 4\nThat was without the tip, so the answer is 5.\n6", "5", "phrase"),
        ("\\boxed{4} so far. Add 1.\n<answer>5</answer>\n6", "5", "phrase"),
        ("Ann has **3** eggs.\nBen has **5** eggs and is 6 years old.", "5", "phrase"),
        ("#### 5\n\nEach of **3** days brings as many.", "5", "hash"),  # bold only where no other mark stands
        ("3 and 6", "6", "last_number"),
        ("#### Step 1: add\n7\n#### Step 2: boxed\n\\boxed{9}", "9", "boxed"),  # headings are no answers
        ("#### She has 9 eggs", "9", "last_number"),
        ("#### 7 or 8", None, "hash"),
        ("####", None, None),
    ],
)
def test_the_last_marked_answer_counts_whichever_mark_it_bears(text, predicted, mark):
    score = score_answer(text, "7")
    assert (score.predicted, score.answer_mark) == (predicted, mark)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 * 6 = 18. Then 18 / 2 =", (None, "cut_off", None)),
        ("#### 1. Count 3 boxes\n3 * 6 = 18\n#### 2. Halve", (None, "cut_off", None)),
        ("She keeps **18** eggs and then", (None, "cut_off", None)),  # bold is no mark before the end
        ("So \\boxed{80} miles.\n\nNext, the second", (None, "cut_off", None)),  # a step's result
        ("#### 18\n\nExplanation: 3 * 6", ("18", None, "hash")),
        ("The answer is 18. That is", ("18", None, "phrase")),
        # the question was cut off
        ("She has 18 eggs.\nQuestion: What is 3 +", ("18", None, "last_number")),
        ("", (None, "empty", None)),
        ("<think>3 * 6 = 18", (None, "thinking_cut_off", None)),
    ],
)
def test_a_text_that_was_cut_off_before_a_mark_has_no_answer(text, expected):
    score = score_answer(text, "18", truncated=True)
    assert (score.predicted, score.reason, score.answer_mark) == expected


def test_a_reasoning_that_was_taken_off_before_it_ended_leaves_no_answer():
    score = score_answer("#### 18", "18", thinking_cut_off=True)
    assert (score.predicted, score.correct, score.reason) == (None, False, "thinking_cut_off")


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 1234", "#### 1,234", True),
        ("#### 0.1", "0.10", True),
        ("#### 4", "#### 3/4", False),
        ("#### 1", "#### 10", False),
        ("#### 0.1000000000000000000000000001", "0.1", False),  # a float could not tell
        ("#### 0.333", "1/3", False),
    ],
)
def test_comparison_is_exact(text, gold, correct):
    assert score_answer(text, gold).correct is correct


@pytest.mark.parametrize(
    ("name", "unread"), [("answers.jsonl", 0.07), ("real_answers.jsonl", 0.02)], ids=["strings", "models"]
)
def test_shared_texts_are_read_as_by_hand_or_not_at_all(name, unread):
    wrong, missed = [], []
    cases = lines_of(SHARED / "cases" / name)
    for case in cases:
        read, meant = final_answer(case["text"], case.get("truncated", False)).value, case["answer"]
        try:
            is_right = read == (None if meant is None else Fraction(meant))
        except ValueError:  # a time
            is_right = False
        if not is_right:
            (missed if read is None else wrong).append(case["id"])
    assert not wrong and len(missed) <= unread * len(cases), missed


# --- the harness's two filters ----------------------------------------------------------------------------


def harness_exact_match(extracted: str, gold: str) -> bool:
    """lm-evaluation-harness's `exact_match` with the `regexes_to_ignore` of gsm8k.yaml, as written there."""
    sides = []
    for side in (extracted, gold):
        for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
            side = re.sub(pattern, "", side)
        sides.append(side.lower())
    return sides[0] == sides[1]


@given(st.one_of(ANY_TEXT, ANSWER_LIKE), st.sampled_from(["18", "#### 1,234", "a $2.\n#### $3.", "#### 0.5"]))
@settings(max_examples=100, deadline=None)
def test_strict_and_flexible_equal_the_harness_own_regular_expressions(text, gold):
    for answer in (text, f"{text}#### {gold.rpartition(' ')[2]}"):
        strict = re.findall(r"#### (\-?[0-9\.\,]+)", answer) or ["[invalid]"]
        flexible = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", answer) or [("[invalid]",)]
        score = score_answer(answer, gold)
        assert score.strict_correct == harness_exact_match(strict[0], gold)
        assert score.flexible_correct == harness_exact_match(next(filter(None, flexible[-1])), gold)


def test_strict_and_flexible_end_where_the_harness_stops_and_read_no_reasoning():
    asked_again = score_answer("#### 1,234\n\nQuestion: What is 4 + 4?\nAnswer: 8\n#### 8", "#### 1,234")
    assert asked_again.strict_correct and asked_again.flexible_correct
    thought = score_answer("<think>#### 1,234</think>\nShe pays 17.", "#### 1,234")
    assert not thought.strict_correct and not thought.flexible_correct


# --- gold solutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        ("2+2 = <<2+2=4>>4\n#### 4", 4),
        ("#### $1,200.50", Fraction(2401, 2)),
        ("#### -3.", -3),
        (" 3/4 ", Fraction(3, 4)),
        ("50%", 50),
        *((gold, None) for gold in ("", "#### none", "She has 18 eggs", "#### 18 or 2", "3/0", "1.2.3")),
    ],
)
def test_a_gold_answer_is_a_number_or_an_error_of_the_data(gold, value):
    if value is not None:
        assert gold_answer(gold) == value
        return
    with pytest.raises(GoldError, match="gold answer is not a number"):
        score_answer("#### 18", gold)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gold_solution_of_gsm8k_scores_itself_as_right(split):
    for line in lines_of(SHARED / "gsm8k" / f"{split}.jsonl"):
        score = score_answer(line["answer"], line["answer"])
        assert score.correct and score.strict_correct and score.flexible_correct, line


# --- any text ---------------------------------------------------------------------------------------------


@given(st.one_of(ANY_TEXT, ANSWER_LIKE, st.integers(-(10**12), 10**12).map("The answer is ${:,}.00.".format)))
@settings(max_examples=150, deadline=None)
def test_any_text_is_scored_without_an_exception(text):
    score = score_answer(text, "18")
    assert (score.predicted is None) == (score.reason is not None)
    if score.predicted is not None:
        assert score_answer(f"#### {score.predicted}", score.predicted).correct  # what is predicted re-reads
    if "The answer" in text:
        assert score.predicted == re.sub(r"[^-\d]", "", text.partition(".")[0]) or score.predicted == "0"


FRAGMENTS = (
    *("#### ", "####1\n", "#### 1. a\n", "\\boxed{", "\\boxed{1}", "boxed{{{1}}}", "answer is "),
    *("answer to ", "Answer:\n", "<answer>", "**1** ", "**", "__1__", "<b>1</b>", "1 ", "1 a "),
    *("1 a b c d e ", "1 + ", "1 = ", "1=1 ", "1, ", "1 or ", "1 hour ", "1:", "1'234 ", "1 1/1 ", "1^1"),
    *("½", "\\frac{", "\\frac{1}", "{", "(", "((1)", "$", "~", "-", "—", " ", "\n", "wait, check 1 "),
    *("not 1 ", "<<1>>", "<think>", "</think>", "\nQuestion: 1", "example ", "in 1 hour ", "because "),
    *("1.\n=", "a = ", "a' -", "Tom 1, Ann ", "1% of ", "which is ", "half of 1 ", "let me know 1 "),
    *("\nNext, ", "١", "\ud800"),
)


@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_twenty_thousand_characters_of_repeated_junk_are_read(fragments, truncated):
    text = ("".join(fragments) * 20_000)[:20_000]  # a search that goes wrong takes minutes here
    answer = final_answer(text, truncated)
    assert (answer.value is None) == (answer.reason is not None)


# --- several samples --------------------------------------------------------------------------------------


def test_pass_at_k_counts_draws_that_miss_and_a_majority_counts_values():
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # C(3,3) = 1 of C(5,3) = 10 draws miss both
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)  # k = 1 is c / n
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 3, 3)) == (0.0, 1.0)  # 2 wrong ones cannot fill 3 draws
    assert math.isfinite(pass_at_k(5000, 1, 2500))
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(5, 6, 1)
    assert majority_vote(["1", "2", "2", None, None, None]) == "2"
    assert majority_vote(["3", "1", "1", "3"]) == "3"  # a tie: first seen
    assert majority_vote(["7", "0.5", "1/2"]) == "0.5" and majority_vote([None]) is None
