"""Rollouts end where the engine's texts end, and obey no generation setting of the checkpoint."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import CHATML, IM, plant_policy
from datasets import Dataset
from trl import GRPOConfig

from cot.utils.engine import TransformersEngine
from cot.utils.errors import UserError
from cot.utils.models import end_token_ids, load_model
from rl.rollouts import MemoryTrainer, make_generation_neutral, prepare_vllm

STOP = ("\nQuestion:",)


def make_trainer(folder, tmp_path, stop=(), prompts=2, max_completion_length=12):
    """A trainer on a policy's folder, whose reward is the number of characters; and what the reward saw."""
    model, tokenizer = load_model(str(folder), "cpu", "float32")
    make_generation_neutral(model, tokenizer)
    rows = []
    for number in range(prompts):
        text = f"Question: {number}+1?\nAnswer:"
        ids = tokenizer.encode(text, add_special_tokens=False)
        rows.append({"prompt": text, "prompt_ids": ids, "stop": list(stop)})
    seen = []

    def length(completions, completion_ids, **_):
        seen.append((completions, completion_ids))
        return [float(len(text)) for text in completions]

    config = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        num_generations=8,
        per_device_train_batch_size=8 * prompts,
        max_completion_length=max_completion_length,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        mask_truncated_completions=True,
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = MemoryTrainer(
        model=model,
        reward_funcs=[length],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, seen


def inputs_of(trainer, prompts=2):
    """What the loss gets of a step's completions."""
    rows = [row for row in trainer.train_dataset for _ in range(8)]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows[: 8 * prompts])


# --- where a turn ends ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ends_in_im_end(tmp_path_factory):
    """A chat policy that ends its turns with `<|im_end|>`; its tokenizer and config name `<|end|>`."""
    after = {"": {"<|im_end|>": 0.25, "1": 0.375, "2": 0.375}}
    return plant_policy(tmp_path_factory.mktemp("policy"), after, CHATML, IM)


def test_a_turn_ends_where_the_engine_ends_it_whatever_the_tokenizer_calls_eos(ends_in_im_end, tmp_path):
    trainer, seen = make_trainer(ends_in_im_end, tmp_path)
    tokenizer = trainer.processing_class
    engine = TransformersEngine(trainer.model, tokenizer, max_new_tokens=12)
    assert set(trainer.eos_token_ids) == engine.end_ids == set(trainer.generation_config.eos_token_id)
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|end|>"
    inputs = inputs_of(trainer)
    texts, ids = seen[0]
    ended = [row[-1] == im_end for row in ids]
    assert sum(ended) > 8  # each of 16 reaches 12 tokens with probability .75^12 = .03
    assert all(im_end not in row[:-1] for row in ids) and all(text.strip("12") == "" for text in texts)
    clipped = trainer._metrics["train"]["completions/clipped_ratio"][0]
    assert clipped == 1 - sum(ended) / 16
    counted = inputs["completion_mask"].sum(dim=1).tolist()
    order = sorted(len(row) * end for row, end in zip(ids, ended, strict=True))
    assert sorted(counted) == order  # a clipped one is masked, an ended one counts with its end


def test_an_end_that_is_no_special_token_is_not_part_of_the_text(tmp_path):
    after = {"": {"<|im_end|>": 0.5, "1": 0.5}}
    folder = plant_policy(tmp_path / "policy", after, CHATML, words=IM)
    trainer, seen = make_trainer(folder, tmp_path)
    inputs_of(trainer)
    assert set("".join(seen[0][0])) == {"1"}


def test_a_model_without_any_end_is_refused():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None), name_or_path="endless")
    tokenizer = SimpleNamespace(eos_token_id=None, chat_template=None, get_added_vocab=dict)
    with pytest.raises(UserError, match="--model_name endless: neither its tokenizer nor"):
        make_generation_neutral(model, tokenizer)


# --- the checkpoint's own settings ------------------------------------------------------------------------

OWN = {"no_repeat_ngram_size": 1, "min_new_tokens": 6, "repetition_penalty": 5.0}
OWN |= {"temperature": 0.01, "top_k": 1, "top_p": 0.1}


@pytest.fixture
def opinionated(ends_in_im_end, tmp_path):
    """The same policy with generation settings that change every text."""
    model, tokenizer = load_model(str(ends_in_im_end), "cpu", "float32")
    suppressed = tokenizer.convert_tokens_to_ids(["1", "<|im_end|>"])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OWN | {"suppress_tokens": suppressed}))
    return tmp_path / "policy"


def test_the_checkpoints_generation_settings_do_not_reach_the_rollouts(opinionated, ends_in_im_end, tmp_path):
    texts = []
    for folder in (ends_in_im_end, opinionated):
        trainer, seen = make_trainer(folder, tmp_path)
        torch.manual_seed(3)
        inputs_of(trainer)
        texts.append(seen[0][0])
    assert texts[0] == texts[1]
    assert {"1", "2"} <= set("".join(texts[0]))


def test_what_is_set_aside_is_told_and_what_is_left_can_be_saved(opinionated, tmp_path):
    model, tokenizer = load_model(str(opinionated), "cpu", "float32")
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "before")
    aside = make_generation_neutral(model, tokenizer)
    assert set(aside) == {*OWN, "suppress_tokens"}
    model.save_pretrained(tmp_path / "after")
    kept = json.loads((tmp_path / "after" / "generation_config.json").read_text())
    assert set(kept["eos_token_id"]) == end_token_ids(model, tokenizer)
    assert not set(kept) & {*OWN, "suppress_tokens"}


# --- a model without a chat template ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs_on(tmp_path_factory):
    """A plain policy that never ends: after an answer of digits it writes the next question."""
    after = {"": {"1": 0.4, "2": 0.4, "Ċ": 0.2}, "Ċ": {"Question": 1.0}}
    after |= {"Question": {":": 0.5, "s": 0.5}, ":": {"9": 1.0}}
    return plant_policy(tmp_path_factory.mktemp("policy"), after, words=["Question"])


def test_a_plain_completion_ends_at_the_stop_text_and_only_what_was_drawn_is_trained(runs_on, tmp_path):
    trainer, seen = make_trainer(runs_on, tmp_path, stop=STOP)
    inputs = inputs_of(trainer)
    tokenizer, (texts, ids) = trainer.processing_class, seen[0]
    stopped = [row[-1] == tokenizer.eos_token_id for row in ids]
    assert any(stopped) and not all(stopped)
    for text, row, end in zip(texts, ids, stopped, strict=True):
        assert "\nQuestion:" not in text
        if end:
            assert tokenizer.decode(row[:-1]) == text + "\nQuestion:"
        else:
            assert len(row) == 12  # cut off
    assert trainer._metrics["train"]["completions/clipped_ratio"][0] == 1 - sum(stopped) / 16

    mask = inputs["completion_mask"] * inputs["tool_mask"]
    padded_ids, width = inputs["completion_ids"].tolist(), inputs["completion_ids"].shape[1]
    rows = {tuple(row): trained for row, trained in zip(padded_ids, mask.tolist(), strict=True)}
    for row, end in zip(ids, stopped, strict=True):
        padded = (*row, *[tokenizer.pad_token_id] * (width - len(row)))
        # every token that was drawn up to the stop text, not the end put behind it; nothing of a cut-off one
        trained = len(row) - 1 if end else 0
        assert rows[padded] == [1] * trained + [0] * (width - trained)


def test_no_stop_text_inside_a_reasoning_ends_a_rollout(tmp_path):
    after = {  # questions inside the reasoning, and one behind the answer
        "": {"8": 1.0},
        "<think>": {"Ċ": 1.0},
        "Ċ": {"Question": 1.0},
        "Question": {":": 1.0},
        ":": {"<think>": 0.5, "</think>": 0.5},
        "</think>": {"5": 1.0},
        "5": {"Ċ": 1.0},
    }
    words = ["<think>", "</think>", "Question"]
    folder = plant_policy(tmp_path / "policy", after, words=words)
    trainer, seen = make_trainer(folder, tmp_path, stop=STOP, max_completion_length=40)
    inputs_of(trainer)
    tokenizer, (texts, ids) = trainer.processing_class, seen[0]
    end = tokenizer.convert_tokens_to_ids("</think>")
    closed = [end in row for row in ids]
    assert any(closed)
    for text, row, is_closed in zip(texts, ids, closed, strict=True):
        assert text.rpartition("</think>")[2].strip() == "5" if is_closed else text.startswith("<think>")
        assert (row[-1] == tokenizer.eos_token_id) == (is_closed and len(row) < 40)


def test_without_a_stop_text_nothing_is_put_behind_a_completion(runs_on, tmp_path):
    trainer, seen = make_trainer(runs_on, tmp_path)
    inputs = inputs_of(trainer)
    assert "tool_mask" not in inputs and all(len(row) == 12 for row in seen[0][1])
    assert any("\nQuestion:" in text for text in seen[0][0])


def test_vllm_is_told_the_same_ends_and_the_user_has_the_last_word():
    config = SimpleNamespace(
        use_vllm=True, generation_kwargs={"stop": ["END"], "seed": 1}, vllm_max_model_length=None
    )
    prepare_vllm(config, ends=[5, 7], stop=STOP, length=300)
    assert config.vllm_max_model_length == 300
    assert config.generation_kwargs == {"stop_token_ids": [5, 7], "stop": ["END"], "seed": 1}
    untouched = SimpleNamespace(use_vllm=False, generation_kwargs=None)
    prepare_vllm(untouched, ends=[5], stop=STOP, length=300)
    assert untouched.generation_kwargs is None
    named = SimpleNamespace(use_vllm=True, generation_kwargs=None, vllm_max_model_length=90)
    prepare_vllm(named, ends=[5], stop=STOP, length=300)
    assert named.vllm_max_model_length == 90
