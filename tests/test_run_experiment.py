"""The experiment: its arms, pooled numbers and hypotheses, and a whole small run that is interrupted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cot.utils.cli import PROFILES_DIR, REPO_ROOT
from rl.experiment_tables import Experiment, cells_of, pool, render, subtract
from rl.run_experiment import build_parser, main

STUDENTS = ("S1", "S2")


def answers(fits: dict[str, float], right=True, memory="own", exercises=40) -> list[dict]:
    """Texts for two students a question; `fits` is how well a text for a student fits S1 and S2."""
    rows = []
    for number in range(exercises):
        for student in STUDENTS:
            own, other = fits["own"], fits["other"]
            judged = {name: own if name == student else other for name in STUDENTS}
            row = {"wording": "usual", "memory": memory, "temperature": 0.0, "question_id": f"add/{number}"}
            row |= {"student_id": student, "chapter": "add", "fits": judged, "fidelity": own}
            row |= {"correct": right if isinstance(right, bool) else right(number), "style": own > 0.5}
            rows.append(row | {"identification": float(own > other), "copying": 0.0, "tokens": 10})
    return rows


def every_wording(rows: list[dict]) -> list[dict]:
    none = [row | {"memory": "none"} for row in rows if row["student_id"] == "S1"]
    return [*rows, *none, *(row | {"wording": "novel"} for row in rows)]


def test_measures_of_a_hand_made_table():
    base = answers({"own": 0.4, "other": 0.4}, right=lambda number: number % 2 == 0)
    now = answers({"own": 0.9, "other": 0.3}, right=lambda number: number >= 20)
    found = cells_of(now, base, "usual", "own", 0.0)
    assert {name: pool({0: cells})["mean"] for name, cells in found.items()} == pytest.approx(
        {
            "accuracy": 0.5,
            "fidelity": 0.9,
            "style": 1.0,
            "specificity": 0.9 - 0.3,  # the other student's text fits this one with 0.3
            "identification": 1.0,
            "breakage": 0.5,  # of 20 right questions, the 10 below number 20
            "copying": 0.0,
            "tokens": 10.0,
        }
    )


def test_a_difference_pairs_cells_and_takes_the_one_answer_without_memory():
    one = {0: {("q", "S1"): 1.0, ("q", "S2"): 0.0}}
    assert subtract(one, {0: {("q", "S1"): 0.0, ("q", "S2"): 1.0}})[0] == {
        ("q", "S1"): 1.0,
        ("q", "S2"): -1.0,
    }
    assert subtract(one, {0: {("q", "S1"): 1.0}})[0] == {("q", "S1"): 0.0, ("q", "S2"): -1.0}


def make_experiment(ipo: dict, none: dict) -> Experiment:
    base = every_wording(answers({"own": 0.4, "other": 0.4}, right=lambda number: number % 2 == 0))
    table = {("ipo", seed): every_wording(answers(**ipo)) for seed in range(3)}
    table |= {("none", seed): every_wording(answers(**none)) for seed in range(3)}
    return Experiment(table, base)


def verdicts(experiment: Experiment) -> dict[str, str]:
    return {
        test["hypothesis"]: test["verdict"]
        for test in experiment.hypotheses([0.0])
        if test["wording"] == "usual"
    }


def test_hypotheses_hold_where_the_interval_lies_beyond_the_bound():
    planted = make_experiment(
        {"fits": {"own": 0.95, "other": 0.4}, "right": True}, {"fits": {"own": 0.4, "other": 0.4}}
    )
    assert set(verdicts(planted).values()) == {"holds"} and len(verdicts(planted)) == 5
    text = render(
        {"table": planted.table([0.0], [("usual", "own")]), "hypotheses": planted.hypotheses([0.0])},
        {"seeds": [0, 1, 2], "max_steps": 1, "exercises": 40, "students_per_exercise": 2},
    )
    assert "| ipo | 240 | 1.000 [1.000, 1.000] | 0.950 [0.950, 0.950]" in text


def test_hypotheses_fail_for_a_policy_that_ignores_memory():
    blind = make_experiment(
        {"fits": {"own": 0.4, "other": 0.4}, "right": lambda number: number % 2 == 0},
        {"fits": {"own": 0.4, "other": 0.4}, "right": True},
    )
    found = verdicts(blind)
    assert found.pop("profile identification, never rewarded, rises over the base") == "fails"
    assert set(found.values()) == {"fails"}


@pytest.fixture(scope="module")
def school(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("school")
    for student in ("S002", "S005"):
        shutil.copy(PROFILES_DIR / f"{student}.json", folder)
        (folder / "memory").mkdir(exist_ok=True)
        shutil.copy(PROFILES_DIR / "memory" / f"{student}.jsonl", folder / "memory")
    return folder


def test_a_small_experiment_from_beginning_to_end_and_again(school, tiny_tutor, tmp_path, capsys):
    command = [sys.executable, str(REPO_ROOT / "rl" / "run_experiment.py"), "--model_name", str(tiny_tutor)]
    command += ["--arms", "ipo", "random", "--seeds", "0", "--max_steps", "1", "--exercises_per_chapter", "2"]
    command += ["--profiles_dir", str(school), "--output_dir", str(tmp_path), "--temperatures", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("experiment.json")
    document = json.loads((tmp_path / "experiment.json").read_text())
    assert document["status"] == "success" and document["config"]["exercises"] == 10
    arms = {(row["arm"], row["wording"], row["memory"]): row for row in document["summary"]["table"]}
    assert len(arms) == 9 and arms["ipo", "usual", "own"]["accuracy"]["n"] == 20
    assert arms["base", "usual", "none"]["accuracy"]["n"] == 10  # one prompt whoever asks
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    # again: nothing is trained or answered anew
    trained = (tmp_path / "ipo_0" / "run.json").stat().st_mtime_ns
    assert main(command[2:]) == 0
    assert (tmp_path / "ipo_0" / "run.json").stat().st_mtime_ns == trained
    assert "answers:" not in capsys.readouterr().out
    assert main([*command[2:], "--exercises_per_chapter", "3"]) == 2
    assert "an experiment with other settings" in capsys.readouterr().err


def test_a_wrong_arm_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["--arms", "ipo2"])
    assert stopped.value.code == 2 and "invalid choice: 'ipo2'" in capsys.readouterr().err
