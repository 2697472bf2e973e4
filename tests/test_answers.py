"""The three scorers, on the traps that GSM8K answers are known for."""

import json
import math
import re
import time
from fractions import Fraction

import pytest
from conftest import REPO_ROOT
from hypothesis import example, given, settings
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
    ("#### **18**", "18"),
    ("**#### 18**", "18"),
    ("#### 18.", "18"),
    ("#### 18...", "18"),
    ("####18", "18"),
    ("####\n18", "18"),
    ("##### 18", "18"),
    ("#### 18\n1/2 of them are red.", "18"),
    # a `####` that heads a section
    ("#### 1. Eggs per week\n6 * 7 = 42\n#### 2. Eggs sold\n42 - 7 = 35\n\nShe sells 35 eggs.", "35"),
    ("#### 1) Find the speed\n60 / 2 = 30 km/h\n#### 2) Find the distance\n30 * 5 = 150\n#### 150", "150"),
    ("#### Step 1: 4 tables\n4*6 = 24\n#### Step 2: 3 benches\n3*5 = 15\n24 + 15 = 39 seats", "39"),
    ("#### 1st week\n12 laps\n#### 2nd week\n20 laps\nThat makes 32 laps altogether.", "32"),
    ("##### 1. Weigh the bags\n9 kg each\n##### 2. Weigh the box\n2 kg\nThe answer is 29 kg.", "29"),
    ("#### 1\nTake 5 from 9 to get 4.\n#### 2\nTriple it to get 12.", "12"),
    ("#### Given 6 crates\n6*10 = 60\n#### Final Answer\n60 bottles", "60"),
    ("#### 2. Multiply\n7 x 8 = 56\n#### 3. Answer: 56", "56"),
    ("#### Answer:\n\\[ \\boxed{45} \\]", "45"),
    ("#### Solution\nHe pays 3 * $9 = $27.", "27"),
    ("#### **1. First** 3 * 5 = 15\n#### **2. Then** 15 + 3 = 18", "18"),
    ("#### 2 days\n2 * 9 = 18", "18"),
    ("#### 1. Solve\n3 × 9 = 27\n#### 2. Check\n27 / 9 = 3", "27"),
    # several marks, corrections, recited examples, further questions
    ("#### 21\n#### 21.0", "21"),
    ("The answer is 40.\nQuestion: What is 9 + 1?\nAnswer: 10", "40"),
    ("Each gets \\boxed{6}.\n\nNext, count the friends: 6 * 5 = 30, so they have \\boxed{30} in all.", "30"),
    ("The answer is 14. Wait, I forgot the tip. 14 + 2 = 16. The answer is 16.", "16"),
    ("#### 14\nWait, that leaves out the tip: 14 + 2 = 16.\n#### 16", "16"),
    ("Finish with a line such as #### 99.\n3 * 4 = 12\n#### 12", "12"),
    ("#### 12\n(The format of the last line is #### 99)", "12"),
    ("First we find \\boxed{4}. Half of the rest is 10.\n#### 10", "10"),
    ("#### 18\n\n### Question\nWhat is 2 + 2?\n#### 4", "18"),
    ("So \\boxed{80} miles.\n\nNext, add both: 80 + 150 = 230 miles.", "230"),
    ("#### 18\nFor example, #### 5 would be the format.", "18"),
    ("The answer is 18. Wait, let me check the 3 again. Yes.", "18"),
    ("The answer is 17. Wait, let me check. 9 * 2 = 18. So it should be 18.", "18"),
    # phrases
    ("the answer is: $18.", "18"),
    ("The answer is 18. 20 eggs remain.", "18"),
    ("**Final Answer:** 18 eggs, then 3", "18"),
    ("**Final answer**: $9.50", "9.5"),
    ("The answer is not 24 but 26.", "26"),
    ("So the final answer would be 72 marbles.", "72"),
    ("Answer: Mia pays $45 for 3 tickets.\n", "45"),
    ("The answer to the question is 33.", "33"),
    ("Therefore, the answer is\n33", "33"),
    ("The answer is about 33 minutes, give or take 2.", "33"),
    ("The answer is 33.\n\nCheck: 33 + 7 = 40.", "33"),
    ("Die Antwort ist 12. Wir haben 4 Schritte gebraucht.", "12"),
    ("The answer is 3 * 4 = 12 apples.", "12"),
    ("Answer: 16 - 7 = 9 eggs are left. 9 * 2 = 18", "18"),
    ("The answer is 75% of 24, i.e. 18.", "18"),
    ("Each answer is worth 5 points. She has 15 points.", "15"),
    ("27 is the answer. It took 3 steps.", "27"),
    # boxes
    (r"so \boxed{\dfrac{3}{4}} of 20 eggs", "3/4"),
    (r"\boxed{1{,}234 \text{ eggs}} in 7 days", "1234"),
    (r"\boxed{\text{18}}", "18"),
    (r"\boxed{\mathbf{27}}", "27"),
    (r"\boxed{\$1,250}", "1250"),
    (r"\boxed{4\frac{1}{4}}", "17/4"),
    (r"$$\boxed{-12}$$ in 4 steps", "-12"),
    (r"\boxed{9 \times 3 = 27}", "27"),
    (r"\boxed{54 \div 2 = 27}", "27"),
    (r"\boxed{35\%}", "35"),
    (r"\boxed{\text{Cost} = \$27}", "27"),
    (r"\boxed{2.5 \times 10^{4}}", "25000"),
    (r"Put it within \boxed{}. It is \boxed{27}.", "27"),
    (r"\boxed{15 + 12} = 27", "27"),
    (r"\boxed{1.8 \text{ million}}", "1800000"),
    (r"\boxed{18^\circ}", "18"),
    (r"\boxed{3!}", "6"),
    # bold, <answer>
    ("There are 4 rows of 6 chairs, so there are **24** chairs in 4 rows.", "24"),
    ("**Total: 24 chairs** (4 rows)", "24"),
    ("1. **Count 3 boxes:** 3 * 8 = 24\n2. **Add 2 more:** 24 + 2 = 26", "26"),
    ("<answer>The total is $24</answer>", "24"),
    ("<answer>\n24\n</answer>\nI took 3 steps.", "24"),
    ("Each costs **$5**. For 4 of them that is 4 * 5 = 20 dollars.", "20"),
    # no mark
    ("She has 20 eggs, eats 2 and keeps 18 eggs...", "18"),
    ("it falls to -3", "-3"),
    ("Leo collects 31 stamps in 2 weeks.", "31"),
    ("That gives 31 stamps (see step 3).", "31"),
    ("Leo has 31 stamps. Let me know if you need more help, I am here 24/7!", "31"),
    ("The garden needs 31 m2 of turf.", "31"),
    ("It takes 459 / 51 = 9 minutes to blink 459 times.", "9"),
    ("He can skip 4 classes because 10 - 4 = 6.", "4"),
    ("Max would also be 10 years old on Aubrey's 8th birthday.", "10"),
    ("So he has 18 left. He originally had 20.", "18"),
    ("That is 84 / 12 = 7 dozen eggs.", "7"),
    ("Hence 27 coins were found in 3 bags.", "27"),
    # signs
    ("#### −1 1/2 cups", "-3/2"),
    ("#### -$3", "-3"),
    ("#### $-3", "-3"),
    ("#### -0", "0"),
    ("#### minus 12", "-12"),
    ("#### -12 degrees", "-12"),
    ("#### —12", "-12"),
    ("The balance is negative 12.", "-12"),
    ("The answer is -$12.50.", "-12.5"),
    ("Net change—12 points", "12"),
    # digits, separators, fractions, powers
    ("#### $1,234.50", "1234.5"),
    ("#### 18.00", "18"),
    ("#### .5", "0.5"),
    ("#### １８", "18"),
    ("#### 12,34,567", "1234567"),
    ("#### 1\u202f234", "1234"),
    ("#### 45 600", "45600"),
    ("#### 45'600", "45600"),
    ("#### 45_600", "45600"),
    ("#### 45.600,50", "45600.5"),
    ("#### 1.234.567", "1234567"),
    ("#### 7,25 €", "7.25"),
    ("#### 6/8", "3/4"),
    ("#### 10/5", "2"),
    ("#### 2½", "5/2"),
    ("#### 3 and 3/4", "15/4"),
    ("#### 3 and a half", "7/2"),
    ("#### 1.5e3", "1500"),
    ("#### 6.02 x 10^2", "602"),
    ("#### 4³", "64"),
    ("#### 50%", "50"),
    ("#### 3 million", "3000000"),
    ("#### $2.5k", "2500"),
    # calculations
    ("#### x = 5", "5"),
    ("#### 18 (9 * 2 = 18)", "18"),
    ("#### 6 boxes * $4 = $24", "24"),
    ("#### 30% of 90 = 27", "27"),
    ("#### 27 = 30% of 90", "27"),
    ("#### 12 plus 15 = 27", "27"),
    ("#### (30 - 3) = 27", "27"),
    ("#### 54/2=27", "27"),
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
        ("#### ...", "no_number"),
        ("the answer is ...", "no_number"),
        ("#### unknown", "no_number"),
        ("The answer is unknown, since 3 is missing.", "no_number"),
        ("The answer is not 18.", "no_number"),
        ("The answer is neither 12 nor 18.", "no_number"),
        ("The answer cannot be determined from the 3 facts.", "no_number"),
        ("#### ①⑧", "no_number"),
        ("#### 17\n\nThe answer is 18.", "conflicting_answers"),
        ("The answer is 2.\nThe answer is 3.\n6", "conflicting_answers"),
        ("The answer is 3. \\boxed{4}\n6", "conflicting_answers"),
        ("#### 0\n#### 18", "conflicting_answers"),
        ("#### 18\n#### 17\n#### 18", "conflicting_answers"),
        ("#### 18 or 20\n#### 18", "conflicting_answers"),
        ("#### 18 eggs or 20 eggs", "conflicting_answers"),
        ("\\boxed{18} or \\boxed{20}", "conflicting_answers"),
        ("\\boxed{x=18, y=20}", "conflicting_answers"),
        ("#### 18, 20", "conflicting_answers"),
        ("#### Ben 18, Eve 20", "conflicting_answers"),
        ("#### 18+0", "expression"),
        ("that is 20 -3", "expression"),
        ("that is 20 - 3", "expression"),
        ("The answer is 6 * 3.", "expression"),
        ("The answer is half of 36.", "expression"),
        ("\\boxed{2\\sqrt{3}}", "expression"),
        ("#### 1/2/3", "expression"),
        ("#### 1.23.4", "malformed_number"),
        ("#### 1,234,5", "malformed_number"),
        ("#### ($5)", "malformed_number"),  # a loss, as accountants write it, or a remark
        ("#### 3-5", "range"),
        ("#### 3 to 5 days", "range"),
        ("#### from 3 to 5", "range"),
        ("It takes 3 to 5 days.", "range"),
        ("#### 18+", "range"),
        ("#### 2 hours 30 minutes", "several_units"),
        ("#### 5 ft 6 in", "several_units"),
        ("#### 2h30", "several_units"),
        ("#### 3:30", "several_units"),
        ("#### 2 dozen", "several_units"),
        ("#### eighteen", "number_words"),
        ("The answer is half a dozen.", "number_words"),
        ("#### 3/0", "division_by_zero"),
        ("#### " + "9" * 5000, "number_too_long"),  # above Python's limit of 4,300 digits
        ("#### 1e400", "number_too_long"),
        ("#### 9e99^99", "number_too_long"),
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
        ("\\boxed{4} so far. Add 1.\n#### 5\n6", "5", "hash"),
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
        ("#### 0.75", "#### 3/4", True),
        ("#### 0.1", "0.10", True),
        ("#### 4", "#### 3/4", False),
        ("#### 3", "#### -3", False),
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
        ("none", False, False),
        ("#### 1,234\n\nQuestion: What is 4 + 4?\nAnswer: 8\n#### 8", True, True),  # where the harness stops
        ("<think>#### 1,234</think>\nShe pays 17.", False, False),
        ("<think>#### 1,234", False, False),
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


# --- gold solutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        ("2+2 = <<2+2=4>>4\n#### 4", 4),
        ("#### $1,200.50", Fraction(2401, 2)),
        ("#### -3.", -3),
        ("72", 72),
        (" 3/4 ", Fraction(3, 4)),
        ("50%", 50),
    ],
)
def test_gold_answers(gold, value):
    assert gold_answer(gold) == value


@pytest.mark.parametrize("gold", ["", "####", "#### none", "She has 18 eggs", "#### 18 or 2", "3/0", "1.2.3"])
def test_gold_that_does_not_parse_is_an_error_of_the_data(gold):
    with pytest.raises(GoldError, match="gold answer is not a number"):
        score_answer("#### 18", gold)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gold_solution_of_gsm8k_scores_itself_as_right(split):
    for line in lines_of(SHARED / "gsm8k" / f"{split}.jsonl"):
        score = score_answer(line["answer"], line["answer"])
        assert score.correct and score.strict_correct and score.flexible_correct, line


# --- any text ---------------------------------------------------------------------------------------------


@given(st.one_of(ANY_TEXT, ANSWER_LIKE))
@settings(max_examples=250, deadline=None)
def test_any_text_is_scored_without_an_exception(text):
    score = score_answer(text, "18")
    assert (score.predicted is None) == (score.reason is not None)
    if score.predicted is not None:
        assert score_answer(f"#### {score.predicted}", score.predicted).correct  # what is predicted re-reads


@pytest.mark.parametrize("spelling", ["#### {}", "#### {:,}", "The answer is ${:,}.00.", "\\boxed{{{}}}"])
@given(number=st.integers(-(10**12), 10**12))
@settings(max_examples=50)
@example(number=0)
def test_every_integer_survives_all_spellings(spelling, number):
    assert score_answer(spelling.format(number), str(number)).correct


@pytest.mark.parametrize("piece", ["9", "#", "####1", "\\boxed{", "1 ", ".", "\\frac{"])
def test_noise_takes_linear_time(piece):
    started = time.process_time()
    score_answer(piece * (200_000 // len(piece)), "18")
    assert time.process_time() - started < 3  # 0.5 s at most measured; a quadratic search takes an hour


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
@settings(max_examples=60, deadline=None)
def test_twenty_thousand_characters_of_repeated_junk_are_read(fragments, truncated):
    text = ("".join(fragments) * 20_000)[:20_000]  # a search that goes wrong takes minutes here
    answer = final_answer(text, truncated)
    assert (answer.value is None) == (answer.reason is not None)


# --- several samples --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("predictions", "winner"),
    [
        (["1", "2", "2", None, None, None], "2"),
        (["3", "1", "1", "3"], "3"),  # a tie: first seen
        (["7", "0.5", "1/2"], "0.5"),  # two votes for one value
        ([None], None),
        ([], None),
    ],
)
def test_majority_vote_counts_values_and_ignores_none(predictions, winner):
    assert majority_vote(predictions) == winner
