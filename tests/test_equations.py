"""Worked arithmetic found in prose, and checked exactly."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.equations import equations, plain_number, without_annotations

GSM8K = Path(__file__).resolve().parents[1] / ".." / "shared" / "gsm8k"
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)  # lone surrogates included
ARITHMETIC = st.text(alphabet="0123456789+-*/x=().,% \n<>$ab\ud800×÷^", max_size=80)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1. 14+23=37\n2. 37-5=32\n#### 32", [("14+23=37", True), ("37-5=32", True)]),
        ("She makes 9 * 2 = $<<9*2=18>>18 a day", [("9*2=18", True)]),  # counted once
        ("that is <<48/2=24>>24 clips", [("48/2=24", True)]),  # in the annotation only
        ("16 eggs - 3 eggs - 4 eggs = 9 eggs left", [("16-3-4=9", True)]),
        ("3 × 4 = 12 and 12 ÷ 4 = 3", [("3*4=12", True), ("12/4=3", True)]),
        (r"\( 12 \text{ eggs} \times 2 = 24 \)", [("12*2=24", True)]),
        (r"\[ \text{Cost} = 4 \times \$4.00/\text{carton} = \boxed{\$16.00} \]", [("4*4=16", True)]),
        (r"\dfrac{60 \text{ miles}}{4 \text{ miles per hour}} = 15 \, \text{hours}", [("60/4=15", True)]),
        (
            r"$$\frac{12 + 18}{2} = 15$$, $12{,}000 \div 6 = 2{,}000$",
            [("(12+18)/2=15", True), ("12000/6=2000", True)],
        ),
        (r"\frac{2}{3} \times 15 = \frac{30}{3} = 10", [("2/3*15=10", True), ("30/3=10", True)]),
        (
            r"40\% \text{ of } 200 \text{ GB} = 0.4 \cdot 200 = 80",
            [("40%*200=80", True), ("0.4*200=80", True)],
        ),
        ("**3 * 4**\n= **12**", [("3*4=12", True)]),
        (
            r"\begin{align*} 3 \times 4 + 2 &= 12 + 2 \\ &= 14 \end{align*}",
            [("3*4+2=14", True), ("12+2=14", True)],
        ),
        ("3 + 4 =\n1. 14+23=37", [("14+23=37", True)]),  # a list's number is no side
        ("$1,000 + $234.50 = $1,234.5.", [("1000+234.5=1234.5", True)]),
        ("(16-3)*2 = 26, so (3+4=7).", [("(16-3)*2=26", True), ("3+4=7", True)]),
        ("2(3+4)=14", [("2*(3+4)=14", True)]),
        ("0.1 + 0.2 = 0.3", [("0.1+0.2=0.3", True)]),  # exact, unlike floats
        ("10/3 = 3.33", [("10/3=3.33", False)]),
        ("5 - 1 1/2 = 3 1/2 hours", [("5-(1+1/2)=(3+1/2)", True)]),
        ("50% of 36 = 18", [("50%*36=18", True)]),  # 0.5 * 36
        ("0.2*100 = 20%", [("0.2*100=20%", True)]),  # % as a unit
        ("5 - -3 = 8 and -3+5=2", [("5--3=8", True), ("-3+5=2", True)]),
        ("- 14+23=37", [("14+23=37", True)]),  # a bullet is no minus
        ("5/0 = 5", [("5/0=5", False)]),
        ("2*3*4 = 6*4 = 24", [("2*3*4=24", True), ("6*4=24", True)]),
        ("2+3 = 5+4 = 9", [("2+3=9", False), ("5+4=9", True)]),  # a false chain
        ("3x + 4 = 28, y + 3 + 4 = 7, 27 - 9 = 6 * x", []),  # unknowns are no arithmetic
        ("2+2^2 = 6 and 2**3 = 8", []),
        ("12 = 3*4, x = 3+4, 5 = 5, 14 + 23 equals 37", []),
        ("9999999999999999 + 1 = 5", []),  # above 15 digits
    ],
)
def test_equations_are_found_once_and_checked_exactly(text, found):
    assert [(equation.key, equation.valid) for equation in equations(text)] == found


def test_gold_solutions_of_gsm8k_hold_almost_only_valid_equations():
    path = GSM8K / "test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} absent")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[:400]:
        found += equations(json.loads(line)["answer"])
    assert len(found) > 3 * 400  # about three and a half steps a solution
    assert sum(equation.valid for equation in found) / len(found) > 0.99


@given(st.one_of(ANY_TEXT, ARITHMETIC))
@settings(max_examples=250, deadline=None)
def test_any_text_is_searched_without_an_exception(text):
    for equation in equations(text):
        assert equation.key.count("=") == 1
        assert equations(equation.key)[0].valid is equation.valid  # a key re-reads as the same equation


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from("+-*"))
def test_validity_equals_integer_arithmetic(a, b, sign):
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert [equation.valid for equation in equations(f"{a} {sign} {b} = {value}")] == [True]
    assert [equation.valid for equation in equations(f"{a} {sign} {b} = {value + 1}")] == [False]


@pytest.mark.parametrize(
    ("line", "leads"),
    [
        ("14+23=37 marbles\n7+1=8", [True, False]),
        ("- $14 + $23 = $37", [True]),
        ("1. 14+23=37", [False]),
        ("So 3+4=7", [False]),
    ],
)
def test_an_equation_leads_where_nothing_is_said_before(line, leads):
    assert [equation.leads for equation in equations(line)] == leads


def test_numbers_are_given_in_one_plain_form():
    assert equations("$1,000 * 0.50 = 500")[0].numbers == ["1000", "0.5", "500"]
    plain = {"016.50": "16.5", "7.00": "7", "0": "0", ".5": "0.5", "3/4": "3/4"}
    assert {text: plain_number(text) for text in plain} == plain
    assert without_annotations("48/2 = <<48/2=24>>24") == "48/2 = 24"


@pytest.mark.parametrize("piece", ["1+", "9", "(", "1=", "1+1=", "<<", "1 a b c "])
def test_noise_takes_bounded_time(piece):
    started = time.process_time()
    equations(piece * (10**6 // len(piece)))
    assert time.process_time() - started < 5  # 0.01 to 0.1 s measured
