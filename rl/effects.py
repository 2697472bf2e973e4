"""The experiment's numbers: measures of each arm's answers, paired effects, verdicts, and their Markdown.

A cell is one answer: (seed, question, student). Intervals are over three ways at once: the templates that the
questions were drawn from, the students, and the training seeds. The base has no seed: its answers count once.
An effect pairs two sides of `rl/hypotheses.py` cell by cell. Means, differences and their intervals are those
of `cot/utils/clusters.py`, with the seeds as a further way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cot.utils.clusters import Sample, effect_of, mean_of, share_of
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
from cot.utils.stats import Interval
from cot.utils.students import STYLE_IN_WORDS, Profile
from cot.utils.tables import Records, Table, group, renumber, usable
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


def select(answers: Mapping[Side, Records], measure: str, side: Side) -> Table:
    """The answers of a side that have a measure.

    Args:
        answers: records by `Side`, without regard to pairs of needs.
    """
    found = Table.of(answers.get(side._replace(pairs=None), ()))
    there = np.isfinite(found.values(MEASURES[measure]))
    if side.pairs:
        there &= found.flags(side.pairs, lambda record: record["student_id"].startswith(LETTERS[side.pairs]))
    return found.take(there)


def cross(cells: Table) -> Sample:
    """Cells as observations, with their templates, students and seeds as ways."""
    return Sample([cells], _ways_of(cells))


def pair(one: Table, other: Table, key: str) -> Sample:
    """Both sides, cell by cell; what has no seed stands beside every seed.

    It is not `tables.align`, as the other side may have asked other students: their mean on the question then
    stands for them.

    Args:
        key: of the measure in a record.
    """
    cells: dict[tuple, float] = {}
    by_question: dict[tuple, list[float]] = {}
    for record, value in zip(other, other.values(key).tolist(), strict=True):
        where = name_seed(record), record["question_id"]
        cells[*where, record["student_id"]] = value
        by_question.setdefault(where, []).append(value)

    places, against = [], []
    for place, record in enumerate(one):
        for beside in (name_seed(record), NO_SEED):
            if found := by_question.get((beside, record["question_id"])):
                places.append(place)
                cell = beside, record["question_id"], record["student_id"]
                against.append(cells.get(cell, sum(found) / len(found)))
                break
    paired = one.take(places)
    return Sample([paired, Table([{key: value} for value in against])], _ways_of(paired))


def name_seed(record: Mapping) -> int:
    """The seed of a cell's training, where there was one."""
    return NO_SEED if record["arm"] in SEEDLESS else record["seed"]


def _ways_of(cells: Table) -> list[np.ndarray]:
    return [
        renumber(cells.codes("template", lambda record: record["question_id"].rsplit("/", 1)[0])),
        renumber(cells.codes("student", lambda record: record["student_id"])),
        renumber(cells.codes("seed", name_seed)),
    ]


def pool(cells: Table, measure: str) -> Interval:
    """Mean of an arm's measure with its interval over templates, students and seeds."""
    key = MEASURES[measure]
    return share_of(cross(cells), key) if measure == "accuracy" else mean_of(cross(cells), key)


def measure_effect(sample: Sample, key: str, signs: Sequence[float] = (1,), minus: float = 0.0) -> Interval:
    """`n, mean, low, high` as in `pool`, of one side or of two sides' difference, `clusters` and `seeds`.

    Args:
        signs: with which each side's value enters.
        minus: what is taken off.
    """
    found = effect_of(sample, key, signs)
    bounds = {name: found[name] for name in ("mean", "low", "high")}
    less = {name: None if value is None else value - minus for name, value in bounds.items()}
    seeds = len(np.unique(sample.ways[2]))
    return {"n": found["n"], **less, "clusters": sample.clusters, "seeds": seeds}


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
        for side, rows in group(Table.of(records), "arm", "memory_arm", "temperature", "sample").items()
    }
    table = []
    for side in answers:
        row: dict[str, Any] = {"arm": side.arm, "memory_arm": side.condition}
        row |= {"temperature": side.temperature, "sample": side.sample}
        row |= {name: pool(select(answers, name, side), name) for name in MEASURES}
        row["by_pair"] = {
            pairs: pool(select(answers, "fidelity", side._replace(pairs=pairs)), "fidelity")
            for pairs in LETTERS
        }
        table.append(row)

    arms = list(dict.fromkeys(record["arm"] for record in records))
    verdicts = [judge(answers, hypothesis) for hypothesis in list_hypotheses(arms, level)]
    return {"table": table, "verdicts": verdicts}


def judge(answers: Mapping[Side, Sequence[dict]], asked: Hypothesis) -> dict:
    """One hypothesis' `hypothesis, claim, measure, effect, bound, verdict`; the last None without a claim."""
    one, key = select(answers, asked.measure, asked.one), MEASURES[asked.measure]
    if asked.other is None:
        effect = measure_effect(cross(one), key, minus=asked.minus)
    else:
        paired = pair(one, select(answers, asked.measure, asked.other), key)
        effect = measure_effect(paired, key, signs=(1, -asked.share))
    verdict = judge_effect(asked, effect)
    if verdict["verdict"] is not None and verdict["effect"]["seeds"] < LEAST_LEVELS:
        verdict["verdict"] = UNDECIDED
    return verdict


def judge_walks(walks: Mapping[str, Sequence[dict]], trained: Mapping[str, tuple[str, int]]) -> dict:
    """The closed loop: `walks`, measures by arm over students and seeds, and `learning`, the last hypothesis.

    Args:
        walks: by policy or tutor, `closed_loop.Learner.describe` of each student.
        trained: the arm and the seed of each policy.
    """
    walked: dict[str, list[dict]] = {}
    for tutor, found in walks.items():
        arm, seed = trained.get(tutor, (tutor, 0))
        who = {"arm": arm, "seed": seed, "student_id": ""}  # students are the first way: there is no question
        walked.setdefault(arm, []).extend(walk | who | {"question_id": walk["student_id"]} for walk in found)
    cells = {arm: Table(found) for arm, found in walked.items()}

    rows = [
        {"arm": arm, **{name: measure_effect(cross(found), name) for name in WALKED}}
        for arm, found in cells.items()
    ]
    learning = []
    for other in ("no_memory", BASE):
        if {"ipo", other} <= set(cells):
            paired = pair(cells["ipo"], cells[other], "learning_gain")
            effect = measure_effect(paired, "learning_gain", signs=(1, -1))
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

    if summary["walks"]:
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
