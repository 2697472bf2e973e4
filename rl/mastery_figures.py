"""A picture of how the next answer is predicted: calibration, learning curves of real skills, one student."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cot.utils.figures import COLORS, new_figure, plot_intervals, save_figure
from cot.utils.stats import clustered_share
from rl.responses import Responses

CALIBRATED = ("regression", "fitted_tracing", "default_tracing")
CURVES, PLACES, MIN_ANSWERS = 4, 10, 50  # skills; answers of a curve; of a place below which it is not drawn
STUDENT_ANSWERS, STUDENT_SKILLS = 100, 4  # about as many has the student that is followed; its skills


def draw_mastery(
    responses: Responses, predicted: Mapping[str, np.ndarray], evaluation: Mapping, shown: str, path: Path
) -> Path:
    """Three panels about the students held out.

    Args:
        predicted: P(right) before each answer, (N,), by predictor.
        evaluation: as `mastery_scores.score_all` gives it.
        shown: the predictor whose predictions are drawn.
    """
    figure, (left, middle, right) = new_figure(panels=3, width=19.0, height=5.5)
    _draw_calibration(left, evaluation)
    _draw_curves(middle, responses, predicted[shown])
    _draw_student(right, responses, predicted[shown])
    for axis in (left, middle, right):
        axis.set_ylim(0, 1)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small", loc="lower right")
    return save_figure(figure, path)


def _draw_calibration(axis, evaluation: Mapping) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for number, name in enumerate(CALIBRATED):
        table = evaluation["predictors"][name]["calibration"]
        places, cells = [row["predicted"] for row in table], [row["right"] for row in table]
        plot_intervals(axis, places, cells, number, name.replace("_", " "), line=True)
    axis.set(
        title=f"calibration, n = {evaluation['answers']:,} answers",
        xlabel="predicted chance of a right answer",
        ylabel="share right (95 % interval over students)",
    )


def _draw_curves(axis, responses: Responses, predicted: np.ndarray) -> None:
    """The commonest skills: what was answered at each place, and the mean of what was predicted."""
    before, _ = responses.counts_in_skill()
    commonest = np.argsort(-np.bincount(responses.skill, minlength=len(responses.skills)), kind="stable")
    for number, skill in enumerate(commonest[:CURVES]):
        places, cells, expected = [], [], []
        for place in range(PLACES):
            there = (responses.skill == skill) & (before == place)
            if there.sum() < MIN_ANSWERS:
                break
            places.append(place + 1)
            share = clustered_share(responses.correct[there].astype(float), [responses.student[there]])
            cells.append(share)
            expected.append(float(predicted[there].mean()))
        if places:
            label = f"skill {responses.skills[skill]}, n = {cells[0]['n']:,} to {cells[-1]['n']:,}"
            plot_intervals(axis, places, cells, number, label, line=False)
            axis.plot(places, expected, color=COLORS[number])
    axis.set(
        title="commonest skills, of those who still practise: answered (points), predicted (lines)",
        xlabel="answer in the skill",
        ylabel="share right",
    )
    axis.title.set_fontsize("medium")


def _draw_student(axis, responses: Responses, predicted: np.ndarray) -> None:
    """The student whose number of answers is nearest to `STUDENT_ANSWERS`: what was predicted, what came."""
    counts = np.bincount(responses.student)
    student = int(np.argmin(np.abs(counts - STUDENT_ANSWERS)))
    own = np.flatnonzero(responses.student == student)
    skills = np.bincount(responses.skill[own], minlength=len(responses.skills))
    for number, skill in enumerate(np.argsort(-skills, kind="stable")[:STUDENT_SKILLS]):
        places = np.flatnonzero(responses.skill[own] == skill)
        if not len(places):
            continue
        values, is_right = predicted[own][places], responses.correct[own][places]
        axis.plot(places + 1, values, color=COLORS[number], label=f"skill {responses.skills[skill]}")
        axis.scatter(places[is_right] + 1, values[is_right], color=COLORS[number], s=28)
        axis.scatter(places[~is_right] + 1, values[~is_right], color=COLORS[number], marker="x", s=28)
    axis.set(
        title="one student: predicted, then right (dot) or wrong (cross)",
        xlabel="the student's answer",
        ylabel="predicted chance of a right answer",
    )
