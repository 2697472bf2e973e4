"""The experiment's numbers: measures by arm, paired differences, hypotheses, the table and the curves.

A cell is one answer: (seed, question, student). Intervals are two-way cluster bootstraps over training seeds
and questions; a difference pairs two arms cell by cell.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cot.utils.stats import two_way_cluster_bootstrap

MEASURES = ("accuracy", "fidelity", "style", "specificity", "identification", "breakage", "copying", "tokens")
IPO, BASE = "ipo", "base"
FIDELITY_GAIN = 0.40  # that IPO claims over every other arm
ACCURACY_GAIN = 0.20  # that it claims over the base
ACCURACY_LOSS = 0.03  # that it may have against GRPO without memory
NO_GAIN = 0.05  # of fidelity, which shuffled memory stays below

Answers = Sequence[Mapping]
Cells = dict[tuple, float]


def cells_of(
    answers: Answers, base: Answers, wording: str, memory: str, temperature: float
) -> dict[str, Cells]:
    """Each measure by (question, student), in [0, 1] but for specificity, [-1, 1], and tokens.

    Specificity: fit of the own text minus that of the texts for other students on the same question. Breakage
    has a cell where the base was right: 1 where the answer is wrong now.
    """

    def chosen(records: Answers) -> dict[tuple, Mapping]:
        wanted = wording, memory, temperature
        return {
            (r["question_id"], r["student_id"]): r
            for r in records
            if (r["wording"], r["memory"], r["temperature"]) == wanted
        }

    rows, before = chosen(answers), chosen(base)
    found: dict[str, Cells] = {name: {} for name in MEASURES}
    by_question: dict[str, list[Mapping]] = {}
    for row in rows.values():
        by_question.setdefault(row["question_id"], []).append(row)
    for key, row in rows.items():
        found["accuracy"][key] = float(row["correct"])
        for name in ("fidelity", "style", "identification", "copying", "tokens"):
            found[name][key] = float(row[name])
        others = [r["fits"][key[1]] for r in by_question[key[0]] if r["student_id"] != key[1]]
        if others:
            found["specificity"][key] = row["fidelity"] - sum(others) / len(others)
        if before[key]["correct"]:
            found["breakage"][key] = float(not row["correct"])
    return found


def pool(by_seed: Mapping[int, Cells]) -> dict:
    """Mean over seeds and items with its interval: `n, mean, low, high`."""
    keys = [(seed, key) for seed, cells in by_seed.items() for key in cells]
    values = [by_seed[seed][key] for seed, key in keys]
    return two_way_cluster_bootstrap(values, [str(seed) for seed, _ in keys], [key[0] for _, key in keys])


def subtract(one: Mapping[int, Cells], other: Mapping[int, Cells]) -> dict[int, Cells]:
    """Cell by cell; where the other side has no memory in its prompt, its one answer to the question."""
    differences: dict[int, Cells] = {}
    for seed, cells in one.items():
        by_question = {key[0]: value for key, value in other[seed].items()}
        differences[seed] = {
            key: value - other[seed].get(key, by_question.get(key[0], math.nan))
            for key, value in cells.items()
        }
    return differences


class Experiment:
    """All answers of the arms and the base.

    Args:
        answers: by (arm, seed).
        base: the base's answers, the same for every seed.
    """

    def __init__(self, answers: Mapping[tuple[str, int], Answers], base: Answers) -> None:
        self.arms = list(dict.fromkeys(arm for arm, _ in answers))
        self.seeds = sorted({seed for _, seed in answers})
        self._answers, self._base = answers, base
        self._cells: dict[tuple, dict[str, Cells]] = {}

    def measure(self, arm: str, name: str, wording: str, memory: str, temperature: float) -> dict[int, Cells]:
        """One measure of an arm or the base, by seed."""
        found = {}
        for seed in self.seeds:
            key = arm, 0 if arm == BASE else seed, wording, memory, temperature
            if key not in self._cells:
                answers = self._base if arm == BASE else self._answers[arm, seed]
                self._cells[key] = cells_of(answers, self._base, wording, memory, temperature)
            found[seed] = self._cells[key][name]
        return found

    def table(self, temperatures: Sequence[float], sets: Sequence[tuple[str, str]]) -> list[dict]:
        """One row an arm, wording, memory and temperature: each measure pooled, and means by chapter."""
        rows = []
        for arm in (BASE, *self.arms):
            for wording, memory in sets:
                for temperature in temperatures:
                    where = wording, memory, temperature
                    row = {"arm": arm, "wording": wording, "memory": memory, "temperature": temperature}
                    row |= {name: pool(self.measure(arm, name, *where)) for name in MEASURES}
                    rows.append(row | {"by_chapter": self._by_chapter(arm, *where)})
        return rows

    def _by_chapter(self, arm: str, *where) -> dict[str, dict]:
        chapters: dict[str, dict] = {}
        for name in ("accuracy", "fidelity"):
            by_seed = self.measure(arm, name, *where)
            for chapter in dict.fromkeys(
                key[0].partition("/")[0] for cells in by_seed.values() for key in cells
            ):
                part = {
                    seed: {key: value for key, value in cells.items() if key[0].startswith(f"{chapter}/")}
                    for seed, cells in by_seed.items()
                }
                chapters.setdefault(chapter, {})[name] = pool(part)
        return chapters

    def hypotheses(self, temperatures: Sequence[float]) -> list[dict]:
        """Each stated hypothesis as a paired difference, a bound, and whether the interval lies beyond it."""
        if IPO not in self.arms:
            return []
        tests: list[tuple] = []  # statement, measure, wording, (arm, memory) twice, bound, sign
        for wording in ("usual", "novel"):
            for arm in (BASE, *(arm for arm in self.arms if arm != IPO)):
                text = f"fidelity of IPO exceeds that of {arm} by 40 points"
                tests.append((text, "fidelity", wording, (IPO, "own"), (arm, "own"), FIDELITY_GAIN, 1))
        text = "accuracy of IPO exceeds that of the base by 20 points"
        tests.append((text, "accuracy", "usual", (IPO, "own"), (BASE, "own"), ACCURACY_GAIN, 1))
        if "none" in self.arms:
            text = "accuracy of IPO is at most 3 points below that of GRPO without memory"
            tests.append((text, "accuracy", "usual", (IPO, "own"), ("none", "none"), -ACCURACY_LOSS, 1))
        if "shuffled" in self.arms:
            text = "shuffled memory gives no gain in fidelity over the base (less than 5 points)"
            tests.append((text, "fidelity", "usual", ("shuffled", "own"), (BASE, "own"), NO_GAIN, -1))
        text = "profile identification, never rewarded, rises over the base"
        tests.append((text, "identification", "usual", (IPO, "own"), (BASE, "own"), 0.0, 1))
        return [self._test(temperature, *test) for temperature in temperatures for test in tests]

    def _test(self, temperature: float, text: str, name: str, wording: str, one, other, bound, sign) -> dict:
        sides = [self.measure(arm, name, wording, memory, temperature) for arm, memory in (one, other)]
        found = pool(subtract(*sides))
        beyond = [sign * (found[end] - bound) > 0 for end in ("low", "high")]
        verdict = "holds" if all(beyond) else "undecided" if any(beyond) else "fails"
        where = {"wording": wording, "temperature": temperature}
        return {"hypothesis": text, **where, "difference": found, "bound": bound, "verdict": verdict}


def render(summary: Mapping, config: Mapping) -> str:
    """The experiment as Markdown."""
    lines = ["# Experiment", "", f"{len(config['seeds'])} seeds, {config['max_steps']} steps an arm;"]
    lines[-1] += (
        f" {config['exercises']} held-out exercises of each wording, {config['students_per_exercise']}"
    )
    lines[-1] += " students each. Mean [95 % interval over seeds and exercises]."
    shown = [name for name in MEASURES if name != "style"]
    for row_set in dict.fromkeys((r["wording"], r["memory"], r["temperature"]) for r in summary["table"]):
        wording, memory, temperature = row_set
        title = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        lines += ["", f"## {wording} wording, memory: {memory}, {title}", ""]
        lines += ["| arm | n | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
        for row in summary["table"]:
            if (row["wording"], row["memory"], row["temperature"]) == row_set:
                cells = [_show(row[name], name) for name in shown]
                lines.append(f"| {row['arm']} | {row['accuracy']['n']} | " + " | ".join(cells) + " |")
    lines += ["", "## By chapter, usual wording, own memory: accuracy / fidelity", ""]
    rows = [r for r in summary["table"] if (r["wording"], r["memory"]) == ("usual", "own")]
    chapters = list(rows[0]["by_chapter"])
    lines += ["| arm | temperature | " + " | ".join(chapters) + " |", "|---" * (len(chapters) + 2) + "|"]
    for row in rows:
        cells = [
            " / ".join(f"{row['by_chapter'][chapter][name]['mean']:.2f}" for name in ("accuracy", "fidelity"))
            for chapter in chapters
        ]
        lines.append(f"| {row['arm']} | {row['temperature']:g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Hypotheses",
        "",
        "| hypothesis | wording | temperature | difference | verdict |",
        "|---" * 5 + "|",
    ]
    for test in summary["hypotheses"]:
        difference = _show(test["difference"], "difference")
        where = f"{test['wording']} | {test['temperature']:g}"
        lines.append(f"| {test['hypothesis']} | {where} | {difference} | {test['verdict']} |")
    return "\n".join(lines) + "\n"


def _show(cell: Mapping, name: str) -> str:
    if cell["mean"] is None:
        return "–"
    digits = 1 if name == "tokens" else 3
    return f"{cell['mean']:.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def plot_curves(runs: Mapping[tuple[str, int], Path], path: Path) -> None:
    """Probe accuracy and fidelity over the steps: mean over seeds, with the span from lowest to highest."""
    from cot.utils.figures import COLORS, new_figure, save_figure

    figure, axes = new_figure(2, width=12)
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    for number, arm in enumerate(arms):
        folders = [folder for (name, _), folder in runs.items() if name == arm]
        for axis, key in zip(axes, ("probe/accuracy", "probe/fidelity"), strict=True):
            by_step: dict[int, list[float]] = {}
            for folder in folders:
                for line in map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines()):
                    if line.get(key) is not None:
                        by_step.setdefault(line["step"], []).append(line[key])
            steps, color = sorted(by_step), COLORS[number % len(COLORS)]
            means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
            axis.plot(
                steps, means, color=color, marker="o", markersize=3, label=f"{arm} ({len(folders)} seeds)"
            )
            lows, highs = ([end(by_step[step]) for step in steps] for end in (min, max))
            axis.fill_between(steps, lows, highs, color=color, alpha=0.15, linewidth=0)
            axis.set(xlabel="optimizer step", ylim=(0, 1))
    axes[0].set(ylabel="accuracy, held-out probe, greedy", title="Right answers")
    axes[1].set(ylabel="fidelity, share of preferences met", title="Fit to the student")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms))
    save_figure(figure, path)
