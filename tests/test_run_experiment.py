"""The experiment: what each arm is trained with, and a whole small run that grows and is trained again."""

import json
import shutil
from pathlib import Path

import pytest

from cot.utils.cli import PROFILES_DIR
from rl.run_experiment import ARMS, build_parser, main, training_flags
from rl.settings import fill_preset
from rl.train_rl_memory import parse_args

ALL_REWARDS = {
    "correct": 1.0,
    "format": 0.1,
    "fidelity": 1.0,
    "memory_margin": 0.5,
    "scaffold_fit": 0.1,
    "overlong": 1.0,
    "repetition": 0.2,
}
CORRECTNESS = {"correct": 1.0, "format": 0.1, "overlong": 1.0, "repetition": 0.2}


@pytest.mark.parametrize(
    ("arm", "memory", "weights"),
    [
        ("ipo", "own", ALL_REWARDS),
        ("no_memory", "none", ALL_REWARDS),
        ("shuffled_memory", "shuffled", ALL_REWARDS),
        ("correctness_only", "own", CORRECTNESS),
        ("random_reward", "own", {"coin": 1.0}),
    ],
)
def test_an_arm_is_trained_with_its_memory_and_its_rewards(arm, memory, weights, tmp_path):
    flags = training_flags(build_parser().parse_args(["--max_steps", "7"]), arm, 3, tmp_path)
    training = parse_args(flags)
    fill_preset(training)
    assert training.memory == memory and training.weights == weights
    assert (training.seed, training.max_steps, training.preset) == (3, 7, "cpu")
    assert training.dataset == "textbook" and training.output_dir == tmp_path


def test_the_arms_are_ipo_and_the_four_controls():
    assert list(ARMS) == ["ipo", "no_memory", "shuffled_memory", "correctness_only", "random_reward"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arms", "ipo2"], "invalid choice: 'ipo2'"),
        (["--seeds", "0", "0"], "a value occurs twice"),
        (["--students_per_exercise", "1"], "expected int of at least 2"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(flags)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def school(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("school")
    for student in ("S002", "S005"):
        shutil.copy(PROFILES_DIR / f"{student}.json", folder)
        (folder / "memory").mkdir(exist_ok=True)
        shutil.copy(PROFILES_DIR / "memory" / f"{student}.jsonl", folder / "memory")
    return folder


def table_of(summary_path: Path) -> dict:
    document = json.loads(summary_path.read_text())
    assert document["status"] == "success" and document["config"]["exercises"] == 10
    assert list(document["summary"]) == ["rows_done", "table", "verdicts", "timing"]
    rows = document["summary"]["table"]
    return {(row["arm"], row["wording"], row["memory_arm"]): row for row in rows}


def answers_of(summary_path: Path) -> list[dict]:
    name = summary_path.name.replace("summary_", "results_temp_0.0_")
    return json.loads(summary_path.with_name(name).read_text())["results"]


@pytest.mark.slow
def test_a_small_experiment_from_beginning_to_end_and_again(school, tiny_tutor, tmp_path, capsys):
    flags = ["--model_name", tiny_tutor, "--profiles_dir", school, "--output_dir", tmp_path, "--seeds", "0"]
    flags += ["--max_steps", "1", "--exercises_per_chapter", "2", "--temperatures", "0.0"]
    flags = [*map(str, flags)]
    assert main([*flags, "--arms", "random_reward"]) == 0
    summary = Path(capsys.readouterr().out.splitlines()[-1])
    assert summary.parent == tmp_path

    # 10 exercises for 2 students, the same without memory asked once, 10 in novel wordings for one student
    table = table_of(summary)
    assert set(table) == {
        (arm, *where)
        for arm in ("base", "random_reward")
        for where in (("usual", "own"), ("usual", "none"), ("novel", "own"))
    }
    assert table["random_reward", "usual", "own"]["accuracy"]["n"] == 20
    assert table["base", "usual", "none"]["accuracy"]["n"] == 10  # one prompt whoever asks
    assert table["base", "novel", "own"]["accuracy"]["n"] == 10
    assert len(answers_of(summary)) == 2 * (20 + 10 + 10)
    run = json.loads((tmp_path / "random_reward_0" / "run.json").read_text())
    assert run["config"]["memory"] == "own" and run["config"]["weights"] == {"coin": 1.0}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "| random_reward | 20 |" in (tmp_path / "experiment.md").read_text()

    # another arm: what is there is neither trained nor answered again
    trained = (tmp_path / "random_reward_0" / "run.json").stat().st_mtime_ns
    assert main([*flags, "--arms", "random_reward", "ipo"]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "random_reward_0" / "run.json").stat().st_mtime_ns == trained
    assert Path(out.splitlines()[-1]) == summary and "40 of 120 rows left" in out
    assert ("ipo", "usual", "own") in table_of(summary)

    # an arm that was trained again is answered again, and its old answers are in no table
    before = [record for record in answers_of(summary) if record["arm"] == "random_reward"]
    weights = tmp_path / "random_reward_0" / "model" / "model.safetensors"
    weights.write_bytes((tmp_path / "ipo_0" / "model" / "model.safetensors").read_bytes())
    assert main([*flags, "--arms", "random_reward", "ipo"]) == 0
    assert "40 of 120 rows left" in capsys.readouterr().out
    after = [record for record in answers_of(summary) if record["arm"] == "random_reward"]
    twins = [record for record in answers_of(summary) if record["arm"] == "ipo"]
    assert [r["generated_text"] for r in after] == [r["generated_text"] for r in twins]
    assert {r["policy"] for r in after}.isdisjoint(r["policy"] for r in before)

    # a training with other settings is not taken for this one's
    assert main([*flags, "--arms", "ipo", "--max_steps", "2"]) == 2
    assert "--max_steps 2: the checkpoint was made with 1" in capsys.readouterr().err
