"""Read the number that a text answers with, and score it against a gold solution in three ways.

strict, flexible  the two filters of lm-evaluation-harness's `gsm8k` task, version 3, so that numbers compare
canonical         the last `####`, else the last `\\boxed{...}`, else the last "answer is ...", else the last
                  number of the text (`final_answer`), compared exactly as a fraction

A text without an answer is data: `predicted` is None and `reason` says why. A gold solution without an
answer is a fault of the data set and raises `GoldError`; call `gold_answer` first to leave it out.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

Reason = Literal[
    "empty",  # nothing but white space
    "no_number",
    "conflicting_answers",  # two `####` lines that differ, or "18 or 20" as one answer
    "expression",  # "18 - 3" where a number should stand
    "malformed_number",  # 1.234.567
    "division_by_zero",
    "number_too_long",
]

INVALID = "[invalid]"
MAX_ANSWER_CHARS = 400
MAX_DIGITS = 100  # longer digit strings are noise, and Python refuses to convert them from 4,300 on
MAX_EXPONENT = 99

_RUN = r"\.?[0-9]++(?:[.,]++[0-9]++)*+"
NUMBER_PATTERN = (
    rf"(?:(?P<minus>-)\s?)?(?:[$€£¥₹]\s?(?P<inner_minus>-)?)?(?P<run>{_RUN})(?:[eE](?P<exponent>[-+]?[0-9]{{1,4}}))?"
    rf"(?:\s{{1,2}}(?P<part>[0-9]{{1,6}})/(?P<parts>[0-9]{{1,6}})|\s{{0,2}}/\s{{0,2}}(?P<divisor>{_RUN}))?"
)
_WELL_FORMED = re.compile(
    r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})?(?:\.[0-9]+)?"
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s{0,2}\{([^{}]{1,60})\}\s{0,2}\{([^{}]{1,60})\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\b|\\[!,](?=[\d\s\\])"), ""),
    (re.compile(r"\{,\}|(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\(?=[$%])"), ""),
)
_PLAIN_CHARACTERS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | {"⁄": "/", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
)

_HARNESS_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_HARNESS_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

_NUMBER = re.compile(NUMBER_PATTERN)
_WRAPPING = r"[\s*_`\\(\[{<:=~≈\"']"
_LEADING_NUMBER = re.compile(rf"{_WRAPPING}{{0,40}}(?:[A-Za-z]\s?=\s?)?{_WRAPPING}{{0,10}}{NUMBER_PATTERN}")
_OPERATION = re.compile(r"\s{0,3}(?:[-+*/×÷^=]{1,2}|x(?=[\s\d$(])|%\s?of)\s{0,3}[$(]?\s?-?\.?[0-9]")
_SECOND_ANSWER = re.compile(
    r"[*_`\s%)\]}]{0,4}(?:,|;|&|(?:[A-Za-z]{1,15}\s)?\bor\b|\band\b|\bto\b)\s{1,3}[*_$]{0,3}-?[0-9]"
)
_HASHES = re.compile(rf"#{{4,}}[^\S\n]*+\n?([^\n#]{{0,{MAX_ANSWER_CHARS}}})")
_BOXED = re.compile(rf"\\f?boxed\s{{0,2}}\{{([^\n}}]{{0,{MAX_ANSWER_CHARS}}})")
_PHRASE = re.compile(r"answer\s{1,2}is\b|final\s{1,2}answer\b(?!\s{1,2}is)", re.IGNORECASE)


class Number(NamedTuple):
    """A number as read: its exact value and plain text, or the reason why it has none."""

    value: Fraction | None
    text: str | None
    reason: Reason | None


class GoldError(ValueError):
    """A gold solution whose answer is not a number."""


@dataclass(frozen=True)
class Score:
    """One text under the three scorers.

    Attributes:
        predicted: the canonical answer as "18", "-3", "3/4" or "0.5", None where nothing parses.
        correct: whether it equals the gold answer exactly (18 = 18.00, 0.75 = 3/4).
        reason: why `predicted` is None, else None.
        strict_correct, flexible_correct: the harness's `exact_match` for that filter.
    """

    predicted: str | None
    correct: bool
    reason: Reason | None
    strict_correct: bool
    flexible_correct: bool


def score_answer(text: str, gold: str) -> Score:
    """Score a generated text.

    The harness stops generating at "Question:"; a caller that compares numbers with it must cut there too.

    Args:
        text: what the model wrote, without the prompt.
        gold: a GSM8K solution that ends in `#### N`, or a bare number.

    Raises:
        GoldError: the gold solution holds no number where its answer should stand.

    Source: lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml (version 3.0), for strict and flexible.

    >>> score_answer("She makes 9*2=18 dollars.\\n#### $18.00", "#### 18")
    Score(predicted='18', correct=True, reason=None, strict_correct=False, flexible_correct=False)
    """
    gold_value = gold_answer(gold)
    answer = final_answer(text)

    # What the harness's two filters extract: the first `#### `, and the last number.
    strict_match = _HARNESS_STRICT.search(text)
    strict = strict_match[1] if strict_match else INVALID
    flexible = INVALID
    for match in _HARNESS_FLEXIBLE.finditer(text):
        flexible = match[0]
    reference = _harness_normalised(gold)

    return Score(
        predicted=answer.text,
        correct=answer.value is not None and answer.value == gold_value,
        reason=answer.reason,
        strict_correct=_harness_normalised(strict) == reference,
        flexible_correct=_harness_normalised(flexible) == reference,
    )


def final_answer(text: str) -> Number:
    """The number that a text answers with, or the reason why there is none.

    The last `####` counts, else the last `\\boxed{...}`, else the last "answer is ...", else the last number
    of the text. Two `####` that differ are no answer.

    >>> final_answer("She has 3 + 4 = 7 eggs.\\n#### 7 eggs\\nBuy 2 more!").text
    '7'
    """
    text = plain_text(text)
    if not text.strip():
        return Number(None, None, "empty")

    segments = dict.fromkeys(reversed(_HASHES.findall(text)))
    answers = [answer for segment in segments if (answer := _read_answer(segment))]
    hedged = any(answer.reason == "conflicting_answers" for answer in answers)
    if hedged or len({answer.value for answer in answers} - {None}) > 1:
        return Number(None, None, "conflicting_answers")
    if answers:
        return answers[0]

    for segment in reversed(_BOXED.findall(text)):
        if answer := _read_answer(segment):
            return answer

    for match in reversed(list(_PHRASE.finditer(text))):
        if answer := _read_answer(text[match.end() : match.end() + MAX_ANSWER_CHARS].partition("\n")[0]):
            return answer

    last = None
    for match in _NUMBER.finditer(text):
        last = match
    if last is None:
        return Number(None, None, "no_number")
    return read_number(last, signed=not _is_subtraction(text, last.start()))


def gold_answer(gold: str) -> Fraction:
    """The number after the last `####` of a gold solution, or the bare number that the gold is.

    Raises:
        GoldError: anything but one number (with `$`, `,`, `%` or a final period) stands there.

    >>> gold_answer("48/2 = 24 in May.\\n#### 1,072")
    Fraction(1072, 1)
    """
    answer = plain_text(gold).rpartition("####")[2].strip().removesuffix(".").removesuffix("%")
    match = _NUMBER.fullmatch(answer)
    value = read_number(match).value if match else None
    if value is None:
        raise GoldError(f"gold answer is not a number: {answer[:60]!r}")
    return value


def plain_text(text: str) -> str:
    r"""The text with one spelling for minus signs, full-width forms, simple fractions and LaTeX numbers.

    >>> plain_text(r"−\frac{3}{4} of \$1{,}234")
    '- 3/4 of $1,234'
    """
    text = text.translate(_PLAIN_CHARACTERS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def read_number(match: re.Match[str], *, signed: bool = True) -> Number:
    """The number in a match of `NUMBER_PATTERN`; without `signed`, a minus before it is ignored.

    The text is an integer, a decimal without trailing zeros, or a fraction in lowest terms where the match
    is one ("3/4").
    """
    run, divisor, exponent = match["run"], match["divisor"] or match["parts"], int(match["exponent"] or 0)
    if max(len(run), len(divisor or "")) > MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return Number(None, None, "number_too_long")
    if not _WELL_FORMED.fullmatch(run) or (divisor and not _WELL_FORMED.fullmatch(divisor)):
        return Number(None, None, "malformed_number")
    decimal = Decimal(f"{run.replace(',', '')}e{exponent}")
    value = Fraction(decimal)
    if divisor:
        denominator = Fraction(divisor.replace(",", ""))
        if denominator == 0:
            return Number(None, None, "division_by_zero")
        value = value + Fraction(match["part"]) / denominator if match["part"] else value / denominator
    text = str(value) if divisor or value.denominator == 1 else f"{decimal:f}".rstrip("0")
    if signed and value and (match["minus"] or match["inner_minus"]):
        return Number(-value, f"-{text}", None)
    return Number(value, text, None)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples is right, from c right ones among n: 1 − C(n−c, k) / C(n, k).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    Source: Chen et al. 2021 (arXiv 2107.03374), section 2.1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_vote(predictions: Iterable[str | None]) -> str | None:
    """The most frequent canonical answer by value; ties go to the one seen first, None does not vote.

    Source: Wang et al. 2022 (arXiv 2203.11171), self-consistency.

    >>> majority_vote(["7", "0.5", None, "1/2"])
    '0.5'
    """
    votes: dict[Fraction, list[str]] = {}
    for prediction in predictions:
        if prediction is not None:
            votes.setdefault(Fraction(prediction), []).append(prediction)
    return max(votes.values(), key=len)[0] if votes else None


def _harness_normalised(answer: str) -> str:
    # `(?s).*#### ` written as rpartition: the same result, without a quadratic search.
    answer = answer.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", answer).lower()


def _read_answer(segment: str) -> Number | None:
    """The number that a marked answer starts with; None where words come first (a `#### Step 1` heading)."""
    match = _LEADING_NUMBER.match(segment)
    if match is None:
        return None
    while _OPERATION.match(segment, match.end()):
        # "#### 9 * 2 = 18" answers 18; "#### 9 * 2" does not answer
        segment = segment[match.end() :].partition("=")[2]
        match = _LEADING_NUMBER.match(segment)
        if match is None:
            return Number(None, None, "expression")
    if _SECOND_ANSWER.match(segment, match.end()):
        return Number(None, None, "conflicting_answers")
    return read_number(match)


def _is_subtraction(text: str, start: int) -> bool:
    before = text[max(0, start - 20) : start]
    spaced = text[start + 1 : start + 2].isspace()  # "eggs - 3"
    return spaced or before[-1:].isalnum() or before.rstrip()[-1:].isdigit() or before.rstrip().endswith(")")
