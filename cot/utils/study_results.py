"""The study's numbers: measures of each condition, verdicts, the raw answers and their recount, Markdown.

A text that several students share is one observation, and answers to one question hang together
(`clusters.py`): intervals are over questions, and over students.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot.utils.answers import score_answer
from cot.utils.clusters import OF_THE_STUDENT, effect_of, mean_of, observe, share_of
from cot.utils.comparisons import LEAST_CLUSTERS, LEAST_PAIRS, judge_fits, mark_changes
from cot.utils.fidelity import checkable_wishes, met_checks, share_met
from cot.utils.figures import new_figure, plot_intervals
from cot.utils.files import read_answers
from cot.utils.findings import (
    Hypothesis,
    judge_effect,
    render_table,
    render_verdicts,
    show_interval,
    show_number,
    show_percent,
)
from cot.utils.stats import Interval
from cot.utils.students import Profile
from cot.utils.study import Side, list_hypotheses
from cot.utils.tables import Records, Table, align, group, usable

MEASURES = {  # key of a record, by name in the table
    "accuracy": "correct",
    "cut_off": "truncated",
    "output_tokens": "output_tokens",
    "fidelity": "fidelity",
    "specificity": "specificity",
    "identification": "identification",
    "reciprocal_rank": "reciprocal_rank",
    "copying": "copying",
    "names_student": "names_student",
    "breakage": "broken",
    "repair": "repaired",
}
SHARES = ("correct", "truncated")  # whose intervals are Wilson's
SIGNED = ("specificity", "teacher_similarity")  # measures that may be negative
SHOWN = (  # measures in the tables that are read
    *("accuracy", "accuracy_finished", "cut_off", "output_tokens", "fidelity", "specificity"),
    *("identification", "copying", "breakage", "repair"),
)
FEW_CUT = 0.05  # share of a condition's texts, above which its budget of tokens was too small
ANSWER_KEYS = (  # of the raw answers
    *("policy", "memory_arm", "temperature", "sample", "question_id", "student_id", "retrieved_profile"),
    *("explanation_style", "learning_preferences", "prompt_id", "gold_solution", "generated_text"),
    *("output_tokens", "truncated", "unparsed_reason", "copying", "names_student", "correct", "fidelity"),
    "error",
)
RULE = f"""**yes** where the whole interval lies beyond the bound, **no** where it lies short of it, undecided
otherwise, and with fewer than {LEAST_PAIRS} pairs or {LEAST_CLUSTERS} questions."""


def add_measures(records: Sequence[dict], truths: Mapping[str, Profile]) -> None:
    """Fills in, in place, what an answer is beside others'.

    `condition, memory_level`, the two parts of `memory_arm`; `specificity, identification, reciprocal_rank`
    (`comparisons.judge_fits`), among the students for whom answers were asked; `broken` and `repaired`,
    whether the answer is wrong where the first one without memory is right, and the reverse.
    """
    fits = ("specificity", "identification", "reciprocal_rank")
    asked = {record["student_id"] for record in records}
    judges = {student: truth for student, truth in truths.items() if student in asked}
    for record in records:
        condition, _, level = record["memory_arm"].partition("@")
        record |= {"condition": condition, "memory_level": level or None}
        record |= dict.fromkeys((*fits, "broken", "repaired"))
    for answers in group(usable(records), "policy", "memory_arm").values():
        for record, fit in zip(answers, judge_fits(answers, judges), strict=True):
            record |= fit
    mark_changes(records, "broken", was_right=True)
    mark_changes(records, "repaired", was_right=False)


def summarize(records: Sequence[dict], temperatures: Sequence[float]) -> dict:
    """A result file's `summary`, from records with their measures.

    Args:
        temperatures: of the whole study.

    Returns:
        table: of each condition and temperature every measure; verdicts: of each hypothesis whose answers are
        among the records.
    """
    # a text that students share is the first one's: the order must not depend on who came first
    records = sorted(records, key=lambda record: (record["question_id"], record["student_id"]))
    students = len({record["student_id"] for record in records})
    sides = group(Table.of(records), "policy", "memory_arm", "temperature")
    table = [describe(answers, chance=1 / students) for answers in sides.values()]

    levels = list(dict.fromkeys(r["memory_level"] for r in records if r["memory_level"]))
    return {"table": table, "verdicts": judge(records, list_hypotheses(levels, temperatures, students))}


def describe(answers: Sequence[dict], chance: float) -> dict:
    """A row of the table: one condition at one temperature."""
    names = ("policy", "condition", "memory_level", "temperature")
    return {name: answers[0][name] for name in names} | {"chance": chance} | pool(answers, MEASURES)


def pool(answers: Sequence[dict], measures: Mapping[str, str]) -> dict:
    """`n` answers, `errors`, and every measure with its interval.

    Args:
        measures: key of a record, by name; `accuracy_finished`, of what was not cut off, comes to them.
    """
    valid = Table.of(usable(answers))
    texts, by_student = observe(valid), observe(valid, by_student=True)
    row: dict[str, Any] = {"n": len(valid), "errors": len(answers) - len(valid)}
    for name, key in measures.items():
        sample = by_student if key in OF_THE_STUDENT else texts
        row[name] = share_of(sample, key) if key in SHARES else mean_of(sample, key)
    row["accuracy_finished"] = share_of(observe(valid.take(valid.values("truncated") == 0)))
    return row


def judge(
    records: Sequence[dict], hypotheses: Sequence[Hypothesis], measures: Mapping[str, str] = MEASURES
) -> list[dict]:
    """The verdict of each hypothesis whose answers are there, policy by policy."""
    verdicts = []
    for policy, answers in group(records, "policy").items():
        by_side = {Side(*side): rows for side, rows in group(answers, "memory_arm", "temperature").items()}
        for asked in hypotheses:
            if asked.one in by_side and (asked.other is None or asked.other in by_side):
                effect = measure_effect(by_side, asked, measures[asked.measure])
                verdicts.append({"policy": policy} | judge_effect(asked, effect))
    return verdicts


def measure_effect(by_side: Mapping[Side, Records], asked: Hypothesis, key: str) -> Interval:
    """`n, mean, low, high, clusters` of what a hypothesis compares, where both sides have the measure.

    Args:
        key: of the measure in a record.
    """
    sides = align(*(by_side[side] for side in (asked.one, asked.other) if side is not None))
    there = np.flatnonzero(np.isfinite([side.values(key) for side in sides]).all(axis=0))
    sample = observe(*(side.take(there) for side in sides), by_student=key in OF_THE_STUDENT)
    effect = effect_of(sample, key, signs=(1, -1)[: len(sides)])
    bounds = {name: effect[name] for name in ("mean", "low", "high")}
    less = {name: None if value is None else value - asked.minus for name, value in bounds.items()}
    return {"n": effect["n"], **less, "clusters": sample.clusters}


def prepare_answers(records: Sequence[dict], truths: Mapping[str, Profile]) -> list[dict]:
    """The raw answers for `files.write_answers`: what `recount` needs, answers to one question together.

    `prompt_id` tells equal prompts; `explanation_style` and `learning_preferences` are what the student
    needs.
    """
    lines = []
    for record in sorted(records, key=lambda record: (record["index"], record["student_id"])):
        needs = truths[record["student_id"]].model_dump(include={"explanation_style", "learning_preferences"})
        prompt_id = hashlib.sha256(record["prompt"].encode("utf-8", "replace")).hexdigest()[:12]
        lines.append(record | needs | {"prompt_id": prompt_id})
    return lines


def read_parts(folder: Path) -> list[dict]:
    """The raw answers of a study, which may have been asked in parts: all `answers*.jsonl.gz` of a folder."""
    return [line for path in sorted(folder.glob("answers*.jsonl.gz")) for line in read_answers(path)]


def recount(lines: Sequence[Mapping]) -> dict:
    """The `summary` of a study from its raw answers alone: every text is scored and judged again."""
    truths, records = {}, []
    for line in lines:
        truth = truths[line["student_id"]] = Profile(
            student_id=line["student_id"],
            grade_level=line["retrieved_profile"],
            strengths=[],
            challenges=[],
            explanation_style=line["explanation_style"],
            learning_preferences=line["learning_preferences"],
        )
        record = {**line, "prompt": line["prompt_id"]}
        if line["error"] is None:
            text, cut_off = line["generated_text"], line["unparsed_reason"] == "thinking_cut_off"
            score = score_answer(text, line["gold_solution"], line["truncated"], cut_off)
            met = met_checks(text)
            record |= {"correct": score.correct, "checks_met": met}
            record["fidelity"] = share_met(checkable_wishes(truth), met)
        records.append(record)
    add_measures(records, truths)
    return summarize(records, sorted({record["temperature"] for record in records}))


def render_study(summary: Mapping, config: Mapping) -> str:
    """The study as Markdown: a table for each temperature, and the hypotheses."""
    about = f"{config['dataset_source']}: {config['questions']} questions, each for"
    about += f" {config['students_per_question']} of {config['students_asked']} students; seed"
    about += f" {config['seed']}, {config['max_new_tokens']} new tokens. n is the number of different texts."
    about += " Mean [95 % interval over questions and students]; behind `identification` stands the chance."
    lines = ["# Study", "", about]
    header = ["condition", "level", "n", *(name.replace("_", " ") for name in SHOWN)]
    for temperature in sorted({row["temperature"] for row in summary["table"]}):
        rows = [row for row in summary["table"] if row["temperature"] == temperature]
        title = f"## Temperature {temperature:g}" + ("" if temperature else ", greedy")
        cells = [
            [
                *(row["condition"], row["memory_level"] or "–", row["accuracy"]["n"]),
                *(show_measure(row, name) for name in SHOWN),
            ]
            for row in rows
        ]
        lines += ["", title, "", *render_table(header, cells)]
        lines += warn_of_cuts(rows)
    lines += ["", "## Hypotheses", "", RULE, "", *render_verdicts(summary["verdicts"])]
    return "\n".join(lines) + "\n"


def warn_of_cuts(rows: Sequence[Mapping]) -> list[str]:
    """Lines that say so where texts were cut off too often to be compared."""
    cut = [row for row in rows if (row["cut_off"]["mean"] or 0.0) > FEW_CUT]
    warning = f"More than {FEW_CUT:.0%} of the texts are cut off under {len(cut)} of {len(rows)} conditions:"
    warning += " lengths and accuracy are not to be compared; take more tokens."
    return ["", warning] if cut else []


def draw_study(table: Sequence[Mapping]):
    """A figure of accuracy and fidelity by condition, for each model, level and temperature.

    Args:
        table: rows of one study or of several.
    """
    figure, axes = new_figure(rows=2, width=12, height=9)
    conditions = list(dict.fromkeys(row["condition"] for row in table))
    levels = list(dict.fromkeys(row["memory_level"] for row in table if row["memory_level"]))
    several = len({row["policy"] for row in table}) > 1
    series = [
        (policy, level, temperature)
        for policy in dict.fromkeys(row["policy"] for row in table)
        for level in levels
        for temperature in sorted({row["temperature"] for row in table})
    ]
    for number, (policy, level, temperature) in enumerate(series):
        rows = [
            row
            for row in table
            if (row["policy"], row["temperature"]) == (policy, temperature)
            and row["memory_level"] in (level, None)
        ]
        label = f"{Path(policy).name}, " if several else ""
        label += f"{level}, temperature {temperature:g}"
        shift = 0.1 * (number - (len(series) - 1) / 2)
        for axis, measure in zip(axes, ("accuracy", "fidelity"), strict=True):
            found = [row for row in rows if row[measure]["mean"] is not None]
            places = [conditions.index(row["condition"]) + shift for row in found]
            plot_intervals(axis, places, [row[measure] for row in found], number, label, line=False)

    for axis in axes:
        axis.set_xticks(range(len(conditions)), conditions)
        axis.set(xlabel="what the prompt shows of the student", ylim=(-0.02, 1.02))
    axes[0].set(ylabel="accuracy (95 % interval)", title="Right answers")
    axes[1].set(ylabel="fidelity, share of needs met (95 % interval)", title="Fit to the student")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(series)))
    return figure


def show_measure(row: Mapping, name: str) -> str:
    """A measure of a row of a table, as it is read."""
    cell = row[name]
    if name == "output_tokens":
        return show_number(cell["mean"], 1)
    if name in ("cut_off", "copying"):
        return show_percent(cell["mean"])
    shown = show_interval(cell, sign=name in SIGNED)
    return f"{shown} ({show_number(row['chance'])})" if name == "identification" else shown
