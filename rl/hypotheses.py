"""What the experiment claims: each hypothesis, the answers that it compares, and its bound.

They stand here before any answer to the split `confirm` is asked for. A side is an arm of training under a
condition (`rl/conditions.py`); `rl/effects.py` pairs two sides and judges.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cot.utils.findings import Hypothesis
from cot.utils.interventions import LARGE_BUDGET
from cot.utils.model_names import BASE
from rl.settings import PRESETS

CHANCE = 0.35  # fidelity of a manner drawn at random: a style of five, and a hint or none
FIDELITY_GAIN = 0.25  # that IPO claims over trainings without the student's memory
STATED_GAIN = 0.40  # and over every control, where the memory states what the student needs
EVIDENCE_GAIN = 0.15  # of fidelity, from no interaction to twenty
NEAR_CHANCE = 0.05  # above it, which fidelity without any interaction stays below
RECOVERED = 0.8  # of an unchanged student's fidelity, which a changed one's reaches again
SUPPORT_GAIN = 0.20  # over the memory of another moment, and by another line about the skill
ACCURACY_LOSS = 0.03  # that memory may cost
UNSEEN_LOSS = 0.05  # of fidelity, for students whose pair of needs no training has
MISUSE = 0.05  # of right answers, which a bad memory may turn wrong


class Side(NamedTuple):
    """Which answers: an arm of training, the condition of their prompts, how they were drawn, and for whom.

    Attributes:
        pairs: `seen` or `unseen`, for students whose pair of needs trainings have or have not; None for all.
    """

    arm: str
    condition: str
    temperature: float = 0.0
    sample: int = 0
    pairs: str | None = None


def list_hypotheses(arms: Sequence[str], level: str = "history") -> list[Hypothesis]:
    """What the experiment claims, for the arms that it has, at a level of memory."""
    if "ipo" not in arms:
        return []
    own, none = Side("ipo", "own"), Side("ipo", "none")
    name, gain = ("a", STATED_GAIN) if level == "stated" else ("b", FIDELITY_GAIN)
    found = []

    # a, b. what the memory states, or what only the history shows, is followed
    without = {"shuffled_memory": Side("shuffled_memory", "own"), "no_memory": Side("no_memory", "none")}
    with_memory = {arm: Side(arm, "own") for arm in ("correctness_only", "random_reward", BASE)}
    for arm, other in (without | with_memory).items():
        if arm in arms:
            bound = gain if arm in without or level == "stated" else 0.0
            claim = f"IPO's fidelity is {_points(bound)}above that of {arm}"
            found.append(Hypothesis(name, claim, "fidelity", own, other, above=bound))
    claim = f"IPO's fidelity is {_points(gain)}above its own with another student's memory"
    shuffled = Side("ipo", "shuffled")
    found.append(Hypothesis(name, claim, "fidelity", own, shuffled, above=gain))
    claim = "fidelity for pairs of needs that no training has is at most 5 points below that for others"
    unseen, seen = own._replace(pairs="unseen"), own._replace(pairs="seen")
    found.append(Hypothesis(name, claim, "fidelity", unseen, seen, above=-UNSEEN_LOSS))
    if level == "history":
        found.append(Hypothesis(name, "regret against the Bayes choice", "regret", own))
    claim = "fidelity minus that of the base that is told the needs"
    found.append(Hypothesis(name, claim, "fidelity", own, Side(BASE, "instructed")))
    if "supervised" in arms:
        claim = "fidelity minus that of supervised training on the needs"
        found.append(Hypothesis(name, claim, "fidelity", own, Side("supervised", "own")))

    if level == "stated":
        return found

    # c. the more evidence, the better; without any, chance
    first, last = Side("ipo", "after_0"), Side("ipo", "after_20")
    claim = "fidelity rises by 15 points from no interaction to twenty"
    found.append(Hypothesis("c", claim, "fidelity", last, first, above=EVIDENCE_GAIN))
    claim = "without any interaction fidelity is less than 5 points above chance"
    found.append(Hypothesis("c", claim, "fidelity", first, minus=CHANCE, below=NEAR_CHANCE))

    # d. after a change the newer need is followed
    claim = "20 interactions after a change, with forgetting, fidelity is 80 % of an unchanged student's"
    changed = Side("ipo", "forgetting_20")
    found.append(Hypothesis("d", claim, "fidelity", changed, last, share=RECOVERED, above=0.0))

    # e. support follows the skill's state
    claim = "own memory fits the support 20 points better than that of another moment"
    shifted = Side("ipo", "time_shuffled")
    found.append(Hypothesis("e", claim, "support_fit", own, shifted, above=SUPPORT_GAIN))
    claim = "another line about the skill brings its level of support 20 points more often"
    swapped = Side("ipo", "other_state")
    found.append(Hypothesis("e", claim, "other_support", swapped, own, above=SUPPORT_GAIN))

    # f. memory does not cost accuracy
    if "no_memory" in arms:
        claim = "IPO's accuracy is at most 3 points below that of no_memory"
        other = Side("no_memory", "none")
        found.append(Hypothesis("f", claim, "accuracy", own, other, above=-ACCURACY_LOSS))
    for condition, tokens in (("own", PRESETS["cpu"]["memory_tokens"]), ("own_256", LARGE_BUDGET)):
        claim = f"own memory of {tokens} tokens costs IPO at most 3 points of accuracy"
        one = Side("ipo", condition)
        found.append(Hypothesis("f", claim, "accuracy", one, none, above=-ACCURACY_LOSS))

    # g. a bad memory does no harm
    again = Side("ipo", "none", 1.0, 1)
    for condition in ("random", "stale", "wrong"):
        claim = f"a {condition} memory turns at most 5 % more right answers wrong than a second answer does"
        one = Side("ipo", condition, 1.0, 1)
        found.append(Hypothesis("g", claim, "breakage", one, again, below=MISUSE))
    return found


def _points(bound: float) -> str:
    return f"{round(100 * bound)} points " if bound else ""
