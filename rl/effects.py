"""The experiment's numbers: measures of each arm's answers, paired effects, verdicts, and their Markdown.

A cell is one answer: (seed, question, student). Intervals are over three ways at once: the templates that the
questions were drawn from, the students, and the training seeds. The base has no seed: its answers count once.
An effect pairs two sides of `rl/hypotheses.py` cell by cell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cot.utils.clusters import LIMITS, UNIT
from cot.utils.comparisons import (
    LEAST_CLUSTERS,
    LEAST_LEVELS,
    UNDECIDED,
    decide,
    judge_fits,
    mark_changes,
)
from cot.utils.findings import Hypothesis, judge_effect, render_table, render_verdicts, show_interval
from cot.utils.model_names import BASE
from cot.utils.prompts import FENCE_MARK
from cot.utils.stats import Interval, clustered_mean, clustered_share
from cot.utils.students import STYLE_IN_WORDS, Profile
from cot.utils.tables import group, number_names, usable
from rl.closed_loop import MODELLESS
from rl.conditions import CHANGE, HeldOut
from rl.hypotheses import Side, list_hypotheses

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
RULE = f"""**yes** where the whole interval lies beyond the bound, **no** where it lies short of it, undecided
otherwise, and with fewer than {LEAST_LEVELS} seeds or {LEAST_CLUSTERS} templates."""
SEEDLESS = (BASE, "supervised", *MODELLESS)  # the same beside every training
WALKED = ("learning_gain", "fit", "support_fit", "sound", "right")  # of a walk in the closed loop
NO_SEED = -1
LETTERS = {"seen": "S", "unseen": "U"}  # with which the ids of generated students begin, by pairs of needs

Cells = dict[tuple[int, str, str], float]  # a value for each (seed, question, student)


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
        record["hint_met"] = truth.learning_preferences[0] in record["checks_met"]
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

    mark_changes(records, "broken", was_right=True)


def select_cells(answers: Mapping[Side, Sequence[dict]], measure: str, side: Side) -> Cells:
    """One measure of a side's answers.

    Args:
        answers: records by `Side`, without regard to pairs of needs.
    """
    letter = LETTERS[side.pairs] if side.pairs else ""
    return {
        (
            NO_SEED if record["arm"] in SEEDLESS else record["seed"],
            record["question_id"],
            record["student_id"],
        ): float(record[MEASURES[measure]])
        for record in answers.get(side._replace(pairs=None), ())
        if record[MEASURES[measure]] is not None and record["student_id"].startswith(letter)
    }


def cross(cells: Cells) -> tuple:
    """Template, student and seed of each cell, as numbers."""
    return (
        number_names([question.rsplit("/", 1)[0] for _, question, _ in cells]),
        number_names([student for _, _, student in cells]),
        number_names([seed for seed, _, _ in cells]),
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
        row |= {name: pool(select_cells(answers, name, side), name) for name in MEASURES}
        row["by_pair"] = {
            pairs: pool(select_cells(answers, "fidelity", side._replace(pairs=pairs)), "fidelity")
            for pairs in LETTERS
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
    verdict = judge_effect(asked, pool_differences(difference))
    if verdict["verdict"] is not None and verdict["effect"]["seeds"] < LEAST_LEVELS:
        verdict["verdict"] = UNDECIDED
    return verdict


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


def quote_student(records: Sequence[dict], truths: Mapping[str, Profile]) -> list[str]:
    """IPO's texts for one exercise before and after ten interactions, as Markdown; none without such answers.

    The student is not chosen by what came out: it is the first whose pair of needs no training has.

    Args:
        truths: what each student needs, by student id.
    """
    wanted = ("after_0", "after_10")
    texts: dict[tuple, dict[str, dict]] = {}
    for record in usable(records):
        if record["arm"] == "ipo" and record["memory_arm"] in wanted and record["student_id"][0] == "U":
            key = record["student_id"], record["question"], record["policy"]
            texts.setdefault(key, {})[record["memory_arm"]] = record
    complete = [key for key, found in texts.items() if len(found) == len(wanted)]
    if not complete:
        return []

    student, question, policy = complete[0]
    truth = truths[student]
    assert truth.explanation_style is not None
    needs = f"{STYLE_IN_WORDS[truth.explanation_style]}; {truth.learning_preferences[0]}"
    lines = [f"Student {student} needs: {needs}. The exercise: {question} The policy: {policy}, greedy."]
    for condition in wanted:
        record = texts[complete[0]][condition]
        memory = [line for line in record["prompt"].splitlines() if line.startswith(FENCE_MARK)]
        lines += ["", f"After {condition.removeprefix('after_')} interactions:"]
        lines += ["", "```", *memory, "", record["generated_text"], "```"]
    return lines


def render_experiment(summary: Mapping, config: Mapping, quoted: Sequence[str] = ()) -> str:
    """The experiment as Markdown: arms, what a prompt shows, evidence, changed needs, texts, hypotheses.

    Args:
        summary: of `summarize` and of `judge_walks`.
        config: `seeds`, `max_steps`, `exercises`, `split`.
        quoted: lines of `quote_student`.
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

    if quoted:
        lines += ["", "## One student before and after ten interactions", "", *quoted]

    lines += ["", "## Closed loop: means over students and seeds, temperature 1", ""]
    cells = [
        [row["arm"], row["fit"]["n"], *(show_interval(row[name], sign=False) for name in WALKED)]
        for row in summary["walks"]
    ]
    lines += render_table(("tutor", "n", *WALKED), cells)

    lines += ["", "## Hypotheses", "", RULE, ""]
    lines += render_verdicts([*summary["verdicts"], *summary["learning"]])
    return "\n".join(lines) + "\n"


def _show_measure(row: Mapping, name: str) -> str:
    return show_interval(row[name], digits=1 if name == "output_tokens" else 3, sign=False)
