"""Findings as they are told: claims with their verdicts, and numbers, intervals and tables as Markdown.

A claim is an effect that is said beforehand to lie beyond a bound.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cot.utils.comparisons import decide


def show_number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def show_percent(value: float | None) -> str:
    """A share in per cent, or a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def show_interval(cell: Mapping, digits: int = 3, sign: bool = True) -> str:
    """A mean with its interval.

    >>> show_interval({"mean": 0.25, "low": 0.125, "high": 0.5}, digits=2)
    '+0.25 [+0.12, +0.50]'
    """
    shown = show_number(cell["mean"], digits, sign)
    if cell["low"] is None or cell["high"] is None:
        return shown
    return f"{shown} [{show_number(cell['low'], digits, sign)}, {show_number(cell['high'], digits, sign)}]"


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


class Hypothesis(NamedTuple):
    """An effect that is claimed to lie beyond a bound.

    Attributes:
        measure: what is compared, by its name in a table.
        one, other: which answers, as the experiment or the study names them: the effect is `one` minus
            `share` of `other`; without `other`, `one` minus `minus`.
        above, below: the bound, and on which side of it the effect is claimed to lie; neither for an effect
            that is reported without a claim.
    """

    name: str
    claim: str
    measure: str
    one: Any
    other: Any = None
    share: float = 1.0
    minus: float = 0.0
    above: float | None = None
    below: float | None = None


def judge_effect(asked: Hypothesis, effect: Mapping) -> dict:
    """`hypothesis, claim, measure, effect, bound, verdict`; the last two None without a claim.

    Args:
        effect: `n, mean, low, high, clusters` of what the hypothesis compares.
    """
    bound, verdict = None, None
    if asked.above is not None:
        bound, verdict = asked.above, decide(effect, above=asked.above, below=asked.above)
    elif asked.below is not None:
        bound, verdict = asked.below, decide(negate(effect), above=-asked.below, below=-asked.below)
    described = {"hypothesis": asked.name, "claim": asked.claim, "measure": asked.measure}
    return described | {"effect": effect, "bound": bound, "verdict": verdict}


def negate(effect: Mapping) -> dict:
    """The same effect seen from the other side.

    >>> negate({"n": 9, "mean": 0.25, "low": 0.125, "high": 0.5})
    {'n': 9, 'mean': -0.25, 'low': -0.5, 'high': -0.125}
    """
    turned = {"mean": effect["mean"], "low": effect["high"], "high": effect["low"]}
    return {**effect, **{key: None if value is None else -value for key, value in turned.items()}}


def render_verdicts(verdicts: Sequence[Mapping]) -> list[str]:
    """The lines of a table of verdicts."""
    cells = [
        [
            v["hypothesis"],
            v["claim"],
            show_interval(v["effect"]),
            show_number(v["bound"], 2) if v["bound"] is not None else "–",
            v["verdict"] or "–",
        ]
        for v in verdicts
    ]
    return render_table(("", "claim", "effect", "bound", "verdict"), cells)
