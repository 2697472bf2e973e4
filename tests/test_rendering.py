"""What a reader sees of markdown and LaTeX."""

import time

import pytest

from cot.utils.rendering import rendered_text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("1. **Add:**\n   - *all* of `it`", "1. Add:\n   all of it"),
        ("### Step 1: Add\n__Now__ ***this***", "Step 1: Add\nNow this"),
        ("> - quoted\n---\n```python\nx = 3\n```", "quoted\n\n\nx = 3\n"),
        ("2**3, 9 * 2 * 4, a_b, -3 + 5", "2**3, 9 * 2 * 4, a_b, -3 + 5"),
        ("* Ann has $18 - $5 * 2.", "Ann has $18 - $5 * 2."),
        (r"\[ 3 \times 4 = \boxed{12} \]", " 3 × 4 = 12 "),
        (r"$$9 \div 3$$ and $x + 1$, \$5 and 50\%", "9 ÷ 3 and x + 1, $5 and 50%"),
        ("It costs $5, not 10$. $18+$20=$38, $4 and $3", "It costs $5, not 10$. $18+$20=$38, $4 and $3"),
        (r"\textbf{Sum}: \left( 3 + 4 \right)", "Sum: ( 3 + 4 )"),
        (r"\frac{-3}{4}, \dfrac{1 - 2}{3}, \frac{\frac{1}{2}}{3}", " -3/4,  (1 - 2)/3,  (1/2)/3"),
        (r"x &= 3 \\ &= 4", "x = 3 \n= 4"),
        ("1{,}234 − 1 × 2 ÷ ½", "1,234 - 1 × 2 ÷  1/2"),
    ],
)
def test_marks_go_and_what_they_mark_stays(text, seen):
    assert rendered_text(text) == seen


@pytest.mark.parametrize(
    "piece", [r"\frac{1}{", r"\frac{1}{2} ", r"\text{", "*a ", "$1 ", "**1**", "\\\\ &", "> "]
)
def test_a_hundred_kilobytes_of_marks_take_bounded_time(piece):
    started = time.process_time()
    rendered_text(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 2  # 0.02 to 0.08 s measured on a busy machine
