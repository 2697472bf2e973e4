"""Around a training: the held-out evaluation, the advice when memory is full, and what devices allow."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import plant_policy
from transformers import Qwen2ForCausalLM
from trl import GRPOConfig

from cot.utils.errors import UserError
from cot.utils.memory_arms import MemoryArms, PromptShape
from cot.utils.models import load_model
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import Question
from cot.utils.student_files import load_profiles
from rl.trainer import make_evaluator, settle_devices, smaller_batch


@pytest.mark.parametrize(
    ("size", "accumulation", "advice"),
    [
        (8, 1, "--per_device_train_batch_size 4"),
        (12, 1, "--per_device_train_batch_size 6"),
        (5, 1, "--per_device_train_batch_size 1"),
        (1, 8, "--use_peft, or a smaller --max_completion_length or --num_generations"),
    ],
)
def test_the_next_valid_batch_is_named_then_what_else_saves_memory(size, accumulation, advice):
    config = SimpleNamespace(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
    assert smaller_batch(config) == advice


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Folders of two policies, by what each answers to everything."""
    root = tmp_path_factory.mktemp("policies")
    return {digit: plant_policy(root / digit, {"": {digit: 1.0}, digit: {"<|end|>": 1.0}}) for digit in "12"}


@pytest.fixture
def evaluator(policies, tmp_path):
    """Makes a function that evaluates a policy on questions, by their gold answers, for the student S001."""
    arms = MemoryArms(load_profiles(PROFILES_DIR), {}, embedder=None, seed=0)
    _, tokenizer = load_model(str(policies["1"]), "cpu", "float32")

    def make(questions: dict[str, str], arm: str):
        asked = [Question(text, text, f"#### {gold}") for text, gold in questions.items()]
        return make_evaluator(
            tokenizer=tokenizer,
            arms=arms,
            moments=[arms.moment("S001", question) for question in asked],
            arm=arm,
            shape=PromptShape("Solve.", memory_tokens=200),
            max_prompt_tokens=None,
            max_new_tokens=4,
            seed=5,
            base_file=tmp_path / "eval_base.json",
        )

    return make


@pytest.mark.parametrize("arm", ["own", "none"])
def test_breakage_counts_against_what_the_first_policy_had_right(evaluator, policies, tmp_path, arm):
    evaluate = evaluator({"a?": "1", "b?": "1", "c?": "2", "d?": "1"}, arm)
    (one, tokenizer), (two, _) = (load_model(str(policies[digit]), "cpu", "float32") for digit in "12")
    prompts = []
    one.register_forward_pre_hook(
        lambda _, args, named: prompts.extend(tokenizer.batch_decode(named["input_ids"])), with_kwargs=True
    )
    one.train()
    first, second = evaluate(one), evaluate(two)
    assert one.training  # as it was
    assert (first["accuracy"], first["breakage"], first["output_tokens"]) == (0.75, 0.0, 2.0)  # 1 and its end
    assert (second["accuracy"], second["breakage"]) == (0.25, 1.0)  # of three that were right
    measures = ["fidelity", "style", "support_fit", "copying", "names_student"]
    assert set(second) == {"accuracy", *measures, "output_tokens", "breakage"}
    assert json.loads((tmp_path / "eval_base.json").read_text()) == {"correct": [True, True, False, True]}
    asked = [prompt for prompt in prompts if "Solve." in prompt]
    assert len(asked) >= 4 and all(("Student S001," in prompt) == (arm == "own") for prompt in asked)


def test_an_answer_that_failed_counts_as_wrong_in_everything(evaluator, policies):
    evaluate = evaluator({"1 + " * 2048: "1"}, "none")  # longer than the context
    scores = evaluate(load_model(str(policies["1"]), "cpu", "float32")[0])
    assert scores.pop("breakage") is None  # nothing was right before
    assert set(scores.values()) == {0.0}


class SmallMemory(Qwen2ForCausalLM):
    """Runs out of memory where a pass has too many tokens a row."""

    tokens_that_fit = 0

    def forward(self, input_ids=None, **kwargs):
        if input_ids.shape[1] > self.tokens_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(input_ids=input_ids, **kwargs)


def test_held_out_answers_for_which_memory_ran_out_are_left_out(evaluator, policies, tmp_path, capsys):
    """Of the second of three, whose prompt is the longest, and then of all."""
    model = SmallMemory.from_pretrained(policies["1"])
    evaluate = evaluator({"a?": "1", "1 + " * 12: "1", "b?": "1"}, "none")
    model.tokens_that_fit = 40
    first = evaluate(model)
    assert "warning: memory ran out for 1 of 3 held-out answers" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval_base.json").read_text()) == {"correct": [True, None, True]}
    assert (first["accuracy"], first["output_tokens"]) == (1.0, 2.0)

    model.tokens_that_fit = 0
    assert set(evaluate(model).values()) == {None}


@pytest.mark.parametrize(
    ("spared", "beta", "use_peft", "distributed", "said"),
    [
        ("true", 0.1, False, "FSDP", "add --fsdp_cpu_ram_efficient_loading false"),
        ("true", 0.0, False, "FSDP", ""),
        ("true", 0.1, True, "FSDP", ""),
        ("false", 0.1, False, "FSDP", ""),
        (
            "true",
            0.1,
            False,
            "MULTI_CPU",
            "FSDP:  off; accelerate spreads weights over several GPUs only",
        ),
    ],
)
def test_a_reference_policy_that_sharding_would_spoil_is_refused_and_a_cpu_shards_nothing(
    spared, beta, use_peft, distributed, said, monkeypatch, capsys
):
    config = GRPOConfig(use_cpu=True, bf16=False, beta=beta)
    processes = SimpleNamespace(distributed_type=DistributedType[distributed])
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", spared)
    if said.startswith("add"):
        with pytest.raises(UserError, match=said):
            settle_devices(config, use_peft, processes)
    else:
        settle_devices(config, use_peft, processes)
        assert capsys.readouterr().out.strip() == said
