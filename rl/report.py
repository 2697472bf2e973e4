"""What a finished training run says about itself: curves as PNG, a model card, figures before and after."""

from collections.abc import Sequence
from pathlib import Path

CURVES = (  # title, keys of a metrics line, scale: a single outlier of the KL would hide the rest
    (
        "reward parts (mean)",
        ("rewards/correct/mean", "rewards/fidelity/mean", "rewards/memory_margin/mean"),
        "linear",
    ),
    (
        "probe set, greedy, own memory",
        ("probe/accuracy", "probe/fidelity", "probe/style", "probe/breakage"),
        "linear",
    ),
    ("entropy (nats) and KL", ("entropy", "kl"), "log"),
    ("completions", ("completions/clipped_ratio", "frac_reward_zero_std", "copying"), "linear"),
)


def plot_curves(lines: Sequence[dict], path: Path) -> None:
    """Four panels over the optimizer steps; a metric that was never logged is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, keys, scale) in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                marker = "o" if key.startswith("probe/") else None
                axes.plot(*zip(*points, strict=True), label=key, marker=marker, markersize=3)
        axes.set(title=title, xlabel="step")
        if any(value > 0 for line in axes.lines for value in line.get_ydata()):
            axes.set_yscale(scale)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def before_and_after(lines: Sequence[dict]) -> tuple[dict, dict]:
    """The probe set's scores in the first and the last line that has them; empty where none has."""
    probes = [
        {key.removeprefix("probe/"): value for key, value in line.items() if key.startswith("probe/")}
        for line in lines
    ]
    probes = [probe for probe in probes if probe]
    return (probes[0], probes[-1]) if probes else ({}, {})


def write_card(folder: Path, config: dict, lines: Sequence[dict]) -> None:
    """`README.md` of the final model: data, rewards, arm, settings, results."""
    before, after = before_and_after(lines)
    adapter = "LoRA adapter" if config["use_peft"] else "full model"
    weights = "\n".join(f"| {name} | {value:g} |" for name, value in config["weights"].items())
    shown = ("learning_rate", "beta", "loss_type", "scale_rewards", "num_generations", "prompts_per_step")
    settings = "\n".join(f"| {name} | {config[name]} |" for name in (*shown, "max_completion_length", "seed"))
    scores = "\n".join(f"| {name} | {before.get(name, '')} | {value} |" for name, value in after.items())
    base = config["model"]["name"]
    data = f"{config['dataset_source']}, {config['rows']} prompts, {config['dropped']} dropped as too long"
    text = f"""---
library_name: {"peft" if config["use_peft"] else "transformers"}
base_model: {base}
tags: [grpo, trl, student-memory]
---
# {folder.parent.name}

A {adapter}, trained from {Path(base).name} (revision {config["model"]["revision"]}) by group relative policy
optimization (GRPO, arXiv 2402.03300) on prompts that carry what is known about a student.

**Data**: {data}. **Memory arm**: {config["memory"]}, mix of own, none and shuffled {config["memory_mix"]}.

| reward part | weight |
|---|---|
{weights}

| setting | value |
|---|---|
{settings}

**Probe set** ({config["probe"]}; greedy), before and after {lines[-1]["step"] if lines else 0} steps:

| metric | before | after |
|---|---|---|
{scores}

One seed and a small probe set show that training worked, not that memory helps: that takes the controls.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
