"""The experiment: what each arm is trained with, a whole small run that grows, and what READMEs say of it."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import (
    CHATML,
    IM,
    fork_here,
    only,
    plant_policy,
    read_lines,
    read_strictly,
    run_here,
    wait_for_exit,
)
from test_docs import blocks, needs_jq, read, run_lines, section_of, undocumented

import evaluate_rl
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


STUDENTS = 12  # of each population, in the place of 60
SMALL = ["--seeds", "0", "--split", "test", "--max_steps", "1", "--exercises_per_chapter", "1"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """An experiment of one training of one step, in the folder `ipo_0`."""
    folder = tmp_path_factory.mktemp("experiment")
    flags = ["--model_name", says(folder / "says_1", "1"), "--output_dir", folder, *SMALL, "--arms", "ipo"]
    with pytest.MonkeyPatch.context() as few:
        few.setattr("rl.conditions.STUDENTS", STUDENTS)
        code, stdout, stderr = run_here(main, *flags)
        assert code == 0, stderr
        assert Path(stdout.splitlines()[-1]).parent == folder
        yield folder


@pytest.mark.slow
def test_an_experiment_trains_asks_and_reports(experiment):
    # 5 exercises for 3 students each, with their memory and without, greedy and not; the base is told, too
    (summary,) = experiment.glob("summary_*.json")
    table = table_of(summary)
    common = {(arm, temperature, 0) for arm in ("own", "none") for temperature in (0.0, 1.0)}
    assert {key for key in table if key[0] == "base"} == {
        ("base", *where) for where in {*common, ("instructed", 0.0, 0)}
    }
    assert common <= {key[1:] for key in table if key[0] == "ipo"}
    assert table["ipo", "own", 0.0, 0]["accuracy"]["n"] == 15
    evidence = {key[1] for key in table if key[0] == "ipo" and key[1].startswith("after_")}
    assert evidence == {f"after_{count}" for count in (0, 2, 5, 10, 20, 40)}
    assert {"arm", "seed", "memory_arm", "moment", "generated_text"} <= set(answers_of(experiment)[0])

    assert all((experiment / name).stat().st_size > 10_000 for name in ("curves.png", "evidence.png"))
    report = (experiment / "experiment.md").read_text()
    assert "| ipo | 15 |" in report and f"| oracle | {STUDENTS} |" in report


@pytest.mark.slow
def test_two_processes_answer_what_one_answers(experiment, be_process, tmp_path):
    """The second gives the first its answers, and the first alone walks with the students."""
    shutil.copytree(experiment / "ipo_0", tmp_path / "ipo_0")
    flags = ["--model_name", experiment / "says_1", "--output_dir", tmp_path, *SMALL, "--arms", "ipo"]
    said, processes = [tmp_path / f"said_{rank}.txt" for rank in (0, 1)], []
    for rank in (1, 0):  # the second waits for the trainings
        be_process(rank)
        processes.append(fork_here(main, *flags, said=said[rank]))
    assert [wait_for_exit(process) for process in processes] == [0, 0], said[0].read_text()
    assert "2 processes share" in said[0].read_text() and not said[1].read_text()
    assert answers_of(tmp_path) == answers_of(experiment)
    walked = read_strictly(only(tmp_path / "closed_loop", "summary_*.json"))
    assert walked["config"]["processes"] == 1


@pytest.mark.slow
def test_every_key_and_file_of_a_training_run_is_documented(experiment):
    run = experiment / "ipo_0"
    found = read_strictly(run / "run.json")
    assert found.pop("environment") and found["config"].pop("model")  # as in a sweep's files
    lines = read_lines(run / "metrics.jsonl") + read_lines(run / "completions.jsonl")
    found = [found, *lines, read_strictly(run / "eval_base.json")]
    assert undocumented(found, section_of("rl/train_rl_memory.py")) == []

    files = {re.sub(r"-\d+$", "-<N>", path.name) for path in run.iterdir()}
    text = section_of("rl/train_rl_memory.py") + section_of("rl/run_experiment.py")
    assert not [name for name in files if f"`{name}" not in text]


@pytest.mark.slow
def test_every_key_of_an_experiment_is_documented(experiment):
    sections = section_of("rl/run_experiment.py"), section_of("evaluate_rl.py"), read("cot")
    for pattern in ("results_temp_0.0_*.json", "summary_*.json", "closed_loop/summary_*.json"):
        (path,) = experiment.glob(pattern)
        assert undocumented(read_strictly(path), *sections) == []


@pytest.fixture(scope="module")
def evaluation(experiment) -> Path:
    """The results of an evaluation of that training and its base."""
    flags = ["--trained", experiment / "ipo_0", "--students", "generated:3", "--device", "cpu"]
    flags += ["--chapters", "addition", "--exercises_per_chapter", 2, "--practice", 1]
    flags += ["--max_new_tokens", 24, "--output_dir", experiment]
    code, _, stderr = run_here(evaluate_rl.main, *flags)
    assert code == 0, stderr
    return experiment / "evaluation"


@pytest.mark.slow
def test_every_key_of_an_evaluation_is_documented(evaluation):
    for pattern in ("results_temp_*.json", "summary_*.json"):
        found = read_strictly(only(evaluation, pattern))
        for policy in found["config"]["policies"]:
            policy.pop("reward_weights")  # its keys are the reward's parts
        assert undocumented(found, section_of("evaluate_rl.py"), read("cot")) == []


@pytest.mark.slow
@needs_jq
def test_the_jq_lines_of_the_evaluation_run(evaluation):
    (block,) = blocks(read("rl"), "jq")
    verdicts, tables = run_lines(block.strip().split("\n"), evaluation)
    assert "Does memory help at inference? base: undecided" in verdicts
    assert list(json.loads(tables)) == ["base", "ipo"]


@pytest.mark.slow
def test_what_was_trained_again_is_answered_again_and_nothing_else(experiment, tmp_path):
    before, weights = answers_of(experiment), experiment / "ipo_0" / "model" / "model.safetensors"
    trained, kept = (experiment / "ipo_0" / "run.json").stat().st_mtime_ns, weights.read_bytes()
    flags = ["--model_name", experiment / "says_1", "--output_dir", experiment, *SMALL, "--arms", "ipo"]
    weights.write_bytes((says(tmp_path / "says_2", "2") / "model.safetensors").read_bytes())
    code, stdout, stderr = run_here(main, *flags)
    assert code == 0, stderr
    weights.write_bytes(kept)

    # it is another policy: the old answers of `ipo` are in no table, and the base is not asked again
    assert (experiment / "ipo_0" / "run.json").stat().st_mtime_ns == trained
    after = answers_of(experiment)
    texts = {
        arm: [
            [record["generated_text"] for record in found if record["arm"] == arm]
            for found in (before, after)
        ]
        for arm in ("ipo", "base")
    }
    assert [set("".join(found)) for found in texts["ipo"]] == [{"1"}, {"2"}]
    assert len(texts["ipo"][0]) == len(texts["ipo"][1]) and texts["base"][0] == texts["base"][1]
    assert f"{len(texts['ipo'][1])} of {len(after)} rows left" in stdout


@pytest.mark.slow
def test_a_training_with_other_settings_is_not_taken_for_this_ones(experiment):
    flags = ["--model_name", experiment / "says_1", "--output_dir", experiment, *SMALL]
    code, _, stderr = run_here(main, *flags, "--arms", "ipo", "--max_steps", "2")
    assert code == 2 and "--max_steps 2: the checkpoint was made with 1" in stderr
