"""How an explanation was made: which manner worked for a student, and how much support a text gives.

An interaction may say how its exercise had been explained (`Manner`): in which style, with a hint or without,
with how much support. For each style, and for hints, the record counts how many explanations a student had
and after how many the answer was right. With a half-life an old one weighs less than a new one, so that a
student whose needs change is followed. The record is a function of the interactions alone, never of a wish.

Support has three levels, which a program checks.

worked_out  shows, beside the steps, another valid equation that confirms one of them
guided      the steps, and a reason ("because")
brief       the steps alone

A struggling student needs the first, one who has mastered the skill the last, whoever is between the second
(fading of worked examples: Renkl and Atkinson 2003; expertise reversal: Kalyuga et al. 2003).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cot.utils.equations import equations
from cot.utils.fidelity import check_at_end, reason_with_because
from cot.utils.mastery import DEFAULT_PARAMETERS, MASTERED_FROM, fading, last_moment
from cot.utils.students import (
    END,
    HINT_IN_WORDS,
    STYLE_IN_WORDS,
    SUPPORT_LEVELS,
    Interaction,
    Manner,
    SupportLevel,
    in_time_order,
)

IN_WORDS: dict = STYLE_IN_WORDS | HINT_IN_WORDS  # type: ignore[operator]  # by style, or by hint or none
PRIOR = (1.0, 1.0)  # right and wrong answers that every manner is taken to have had: Beta(1, 1)
AMOUNT = {level: amount for amount, level in enumerate(reversed(SUPPORT_LEVELS))}  # 0 for brief


@dataclass(frozen=True)
class Tried:
    """A value of a manner that a student has met: a style, or a hint or none.

    Attributes:
        value: a key of `STYLE_IN_WORDS` or of `HINT_IN_WORDS`.
        right, times: answers, as they were.
        odds: P(right) with forgetting, the mean of its Beta posterior.
    """

    value: str | bool
    right: int
    times: int
    odds: float


@dataclass(frozen=True)
class MannerRecord:
    """What a student has met and what came of it, the best first; empty where no manner was ever noted."""

    styles: tuple[Tried, ...] = ()
    hints: tuple[Tried, ...] = ()


def record_manners(
    interactions: Iterable[Interaction], as_of: str = END, half_life_days: float | None = None
) -> MannerRecord:
    """Counts the manners of one student's explanations that came before a moment.

    Args:
        as_of, half_life_days: as in `mastery.mastery_by_skill`; an explanation weighs 2^(-age / half-life).
    """
    ordered = [item for item in in_time_order(interactions, as_of) if item.manner is not None]
    now = last_moment(ordered, as_of)

    def tried(value_of) -> tuple[Tried, ...]:
        by_value: dict[str | bool, list[Interaction]] = {}
        for item in ordered:
            if value_of(item.manner) is not None:
                by_value.setdefault(value_of(item.manner), []).append(item)
        found = []
        for value, items in by_value.items():
            weights = [fading(item.time, now, half_life_days) for item in items]
            right = sum(weight for weight, item in zip(weights, items, strict=True) if item.correct)
            odds = (PRIOR[0] + right) / (sum(PRIOR) + sum(weights))
            found.append(Tried(value, sum(item.correct for item in items), len(items), odds))
        return tuple(sorted(found, key=lambda entry: (-entry.odds, str(entry.value))))

    return MannerRecord(tried(lambda manner: manner.style), tried(lambda manner: manner.hint))


def render_record(record: MannerRecord) -> str | None:
    """The record as a line for a prompt: the style and the hint that worked best; None where it is empty.

    >>> render_record(MannerRecord(hints=(Tried(True, 9, 12, 0.71), Tried(False, 2, 8, 0.3))))
    'What worked best: a hint first (9 of 12 right).'
    """
    best = [*record.styles[:1], *record.hints[:1]]
    told = "; ".join(f"{IN_WORDS[entry.value]} ({entry.right} of {entry.times} right)" for entry in best)
    return f"What worked best: {told}." if best else None


def render_manner(manner: Manner) -> str:
    """A manner in the words of the record.

    >>> render_manner(Manner(style="equations_first", hint=False))
    'every line begins with its equation; no hint'
    """
    style = [] if manner.style is None else [STYLE_IN_WORDS[manner.style]]
    return "; ".join(style + ([] if manner.hint is None else [HINT_IN_WORDS[manner.hint]]))


def support_level(text: str, gold_steps: int) -> SupportLevel | None:
    """The level of an explanation's support; None where it shows fewer steps than the problem has.

    A check that a student's style asks for is no support: it is not counted.

    Args:
        gold_steps: calculations of the gold solution.

    >>> support_level("14+23=37 because both come together. See, 37-14=23.", 1)
    'worked_out'
    >>> support_level("14+23=37 because both come together.", 1), support_level("14+23=37 marbles.", 1)
    ('guided', 'brief')
    """
    shown = {equation.key for equation in equations(text) if equation.valid}
    beyond = len(shown) - check_at_end(text) - gold_steps
    if beyond < 0:
        return None
    if beyond > 0:
        return "worked_out"
    return "guided" if reason_with_because(text) else "brief"


def support_target(mastery: float | None) -> SupportLevel:
    """The level that a student needs who knows the skill with this probability; None for never practised.

    >>> [support_target(mastery) for mastery in (0.1, None, 0.5, 0.97)]
    ['worked_out', 'guided', 'guided', 'brief']
    """
    if mastery is None:
        return "guided"
    if mastery < DEFAULT_PARAMETERS.p_init:
        return "worked_out"
    return "brief" if mastery >= MASTERED_FROM else "guided"


def support_fit(level: SupportLevel | None, target: SupportLevel) -> float:
    """1 where the level is the one needed, else 0: one that is half right for every student shall not pay.

    >>> [support_fit(level, "worked_out") for level in ("worked_out", "guided", "brief", None)]
    [1.0, 0.0, 0.0, 0.0]
    """
    return float(level == target)
