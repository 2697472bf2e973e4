"""From interactions to what is known of a student: mastery per skill, recurring errors, what helped.

All of it is a function of the interactions alone, so the memory of any past moment can be replayed
from the log (`as_of`), and adding what is already there changes nothing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cot.utils.errors import UserError
from cot.utils.students import END, Interaction, in_time_order, parse_time

MASTERED_FROM = 0.95  # the criterion of Corbett and Anderson's tutor
RECURRING_FROM = 2  # one occurrence is not a pattern
RESOLVED_AFTER_SUCCESSES = 3  # right answers in the skill since the error's last occurrence
FADED_BELOW = 0.25  # with a half-life: one occurrence, two half-lives old
SECONDS_PER_DAY = 86_400
AT_HAND = "Skill at hand, "  # how the line about an exercise's own skill begins


@dataclass(frozen=True)
class BKTParameters:
    """Probabilities of Bayesian knowledge tracing: known at the start, learned per exercise, slip, guess.

    Raises:
        ValueError: a value outside [0, 1], or a slip or guess of 0.5 or more (a wrong answer would
            then speak for mastery).
    """

    p_init: float = 0.3
    p_transit: float = 0.1
    p_slip: float = 0.1
    p_guess: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            limit = 0.5 if name in ("p_slip", "p_guess") else 1.0
            if not 0.0 <= value <= limit or value == 0.5 == limit:
                raise ValueError(f"{name}: expected 0 to {limit:g}{' (excluded)' * (limit < 1)}, got {value}")


DEFAULT_PARAMETERS = BKTParameters()


def update_mastery(p: float, correct: bool, parameters: BKTParameters = DEFAULT_PARAMETERS) -> float:
    """P(L') after an answer was scored, in [0, 1].

    P(L|1) = P(L)(1-s) / [P(L)(1-s) + (1-P(L))g], P(L|0) = P(L)s / [P(L)s + (1-P(L))(1-g)],
    P(L') = P(L|obs) + (1-P(L|obs)) P(T). An answer that the parameters make impossible is no evidence.

    Source: Corbett and Anderson 1995, Knowledge tracing: modeling the acquisition of procedural knowledge.

    >>> round(update_mastery(0.3, True), 6)  # .27/(.27+.14) = .658537; + .341463 * .1
    0.692683
    """
    slip, guess = parameters.p_slip, parameters.p_guess
    known = p * (1 - slip if correct else slip)
    unknown = (1 - p) * (guess if correct else 1 - guess)
    posterior = known / (known + unknown) if known + unknown > 0 else p
    return posterior + (1 - posterior) * parameters.p_transit


def expect_right(mastery: float, parameters: BKTParameters = DEFAULT_PARAMETERS) -> float:
    """P(the next answer is right) of a student who knows the skill with a probability, in [0, 1].

    >>> round(expect_right(0.3), 3), round(expect_right(0.95), 3)  # .3 * .9 + .7 * .2, .95 * .9 + .05 * .2
    (0.41, 0.865)
    """
    return mastery * (1 - parameters.p_slip) + (1 - mastery) * parameters.p_guess


@dataclass(frozen=True)
class Estimate:
    """What a fitted model expects of a student in a skill.

    Attributes:
        p_right: calibrated probability that the next answer is right.
        is_fitted: answers in this skill were among those that the model was fitted on.
    """

    p_right: float
    is_fitted: bool = True

    @property
    def mastery(self) -> float:
        """The P(known) at which the default parameters expect as much, in [0, 1]: one scale for all.

        >>> round(Estimate(0.41).mastery, 3), round(Estimate(0.865).mastery, 3), Estimate(0.1).mastery
        (0.3, 0.95, 0.0)
        """
        low, high = expect_right(0.0), expect_right(1.0)
        return min(1.0, max(0.0, (self.p_right - low) / (high - low)))


@dataclass(frozen=True)
class SkillState:
    """Where a student stands with a skill; `estimate` where a fitted model says so."""

    skill: str
    mastery: float
    exercises: int
    right: int
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Evidence:
    """An error type, or an explanation that helped, in one skill: how often, and the last time."""

    skill: str
    text: str
    count: int
    last_time: str


@dataclass(frozen=True)
class Memory:
    """What is known of one student; skills by mastery, evidence by count, both highest first."""

    mastered: tuple[SkillState, ...]
    in_progress: tuple[SkillState, ...]
    struggling: tuple[SkillState, ...]
    recurring_errors: tuple[Evidence, ...] = ()
    what_helped: tuple[Evidence, ...] = ()


def fading(since: str, until: str, half_life_days: float | None) -> float:
    """2^(-elapsed / half-life), 1 without a half-life."""
    if half_life_days is None:
        return 1.0
    elapsed_s = (parse_time(until) - parse_time(since)).total_seconds()
    return 2.0 ** (-elapsed_s / SECONDS_PER_DAY / half_life_days)


def last_moment(ordered: list[Interaction], as_of: str) -> str:
    """The moment up to which ages count: `as_of`, or the last interaction's."""
    if as_of != END:
        return as_of
    return ordered[-1].time if ordered else ""


def mastery_by_skill(
    interactions: Iterable[Interaction],
    parameters: BKTParameters = DEFAULT_PARAMETERS,
    half_life_days: float | None = None,
    as_of: str = END,
    by_skill: Mapping[str, BKTParameters] | None = None,
) -> dict[str, float]:
    """P(L') of each practised skill after its last exercise, in [0, 1], in the order of first practice.

    Forgetting: over an interval of d days, between exercises and from the last one to `as_of`,
    P(L) becomes p_init + (P(L) - p_init) 2^(-d / half_life_days).

    Args:
        interactions: of one student, in any order.
        half_life_days: None for no forgetting.
        as_of: only what happened strictly earlier counts; `end` for all, as of the last interaction's time.
        by_skill: parameters of skills that have their own.
    """
    if half_life_days is not None and not 0 < half_life_days < math.inf:
        raise UserError(f"--memory_half_life: expected a number of days above 0, got {half_life_days}")
    ordered = in_time_order(interactions, as_of)
    state: dict[str, tuple[float, str]] = {}

    def parameters_of(skill: str) -> BKTParameters:
        return by_skill.get(skill, parameters) if by_skill else parameters

    def fade(skill: str, until: str) -> float:
        p, since = state[skill]
        p_init = parameters_of(skill).p_init
        return p_init + (p - p_init) * fading(since, until, half_life_days)

    for item in ordered:
        own = parameters_of(item.skill)
        before = fade(item.skill, item.time) if item.skill in state else own.p_init
        state[item.skill] = (update_mastery(before, item.correct, own), item.time)
    return {skill: fade(skill, last_moment(ordered, as_of)) for skill in state}


def consolidate(
    interactions: Iterable[Interaction],
    as_of: str = END,
    half_life_days: float | None = None,
    parameters: BKTParameters = DEFAULT_PARAMETERS,
    estimates: Mapping[str, Estimate] | None = None,
) -> Memory:
    """The semantic memory of one student, as of a moment.

    Later evidence wins: `RESOLVED_AFTER_SUCCESSES` later right answers in its skill drop an error.
    With a half-life, errors and explanations fade as well: each occurrence weighs 2^(-age / half-life),
    and what weighs less than `FADED_BELOW` together is dropped.

    Args:
        interactions, as_of, half_life_days: as in `mastery_by_skill`.
        estimates: of every practised skill, by a fitted model; None for tracing with `parameters`.

    Raises:
        ValueError: interactions of more than one student.
    """
    ordered = in_time_order(interactions, as_of)
    if len({item.student_id for item in ordered}) > 1:
        raise ValueError("one memory is one student's: got interactions of several")
    if estimates is None:
        mastery = mastery_by_skill(ordered, parameters, half_life_days, as_of)
    else:
        mastery = {skill: estimate.mastery for skill, estimate in estimates.items()}

    by_skill: dict[str, list[Interaction]] = {skill: [] for skill in mastery}
    for item in ordered:
        by_skill[item.skill].append(item)
    skills = [
        SkillState(
            skill=skill,
            mastery=mastery[skill],
            exercises=len(items),
            right=sum(item.correct for item in items),
            estimate=estimates[skill] if estimates else None,
        )
        for skill, items in by_skill.items()
    ]
    now = last_moment(ordered, as_of)
    errors, helped = [], []
    for items in by_skill.values():
        for error in _gather(items, "error_type", now, half_life_days):
            successes = sum(item.correct for item in items if item.time > error.last_time)
            if error.count >= RECURRING_FROM and successes < RESOLVED_AFTER_SUCCESSES:
                errors.append(error)
        helped += _gather(items, "what_helped", now, half_life_days)
    return replace(
        sort_skills(skills, parameters.p_init),
        recurring_errors=_most_frequent_first(errors),
        what_helped=_most_frequent_first(helped),
    )


def sort_skills(skills: Iterable[SkillState], p_init: float = DEFAULT_PARAMETERS.p_init) -> Memory:
    """The skills as mastered, in progress or struggling, in each the best known first.

    Args:
        p_init: mastery of a student of whom nothing is known.
    """
    ordered = sorted(skills, key=lambda state: (-state.mastery, -state.exercises, state.skill))
    mastered = [state for state in ordered if state.mastery >= MASTERED_FROM]
    struggling = [state for state in ordered if state.mastery < p_init]
    return Memory(
        mastered=tuple(mastered),
        in_progress=tuple(state for state in ordered if state not in mastered and state not in struggling),
        struggling=tuple(struggling),
    )


def _gather(items: list[Interaction], field: str, now: str, half_life_days: float | None) -> list[Evidence]:
    """Of one skill's interactions the distinct values of a field that have not faded, with their counts."""
    times: dict[str, list[str]] = {}
    for item in items:
        if (text := getattr(item, field)) is not None:
            times.setdefault(text, []).append(item.time)
    return [
        Evidence(items[0].skill, text, len(seen), seen[-1])
        for text, seen in times.items()
        if sum(fading(time, now, half_life_days) for time in seen) >= FADED_BELOW
    ]


def _most_frequent_first(evidence: list[Evidence]) -> tuple[Evidence, ...]:
    """By count, then the latest first, then by name."""
    by_name = sorted(evidence, key=lambda e: (e.skill, e.text))
    return tuple(sorted(by_name, key=lambda e: (e.count, e.last_time), reverse=True))


def render_memory(memory: Memory, skill: str | None = None) -> list[str]:
    """The memory as short lines for a prompt, most relevant first, so that a caller may cut from the end.

    Args:
        skill: the skill at hand, whose lines come before all others; its state is told even where the student
            has not practised it. It is not named: its name would tell how the exercise is solved.

    >>> render_memory(sort_skills([SkillState("carry", 0.98, 4, 4)]), "carry")
    ['Skill at hand, mastered: 0.98 after 4 exercises.']
    >>> render_memory(sort_skills([]), "carry")
    ['Skill at hand, new: no exercise yet.']
    >>> render_memory(sort_skills([SkillState("carry", 0.76, 4, 3, Estimate(0.73))]), "carry")
    ['Skill at hand, in progress: next answer right with 0.73 after 4 exercises, 3 right.']
    """
    lines: list[tuple[str, str]] = []

    def tell(label: str, states: Iterable[SkillState]) -> None:
        for s in states:
            plural = "" if s.exercises == 1 else "s"
            right = "" if label == "Mastered" and s.estimate is None else f", {s.right} right"
            state = f"{_told(s)} after {s.exercises} exercise{plural}{right}"
            if s.skill == skill:
                lines.append((skill, f"{AT_HAND}{label.lower()}: {state}."))
            else:
                lines.append((s.skill, f"{label}: {_readable(s.skill)} ({state})."))

    practised = {s.skill for s in (*memory.struggling, *memory.in_progress, *memory.mastered)}
    if skill is not None and skill not in practised:
        lines.append((skill, f"{AT_HAND}new: no exercise yet."))
    tell("Struggling", memory.struggling)
    tell("In progress", memory.in_progress)
    for e in memory.recurring_errors:
        error = f"{_readable(e.text)} ({e.count} times, last on {e.last_time[:10]})"
        lines.append((e.skill, f"Recurring error in {_readable(e.skill)}: {error}."))
    for e in memory.what_helped:
        count = "once" if e.count == 1 else f"{e.count} times"
        lines.append((e.skill, f"Helped with {_readable(e.skill)} ({count}): {' '.join(e.text.split())}"))
    tell("Mastered", memory.mastered)
    # the state of the skill at hand before all else, whichever state it is
    ordered = sorted(lines, key=lambda entry: (entry[0] != skill, not entry[1].startswith(AT_HAND)))
    return [line for _, line in ordered]


def _told(state: SkillState) -> str:
    """The number of a skill's line: P(known), or what a fitted model expects of the next answer."""
    if state.estimate is None:
        return f"{state.mastery:.2f}"
    unknown = "" if state.estimate.is_fitted else " (a guess: no one's answers in it were fitted)"
    return f"next answer right with {state.estimate.p_right:.2f}{unknown}"


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
