"""Score the number that a text answers with against a gold solution, in three ways.

strict, flexible  the two filters of lm-evaluation-harness's `gsm8k` task, version 3, so that numbers compare
canonical         the last marked answer of the text, else the number that it concludes with (`marks`),
                  compared exactly as a fraction (`numerals`); of a thinking model, what follows its reasoning

A text without an answer is data: `predicted` is None and `reason` says why. A gold solution without an
answer is a fault of the data set and raises `GoldError`; call `gold_answer` first to leave it out.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from cot.utils.marks import Answer, Mark, first_turn, read_bold, read_conclusion, read_marks, standing_text
from cot.utils.numerals import NUMBER_PATTERN, Reason, plain_text, read_number
from cot.utils.thinking import split_thinking

INVALID = "[invalid]"
REMEMBERED = 256  # texts
NEXT_QUESTION = "\nQuestion:"  # where the harness stops
_HARNESS_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_HARNESS_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NUMBER = re.compile(NUMBER_PATTERN)


class GoldError(ValueError):
    """A gold solution whose answer is not a number."""


@dataclass(frozen=True)
class Score:
    """One text under the three scorers.

    Attributes:
        predicted: the canonical answer as "18", "-3", "3/4" or "0.5", None where nothing parses.
        correct: whether it equals the gold answer exactly (18 = 18.00, 0.75 = 3/4).
        reason: why `predicted` is None, else None.
        answer_mark: the mark that decided, None where neither a mark nor a number did.
        strict_correct, flexible_correct: the harness's `exact_match` for that filter.
    """

    predicted: str | None
    correct: bool
    reason: Reason | None
    answer_mark: Mark | None
    strict_correct: bool
    flexible_correct: bool


def score_answer(text: str, gold: str, truncated: bool = False, thinking_cut_off: bool = False) -> Score:
    """Score a generated text; of a thinking model's, what follows its reasoning.

    The harness stops generating at a further question, so strict and flexible read up to there.

    Args:
        text: what the model wrote, without the prompt.
        gold: a GSM8K solution that ends in `#### N`, or a bare number.
        truncated: whether the budget of tokens ended the text.
        thinking_cut_off: whether the text ended inside a reasoning that was taken off it already.

    Raises:
        GoldError: the gold solution holds no number where its answer should stand.

    Source: lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml (version 3.0), for strict and flexible.

    >>> score = score_answer("She makes 9*2=18 dollars.\\n#### $18.00", "#### 18")
    >>> score.predicted, score.correct, score.answer_mark, score.strict_correct
    ('18', True, 'hash', False)
    """
    gold_value = gold_answer(gold)
    answer = (
        Answer(None, None, "thinking_cut_off", None) if thinking_cut_off else final_answer(text, truncated)
    )
    _, text, _ = split_thinking(text)
    text = text.partition(NEXT_QUESTION)[0]

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
        answer_mark=answer.mark,
        strict_correct=_harness_normalised(strict) == reference,
        flexible_correct=_harness_normalised(flexible) == reference,
    )


@lru_cache(maxsize=REMEMBERED)  # checks of a text's fit ask for it again
def final_answer(text: str, truncated: bool = False) -> Answer:
    """The number that a text answers with, or the reason why there is none; and by which mark.

    A text that was cut off before any mark has no answer: its last number is a step's.

    >>> final_answer("#### 1. Add\\n3 + 4 = 7 eggs\\nThe answer is 7 eggs.\\nThat took 2 minutes.")[1:]
    ('7', None, 'phrase')
    """
    _, text, is_cut_off = split_thinking(text)
    if is_cut_off:
        return Answer(None, None, "thinking_cut_off", None)
    text = plain_text(text)
    first = first_turn(text)
    if not first.strip():
        return Answer(None, None, "empty", None)

    standing = standing_text(first)
    if marked := read_marks(standing):
        return marked
    if truncated and first == text:
        return Answer(None, None, "cut_off", None)
    return read_bold(standing) or read_conclusion(standing)


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
