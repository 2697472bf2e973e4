"""Each check of style and preference, also against cheating; share of preferences met, copying, naming."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.fidelity import (
    CHECKABLE_PREFERENCES,
    EXPLANATION_STYLES,
    copying,
    fidelity,
    met_checks,
    names_student,
)

LABELS = Path(__file__).with_name("fit_labels.jsonl")
CHECKS = EXPLANATION_STYLES | CHECKABLE_PREFERENCES
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)  # lone surrogates included
PIECES = (
    *("1. ", "2. ", "Hint: ", "Check: ", "14+23=37", "37-5=32", "What is 14+23?", " because ", "we add them"),
    *(".", "?", "\n", "\n#### 32", "####", "Ann has 32 marbles", "\ud800", " "),
)
EXPLANATION_LIKE = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)

# One text of each style, as short as a tiny model writes them. No style's text passes for another style.
TINY = {
    "numbered_steps": "1. 14+23=37\n2. 37-5=32\n#### 32",
    "short_sentences": "Add 14+23=37. Then take 5 away. That leaves 37-5=32.\n#### 32",
    "guiding_questions": "What is 14+23? 14+23=37. What is 37-5? 37-5=32.\n#### 32",
    "equations_first": "14+23=37\n37-5=32\n#### 32",
    "check_at_end": "First 14+23=37\nThen 37-5=32\nCheck: 32+5=37\n#### 32",
}
# A problem of one step: Ann has 14 marbles and gets 23.
ONE_STEP = {
    "numbered_steps": "1. Ann starts with 14.\n2. 14+23=37\n#### 37",
    "short_sentences": "Ann has 14 marbles. She gets 23 more. That makes 14+23=37.\n#### 37",
    "guiding_questions": "How many are there? 14 and 23.\nWhat is 14+23? 14+23=37.\n#### 37",
    "equations_first": "14+23=37 marbles\n#### 37",
    "check_at_end": "Add 14+23=37\nCheck: 37-23=14\n#### 37",
}
# As chat models write: markdown, LaTeX, a boxed answer.
MARKED_UP = {
    "numbered_steps": r"""To find it, we take two steps:

#### Step 1: **Add**
\[ 14 + 23 = 37 \]

#### Step 2: **Take 5 away**
- She gives 5 to Ben.
\[
37 - 5 = 32
\]

Therefore, Ann has \(\boxed{32}\) marbles.""",
    "short_sentences": r"""Ann has **14** marbles. She gets 23 more. That makes:
\[ 14 + 23 = 37 \]
So she has \boxed{37}.""",
    "guiding_questions": r"""**How many are there at first?**
\[ 14 + 23 = 37 \]
**How many are left?**
There are \( 37 - 5 = \boxed{32} \).""",
    "equations_first": r"""\( 14 + 23 = 37 \) marbles at first.
- $37 - 5 = 32$ are left.

Ann has $\boxed{32}$ marbles.""",
    "check_at_end": r"""Ann has \( 14 + 23 = 37 \).

### Check
\[ 37 - 23 = 14 \]
So she has \boxed{37} marbles.""",
}
# All preferences, but the contrary of one, with each of the styles, still one step.
HINT = "Hint: put both groups together.\n"
BECAUSE = "We add 14 and 23 because both groups come together."
SENTENCE = "14+23=37, so Ann has 37 marbles."
EVERYTHING = {
    "numbered_steps": f"{HINT}1. {BECAUSE}\n2. {SENTENCE}\n#### 37",
    "short_sentences": f"{HINT}{BECAUSE}\nSo 14+23=37, and Ann has 37 marbles.\n#### 37",
    "guiding_questions": f"{HINT}What do we add?\n{BECAUSE}\nHow many is that?\n{SENTENCE}\n#### 37",
    "equations_first": f"{HINT}23+14=37 because both groups come together.\n{SENTENCE}\n#### 37",
    "check_at_end": f"{HINT}{BECAUSE}\n{SENTENCE}\nCheck: 37-23=14\n#### 37",
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_of_real_texts_what_a_reader_says(name):
    """Agreement with labels by hand on 401 answers of Qwen2.5-Coder 0.5B and 1.5B to GSM8K train questions.

    Three sets (`set` in the file): 96 texts `without` an instruction of style, with which the checks were
    made; 165 under one, `read first`: labelled before a check had read them, after which two faults were
    mended; 140 `held out`, on which nothing was mended but a leading "Because" (.96 before). A text that
    explains nothing or loops is labelled false throughout; a hint that belongs to another problem is none.
    """
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    for part in (rows, [row for row in rows if row["set"] == "held out"]):
        pairs = [(CHECKS[name](row["text"]), row["labels"][name]) for row in part]
        agreement = sum(found == label for found, label in pairs) / len(pairs)
        print(
            f"{name}: {agreement:.2f} of n = {len(pairs)}, {sum(label for _, label in pairs)} labelled true"
        )
        assert agreement >= 0.9


@pytest.mark.parametrize("style", EXPLANATION_STYLES)
@pytest.mark.parametrize("texts", [TINY, ONE_STEP, MARKED_UP], ids=["two steps", "one step", "marked up"])
def test_a_text_meets_its_own_style_and_no_other(style, texts):
    assert [name for name, check in EXPLANATION_STYLES.items() if check(texts[style])] == [style]


@pytest.mark.parametrize("style", EXPLANATION_STYLES)
def test_all_preferences_can_be_met_together_with_every_style(style):
    met = [name for name, check in CHECKS.items() if check(EVERYTHING[style])]
    assert style in met
    assert set(CHECKABLE_PREFERENCES) - set(met) == {"no hint"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("check_at_end", "14+23=37\nCheck:\n\\[ 37-23=14 \\]\nand 7+7=14\n#### 37"),  # goes on
        ("short_sentences", "Take 14 away from 37.\n\\[ 37-14=23 \\]"),  # one sentence
        ("no hint", "2. ok\n14+23=37\n2. ok\n#### 37"),
        ("the answer in a full sentence", "14+23=37\nNow write the final answer:\n\\[ \\boxed{37} \\]"),
        ("numbered_steps", "1. 14+23=37\n#### 37"),  # one step only
        ("numbered_steps", "1. 14+23=37\n3. 37-5=32\n#### 32"),  # a gap
        ("numbered_steps", "1.5 + 2 = 3.5\n2.5 + 1 = 3.5\n#### 3.5"),  # decimals
        ("numbered_steps", "1. 14+23=37\n2. 37-5=32\nso\nwe\nsee 32\n#### 32"),  # a minority of the lines
        ("short_sentences", "Yes 1. No 2. Ok 3.\n#### 3"),  # no content
        ("short_sentences", "14+23=37. 37-5=32.\n#### 32"),  # bare equations
        ("short_sentences", "Add all of the 14 marbles to the other 23 of hers right now. So 37.\n#### 37"),
        ("guiding_questions", "What is 14+23? What is 37-5? It is 32.\n#### 32"),  # only one is answered
        ("guiding_questions", "What is 14+23? We will see. What is 37-5? We will find out.\n#### 32"),
        ("guiding_questions", "1 2 3? 37. 4 5 6? 32.\n#### 32"),
        ("equations_first", "14+23=37\nThen 37-5=32\n#### 32"),
        ("equations_first", "14+23=37\n14 + 23 = 37 again\n#### 37"),  # the same one
        ("check_at_end", "14+23=37\nCheck: 37-23=15\n#### 37"),  # invalid
        ("check_at_end", "14+23=37\nCheck: 23 + 14 = 37\n#### 37"),  # swapped
        ("check_at_end", "Check: 37-23=14\n14+23=37\n#### 37"),  # not last
        ("check_at_end", "Check: 37-23=14\n#### 37"),  # nothing to check
        ("one step per line", "14+23=37, 37-5=32\nso 32 are left\n#### 32"),  # two equations
        ("one step per line", "Add 14+23=37. Then take 5.\nWe have 32 left\n#### 32"),  # two sentences
        ("a hint first", "Hint: the answer is 37 marbles.\n14+23=37\n#### 37"),  # gives it away
        ("a hint first", "14+23=37\nHint: put both groups together.\n#### 37"),
        ("a hint first", "Hint: put both groups of 14 together.\n#### 37"),  # nothing follows
        ("at most 60 words", "4\n#### 4"),  # says nothing
        ("at most 60 words", "4" + " word" * 60 + "\n#### 4"),
        ("the answer in a full sentence", "Ann has 37 marbles.\nThat was easy for us.\n#### 37"),  # not last
        ("the answer in a full sentence", "14+23=37, so Ann has marbles now.\n#### 38"),  # another number
        ("a reason with because", "because because because because 14+23=37\n#### 37"),
        ("a reason with because", "We add 14 and 23 because yes yes yes.\n#### 37"),
        ("a reason with because", "Do we add 14 and 23 because both groups come together?\n#### 37"),
    ],
)
def test_near_misses_and_stuffing_fail(name, text):
    assert CHECKS[name](text) is False


@pytest.mark.parametrize("text", ["", "37", "\n\n#### 37", "no number, but many words\n#### 37"])
def test_an_empty_explanation_meets_nothing(text):
    assert [name for name, check in CHECKS.items() if check(text)] == []


@pytest.mark.parametrize("name", CHECKS)
def test_repetition_meets_nothing(name):
    style = name if name in EXPLANATION_STYLES else "numbered_steps"
    text = EVERYTHING[style].removeprefix(HINT if name == "no hint" else "")
    assert CHECKS[name](text)
    body = text.rpartition("\n####")[0]
    assert not CHECKS[name](f"{body}\n{body}\n#### 37")
    assert not CHECKS[name](f"{body} " + "We add 14 and 23. " * 3 + "\n#### 37")


@pytest.mark.parametrize("text", ["1. 3+4=7\n" * 100_000, "a 1. " * 4_000, "What is 1? " * 1_800])
def test_noise_takes_bounded_time(text):
    started = time.process_time()
    for check in CHECKS.values():
        check(text)
    assert time.process_time() - started < 5  # 0.1 s measured


@dataclass
class Student:
    explanation_style: str
    learning_preferences: list[str] = field(default_factory=list)
    student_id: str = "S005"
    grade_level: str = "5th grade"


def test_fidelity_is_the_share_of_checkable_constraints():
    text = TINY["numbered_steps"]
    student = Student("numbered_steps", ["one step per line", "likes football", "a hint first"])
    assert met_checks(text) == ("numbered_steps", "one step per line", "no hint", "at most 60 words")
    assert fidelity(text, student) == pytest.approx(2 / 3)  # the free phrase does not count
    assert fidelity(text, Student("check_at_end")) == 0.0


def test_copying_counts_positions_of_the_text():
    memory = "a b c d e f g h i j"
    # 16 words have 9 eight-grams; only "a ... h", at its second place too, stands in the memory: 2 of 9
    assert copying("a b c d e f g h a b c d e f g h", memory) == pytest.approx(2 / 9)
    assert copying("A, b; C d e f g H!", memory) == 1.0  # case and punctuation do not hide it
    assert copying("a b c d e f g", memory) == copying("", memory) == copying(memory, "") == 0.0


@pytest.mark.parametrize(
    ("text", "student_id", "grade", "named"),
    [
        ("for s005: add", "S005", "5th grade", True),
        ("S0051 and XS005", "S005", "5th grade", False),
        ("As a 5th grade student", "S005", "5th grade", True),
        ("Dear 5th-graders,", "S005", "5th grade", True),
        ("a fifth grader", "S005", "5th grade", True),
        ("grade 55, 15th grade", "S005", "5th grade", False),
        ("She has 5 eggs.", "S005", "5th grade", False),
        ("about a.c", "a.c", "college", True),
        ("about abc", "a.c", "college", False),  # an id is text, no pattern
        ("College is far", "S1", "college", True),
        ("any text", "", "", False),
    ],
)
def test_naming_the_student(text, student_id, grade, named):
    assert names_student(text, student_id, grade) is named


@given(st.one_of(ANY_TEXT, EXPLANATION_LIKE), ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_any_text_is_judged_without_an_exception(text, other):
    assert {type(check(text)) for check in CHECKS.values()} == {bool}
    assert 0.0 <= fidelity(text, Student("numbered_steps", [*CHECKABLE_PREFERENCES, other])) <= 1.0
    assert 0.0 <= copying(text, other) <= 1.0
    assert names_student(text, other, text) in (True, False)
