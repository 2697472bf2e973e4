"""The experiment's numbers: measures of each arm's answers, paired effects, verdicts, and their Markdown.

A cell is one answer: (seed, question, student). Intervals are over three ways at once: the templates that the
questions were drawn from, the students, and the training seeds. The base has no seed: its answers count once.
An effect pairs two arms cell by cell.
"""

from collections.abc import Mapping, Sequence

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
from cot.utils.stats import Interval, clustered_mean, clustered_share
from cot.utils.students import Profile
from rl.report import negate, render_table, show_interval, show_number

MEASURES = {  # key of a record, by name in the table
    "accuracy": "correct",
    "fidelity": "fidelity",
    "style": "style_met",
    "specificity": "specificity",
    "identification": "identification",
    "breakage": "broken",
    "copying": "copying",
    "output_tokens": "output_tokens",
}
SHOWN = [name for name in MEASURES if name != "style"]  # in the Markdown
FIDELITY_GAIN = 0.40  # that IPO claims over every other arm
ACCURACY_GAIN = 0.20  # that it claims over the base
ACCURACY_LOSS = 0.03  # that it may have against GRPO without memory
NO_GAIN = 0.05  # of fidelity, which shuffled memory stays below
RULE = f"""**yes** where the whole interval lies beyond the bound, **no** where it lies short of it, undecided
otherwise, and with fewer than {LEAST_LEVELS} seeds or {LEAST_CLUSTERS} templates."""
NO_SEED = -1  # the base's, which is the same beside every training

Cells = dict[tuple[int, str, str], float]  # a value for each (seed, question, student)


def add_measures(
    records: Sequence[dict], trained: Mapping[str, tuple[str, int]], profiles: Mapping[str, Profile]
) -> None:
    """Fills in, in place, what an answer is beside others': `arm, seed, specificity, identification, broken`.

    Specificity: fit of the text to its student minus that of the texts for other students on the same
    question, in [-1, 1]. Identification: of the students whom the text fits best, the share that is the right
    one; ties share the credit. Broken: whether the answer is wrong where the base's is right.

    Args:
        trained: the arm and the seed of each policy; of the base, `base` and 0.
    """
    for record in records:
        record["arm"], record["seed"] = trained[record["policy"]]
        record |= dict.fromkeys(("specificity", "identification", "broken"))

    for answers in group(usable(records), "policy", "memory_arm").values():
        for record, fit in zip(answers, judge_fits(answers, profiles), strict=True):
            record["specificity"], record["identification"] = fit["specificity"], fit["identification"]

    asked = ("wording", "memory_arm", "temperature", "question_id")
    for answers in group(usable(records), *asked, "student_id").values():
        if any(record["arm"] == BASE and record["correct"] for record in answers):
            for record in answers:
                record["broken"] = not record["correct"]


def select_cells(
    answers: Mapping[tuple, Sequence[dict]], measure: str, where: tuple[str, str, str, float]
) -> Cells:
    """One measure of an arm's answers.

    Args:
        answers: records by arm, wording, memory arm and temperature.
        where: one of these keys.
    """
    return {
        (
            NO_SEED if record["arm"] == BASE else record["seed"],
            record["question_id"],
            record["student_id"],
        ): float(record[MEASURES[measure]])
        for record in answers.get(where, ())
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


def subtract(one: Cells, other: Cells) -> Cells:
    """Cell by cell; where the other side has no memory in its prompt, its one answer to the question.

    >>> subtract({(0, "q", "S1"): 1.0, (0, "q", "S2"): 0.0}, {(0, "q", "S1"): 1.0})
    {(0, 'q', 'S1'): 0.0, (0, 'q', 'S2'): -1.0}
    """
    by_question = {(seed, question): value for (seed, question, _), value in other.items()}
    differences: Cells = {}
    for (seed, question, student), value in one.items():
        for beside in (seed, NO_SEED):
            against = other.get((beside, question, student), by_question.get((beside, question)))
            if against is not None:
                differences[seed, question, student] = value - against
                break
    return differences


def summarize(records: Sequence[dict]) -> dict:
    """A result file's `summary`, from records with their measures.

    Returns:
        table: for each arm, wording, memory and temperature every measure, pooled, and `by_chapter` accuracy
        and fidelity; verdicts: of each question in `list_questions`.
    """
    answers = group(records, "arm", "wording", "memory_arm", "temperature")
    chapters = list(dict.fromkeys(record["chapter"] for record in records))

    table = []
    for where in answers:
        arm, wording, memory_arm, temperature = where
        row = {"arm": arm, "wording": wording, "memory_arm": memory_arm, "temperature": temperature}
        cells = {measure: select_cells(answers, measure, where) for measure in MEASURES}
        row |= {measure: pool(values, measure) for measure, values in cells.items()}
        row["by_chapter"] = {
            chapter: {name: pool(_within(chapter, cells[name]), name) for name in ("accuracy", "fidelity")}
            for chapter in chapters
        }
        table.append(row)

    arms = list(dict.fromkeys(record["arm"] for record in records))
    temperatures = list(dict.fromkeys(record["temperature"] for record in records))
    verdicts = [
        judge(answers, asked, temperature) for temperature in temperatures for asked in list_questions(arms)
    ]
    return {"table": table, "verdicts": verdicts}


def _within(chapter: str, cells: Cells) -> Cells:
    return {key: value for key, value in cells.items() if key[1].startswith(f"{chapter}/")}


def list_questions(arms: Sequence[str]) -> list[dict]:
    """What the experiment asks of the arms that it has: a measure of one side minus that of the other.

    Returns:
        `question, measure, wording, one, other` (arm and memory arm of each side), and `above` or `below`:
        the bound, and on which side of it the effect is claimed to lie.
    """
    if "ipo" not in arms:
        return []
    ipo, base = ("ipo", "own"), (BASE, "own")

    def ask(question: str, measure: str, one: tuple, other: tuple, wording: str = "usual", **bound) -> dict:
        sides = {"one": one, "other": other}
        return {"question": question, "measure": measure, "wording": wording, **sides, **bound}

    questions = []
    for wording in ("usual", "novel"):
        for arm in arms:
            if arm != "ipo":
                text = f"Is IPO's fidelity 40 points above that of {arm}?"
                questions.append(ask(text, "fidelity", ipo, (arm, "own"), wording, above=FIDELITY_GAIN))

    text = "Is IPO's accuracy 20 points above that of the base?"
    questions.append(ask(text, "accuracy", ipo, base, above=ACCURACY_GAIN))
    if "no_memory" in arms:
        text = "Is IPO's accuracy at most 3 points below that of no_memory, asked without memory?"
        questions.append(ask(text, "accuracy", ipo, ("no_memory", "none"), above=-ACCURACY_LOSS))
    if "shuffled_memory" in arms:
        text = "Does shuffled_memory gain less than 5 points of fidelity over the base?"
        questions.append(ask(text, "fidelity", ("shuffled_memory", "own"), base, below=NO_GAIN))
    text = "Is the student identified from IPO's texts more often than from those of the base?"
    return [*questions, ask(text, "identification", ipo, base, above=0.0)]


def judge(answers: Mapping[tuple, Sequence[dict]], asked: Mapping, temperature: float) -> dict:
    """One question's `question, wording, temperature, effect, bound, verdict`."""
    one, other = (
        select_cells(answers, asked["measure"], (arm, asked["wording"], memory_arm, temperature))
        for arm, memory_arm in (asked["one"], asked["other"])
    )
    effect = pool_differences(subtract(one, other))
    if "above" in asked:
        bound = asked["above"]
        verdict = decide(effect, above=bound, below=bound)
    else:
        bound = asked["below"]
        verdict = decide(negate(effect), above=-bound, below=-bound)
    return {
        "question": asked["question"],
        "wording": asked["wording"],
        "temperature": temperature,
        "effect": effect,
        "bound": bound,
        "verdict": verdict if effect["seeds"] >= LEAST_LEVELS else UNDECIDED,
    }


def render_experiment(summary: Mapping, config: Mapping) -> str:
    """The experiment as Markdown: a table for each wording, memory and temperature, chapters, verdicts.

    Args:
        summary: of `summarize`.
        config: `seeds`, `max_steps`, `exercises` and `students_per_exercise`.
    """
    about = (
        f"{len(config['seeds'])} seeds, {config['max_steps']} steps an arm; {config['exercises']} held-out"
    )
    about += f" exercises of each wording, {config['students_per_exercise']} students each."
    about += " Mean [95 % interval over templates, students and seeds]."
    lines = ["# Experiment", "", about]

    for (wording, memory_arm, temperature), rows in group(
        summary["table"], "wording", "memory_arm", "temperature"
    ).items():
        title = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        lines += ["", f"## {wording} wording, memory: {memory_arm}, {title}", ""]
        cells = [
            [row["arm"], row["accuracy"]["n"], *(_show_measure(row, name) for name in SHOWN)] for row in rows
        ]
        lines += render_table(("arm", "n", *SHOWN), cells)

    lines += ["", "## By chapter, usual wording, own memory: accuracy / fidelity", ""]
    rows = [row for row in summary["table"] if (row["wording"], row["memory_arm"]) == ("usual", "own")]
    cells = []
    for row in rows:
        pairs = [
            " / ".join(show_number(means[name]["mean"], 2) for name in ("accuracy", "fidelity"))
            for means in row["by_chapter"].values()
        ]
        cells.append([row["arm"], f"{row['temperature']:g}", *pairs])
    lines += render_table(("arm", "temperature", *rows[0]["by_chapter"]), cells)

    lines += ["", "## Verdicts", "", RULE, ""]
    cells = [
        [v["question"], v["wording"], f"{v['temperature']:g}", show_interval(v["effect"]), v["verdict"]]
        for v in summary["verdicts"]
    ]
    lines += render_table(("question", "wording", "temperature", "effect", "verdict"), cells)
    return "\n".join(lines) + "\n"


def _show_measure(row: Mapping, name: str) -> str:
    return show_interval(row[name], digits=1 if name == "output_tokens" else 3, sign=False)
