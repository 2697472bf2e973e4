"""Lines, sentences and numbered steps as a reader sees them, and what repeats itself."""

import time

import pytest

from cot.utils.outline import is_repetitive, numbered_runs, outline, reasoning_lines, sentences

HEADINGS = r"""#### Step 1: **Add the eggs**
She uses:
\[
3 + 4 = 7
\]

#### Step 2: Subtract
   - She has 16.
   1. Then 16 - 7 = 9 are left.

So she sells \(\boxed{9}\).
#### 9"""
PLAN = (
    "Two steps:\n1. Count the eggs.\n2. Sell the rest.\n\n"
    "1. **Count the eggs:**\n   3 + 4 = 7\n2. **Sell the rest.**\n   7 * 2 = 14"
)


def test_reasoning_ends_at_the_last_answer_line():
    assert reasoning_lines("a\n#### 1\nb\n **#### 2**\nc") == ["a", "#### 1", "b"]
    assert reasoning_lines("so #### 1 here\nb") == ["so #### 1 here", "b"]  # not a line of its own
    assert reasoning_lines("") == []
    assert reasoning_lines("#### 1. Add\n3+4=7\n#### Step 2: Go\nb\n#### Conclusion\nc") == [
        *("#### 1. Add", "3+4=7", "#### Step 2: Go", "b", "#### Conclusion", "c")
    ]  # these head sections


def test_marks_are_no_lines_and_numbers_are_read_off():
    assert [(line.number, line.text, line.is_formula) for line in outline(HEADINGS)] == [
        (1, "Add the eggs", False),
        (None, "She uses:", False),
        (None, "3 + 4 = 7", True),
        (2, "Subtract", False),
        (None, "She has 16.", False),
        (1, "Then 16 - 7 = 9 are left.", False),
        (None, "So she sells 9.", False),
    ]


def test_a_step_is_what_stands_below_its_number_and_a_displayed_formula_ends_a_sentence():
    assert sentences(outline(HEADINGS))[1:3] == ["She uses: 3 + 4 = 7", "Subtract"]
    runs = numbered_runs(outline(HEADINGS))
    assert [[len(step) for step in run] for run in runs] == [[3, 3]]  # the last sentence is outside
    assert [[len(step) for step in run] for run in numbered_runs(outline(PLAN))] == [[1, 1], [2, 2]]
    assert numbered_runs(outline("1. a\n3. b")) == numbered_runs(outline("2. a")) == []


def test_a_plan_may_return_and_a_loop_may_not():
    assert not is_repetitive(outline(PLAN))
    assert is_repetitive(outline(PLAN.replace("Count the eggs", "Count the 7 eggs")))
    assert is_repetitive(outline("3 + 4 = 7\n3 + 4 = 7"))
    long = [f"She has {number} eggs." for number in range(12)]
    assert not is_repetitive(outline("\n".join([*long, long[0]])))  # 1 of 13
    assert is_repetitive(outline("\n".join([*long, long[0], long[1]])))  # 2 of 14 are above a tenth


@pytest.mark.parametrize("piece", ["\\[", "\\[ 1 \\]\n", "$$", "1. a\n", "#### 1. ", "=\n", "\ue000\n"])
def test_noise_takes_bounded_time(piece):
    started = time.process_time()
    lines = outline(piece * (20_000 // len(piece)))
    numbered_runs(lines)
    is_repetitive(lines)
    assert time.process_time() - started < 2
