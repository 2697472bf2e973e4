"""The script that fits mastery: its file, its choice of a predictor, its scores on students held out."""

import json
import random

import pytest
from conftest import make_responses, read_strictly, run_here, simulate_responses, write_logs

from cot.utils.mastery_model import load_mastery_model
from cot.utils.student_files import MemoryLog
from rl.fit_mastery import main


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder / "fitting", simulate_responses(students=40, length=6, seed=5))
    write_logs(folder / "test", simulate_responses(students=15, length=6, seed=6), prefix="T")
    return folder


def test_the_script_writes_the_same_file_again_and_prompts_can_use_it(logs, tmp_path):
    files = []
    for name in ("a.json", "b.json"):
        code, stdout, stderr = run_here(main, "--input", logs / "fitting", "--output", tmp_path / name)
        assert code == 0 and "480 answers of 40 students in 2 skills" in stdout, stderr
        files.append(read_strictly(tmp_path / name))
        assert json.dumps(files[-1], indent=2, ensure_ascii=False) + "\n" == (tmp_path / name).read_text()
        files[-1]["fitted_on"].pop("finished")
    assert files[0] == files[1]
    model = load_mastery_model(tmp_path / "a.json")
    assert (model.predictor, model.evaluation) == ("tracing", None)
    assert [model.fitted_on[name] for name in ("students", "answers", "skills")] == [40, 480, 2]
    assert set(model.estimate(MemoryLog(logs / "fitting" / "memory").read("S003"))) == {"easy", "hard"}


def test_the_predictor_that_prompts_show_is_the_better_one_on_students_held_out(tmp_path):
    # answers of knowledge tracing, and answers that depend on the student alone
    write_logs(tmp_path / "tracing", simulate_responses(students=60, length=6, seed=7))
    rng = random.Random(0)
    able = [rng.choice((0.1, 0.9)) for _ in range(60)]
    texts = [" ".join(f"{rng.choice('ab')}{int(rng.random() < p)}" for _ in range(20)) for p in able]
    write_logs(tmp_path / "regression", make_responses(*texts, skills=("a", "b")))
    for better in ("tracing", "regression"):
        code, stdout, _ = run_here(main, "--input", tmp_path / better, "--output", tmp_path / "m.json")
        model = load_mastery_model(tmp_path / "m.json")
        losses = model.fitted_on["held_out_log_loss"]
        assert (code, model.predictor, min(losses, key=losses.get)) == (0, better, better)
        assert f"predictor: {better} (log loss on a fifth of the students held out: regression" in stdout
    # one that is named is not compared
    flags = ["--input", tmp_path / "tracing", "--output", tmp_path / "m.json", "--predictor", "regression"]
    assert run_here(main, *flags)[0] == 0
    named = load_mastery_model(tmp_path / "m.json")
    assert (named.predictor, named.fitted_on["held_out_log_loss"]) == ("regression", None)


@pytest.mark.slow
@pytest.mark.parametrize("on_test", [False, True])
def test_the_scores_are_of_students_held_out(logs, tmp_path, on_test):
    flags = ["--input", logs / "fitting", "--output", tmp_path / "m.json", "--evaluate"]
    code, stdout, stderr = run_here(main, *flags, *(["--test", logs / "test"] if on_test else []))
    assert code == 0, stderr
    evaluation = read_strictly(tmp_path / "m.json")["evaluation"]
    assert (evaluation["students"], evaluation["answers"]) == ((15, 180) if on_test else (40, 480))
    assert evaluation["on"]["folds"] == (None if on_test else 5)
    names = "student_mean skill_mean blend default_tracing fitted_tracing regression"
    assert list(evaluation["predictors"]) == names.split()
    for name, scores in evaluation["predictors"].items():
        for key in ("auc", "log_loss"):
            interval = scores[key]
            assert interval["low"] <= interval["mean"] <= interval["high"], (name, key)
        assert sum(row["answers"] for row in scores["calibration"]) == evaluation["answers"]
    told = evaluation["predictors"]["regression"]["auc"]["mean"]
    assert f"| regression | {told:.4f} (" in stdout
    assert load_mastery_model(tmp_path / "m.json").evaluation == evaluation
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("folder", "flags", "message"),
    [
        ("gone", [], "--input gone: no memory/<student_id>.jsonl there"),
        ("fitting", ["--output", "m.txt"], "--output m.txt: expected a name that ends in .json"),
        ("fitting", ["--output", "gone/m.json"], "--output gone/m.json: no such folder"),
        ("fitting", ["--test", "test"], "--test: it is read with --evaluate alone"),
        ("right", [], "all answers are right, or all are wrong"),
        (
            "few",
            ["--evaluate", "--predictor", "tracing"],
            "--evaluate: 5 folds need 5 students, --input has 2",
        ),
        ("few", [], "--predictor auto: it needs 5 students, --input has 2; name one"),
        ("torn", [], "torn/memory/S000.jsonl: line 1: not JSON"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(logs, monkeypatch, tmp_path, folder, flags, message):
    monkeypatch.chdir(tmp_path)
    for name in ("fitting", "test"):
        (tmp_path / name).symlink_to(logs / name)
    write_logs(tmp_path / "right", make_responses("a1 a1", "a1"))
    write_logs(tmp_path / "few", make_responses("a1 a0", "a1"))
    (tmp_path / "torn" / "memory").mkdir(parents=True)
    (tmp_path / "torn" / "memory" / "S000.jsonl").write_text("{\n{}\n")
    code, _, stderr = run_here(main, "--output", "m.json", "--input", folder, *flags)
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {message}")
