"""The experiment's numbers: measures of each arm's answers, paired effects, hypotheses, and their Markdown.

A cell is one answer: (seed, question, student). Intervals are over three ways at once: the templates that the
questions were drawn from, the students, and the training seeds. The base has no seed: its answers count once.
An effect pairs two sides cell by cell. A side is an arm of training under a condition (`rl/conditions.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cot.utils.cli import BASE
from cot.utils.clusters import LIMITS, UNIT, number_clusters
from cot.utils.comparisons import (
    LEAST_CLUSTERS,
    LEAST_LEVELS,
    UNDECIDED,
    decide,
    group,
    judge_fits,
    usable,
)
from cot.utils.fidelity import constraint_report
from cot.utils.stats import Interval, clustered_mean, clustered_share
from rl.closed_loop import MODELLESS
from rl.conditions import CHANGE, LARGE_BUDGET, HeldOut
from rl.report import negate, render_table, show_interval, show_number
from rl.settings import PRESETS

MEASURES = {  # key of a record, by name in the table
    "accuracy": "correct",
    "fidelity": "fidelity",
    "style": "style_met",
    "hint": "hint_met",
    "achievable": "achievable",
    "regret": "regret",
    "support_fit": "support_fit",
    "other_support": "other_support",
    "specificity": "specificity",
    "breakage": "broken",
    "copying": "copying",
    "output_tokens": "output_tokens",
}
SHOWN = ("accuracy", "fidelity", "style", "hint", "achievable", "support_fit", "specificity", "output_tokens")
CHANCE = 0.35  # fidelity of a manner drawn at random: a style of five, and a hint or none
FIDELITY_GAIN = 0.25  # that IPO claims over trainings without the student's memory
STATED_GAIN = 0.40  # and over every control, where the memory states what the student needs
EVIDENCE_GAIN = 0.15  # of fidelity, from no interaction to twenty
NEAR_CHANCE = 0.05  # above it, which fidelity without any interaction stays below
RECOVERED = 0.8  # of an unchanged student's fidelity, which a changed one's reaches again
SUPPORT_GAIN = 0.20  # over the memory of another moment, and by another line about the skill
ACCURACY_LOSS = 0.03  # that memory may cost
MISUSE = 0.05  # of right answers, which a bad memory may turn wrong
RULE = f"""**yes** where the whole interval lies beyond the bound, **no** where it lies short of it, undecided
otherwise, and with fewer than {LEAST_LEVELS} seeds or {LEAST_CLUSTERS} templates."""
SEEDLESS = (BASE, "supervised", *MODELLESS)  # the same beside every training
WALKED = ("learning_gain", "fit", "support_fit", "sound", "right")  # of a walk in the closed loop
NO_SEED = -1

Cells = dict[tuple[int, str, str], float]  # a value for each (seed, question, student)


class Side(NamedTuple):
    """Which answers: an arm of training, the condition of their prompts, and how they were drawn."""

    arm: str
    condition: str
    temperature: float = 0.0
    sample: int = 0


class Hypothesis(NamedTuple):
    """An effect that is claimed to lie beyond a bound.

    Attributes:
        measure: one of `MEASURES`.
        one, other: the effect is `one` minus `share` of `other`; without `other`, `one` minus `minus`.
        above, below: the bound, and on which side of it the effect is claimed to lie; neither for an effect
            that is reported without a claim.
    """

    name: str
    claim: str
    measure: str
    one: Side
    other: Side | None = None
    share: float = 1.0
    minus: float = 0.0
    above: float | None = None
    below: float | None = None


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


def add_measures(records: Sequence[dict], trained: Mapping[str, tuple[str, int]], held_out: HeldOut) -> None:
    """Fills in, in place, what an answer is beside others'.

    `arm, seed`; `hint_met`; `achievable`, the fidelity of the Bayes choice from the same interactions, and
    `regret`, how far the text stays below it; `other_support`, whether the support is what the condition
    `other_state` asks for at this moment; `specificity`, fit of the text to its student minus that of the
    texts for other students on the same question, in [-1, 1]; `broken`, whether the answer is wrong where the
    policy's answer without memory is right.

    Args:
        trained: the arm and the seed of each policy; 0 of what has no seed.
    """
    for record in records:
        record["arm"], record["seed"] = trained[record["policy"]]
        names = ("hint_met", "achievable", "regret", "other_support", "specificity", "broken")
        record |= dict.fromkeys(names)
        if record["error"] is not None:
            continue
        truth, student = held_out.truths[record["student_id"]], record["student_id"]
        wishes = constraint_report(record["generated_text"], truth)
        record["hint_met"] = wishes[truth.learning_preferences[0]]
        if bayes := held_out.bayes.get((student, record["moment"] // 1000)):
            agreed = (bayes.explanation_style == truth.explanation_style) + (
                bayes.learning_preferences == truth.learning_preferences
            )
            record["achievable"] = agreed / 2
            record["regret"] = agreed / 2 - record["fidelity"]
        if level := held_out.other_states.get((student, record["question_id"])):
            record["other_support"] = record["support"] == level

    for answers in group(usable(records), "policy", "memory_arm", "sample").values():
        if answers[0]["memory_arm"] in ("own", "none"):
            for record, fit in zip(answers, judge_fits(answers, held_out.truths), strict=True):
                record["specificity"] = fit["specificity"]

    for answers in group(usable(records), "policy", "temperature", "question_id", "student_id").values():
        if any(r["memory_arm"] == "none" and r["sample"] == 0 and r["correct"] for r in answers):
            for record in answers:
                record["broken"] = not record["correct"]


def select_cells(answers: Mapping[Side, Sequence[dict]], measure: str, side: Side) -> Cells:
    """One measure of a side's answers.

    Args:
        answers: records by `Side`.
    """
    return {
        (
            NO_SEED if record["arm"] in SEEDLESS else record["seed"],
            record["question_id"],
            record["student_id"],
        ): float(record[MEASURES[measure]])
        for record in answers.get(side, ())
        if record[MEASURES[measure]] is not None
    }


def cross(cells: Cells) -> tuple:
    """Template, student and seed of each cell, as numbers."""
    return (
        number_clusters([question.rsplit("/", 1)[0] for _, question, _ in cells]),
        number_clusters([student for _, _, student in cells]),
        number_clusters([seed for seed, _, _ in cells]),
    )


def pool(cells: Cells, measure: str) -> Interval:
    """Mean of an arm's measure with its interval over templates, students and seeds."""
    values = np.array(list(cells.values()), dtype=float)
    if measure == "accuracy":
        return clustered_share(values, cross(cells))
    found = clustered_mean(values, cross(cells), LIMITS.get(MEASURES[measure], UNIT))
    return {key: found[key] for key in ("n", "mean", "low", "high")}


def pool_differences(cells: Cells) -> Interval:
    """Mean of a measure's difference, at most 1, with its interval as in `pool`, `clusters` and `seeds`."""
    templates, students, seeds = cross(cells)
    values = np.array(list(cells.values()), dtype=float)
    found = clustered_mean(values, (templates, students, seeds), (-1.0, 1.0))
    effect = {key: found[key] for key in ("n", "mean", "low", "high")}
    return effect | {"clusters": len(np.unique(templates)), "seeds": len(np.unique(seeds))}


def subtract(one: Cells, other: Cells, share: float = 1.0) -> Cells:
    """Cell by cell, `one` minus a share of `other`; what has no seed stands beside every seed.

    Where the other side asked other students, their mean on the question stands for them.

    >>> subtract({(0, "q", "S1"): 1.0, (0, "q", "S2"): 0.0}, {(0, "q", "S1"): 1.0})
    {(0, 'q', 'S1'): 0.0, (0, 'q', 'S2'): -1.0}
    """
    by_question: dict[tuple[int, str], list[float]] = {}
    for (seed, question, _), value in other.items():
        by_question.setdefault((seed, question), []).append(value)
    differences: Cells = {}
    for (seed, question, student), value in one.items():
        for beside in (seed, NO_SEED):
            found = by_question.get((beside, question))
            if found:
                against = other.get((beside, question, student), sum(found) / len(found))
                differences[seed, question, student] = value - share * against
                break
    return differences


def summarize(records: Sequence[dict], level: str = "history") -> dict:
    """A result file's `summary`, from records with their measures.

    Args:
        level: of memory.

    Returns:
        table: for each arm, condition, temperature and sample every measure, pooled, and `by_pair`, fidelity
        for students whose pair of needs trainings have, and for those whose pair they have not; verdicts: of
        each hypothesis.
    """
    answers = {
        Side(*side): rows
        for side, rows in group(records, "arm", "memory_arm", "temperature", "sample").items()
    }
    table = []
    for side in answers:
        row: dict[str, Any] = {"arm": side.arm, "memory_arm": side.condition}
        row |= {"temperature": side.temperature, "sample": side.sample}
        cells = {measure: select_cells(answers, measure, side) for measure in MEASURES}
        row |= {measure: pool(values, measure) for measure, values in cells.items()}
        row["by_pair"] = {
            pair: pool({key: v for key, v in cells["fidelity"].items() if key[2][0] == letter}, "fidelity")
            for pair, letter in (("seen", "S"), ("unseen", "U"))
        }
        table.append(row)

    arms = list(dict.fromkeys(record["arm"] for record in records))
    verdicts = [judge(answers, hypothesis) for hypothesis in list_hypotheses(arms, level)]
    return {"table": table, "verdicts": verdicts}


def judge(answers: Mapping[Side, Sequence[dict]], asked: Hypothesis) -> dict:
    """One hypothesis' `hypothesis, claim, measure, effect, bound, verdict`; the last None without a claim."""
    one = select_cells(answers, asked.measure, asked.one)
    if asked.other is None:
        difference = {key: value - asked.minus for key, value in one.items()}
    else:
        difference = subtract(one, select_cells(answers, asked.measure, asked.other), asked.share)
    effect = pool_differences(difference)
    bound, verdict = None, None
    if asked.above is not None:
        bound, verdict = asked.above, decide(effect, above=asked.above, below=asked.above)
    elif asked.below is not None:
        bound, verdict = asked.below, decide(negate(effect), above=-asked.below, below=-asked.below)
    if verdict is not None and effect["seeds"] < LEAST_LEVELS:
        verdict = UNDECIDED
    described = {"hypothesis": asked.name, "claim": asked.claim, "measure": asked.measure}
    return described | {"effect": effect, "bound": bound, "verdict": verdict}


def judge_walks(walks: Mapping[str, Sequence[dict]], trained: Mapping[str, tuple[str, int]]) -> dict:
    """The closed loop: `walks`, measures by arm over students and seeds, and `learning`, the last hypothesis.

    Args:
        walks: by policy or tutor, `closed_loop.Learner.describe` of each student.
        trained: the arm and the seed of each policy.
    """
    cells: dict[tuple[str, str], Cells] = {}
    for tutor, found in walks.items():
        arm, seed = trained.get(tutor, (tutor, 0))
        for walk in found:
            for measure in WALKED:
                key = (NO_SEED if arm in SEEDLESS else seed, walk["student_id"], "")
                cells.setdefault((arm, measure), {})[key] = walk[measure]

    arms = list(dict.fromkeys(arm for arm, _ in cells))
    rows = [{"arm": arm, **{name: pool_differences(cells[arm, name]) for name in WALKED}} for arm in arms]
    learning = []
    for other in ("no_memory", BASE):
        if {"ipo", other} <= set(arms):
            gains = subtract(cells["ipo", "learning_gain"], cells[other, "learning_gain"])
            effect = pool_differences(gains)
            decided = decide(effect) if effect["seeds"] >= LEAST_LEVELS else UNDECIDED
            claim = f"students learn more with IPO than with {other}"
            described = {"hypothesis": "h", "claim": claim, "measure": "learning_gain"}
            learning.append(described | {"effect": effect, "bound": 0.0, "verdict": decided})
    return {"walks": rows, "learning": learning}


def follow_curve(table: Sequence[Mapping], prefix: str) -> dict[int, Mapping]:
    """IPO's rows of the conditions that begin alike, such as `after_`, in order, by their interactions."""
    found = {
        int(row["memory_arm"].removeprefix(prefix)): row
        for row in table
        if row["arm"] == "ipo" and row["memory_arm"].startswith(prefix)
    }
    return dict(sorted(found.items()))


def render_experiment(summary: Mapping, config: Mapping) -> str:
    """The experiment as Markdown: arms, what a prompt shows, evidence, changed needs, hypotheses.

    Args:
        summary: of `summarize` and of `judge_walks`.
        config: `seeds`, `max_steps`, `exercises`, `split`.
    """
    about = (
        f"{len(config['seeds'])} seeds, {config['max_steps']} steps an arm; {config['exercises']} exercises"
    )
    about += f" of the split {config['split']}, students whom no training has met."
    about += " Mean [95 % interval over templates, students and seeds]."
    lines = ["# Experiment", "", about]

    def add_table(title: str, rows: Sequence[Mapping], first: str, shown: Sequence[str]) -> None:
        if rows:
            cells = [
                [row[first], row["accuracy"]["n"], *(_show_measure(row, name) for name in shown)]
                for row in rows
            ]
            lines.extend(["", f"## {title}", "", *render_table((first, "n", *shown), cells)])

    rows = summary["table"]
    for temperature, title in ((0.0, "greedy"), (1.0, "temperature 1")):
        for condition in ("own", "none", "instructed"):
            where = (condition, temperature, 0)
            found = [r for r in rows if (r["memory_arm"], r["temperature"], r["sample"]) == where]
            add_table(f"Memory in the prompt: {condition}, {title}", found, "arm", SHOWN)

    ipo = [row for row in rows if row["arm"] == "ipo"]
    curves = ("after_", "changed_", "forgetting_")
    single = [r for r in ipo if not r["memory_arm"].startswith(curves) and r["temperature"] == 0]
    add_table("IPO: what the prompt shows, greedy", single, "memory_arm", [*SHOWN, "other_support"])
    again = [row for row in ipo if row["sample"] == 1]
    add_table("IPO: what a memory may do wrong, temperature 1", again, "memory_arm", ["accuracy", "breakage"])
    for prefix, title in (
        ("after_", "IPO: evidence, by interactions"),
        ("changed_", f"IPO: needs that changed after {CHANGE} interactions, by interactions since"),
        ("forgetting_", "IPO: the same with forgetting"),
    ):
        found = list(follow_curve(rows, prefix).values())
        shown = ("accuracy", "fidelity", "style", "hint", "achievable")
        add_table(title, found, "memory_arm", shown if prefix == "after_" else shown[:-1])

    lines += ["", "## Closed loop: means over students and seeds, temperature 1", ""]
    cells = [
        [row["arm"], row["fit"]["n"], *(show_interval(row[name], sign=False) for name in WALKED)]
        for row in summary["walks"]
    ]
    lines += render_table(("tutor", "n", *WALKED), cells)

    lines += ["", "## Hypotheses", "", RULE, ""]
    cells = [
        [
            v["hypothesis"],
            v["claim"],
            show_interval(v["effect"]),
            show_number(v["bound"], 2) if v["bound"] is not None else "–",
            v["verdict"] or "–",
        ]
        for v in [*summary["verdicts"], *summary["learning"]]
    ]
    lines += render_table(("", "claim", "effect", "bound", "verdict"), cells)
    return "\n".join(lines) + "\n"


def _show_measure(row: Mapping, name: str) -> str:
    return show_interval(row[name], digits=1 if name == "output_tokens" else 3, sign=False)
