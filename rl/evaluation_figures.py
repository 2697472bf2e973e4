"""An evaluation's figures: policies, chapters in order, what memory breaks, reward and accuracy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cot.utils.figures import COLORS, new_figure, plot_intervals, save_figure
from cot.utils.stats import two_way_cluster_bootstrap

SMOOTHED_STEPS = 10  # of training, over which the logged reward is averaged
ARM_LABELS = {"time_shuffled": "time-\nshuffled"}


def draw_evaluation(document: Mapping, runs: Mapping[str, Path], folder: Path, stamp: str) -> list[Path]:
    """All figures that the evaluation has data for; the files written.

    Args:
        document: a finished result document.
        runs: the training run's folder of each policy that has one.
        stamp: of the run, in the file names.
    """
    summary = document["summary"]
    drawn = [_draw_policies(summary["policies"], folder / f"policies_{stamp}.png")]
    if any(record["as_of"] for record in document["results"]):
        drawn.append(_draw_chapters(document["results"], folder / f"chapters_{stamp}.png"))
    memory = [c for c in summary["comparisons"] if c["kind"] in ("memory", "training") and c["n"]]
    if memory:
        drawn.append(_draw_breakage(memory, folder / f"breakage_{stamp}.png"))
    curves = {name: _training_curve(run / "metrics.jsonl") for name, run in runs.items()}
    curves = {name: curve for name, curve in curves.items() if curve}
    if curves:
        drawn.append(_draw_training(curves, folder / f"reward_{stamp}.png"))
    return drawn


def _draw_policies(tables: Mapping, path: Path) -> Path:
    figure, axes = new_figure(2, width=12)
    arms = list(dict.fromkeys(arm for policy in tables.values() for arm in policy))
    for number, (policy, by_arm) in enumerate(tables.items()):
        found = [arm for arm in arms if by_arm.get(arm, {}).get("n")]
        places = [arms.index(arm) + 0.15 * (number - (len(tables) - 1) / 2) for arm in found]
        label = f"{policy} (n = {max((by_arm[arm]['n'] for arm in found), default=0)} an arm)"
        accuracy = [by_arm[arm]["accuracy"]["canonical"] for arm in found]
        fidelity = [by_arm[arm]["clustered"]["fidelity"] for arm in found]
        for axis, cells, key in ((axes[0], accuracy, "value"), (axes[1], fidelity, "mean")):
            spans = [(cell["low"], cell["high"]) for cell in cells]
            plot_intervals(axis, places, [cell[key] for cell in cells], spans, number, label, line=False)
    for axis in axes:
        axis.set_xticks(range(len(arms)), [ARM_LABELS.get(arm, arm) for arm in arms])
        axis.set(xlabel="memory in the prompt", xlim=(-0.5, len(arms) - 0.5), ylim=(0, None))
    axes[0].set(ylabel="accuracy (95 % Wilson interval)", title="Right answers")
    axes[1].set(ylabel="fidelity, share of preferences met (95 % interval)", title="Fit to the student")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return save_figure(figure, path)


def _draw_chapters(records: Sequence[dict], path: Path) -> Path:
    """Fidelity and support over the chapters with 95 % intervals, own memory; the mastery to be followed."""
    figure, axes = new_figure(2, width=12, height=5.5)
    rows = [r for r in records if r["memory_arm"] == "own" and r["error"] is None]
    chapters = list(dict.fromkeys(row["chapter"] for row in rows))

    def plot(axis, policy: str, value, number: int, label: str) -> None:
        found = [(r, value(r)) for r in rows if r["policy"] == policy]
        by_chapter = [
            two_way_cluster_bootstrap(
                [v for r, v in found if r["chapter"] == chapter],
                [r["student_id"] for r, _ in found if r["chapter"] == chapter],
                [r["question_id"] for r, _ in found if r["chapter"] == chapter],
            )
            for chapter in chapters
        ]
        shift = 0.06 * (number - (len(policies) - 1) / 2)
        places = [place for place, cell in enumerate(by_chapter) if cell["n"]]
        means = [by_chapter[place]["mean"] for place in places]
        spans = [(by_chapter[place]["low"], by_chapter[place]["high"]) for place in places]
        plot_intervals(axis, [place + shift for place in places], means, spans, number, label, line=True)

    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for number, policy in enumerate(policies):
        plot(axes[0], policy, lambda r: r["fidelity"], number, policy)
        plot(axes[1], policy, lambda r: r["distinct_valid_equations"] / r["gold_steps"], number, policy)
    if policies:
        plot(axes[1], policies[0], lambda r: r["mastery"], len(policies), "mastery, P(known)")
    counts = [
        sum(r["chapter"] == chapter and r["policy"] == policies[0] for r in rows) for chapter in chapters
    ]
    for axis in axes:
        labels = [f"{c.replace('_', ' ')}\nn = {n}" for c, n in zip(chapters, counts, strict=True)]
        rotation = 0 if len(chapters) <= 5 else 60
        axis.set_xticks(range(len(chapters)), labels, rotation=rotation)
        axis.set(xlabel="chapter, in teaching order (n answers a policy)", ylim=(0, None))
    axes[0].set(ylabel="fidelity, share of preferences met", title="Fit over the chapters, own memory")
    axes[1].set(
        ylabel="valid equations per step of the gold; mastery", title="Support and mastery, own memory"
    )
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(policies) + 1)
    return save_figure(figure, path)


def _draw_breakage(comparisons: Sequence[Mapping], path: Path) -> Path:
    figure, (axis,) = new_figure(height=1.8 + 0.45 * len(comparisons))
    for number, (key, color) in enumerate((("breakage", COLORS[1]), ("repair", COLORS[2]))):
        places = [place + 0.2 * (2 * number - 1) for place in range(len(comparisons))]
        values = [100 * (comparison[key] or 0.0) for comparison in comparisons]
        bars = axis.barh(places, values, height=0.36, color=color, label=key)
        counts = [_count(key, comparison) for comparison in comparisons]
        axis.bar_label(bars, counts, padding=3, fontsize=8)
    labels = [
        f"{c['policy']}, {c['arm']}\nagainst {c['reference_policy']}, {c['reference_arm']} (n = {c['n']})"
        for c in comparisons
    ]
    axis.set_yticks(range(len(comparisons)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("% of the reference's right answers broken; % of its wrong answers repaired")
    axis.set(title="Breakage and repair", xlim=(0, 118))
    figure.legend(loc="outside lower center", ncols=2)
    return save_figure(figure, path)


def _count(key: str, comparison: Mapping) -> str:
    right = comparison["reference_right"]
    if key == "breakage":
        return f"{comparison['broken']} of {right}"
    return f"{comparison['repaired']} of {comparison['n'] - right}"


def _training_curve(path: Path) -> list[dict]:
    """Steps, smoothed reward and held-out accuracy of a run's `metrics.jsonl`; empty where it has none."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    found, recent = [], []
    for line in lines:
        if line.get("reward") is not None:
            recent = [*recent, line["reward"]][-SMOOTHED_STEPS:]
        if line.get("probe/accuracy") is not None:
            reward = sum(recent) / len(recent) if recent else None
            found.append({"step": line["step"], "reward": reward, "accuracy": line["probe/accuracy"]})
    return found if any(point["reward"] is not None for point in found) else []


def _draw_training(curves: Mapping[str, Sequence[dict]], path: Path) -> Path:
    """Held-out accuracy against the reward at the same step: a reward that is gamed moves right, not up."""
    figure, (axis,) = new_figure()
    for number, (policy, curve) in enumerate(curves.items()):
        points = [point for point in curve if point["reward"] is not None]
        rewards, accuracies = [p["reward"] for p in points], [p["accuracy"] for p in points]
        axis.plot(rewards, accuracies, marker="o", color=COLORS[number % len(COLORS)], label=policy)
        for point in (points[0], points[-1]):
            at = point["reward"], point["accuracy"]
            axis.annotate(f"step {point['step']}", at, xytext=(5, 6), textcoords="offset points", fontsize=8)
    axis.set_xlabel(f"training reward (mean of up to {SMOOTHED_STEPS} steps)")
    axis.set(ylabel="accuracy on the held-out probe set", title="Reward against held-out accuracy")
    axis.margins(0.1)
    axis.legend()
    return save_figure(figure, path)
