"""Figures: the numbers that are drawn, units and n in the labels, no screen."""

import json

import pytest
from conftest import planted_record, run_python

from cot.utils import figures
from cot.utils.figures import draw_evaluation, draw_experiment_curves, draw_sweep, draw_training_curves
from cot.utils.stats import wilson_interval

INTERVAL = {"n": 8, "mean": 0.5, "low": 0.25, "high": 0.75}
TABLE = {"n": 8, "accuracy": {"canonical": INTERVAL}, "metrics": {"fidelity": INTERVAL}}
SWEEP = [
    planted_record(
        f"q{n}", correct=n % 3 == 0, temperature=t, perplexity=1.5 + n / 10 + t, semantic_similarity=n / 20
    )
    for t in (0.0, 0.6)
    for n in range(20)
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved meanwhile, by file name."""
    found = {}
    save = figures.save_figure

    def keep(figure, path):
        found[path.name] = figure
        return save(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)
    return found


def legend_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def ticks_of(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


@pytest.mark.slow
def test_a_sweeps_figures_say_what_they_show(drawn, tmp_path):
    failed = planted_record(
        "q99", correct=None, perplexity=None, error={"type": "x"}, semantic_similarity=None
    )
    paths = draw_sweep([*SWEEP, failed], tmp_path / "figures", "T")
    assert [path.name for path in paths] == ["perplexity_T.png", "similarity_T.png", "accuracy_T.png"]
    for path in paths:
        assert path.read_bytes()[:4] == b"\x89PNG"
        (axis,) = drawn[path.name].axes
        assert axis.get_xlabel() == "temperature" and axis.get_ylabel() and axis.get_title()
    assert ticks_of(drawn["perplexity_T.png"].axes[0]) == ["0\nn = 20", "0.6\nn = 20"]

    axis = drawn["accuracy_T.png"].axes[0]
    assert legend_of(axis) == ["accuracy (n = 20 each)"]
    line, _, (bars,) = axis.containers[0]
    assert list(line.get_ydata()) == [7 / 20, 7 / 20]  # of 20 questions numbers 0, 3, ... 18
    segments = [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    assert segments == [pytest.approx(wilson_interval(7, 20))] * 2

    arms = [row | {"memory_arm": arm, "student_id": "S1"} for row in SWEEP for arm in ("own", "none")]
    draw_sweep(arms, tmp_path, "arms")
    assert legend_of(drawn["accuracy_arms.png"].axes[0]) == ["none (n = 20 each)", "own (n = 20 each)"]


def test_what_has_no_value_has_no_figure(tmp_path):
    assert draw_sweep([], tmp_path, "T") == []
    (path,) = draw_sweep([SWEEP[0] | {"perplexity": None, "semantic_similarity": None}], tmp_path, "T")
    assert path.name == "accuracy_T.png"
    assert len(draw_sweep([SWEEP[0], SWEEP[0]], tmp_path, "U")) == 3  # equal values: a flat box, no density


@pytest.mark.slow
def test_the_module_imports_no_plotting_library_and_needs_no_seaborn(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from cot.utils.figures import draw_sweep;"
        "assert 'matplotlib' not in sys.modules;"
        "draw_sweep(json.loads(sys.argv[1]), Path(sys.argv[2]), 'T'); assert 'seaborn' not in sys.modules"
    )
    assert run_python(code, json.dumps(SWEEP[:2]), tmp_path).returncode == 0


@pytest.mark.slow
def test_an_evaluation_is_drawn_by_policy_over_the_chapters_and_by_what_broke(drawn, tmp_path):
    answers = [
        planted_record(
            f"{chapter}/{n // 2}", f"S{n % 2}", "own", chapter=chapter, as_of="2026-03-01T09:00:00Z"
        )
        | {"support": "worked_out", "mastery": 0.4}
        for chapter in ("addition", "two_step")
        for n in range(4)
    ]
    comparison = {"policy": "ipo", "arm": "own", "reference_policy": "base", "reference_arm": "own", "n": 40}
    comparison |= {"breakage": 0.1, "repair": 0.05, "broken": 2, "repaired": 1, "reference_right": 20}
    summary = {"policies": {"base": {"own": TABLE, "none": TABLE}}}
    summary |= {"comparisons": [comparison | {"kind": "training"}]}
    draw_evaluation(summary, answers, {}, tmp_path, "T")
    assert ticks_of(drawn["policies_T.png"].axes[0]) == ["own", "none"]

    fit, support = drawn["chapters_T.png"].axes
    assert ticks_of(fit) == ["addition\nn = 4", "two step\nn = 4"]
    assert list(support.containers[0][0].get_ydata()) == [2.0, 2.0]  # worked out
    assert list(support.containers[1][0].get_ydata()) == [0.4, 0.4]  # mastery

    (axis,) = drawn["breakage_T.png"].axes
    assert [bar.get_width() for bar in axis.patches] == [10.0, 5.0]  # per cent
    assert [text.get_text() for text in axis.texts] == ["2 of 20", "1 of 20"]
    assert "(n = 40)" in axis.get_yticklabels()[0].get_text() and "%" in axis.get_xlabel()


@pytest.mark.slow
def test_training_is_drawn_with_what_was_held_out(drawn, tmp_path):
    """Twelve steps with a reward, two of them with held-out scores."""
    lines = [{"step": step, "reward": float(step), "kl": 0.1 * step} for step in range(1, 13)]
    lines[3] |= {"eval/accuracy": 0.25, "eval/fidelity": 0.5}
    lines[11] |= {"eval/accuracy": 0.75, "eval/fidelity": 0.5}
    for name, logged in (("run", lines), ("other", [{"step": 4, "eval/accuracy": 0.75, "eval/fidelity": 0}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, logged)))

    runs = {"ipo": tmp_path / "run", "named_only": tmp_path / "absent"}
    draw_evaluation({"policies": {}, "comparisons": []}, [], runs, tmp_path, "T")
    (axis,) = drawn["reward_T.png"].axes
    assert legend_of(axis) == ["ipo"]
    # steps 1 to 4: mean 2.5; steps 3 to 12, the last ten: mean 7.5
    assert list(axis.lines[0].get_xdata()) == [2.5, 7.5] and list(axis.lines[0].get_ydata()) == [0.25, 0.75]

    draw_training_curves(lines, tmp_path / "curves.png")
    parts, held_out, kl, completions = drawn["curves.png"].axes
    assert not parts.lines and not completions.lines and kl.get_yscale() == "log"
    assert legend_of(held_out) == ["eval/accuracy", "eval/fidelity"]

    draw_experiment_curves(
        {("ipo", 0): tmp_path / "run", ("ipo", 1): tmp_path / "other"}, tmp_path / "seeds.png"
    )
    (line,) = drawn["seeds.png"].axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([4, 12], [0.5, 0.75])
    assert line.get_label() == "ipo (2 seeds)"
