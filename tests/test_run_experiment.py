"""The experiment: what each arm is trained with, and a whole small run that grows and is trained again."""

import gzip
import json
from pathlib import Path

import pytest
from conftest import CHATML, IM, plant_policy

from rl.run_experiment import ARMS, build_parser, main, training_flags
from rl.settings import fill_preset
from rl.train_rl_memory import parse_args

ALL_REWARDS = {
    "correct": 1.0,
    "format": 0.1,
    "fidelity": 1.0,
    "memory_margin": 0.5,
    "support_fit": 1.0,
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
    assert list(ARMS) == ["ipo", "no_memory", "shuffled_memory", "correctness_only", "random_reward"]
    flags = training_flags(build_parser().parse_args(["--max_steps", "7"]), arm, 3, tmp_path)
    training = parse_args(flags)
    fill_preset(training)
    assert training.memory == memory and training.weights == weights
    assert (training.seed, training.max_steps, training.preset) == (3, 7, "cpu")
    assert training.dataset == "textbook" and training.output_dir == tmp_path
    assert training.students == ["generated:256"] and training.memory_level == "history"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arms", "ipo2"], "invalid choice: 'ipo2'"),
        (["--seeds", "0", "0"], "a value occurs twice"),
        (["--split", "train"], "invalid choice: 'train'"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(flags)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and err.count("\n") == 1


def table_of(summary_path: Path) -> dict:
    document = json.loads(summary_path.read_text())
    assert document["status"] == "success" and document["config"]["exercises"] == 5
    assert list(document["summary"]) == ["rows_done", "table", "verdicts", "timing"]
    rows = document["summary"]["table"]
    return {(row["arm"], row["memory_arm"], row["temperature"], row["sample"]): row for row in rows}


def answers_of(folder: Path) -> list[dict]:
    lines = gzip.decompress((folder / "answers.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines]


def says(folder: Path, digit: str) -> Path:
    """A policy that writes this digit, soon ends, and earns more or less as it repeats itself."""
    after = {"": {digit: 1.0}, digit: {digit: 0.49, "<|im_end|>": 0.51}}
    return plant_policy(folder, after, CHATML, IM)


def texts_of(folder: Path, arm: str) -> list[str]:
    return [record["generated_text"] for record in answers_of(folder) if record["arm"] == arm]


@pytest.mark.slow
def test_a_small_experiment_from_beginning_to_end_and_again(tmp_path, capsys):
    base, other = (says(tmp_path / f"says_{digit}", digit) for digit in "12")
    flags = ["--model_name", base, "--output_dir", tmp_path, "--seeds", "0", "--split", "test"]
    flags += ["--max_steps", "1", "--exercises_per_chapter", "1"]
    flags = [*map(str, flags)]
    assert main([*flags, "--arms", "random_reward"]) == 0
    summary = Path(capsys.readouterr().out.splitlines()[-1])
    assert summary.parent == tmp_path

    # 5 exercises for 3 students each, with their memory and without, greedy and not; the base is told, too
    table = table_of(summary)
    common = {(arm, temperature, 0) for arm in ("own", "none") for temperature in (0.0, 1.0)}
    expected = {(arm, *where) for arm in ("base", "random_reward") for where in common}
    assert set(table) == expected | {("base", "instructed", 0.0, 0)}
    assert table["random_reward", "own", 0.0, 0]["accuracy"]["n"] == 15
    assert len(answers_of(tmp_path)) == 15 * len(table)
    assert {"arm", "seed", "memory_arm", "moment", "generated_text"} <= set(answers_of(tmp_path)[0])
    run = json.loads((tmp_path / "random_reward_0" / "run.json").read_text())
    assert run["config"]["memory"] == "own" and run["config"]["weights"] == {"coin": 1.0}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("curves.png", "evidence.png"))
    report = (tmp_path / "experiment.md").read_text()
    assert "| random_reward | 15 |" in report and "| oracle | 60 |" in report

    # another arm: what is there is neither trained nor answered again
    trained = (tmp_path / "random_reward_0" / "run.json").stat().st_mtime_ns
    assert main([*flags, "--arms", "random_reward", "ipo"]) == 0
    assert (tmp_path / "random_reward_0" / "run.json").stat().st_mtime_ns == trained
    table = table_of(Path(capsys.readouterr().out.splitlines()[-1]))
    evidence = {key[1] for key in table if key[0] == "ipo" and key[1].startswith("after_")}
    assert evidence == {f"after_{count}" for count in (0, 2, 5, 10, 20, 40)}
    assert [r for r in answers_of(tmp_path) if r["arm"] == "random_reward"]

    # an arm that was trained again is answered again, and its old answers are in no table
    before, beside = texts_of(tmp_path, "random_reward"), texts_of(tmp_path, "ipo")
    weights = tmp_path / "random_reward_0" / "model" / "model.safetensors"
    weights.write_bytes((other / "model.safetensors").read_bytes())
    assert main([*flags, "--arms", "random_reward", "ipo"]) == 0
    after = texts_of(tmp_path, "random_reward")
    assert (len(after), set("".join(before)), set("".join(after))) == (len(before), {"1"}, {"2"})
    assert texts_of(tmp_path, "ipo") == beside

    # a training with other settings is not taken for this one's
    capsys.readouterr()
    assert main([*flags, "--arms", "ipo", "--max_steps", "2"]) == 2
    assert "--max_steps 2: the checkpoint was made with 1" in capsys.readouterr().err
