"""The experiment's numbers: measures of each arm's answers, paired effects, verdicts, and their Markdown.

A cell is one answer: (seed, question, student). Intervals are two-way cluster bootstraps over training seeds
and questions; an effect pairs two arms cell by cell.
"""

import math
from collections.abc import Mapping, Sequence

from cot.utils.comparisons import BASE, decide, group, judge_fits, usable
from cot.utils.stats import Interval, two_way_cluster_bootstrap
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
RULE = "**yes** where the whole interval lies beyond the bound, **no** where it lies short of it."

Cells = dict[int, dict[tuple[str, str], float]]  # by seed, a value for each (question, student)


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
    answers: Mapping[tuple, Sequence[dict]],
    seeds: Sequence[int],
    measure: str,
    where: tuple[str, str, str, float],
) -> Cells:
    """One measure of an arm's answers; the base's are the same for every seed.

    Args:
        answers: records by arm, wording, memory arm and temperature.
        where: one of these keys.
    """
    found: Cells = {seed: {} for seed in seeds}
    for record in answers.get(where, ()):
        value = record[MEASURES[measure]]
        if value is not None:
            for seed in seeds if record["arm"] == BASE else [record["seed"]]:
                found[seed][record["question_id"], record["student_id"]] = float(value)
    return found


def pool(cells: Cells) -> Interval:
    """Mean over seeds and answers with its interval over seeds and questions."""
    keys = [(seed, key) for seed, values in cells.items() for key in values]
    return two_way_cluster_bootstrap(
        [cells[seed][key] for seed, key in keys],
        students=[str(seed) for seed, _ in keys],
        questions=[question for _, (question, _) in keys],
    )


def subtract(one: Cells, other: Cells) -> Cells:
    """Cell by cell; where the other side has no memory in its prompt, its one answer to the question.

    >>> subtract({0: {("q", "S1"): 1.0, ("q", "S2"): 0.0}}, {0: {("q", "S1"): 1.0}})
    {0: {('q', 'S1'): 0.0, ('q', 'S2'): -1.0}}
    """
    differences: Cells = {}
    for seed, values in one.items():
        by_question = {question: value for (question, _), value in other[seed].items()}
        differences[seed] = {
            key: value - other[seed].get(key, by_question.get(key[0], math.nan))
            for key, value in values.items()
        }
    return differences


def summarize(records: Sequence[dict]) -> dict:
    """A result file's `summary`, from records with their measures.

    Returns:
        table: for each arm, wording, memory and temperature every measure, pooled, and `by_chapter` accuracy
        and fidelity; verdicts: of each question in `list_questions`.
    """
    answers = group(records, "arm", "wording", "memory_arm", "temperature")
    seeds = sorted({record["seed"] for record in records if record["arm"] != BASE})
    chapters = list(dict.fromkeys(record["chapter"] for record in records))

    table = []
    for where in answers:
        arm, wording, memory_arm, temperature = where
        row = {"arm": arm, "wording": wording, "memory_arm": memory_arm, "temperature": temperature}
        cells = {measure: select_cells(answers, seeds, measure, where) for measure in MEASURES}
        row |= {measure: pool(values) for measure, values in cells.items()}
        row["by_chapter"] = {
            chapter: {name: pool(_of_chapter(chapter, cells[name])) for name in ("accuracy", "fidelity")}
            for chapter in chapters
        }
        table.append(row)

    arms = list(dict.fromkeys(record["arm"] for record in records))
    temperatures = list(dict.fromkeys(record["temperature"] for record in records))
    verdicts = [
        judge(answers, seeds, asked, temperature)
        for temperature in temperatures
        for asked in list_questions(arms)
    ]
    return {"table": table, "verdicts": verdicts}


def _of_chapter(chapter: str, cells: Cells) -> Cells:
    return {
        seed: {key: value for key, value in values.items() if key[0].startswith(f"{chapter}/")}
        for seed, values in cells.items()
    }


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


def judge(
    answers: Mapping[tuple, Sequence[dict]], seeds: Sequence[int], asked: Mapping, temperature: float
) -> dict:
    """One question's `question, wording, temperature, effect, bound, verdict`."""
    one, other = (
        select_cells(answers, seeds, asked["measure"], (arm, asked["wording"], memory_arm, temperature))
        for arm, memory_arm in (asked["one"], asked["other"])
    )
    effect = pool(subtract(one, other))
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
        "verdict": verdict,
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
    lines = ["# Experiment", "", f"{about} Mean [95 % interval over seeds and exercises]."]

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
