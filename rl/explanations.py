"""Explanations as the small policy is taught them: calculations in words, in every manner.

An explanation is written from an exercise's calculations and a phrasing. Nothing in it looks at a student.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.students import SUPPORT_LEVELS, SupportLevel

CALCULATION = re.compile(r"<<([^<>=]+)=([^<>]+)>>")
OPERATIONS = {  # sign: (verb, gerund, reason, sign that undoes it)
    "+": ("add", "adding", "because we put the numbers together", "-"),
    "-": ("subtract", "subtracting", "because we need the difference", "+"),
    "*": ("multiply", "multiplying", "because all groups are equal", "/"),
    "/": ("divide", "dividing", "because we share it equally", "*"),
}


@dataclass(frozen=True)
class Calculation:
    """One step: two `terms` joined by `sign` (one of + - * /) give `result`, all as they are written."""

    terms: tuple[str, str]
    sign: str
    result: str

    def __str__(self) -> str:
        return f"{self.sign.join(self.terms)}={self.result}"


@dataclass(frozen=True)
class Phrasing:
    """How an explanation is written: its manner, and what no check looks at.

    Attributes:
        style: a key of `EXPLANATION_STYLES`.
        support: `worked_out` shows by another calculation that the result fits, `guided` gives a reason.
        hint, full_sentence: a hint line first; the answer in a sentence of its own.
        joined: sentences on one line, where the style does not need lines.
        because: a reason where the support is `worked_out`, too.
    """

    style: str
    hint: bool = False
    support: SupportLevel = "brief"
    full_sentence: bool = False
    joined: bool = False
    because: bool = False

    @property
    def gives_reason(self) -> bool:
        return self.support == "guided" or (self.support == "worked_out" and self.because)

    @property
    def confirms(self) -> bool:
        return self.support == "worked_out"


def draw_phrasing(rng: random.Random, **wishes) -> Phrasing:
    """A phrasing at random, each style and each level of support as likely as the others.

    Args:
        wishes: attributes that are decided.
    """
    support = rng.choice(SUPPORT_LEVELS[:2] if wishes.get("because") else SUPPORT_LEVELS)
    drawn: dict[str, Any] = {
        "style": rng.choice(list(EXPLANATION_STYLES)),
        "support": support,
        "hint": rng.random() < 0.5,
        "joined": rng.random() < 0.5,
        "full_sentence": rng.random() < 0.3,
        "because": rng.random() < 0.3,
    }
    return Phrasing(**(drawn | wishes))


def calculations(gold_solution: str) -> tuple[Calculation, ...]:
    """The calculations of a worked solution, in order, each of two numbers: 3+4+5 becomes 3+4 and 7+5.

    Raises:
        ValueError: a calculation with two kinds of signs, which these explanations have no words for, or with
            more than two numbers and another sign than +.

    >>> [str(step) for step in calculations("3 * 9 = <<3*9=27>>27. 9 + 27 + 1 = <<9+27+1=37>>37.")]
    ['3*9=27', '9+27=36', '36+1=37']
    """
    found = []
    for left, result in CALCULATION.findall(gold_solution):
        signs = set(re.findall(r"[-+*/()]", left))
        first, *others = re.split(r"[-+*/]", left)
        if len(signs) != 1 or not signs <= set(OPERATIONS) or (len(others) > 1 and signs != {"+"}):
            raise ValueError(f"{left!r}: expected two numbers and a sign out of + - * /, or a sum")
        sign = signs.pop()
        for place, other in enumerate(others):
            value = result if place == len(others) - 1 else str(int(first) + int(other))
            found.append(Calculation((first, other), sign, value))
            first = value
    return tuple(found)


def slip(steps: Sequence[Calculation]) -> str:
    """The answer of someone who stops too soon: the number with which the last calculation began.

    >>> slip(calculations("<<3*9=27>> <<9+27=36>>")), slip(calculations("<<28+15=43>>"))
    ('9', '28')
    """
    return steps[-1].terms[0]


def explain(steps: Sequence[Calculation], phrasing: Phrasing, answer: str | None = None) -> str:
    """The calculations so phrased, ending in `#### ` and the answer, the last one's result unless told.

    >>> print(explain(calculations("<<4+3=7>>"), Phrasing("check_at_end", True, "worked_out")))
    Hint: think of adding.
    Adding gives 4+3=7.
    See, 7-4=3.
    Check: 7-3=4.
    #### 7
    """
    last = steps[-1]
    answer = answer or last.result
    lines = _STYLES[phrasing.style](steps, phrasing, answer)
    if phrasing.full_sentence and phrasing.style != "equations_first":
        lines.append(f"So the answer is {answer}.")
    if phrasing.style == "numbered_steps":
        lines = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
    elif phrasing.joined and phrasing.style != "equations_first":
        lines = [" ".join(lines)]
    if phrasing.style == "check_at_end":
        lines.append(f"Check: {_undo(last)}.")
    if phrasing.hint:
        lines.insert(0, f"Hint: think of {OPERATIONS[steps[0].sign][1]}.")
    return "\n".join([*lines, f"#### {answer}"])


def _undo(step: Calculation) -> Calculation:
    """The calculation backwards, from its result to its first term: 4+3=7 becomes 7-3=4."""
    return Calculation((step.result, step.terms[1]), OPERATIONS[step.sign][3], step.terms[0])


def _fits(step: Calculation) -> Calculation:
    """Another calculation with the same numbers, not `_undo`: 4+3=7 becomes 7-4=3, and 7-3=4 7-4=3."""
    if step.sign in "+*":
        return Calculation((step.result, step.terms[0]), OPERATIONS[step.sign][3], step.terms[1])
    return Calculation((step.terms[0], step.result), step.sign, step.terms[1])


def _statements(steps: Sequence[Calculation], phrasing: Phrasing) -> list[str]:
    lines = [f"{OPERATIONS[step.sign][1].capitalize()} gives {step}" for step in steps]
    if phrasing.gives_reason:
        lines[-1] += f" {OPERATIONS[steps[-1].sign][2]}"
    return [f"{line}." for line in lines]


def _support(steps: Sequence[Calculation], phrasing: Phrasing) -> list[str]:
    return [f"See, {_fits(steps[-1])}."] if phrasing.confirms else []


def _numbered(steps: Sequence[Calculation], phrasing: Phrasing, _answer: str) -> list[str]:
    start = [f"Take the numbers {' and '.join(steps[0].terms)}."] if len(steps) == 1 else []
    return start + _statements(steps, phrasing) + _support(steps, phrasing)


def _short(steps: Sequence[Calculation], phrasing: Phrasing, _answer: str) -> list[str]:
    starts = ["First", *["Then"] * (len(steps) - 1)]
    announced = [f"{start} we {OPERATIONS[step.sign][0]}." for start, step in zip(starts, steps, strict=True)]
    pairs = zip(announced, _statements(steps, phrasing), strict=True)
    return [line for pair in pairs for line in pair] + _support(steps, phrasing)


def _guiding(steps: Sequence[Calculation], phrasing: Phrasing, _answer: str) -> list[str]:
    given = ["What do we know?", f"We know {' and '.join(steps[0].terms)}."] if len(steps) == 1 else []
    questions = ["What comes first?", *["What comes next?"] * (len(steps) - 1)]
    pairs = zip(questions, _statements(steps, phrasing), strict=True)
    return given + [line for pair in pairs for line in pair] + _support(steps, phrasing)


def _equations(steps: Sequence[Calculation], phrasing: Phrasing, answer: str) -> list[str]:
    lines = [str(step) for step in steps]
    if phrasing.gives_reason:
        lines[-1] += f" {OPERATIONS[steps[-1].sign][2]}"
    if phrasing.full_sentence:
        lines[-1] += f", so the answer is {answer}"
    if phrasing.confirms:
        lines.insert(len(lines) - phrasing.full_sentence, f"{_fits(steps[-1])} shows it")
    return [f"{line}." for line in lines]


def _checked(steps: Sequence[Calculation], phrasing: Phrasing, _answer: str) -> list[str]:
    return _statements(steps, phrasing) + _support(steps, phrasing)


_STYLES = {
    "numbered_steps": _numbered,
    "short_sentences": _short,
    "guiding_questions": _guiding,
    "equations_first": _equations,
    "check_at_end": _checked,
}
