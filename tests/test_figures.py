"""Figures: the numbers that are drawn, units and n in the labels, no screen."""

import json
import subprocess
import sys

import pytest

from cot.utils import figures
from cot.utils.figures import (
    draw_evaluation,
    draw_experiment_curves,
    draw_sweep,
    draw_training_curves,
    new_figure,
    plot_intervals,
)
from cot.utils.stats import wilson_interval


def record(number, temperature, correct=True, perplexity=2.0, similarity=0.5, **more):
    base = {"question_id": f"q{number}", "temperature": temperature, "correct": correct, "error": None}
    base |= {"policy": "base", "prompt": f"q{number}", "sample": 0}
    return base | {"perplexity": perplexity, "semantic_similarity": similarity} | more


SWEEP = [
    record(n, t, n % 3 == 0, perplexity=1.5 + n / 10 + t, similarity=n / 20)
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


def test_a_sweeps_figures_say_what_they_show(drawn, tmp_path):
    failed = record(99, 0.0, None, None, None, error={"type": "x"})
    paths = draw_sweep([*SWEEP, failed], tmp_path / "figures", "T")
    assert [path.name for path in paths] == ["perplexity_T.png", "similarity_T.png", "accuracy_T.png"]
    for path in paths:
        assert path.read_bytes()[:4] == b"\x89PNG"
        (axis,) = drawn[path.name].axes
        assert axis.get_xlabel() == "temperature" and axis.get_ylabel() and axis.get_title()
        width, height = drawn[path.name].get_size_inches() * figures.DPI
        assert width >= 900 and height >= 500
        assert type(drawn[path.name].canvas).__name__ == "FigureCanvasAgg"
    for name in ("perplexity_T.png", "similarity_T.png"):
        labels = [label.get_text() for label in drawn[name].axes[0].get_xticklabels()]
        assert labels == ["0\nn = 20", "0.6\nn = 20"]
    assert legend_of(drawn["accuracy_T.png"].axes[0]) == ["accuracy (n = 20 each)"]


def test_the_accuracy_drawn_is_the_share_with_its_wilson_interval(drawn, tmp_path):
    draw_sweep(SWEEP, tmp_path, "T")
    line, _, (bars,) = drawn["accuracy_T.png"].axes[0].containers[0]
    assert list(line.get_ydata()) == [7 / 20, 7 / 20]  # of 20 questions numbers 0, 3, ... 18
    segments = [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    assert segments == [pytest.approx(wilson_interval(7, 20))] * 2


def test_a_cell_without_an_interval_is_a_point():
    _, (axis,) = new_figure()
    cells = [{"mean": 0.5, "low": 0.25, "high": 1.0}, {"mean": 0.75, "low": None, "high": None}]
    plot_intervals(axis, [0, 1], cells, number=0, label="label", line=True)
    line, _, (bars,) = axis.containers[0]
    assert list(line.get_ydata()) == [0.5, 0.75]
    assert [(s[0][1], s[1][1]) for s in bars.get_segments()] == [(0.25, 1.0), (0.75, 0.75)]


def test_memory_arms_have_a_line_each(drawn, tmp_path):
    rows = [row | {"memory_arm": arm, "student_id": "S1"} for row in SWEEP for arm in ("own", "none")]
    draw_sweep(rows, tmp_path, "T")
    assert legend_of(drawn["accuracy_T.png"].axes[0]) == ["none (n = 20 each)", "own (n = 20 each)"]


def test_what_has_no_value_has_no_figure(tmp_path):
    assert draw_sweep([], tmp_path, "T") == []
    paths = draw_sweep([record(0, 0.0, False, None, None)], tmp_path, "T")
    assert [path.name for path in paths] == ["accuracy_T.png"]
    # one row, or equal values: a point and a flat box, no density
    assert len(draw_sweep([record(0, 0.0), record(1, 0.0)], tmp_path, "U")) == 3


@pytest.mark.slow
def test_drawing_needs_no_screen_and_no_seaborn(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from cot.utils.figures import draw_sweep;"
        "assert 'matplotlib' not in sys.modules;"
        "draw_sweep(json.loads(sys.argv[1]), Path(sys.argv[2]), 'T');"
        "assert 'seaborn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(SWEEP), str(tmp_path)], check=True)
    assert len(list(tmp_path.glob("*.png"))) == 3


def evaluated(policy, chapter, number, **changes):
    answer = {"policy": policy, "memory_arm": "own", "student_id": f"S{number % 2}", "error": None}
    answer |= {"question_id": f"{chapter}/{number // 2}", "chapter": chapter, "as_of": "2026-03-01T09:00:00Z"}
    answer |= {"prompt": f"{chapter} {number}", "temperature": 0.7, "sample": 0}
    return answer | {"fidelity": 0.5, "support": "worked_out", "gold_steps": 2, "mastery": 0.4} | changes


def evaluation_summary(comparisons=()):
    interval = {"n": 8, "mean": 0.5, "low": 0.25, "high": 0.75}
    table = {"n": 8, "accuracy": {"canonical": interval}, "metrics": {"fidelity": interval}}
    return {"policies": {"base": {"own": table, "none": table}}, "comparisons": list(comparisons)}


def test_an_evaluation_is_drawn_by_policy_and_over_the_chapters(drawn, tmp_path):
    answers = [evaluated("base", chapter, n) for chapter in ("addition", "two_step") for n in range(4)]
    paths = draw_evaluation(evaluation_summary(), answers, {}, tmp_path, "T")
    assert [path.name for path in paths] == ["policies_T.png", "chapters_T.png"]
    accuracy = drawn["policies_T.png"].axes[0]
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["own", "none"]
    fit, support = drawn["chapters_T.png"].axes
    assert [label.get_text() for label in fit.get_xticklabels()] == ["addition\nn = 4", "two step\nn = 4"]
    assert list(support.containers[0][0].get_ydata()) == [2.0, 2.0]  # worked out
    assert list(support.containers[1][0].get_ydata()) == [0.4, 0.4]  # mastery


def test_without_a_walk_there_are_no_chapters(tmp_path):
    answers = [evaluated("base", None, n, as_of="end") for n in range(4)]
    (path,) = draw_evaluation(evaluation_summary(), answers, {}, tmp_path, "T")
    assert path.name == "policies_T.png"


def test_breakage_and_repair_stand_beside_their_n(drawn, tmp_path):
    comparison = {"policy": "ipo", "arm": "own", "reference_policy": "base", "reference_arm": "own", "n": 40}
    comparison |= {"breakage": 0.1, "repair": 0.05, "broken": 2, "repaired": 1, "reference_right": 20}
    summary = evaluation_summary([comparison | {"kind": "training"}])
    draw_evaluation(summary, [], {}, tmp_path, "T")
    (axis,) = drawn["breakage_T.png"].axes
    assert [bar.get_width() for bar in axis.patches] == [10.0, 5.0]  # per cent
    assert [text.get_text() for text in axis.texts] == ["2 of 20", "1 of 20"]
    assert "(n = 40)" in axis.get_yticklabels()[0].get_text() and "%" in axis.get_xlabel()


@pytest.fixture
def trained(tmp_path):
    """A run's folder: twelve steps with a reward, two of them with held-out scores."""
    lines = [{"step": step, "reward": float(step), "kl": 0.1 * step} for step in range(1, 13)]
    lines[3] |= {"eval/accuracy": 0.25, "eval/fidelity": 0.5}
    lines[11] |= {"eval/accuracy": 0.75, "eval/fidelity": 0.5}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder, lines


def test_reward_is_drawn_against_held_out_accuracy(drawn, trained, tmp_path):
    runs = {"ipo": trained[0], "named_only": tmp_path / "absent"}
    draw_evaluation(evaluation_summary(), [], runs, tmp_path, "T")
    (axis,) = drawn["reward_T.png"].axes
    assert legend_of(axis) == ["ipo"]
    # steps 1 to 4: mean 2.5; steps 3 to 12, the last ten: mean 7.5
    assert list(axis.lines[0].get_xdata()) == [2.5, 7.5]
    assert list(axis.lines[0].get_ydata()) == [0.25, 0.75]


def test_training_curves_leave_out_what_was_never_logged(drawn, trained, tmp_path):
    draw_training_curves(trained[1], tmp_path / "curves.png")
    parts, held_out, kl, completions = drawn["curves.png"].axes
    assert not parts.lines and not completions.lines
    assert legend_of(held_out) == ["eval/accuracy", "eval/fidelity"]
    assert list(held_out.lines[0].get_xdata()) == [4, 12]
    assert kl.get_yscale() == "log" and held_out.get_yscale() == "linear"


def test_experiment_curves_are_the_mean_over_seeds(drawn, trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text(json.dumps({"step": 4, "eval/accuracy": 0.75, "eval/fidelity": 0}))
    draw_experiment_curves({("ipo", 0): trained[0], ("ipo", 1): other}, tmp_path / "curves.png")
    accuracy, _ = drawn["curves.png"].axes
    (line,) = accuracy.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([4, 12], [0.5, 0.75])
    assert line.get_label() == "ipo (2 seeds)"
