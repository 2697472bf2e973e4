"""Training that learns nothing, or that a checkpoint's own settings would spoil, from the command line."""

import json

import pytest
from conftest import CHATML, IM, plant_policy, read_lines, read_strictly, run_here

from rl.train_rl_memory import main

DIGITS = {"1": 0.3, "2": 0.3}
ENDLESS = {"": DIGITS | {"3": 0.4}}  # never ends a turn


@pytest.fixture
def train(tmp_path):
    """Runs the script on a policy; its exit code and all that it prints."""

    def run(model, **changes) -> tuple[int, str]:
        base = {
            "preset": "cpu",
            "model_name": model,
            "students": "generated:4",
            "max_steps": 2,
            "num_generations": 4,
            "prompts_per_step": 2,
            "max_completion_length": 8,
            "memory_tokens": 40,
            "eval_size": 0,
            "sample_every": 1,
            "learning_rate": 0.001,
            "reward_weights": "correct=1,coin=1",  # digits are never right: only the coin tells them apart
            "output_dir": tmp_path / "run",
        }
        argv = [f"--{name}={value}" for name, value in (base | changes).items()]
        code, out, error = run_here(main, *argv)
        print(out, error)  # pytest shows it when the test fails
        return code, out + error

    return run


@pytest.fixture
def lines(tmp_path):
    """The JSON lines of a file in the run's folder."""
    return lambda name: read_lines(tmp_path / "run" / name)


@pytest.fixture
def stopped_early(tmp_path):
    """Leaves a finished run as one that was stopped before its last checkpoint, that of this step."""

    def leave(step: int) -> None:
        path = tmp_path / "run" / "run.json"
        path.write_text(json.dumps(read_strictly(path) | {"status": "cancelled"}))
        (tmp_path / "run" / f"checkpoint-{step}").rename(tmp_path / "gone")

    return leave


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A chat policy that ends its turns with `<|im_end|>`; its tokenizer and config name `<|end|>`."""
    after = {"": DIGITS | {"<|im_end|>": 0.4}}
    return plant_policy(tmp_path_factory.mktemp("ending"), after, CHATML, IM)


# --- steps that teach nothing -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_whose_completions_are_all_clipped_warns_and_then_stops(train, lines, tmp_path):
    endless = plant_policy(tmp_path / "policy", ENDLESS, CHATML, IM)
    code, said = train(endless, max_steps=40)
    assert code == 1
    cut = "100% of the completions were cut at --max_completion_length 8 and are masked; none wrote an end"
    assert said.count("warning: ") == 1 and f"warning: the last 5 steps: {cut}" in said
    assert f"stopped at step 20: the last 20 steps taught nothing: {cut} (<|end|>, <|im_end|>)" in said
    assert len(lines("metrics.jsonl")) == 20
    assert read_strictly(tmp_path / "run" / "run.json")["status"] == "error"
    assert not (tmp_path / "run" / "model").exists()

    # the same command does not forget what it has seen
    code, said = train(endless, max_steps=40)
    assert code == 1 and "stopped at step 21" in said


@pytest.mark.slow
def test_a_short_run_that_taught_nothing_is_no_success_however_often_it_is_repeated(train, tmp_path):
    model = plant_policy(tmp_path / "policy", {"": {"1": 1.0}, "1": {"<|im_end|>": 1.0}}, CHATML, IM)
    for _ in range(2):
        code, said = train(model, max_steps=2, reward_weights="correct=1")
        assert code == 1
        assert "stopped at step 2: none of the 2 steps taught anything: 100% of the groups had no sp" in said
        assert read_strictly(tmp_path / "run" / "run.json")["status"] == "error"
        assert not (tmp_path / "run" / "model").exists()


# --- the checkpoint's own settings ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_models_generation_settings_spoil_neither_texts_nor_saving(train, lines, tmp_path, stopped_early):
    model = plant_policy(tmp_path / "policy", {"": DIGITS | {"<|end|>": 0.4}}, CHATML.replace("im_", ""))
    path = model / "generation_config.json"
    own = {"suppress_tokens": [1], "no_repeat_ngram_size": 1, "min_new_tokens": 6, "temperature": 0.7}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))  # they cannot even be saved

    code, said = train(model, save_steps=1)
    assert code == 0
    (told,) = (line for line in said.split("\n") if line.startswith("generation settings of the model that"))
    assert all(name in told for name in ("suppress_tokens [1]", "no_repeat_ngram_size 1", "temperature 0.7"))
    assert set("".join(line["completion"] for line in lines("completions.jsonl"))) == {"1", "2"}
    assert all(step["completions/clipped_ratio"] < 0.5 for step in lines("metrics.jsonl"))
    kept = read_strictly(tmp_path / "run" / "model" / "generation_config.json")
    assert kept["eos_token_id"] == 1 and "temperature" not in kept and "suppress_tokens" not in kept

    stopped_early(2)
    assert train(model, save_steps=1)[0] == 0
    assert (tmp_path / "run" / "checkpoint-2" / "generation_config.json").exists()


# --- data without a split ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_of_questions_is_split_and_the_held_out_ones_are_named(train, lines, ending, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(ending, dataset=path, max_steps=4, eval_size=6)[0] == 0
    config = read_strictly(tmp_path / "run" / "run.json")["config"]
    assert config["dataset_source"] == f"{path}, 18 of 20 questions"
    held_out = f"2 questions of {path}, split off by seed 0"
    assert config["eval"] == f"6 held-out exercises ({held_out}), memory: own"
    trained = {line["question_id"] for line in lines("completions.jsonl")}
    assert len(config["held_out"]) == 2 and trained and not trained & set(config["held_out"])


# --- several iterations -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_of_several_iterations_is_logged_and_a_run_of_them_resumes_with_the_same_prompts(
    train, lines, ending, stopped_early
):
    def prompts() -> list:
        return [(line["step"], line["prompt"]) for line in lines("completions.jsonl")[::8]]

    options = {"max_steps": 5, "save_steps": 3, "grpo": "num_iterations=2"}
    assert train(ending, **options)[0] == 0
    steps = lines("metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert ["reward" in step for step in steps] == [True, False, True, False, True]
    assert all(step["step_s"] > 0 and "grad_norm" in step and "loss" in step for step in steps)
    straight = prompts()
    assert [step for step, _ in straight] == [1, 3, 5]

    # continues in the middle of a batch, which is answered once more
    stopped_early(5)
    assert train(ending, **options)[0] == 0
    assert prompts() == [*straight[:2], (4, straight[1][1]), straight[2]]
