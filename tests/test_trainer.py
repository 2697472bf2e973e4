"""Around a training: the held-out evaluation, and the advice when memory is full."""

import json
from types import SimpleNamespace

import pytest
import torch

import rl.trainer
from cot.utils.memory_arms import MemoryArms, PromptShape
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import Question
from cot.utils.student_files import load_profiles
from rl.trainer import make_evaluator, smaller_batch


def test_the_next_valid_batch_is_named_then_what_else_saves_memory():
    def advice(size, accumulation):
        config = SimpleNamespace(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        return smaller_batch(config)

    assert advice(8, 1) == "--per_device_train_batch_size 4"
    assert advice(12, 1) == "--per_device_train_batch_size 6"
    assert advice(5, 1) == "--per_device_train_batch_size 1"
    assert advice(1, 8).startswith("--use_peft")


@pytest.fixture
def evaluator(tiny_llama, tmp_path, monkeypatch):
    """An evaluator of four moments whose policy's records are planted; and what the policy was asked."""
    asked, planted = [], []

    def answer(_engine, rows, prompts, _profiles, seed):
        asked.append((rows, prompts, seed))
        return planted.pop(0)

    monkeypatch.setattr(rl.trainer, "TransformersEngine", lambda *_args: None)
    monkeypatch.setattr(rl.trainer, "answer_now", answer)
    arms = MemoryArms(load_profiles(PROFILES_DIR), {}, embedder=None, seed=0)
    moments = [arms.moment("S001", Question(str(n), f"What is {n}+1?", "#### 1")) for n in range(4)]
    evaluate = make_evaluator(
        tokenizer=tiny_llama[1],
        arms=arms,
        moments=moments,
        arm="own",
        shape=PromptShape("Solve.", memory_tokens=200),
        max_prompt_tokens=None,
        max_new_tokens=8,
        seed=5,
        base_file=tmp_path / "eval_base.json",
    )
    return evaluate, planted, asked


def record(correct, fidelity=0.5, tokens=10):
    return {
        "correct": correct,
        "fidelity": fidelity,
        "style_met": True,
        "support_fit": 1.0,
        "copying": 0.0,
        "names_student": False,
        "output_tokens": tokens,
        "error": None,
    }


def test_breakage_counts_against_what_the_first_policy_had_right(evaluator, tmp_path):
    evaluate, planted, asked = evaluator
    model = torch.nn.Linear(1, 1).train()
    planted += [
        [record(True), record(True), record(False), record(True)],
        [record(True, fidelity=1.0, tokens=30), record(False), record(True), record(False)],
    ]
    first, second = evaluate(model), evaluate(model)
    assert (first["accuracy"], first["breakage"]) == (0.75, 0.0)
    assert second["breakage"] == round(2 / 3, 4)  # of three that were right
    assert (second["accuracy"], second["fidelity"], second["output_tokens"]) == (0.5, 0.625, 15.0)
    assert set(second) == {
        "accuracy",
        "fidelity",
        "style",
        "support_fit",
        "copying",
        "names_student",
        "output_tokens",
        "breakage",
    }
    assert json.loads((tmp_path / "eval_base.json").read_text()) == {"correct": [True, True, False, True]}
    assert model.training  # as it was

    rows, prompts, seed = asked[0]
    assert seed == 5 and {row.temperature for row in rows} == {0.0}
    assert all("Student S001," in prompt.text for prompt in prompts)


def test_an_answer_that_failed_counts_as_wrong_in_everything(evaluator):
    evaluate, planted, _ = evaluator
    planted.append([dict.fromkeys(record(True))] * 4)
    scores = evaluate(torch.nn.Linear(1, 1))
    assert scores.pop("breakage") is None  # nothing was right before
    assert set(scores.values()) == {0.0}


def test_held_out_answers_for_which_memory_ran_out_are_left_out(tiny_llama, tmp_path, capsys):
    """The third of four, whose prompt is the longest, and then all of them."""
    from test_engine import ShortLlama

    model, tokenizer = tiny_llama
    limited = ShortLlama(model.config).eval()
    limited.load_state_dict(model.state_dict())
    arms = MemoryArms(load_profiles(PROFILES_DIR), {}, embedder=None, seed=0)
    questions = [Question(str(n), f"{'1 + ' * 12 * (n == 2)}{n}?", "#### 123456") for n in range(4)]
    evaluate = make_evaluator(
        tokenizer=tokenizer,
        arms=arms,
        moments=[arms.moment("S001", question) for question in questions],
        arm="none",
        shape=PromptShape("Solve.", memory_tokens=200),
        max_prompt_tokens=None,
        max_new_tokens=4,
        seed=5,
        base_file=tmp_path / "eval_base.json",
    )
    limited.tokens_that_fit = 35  # of "Solve.", the question and "Answer:" the third has more
    first = evaluate(limited)
    assert "warning: memory ran out for 1 of 4 held-out answers" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval_base.json").read_text()) == {"correct": [False, False, None, False]}
    assert first["output_tokens"] > 0 and first["accuracy"] == 0.0

    limited.tokens_that_fit = 0
    nothing = evaluate(limited)
    assert set(nothing.values()) == {None}
