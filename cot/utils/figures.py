"""Figures of runs as PNG: drawn without a screen, units and n in the labels.

Matplotlib is imported when a figure is made; no window system is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cot.utils.clusters import mean_of, observe, share_of
from cot.utils.files import read_json_lines
from cot.utils.manners import AMOUNT

WIDTH, HEIGHT, DPI = 8.0, 5.0, 120
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: for all eyes
MARKERS = "os^Dvp"
SMOOTHED_STEPS = 10  # of training, over which the logged reward is averaged
ARM_LABELS = {"time_shuffled": "time-\nshuffled"}
TRAINING_PANELS = {  # title: keys of a line of metrics
    "reward parts (mean)": ("rewards/correct/mean", "rewards/fidelity/mean", "rewards/memory_margin/mean"),
    "held-out, greedy, own memory": ("eval/accuracy", "eval/fidelity", "eval/style", "eval/breakage"),
    "entropy (nats) and KL": ("entropy", "kl"),
    "completions": ("completions/clipped_ratio", "frac_reward_zero_std", "copying"),
}


def new_figure(panels: int = 1, rows: int = 1, width: float = WIDTH, height: float = HEIGHT):
    """A figure and the list of its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, panels, squeeze=False).flat)
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure, path: Path) -> Path:
    """Writes the PNG; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def plot_intervals(
    axis, places: Sequence[float], cells: Sequence[Mapping], number: int, label: str, line: bool
) -> None:
    """Means with their 95 % intervals, in the `number`-th colour and marker.

    Args:
        cells: `mean, low, high` at each place; a cell without an interval is a point.
        line: whether the points are joined.
    """
    means = [cell["mean"] for cell in cells]
    below = [0.0 if cell["low"] is None else max(0.0, cell["mean"] - cell["low"]) for cell in cells]
    above = [0.0 if cell["high"] is None else max(0.0, cell["high"] - cell["mean"]) for cell in cells]
    axis.errorbar(
        places,
        means,
        yerr=[below, above],
        label=label,
        color=COLORS[number % len(COLORS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle="-" if line else "none",
        capsize=3,
    )


def draw_sweep(records: Sequence[dict], folder: Path, stamp: str) -> list[Path]:
    """A sweep's figures: perplexity (violins), similarity to the gold (boxes), accuracy over temperature.

    Args:
        records: of all temperatures; rows with an error are left out.
        stamp: of the run, in the file names.

    Returns:
        The files written; a metric of which no record has a value has none.
    """
    valid = [record for record in records if record["error"] is None]
    by_temperature = _grouped(valid, lambda record: record["temperature"])

    drawn = []
    perplexities = _values(by_temperature, "perplexity")
    if perplexities:
        drawn.append(_draw_perplexity(perplexities, folder / f"perplexity_{stamp}.png"))
    similarities = _values(by_temperature, "semantic_similarity")
    if similarities:
        drawn.append(_draw_similarity(similarities, folder / f"similarity_{stamp}.png"))
    if valid:
        drawn.append(_draw_accuracy(valid, folder / f"accuracy_{stamp}.png"))
    return drawn


def _grouped(records: Sequence[dict], key: Callable[[dict], object]) -> dict:
    groups: dict = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return dict(sorted(groups.items()))


def _values(groups: Mapping[float, Sequence[dict]], metric: str) -> dict[float, list[float]]:
    found = {key: [r[metric] for r in rows if r[metric] is not None] for key, rows in groups.items()}
    return {key: values for key, values in found.items() if values}


def _label_temperatures(axis, groups: Mapping[float, Sequence]) -> None:
    places = range(1, len(groups) + 1)
    axis.set_xticks(places, [f"{key:g}\nn = {len(values)}" for key, values in groups.items()])
    axis.set_xlabel("temperature")


def _draw_perplexity(groups: Mapping[float, list[float]], path: Path) -> Path:
    import numpy as np

    figure, (axis,) = new_figure()
    logs = [np.log10(values) for values in groups.values()]
    spread = [place for place, values in enumerate(logs, 1) if len(set(values)) > 1]
    if spread:  # a density needs two different values
        parts = axis.violinplot([logs[place - 1] for place in spread], spread, showextrema=False, widths=0.8)
        for body in parts["bodies"]:
            body.set(facecolor=COLORS[0], alpha=0.5)
    for place, values in enumerate(logs, 1):
        axis.plot(place, np.median(values), "o", color="black", label="median" if place == 1 else None)

    _label_temperatures(axis, groups)
    axis.yaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
    axis.set(ylabel="perplexity per token (log scale)", title="Perplexity of the generated tokens")
    axis.legend()
    return save_figure(figure, path)


def _draw_similarity(groups: Mapping[float, list[float]], path: Path) -> Path:
    figure, (axis,) = new_figure()
    boxes = axis.boxplot(list(groups.values()), patch_artist=True, widths=0.6, medianprops={"color": "black"})
    for box in boxes["boxes"]:
        box.set(facecolor=COLORS[0], alpha=0.5)
    _label_temperatures(axis, groups)
    axis.set(ylabel="cosine similarity to the gold solution", title="Semantic similarity")
    return save_figure(figure, path)


def _draw_accuracy(records: Sequence[dict], path: Path) -> Path:
    """One line a memory arm; one alone in plain chain of thought."""
    figure, (axis,) = new_figure()
    arms = _grouped(records, lambda record: record.get("memory_arm") or "")
    temperatures = sorted({record["temperature"] for record in records})
    for number, (arm, rows) in enumerate(arms.items()):
        groups = _grouped(rows, lambda record: record["temperature"])
        cells = [share_of(observe(group)) for group in groups.values()]
        counts = sorted({cell["n"] for cell in cells})
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        places = [temperatures.index(key) + 0.08 * (number - (len(arms) - 1) / 2) for key in groups]
        plot_intervals(axis, places, cells, number, f"{arm or 'accuracy'} (n = {span} each)", line=True)

    axis.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
    axis.set(xlabel="temperature", ylabel="accuracy (95 % interval)", title="Accuracy", ylim=(-0.02, 1.02))
    axis.legend()
    return save_figure(figure, path)


def draw_evaluation(
    summary: Mapping, records: Sequence[dict], runs: Mapping[str, Path], folder: Path, stamp: str
) -> list[Path]:
    """An evaluation's figures: policies, chapters in order, what memory breaks, reward and accuracy.

    Args:
        summary: `policies` and `comparisons` of an evaluation's summary.
        runs: the training run's folder of each policy that has one.

    Returns:
        The files written; what the evaluation has no data for has none.
    """
    drawn = [_draw_policies(summary["policies"], folder / f"policies_{stamp}.png")]
    if any(record["memory_arm"] == "own" and record["chapter"] for record in records):
        drawn.append(_draw_chapters(records, folder / f"chapters_{stamp}.png"))
    paired = [c for c in summary["comparisons"] if c["kind"] in ("memory", "training") and c["n"]]
    if paired:
        drawn.append(_draw_breakage(paired, folder / f"breakage_{stamp}.png"))
    curves = {name: _reward_and_accuracy(run / "metrics.jsonl") for name, run in runs.items()}
    curves = {name: curve for name, curve in curves.items() if curve}
    if curves:
        drawn.append(_draw_rewards(curves, folder / f"reward_{stamp}.png"))
    return drawn


def _draw_policies(tables: Mapping, path: Path) -> Path:
    figure, axes = new_figure(2, width=12)
    arms = list(dict.fromkeys(arm for policy in tables.values() for arm in policy))
    for number, (policy, by_arm) in enumerate(tables.items()):
        found = [arm for arm in arms if by_arm.get(arm, {}).get("n")]
        places = [arms.index(arm) + 0.15 * (number - (len(tables) - 1) / 2) for arm in found]
        label = f"{policy} (n = {max((by_arm[arm]['n'] for arm in found), default=0)} an arm)"
        accuracy = [by_arm[arm]["accuracy"]["canonical"] for arm in found]
        fidelity = [by_arm[arm]["metrics"]["fidelity"] for arm in found]
        plot_intervals(axes[0], places, accuracy, number, label, line=False)
        plot_intervals(axes[1], places, fidelity, number, label, line=False)

    for axis in axes:
        axis.set_xticks(range(len(arms)), [ARM_LABELS.get(arm, arm) for arm in arms])
        axis.set(xlabel="memory in the prompt", xlim=(-0.5, max(1, len(arms)) - 0.5), ylim=(0, None))
    axes[0].set(ylabel="accuracy (95 % interval)", title="Right answers")
    axes[1].set(ylabel="fidelity, share of preferences met (95 % interval)", title="Fit to the student")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return save_figure(figure, path)


def _draw_chapters(records: Sequence[dict], path: Path) -> Path:
    """Fidelity and support over the chapters, own memory; the mastery to be followed.

    The 95 % intervals are over students and exercises, not over a chapter's two templates.
    """
    figure, axes = new_figure(2, width=12, height=5.5)
    rows = [r for r in records if r["memory_arm"] == "own" and r["error"] is None]
    rows = [r | {"amount": AMOUNT.get(r["support"])} for r in rows]
    chapters = list(dict.fromkeys(row["chapter"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))

    def plot(axis, policy: str, metric: str, number: int, label: str) -> None:
        places, cells = [], []
        for place, chapter in enumerate(chapters):
            found = [row for row in rows if (row["policy"], row["chapter"]) == (policy, chapter)]
            cell = mean_of(observe(found, by_student=True, templates=False), metric)
            if cell["n"]:
                places.append(place + 0.06 * (number - (len(policies) - 1) / 2))
                cells.append(cell)
        plot_intervals(axis, places, cells, number, label, line=True)

    for number, policy in enumerate(policies):
        plot(axes[0], policy, "fidelity", number, policy)
        plot(axes[1], policy, "amount", number, policy)
    if policies:
        plot(axes[1], policies[0], "mastery", len(policies), "mastery, P(known)")

    answered = [row["chapter"] for row in rows if row["policy"] == policies[0]]
    labels = [f"{chapter.replace('_', ' ')}\nn = {answered.count(chapter)}" for chapter in chapters]
    for axis in axes:
        axis.set_xticks(range(len(chapters)), labels, rotation=0 if len(chapters) <= 5 else 60)
        axis.set(xlabel="chapter, in teaching order (n answers a policy)", ylim=(0, None))
    axes[0].set(ylabel="fidelity, share of preferences met", title="Fit over the chapters, own memory")
    axes[1].set(ylabel="support, 0 brief to 2 worked out; mastery", title="Support and mastery, own memory")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(policies) + 1)
    return save_figure(figure, path)


def _draw_breakage(comparisons: Sequence[Mapping], path: Path) -> Path:
    """Of the answers that the reference has right, those broken; of its wrong ones, those repaired."""
    figure, (axis,) = new_figure(height=1.8 + 0.45 * len(comparisons))
    counts = {
        "breakage": [f"{c['broken']} of {c['reference_right']}" for c in comparisons],
        "repair": [f"{c['repaired']} of {c['n'] - c['reference_right']}" for c in comparisons],
    }
    for number, (key, color) in enumerate((("breakage", COLORS[1]), ("repair", COLORS[2]))):
        places = [place + 0.2 * (2 * number - 1) for place in range(len(comparisons))]
        values = [100 * (comparison[key] or 0.0) for comparison in comparisons]
        bars = axis.barh(places, values, height=0.36, color=color, label=key)
        axis.bar_label(bars, counts[key], padding=3, fontsize=8)

    sides = "{policy}, {arm}\nagainst {reference_policy}, {reference_arm} (n = {n})"
    labels = [sides.format(**comparison) for comparison in comparisons]
    axis.set_yticks(range(len(comparisons)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("% of the reference's right answers broken; % of its wrong answers repaired")
    axis.set(title="Breakage and repair", xlim=(0, 118))
    figure.legend(loc="outside lower center", ncols=2)
    return save_figure(figure, path)


def _reward_and_accuracy(path: Path) -> list[dict]:
    """`step`, smoothed `reward` and held-out `accuracy` wherever a run's `metrics.jsonl` has both."""
    if not path.is_file():
        return []
    points, recent = [], []
    for _, line in read_json_lines(path):
        if line.get("reward") is not None:
            recent = [*recent, line["reward"]][-SMOOTHED_STEPS:]
        if line.get("eval/accuracy") is not None and recent:
            reward = sum(recent) / len(recent)
            points.append({"step": line["step"], "reward": reward, "accuracy": line["eval/accuracy"]})
    return points


def _draw_rewards(curves: Mapping[str, Sequence[dict]], path: Path) -> Path:
    """Held-out accuracy against the reward at the same step: a reward that is gamed moves right, not up."""
    figure, (axis,) = new_figure()
    for number, (policy, points) in enumerate(curves.items()):
        rewards, accuracies = [p["reward"] for p in points], [p["accuracy"] for p in points]
        axis.plot(rewards, accuracies, marker="o", color=COLORS[number % len(COLORS)], label=policy)
        for point in (points[0], points[-1]):
            at = point["reward"], point["accuracy"]
            axis.annotate(f"step {point['step']}", at, xytext=(5, 6), textcoords="offset points", fontsize=8)

    axis.set_xlabel(f"training reward (mean of up to {SMOOTHED_STEPS} steps)")
    axis.set(ylabel="accuracy on held-out exercises", title="Reward against held-out accuracy")
    axis.margins(0.1)
    axis.legend()
    return save_figure(figure, path)


def draw_training_curves(lines: Sequence[dict], path: Path) -> Path:
    """Four panels over the optimizer steps; a metric that was never logged is left out.

    Args:
        lines: of a run's `metrics.jsonl`.
    """
    figure, panels = new_figure(2, rows=2, width=11, height=7)
    for axis, (title, keys) in zip(panels, TRAINING_PANELS.items(), strict=True):
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                marker = "o" if key.startswith("eval/") else None
                axis.plot(*zip(*points, strict=True), label=key, marker=marker, markersize=3)
        axis.set(title=title, xlabel="optimizer step")
        if "kl" in keys and any(value > 0 for line in axis.lines for value in line.get_ydata()):
            axis.set_yscale("log")  # one outlier of the KL would hide the rest
        if axis.lines:
            axis.legend(fontsize=8)
    return save_figure(figure, path)


def draw_experiment_curves(runs: Mapping[tuple[str, int], Path], path: Path) -> Path:
    """Held-out accuracy and fidelity over the steps: mean over seeds, with the span from lowest to highest.

    Args:
        runs: the training runs' folders by arm and seed.
    """
    figure, axes = new_figure(2, width=12)
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    for number, arm in enumerate(arms):
        folders = [folder for (name, _), folder in runs.items() if name == arm]
        lines = [line for folder in folders for _, line in read_json_lines(folder / "metrics.jsonl")]
        for axis, key in zip(axes, ("eval/accuracy", "eval/fidelity"), strict=True):
            by_step: dict[int, list[float]] = {}
            for line in lines:
                if line.get(key) is not None:
                    by_step.setdefault(line["step"], []).append(line[key])
            steps, color = sorted(by_step), COLORS[number % len(COLORS)]
            means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
            lows, highs = ([end(by_step[step]) for step in steps] for end in (min, max))
            label = f"{arm} ({len(folders)} seeds)"
            axis.plot(steps, means, color=color, marker="o", markersize=3, label=label)
            axis.fill_between(steps, lows, highs, color=color, alpha=0.15, linewidth=0)

    for axis in axes:
        axis.set(xlabel="optimizer step", ylim=(0, 1))
    axes[0].set(ylabel="accuracy, held-out exercises, greedy", title="Right answers")
    axes[1].set(ylabel="fidelity, share of preferences met", title="Fit to the student")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms))
    return save_figure(figure, path)


def draw_evidence(curves: Mapping[str, Mapping[int, Mapping]], path: Path) -> Path:
    """IPO's fidelity against past interactions, and against those since a student's needs have changed.

    Args:
        curves: `after_`, `changed_` and `forgetting_`, each a row of measures by interactions.
    """
    figure, axes = new_figure(2, width=12)
    drawn = (
        (axes[0], "after_", "fidelity", "IPO"),
        (axes[0], "after_", "achievable", "Bayes choice"),
        (axes[1], "changed_", "fidelity", "IPO"),
        (axes[1], "forgetting_", "fidelity", "IPO, old interactions weigh less"),
    )
    for number, (axis, prefix, measure, label) in enumerate(drawn):
        cells = [row[measure] for row in curves[prefix].values()]
        plot_intervals(axis, list(curves[prefix]), cells, number, label, line=True)

    axes[0].set(xlabel="past interactions of the student", title="Evidence")
    axes[1].set(xlabel="interactions since its needs changed", title="Changed needs")
    for axis in axes:
        axis.set(ylabel="fidelity to what the student needs now", ylim=(0, 1))
        axis.legend()
    return save_figure(figure, path)
