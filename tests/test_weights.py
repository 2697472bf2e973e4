"""Checkpoints that do not hold what their model needs, and vocabularies that do not belong to it."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import load_refusal
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from cot.utils.models import load_model

BIAS = "model.layers.0.self_attn.q_proj.bias"
TABLE = "model.layers.0.self_attn.rotary_emb.inv_freq"


def change(folder: Path, edit) -> None:
    """Rewrites the weights of a folder as `edit` makes them of a dictionary."""
    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors", {"format": "pt"})


def tie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(tensors):
    return {f"old.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (without("lm_head.weight"), ["do not fit LlamaForCausalLM: missing 1 (lm_head.weight)"]),
        # two layers of 9 tensors, embedding, last norm and head
        (renamed, ["missing 21 (lm_head.weight, model.embed_tokens.", "unknown 21 (old.lm_head.weight, "]),
        (lambda tensors: tensors | {BIAS: torch.ones(32)}, [f"unknown 1 ({BIAS})"]),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(31)},
            ["of another shape 1 (model.norm.weight [31] instead of [32])"],
        ),
    ],
    ids=["missing", "renamed", "unknown", "misshapen"],
)
def test_weights_that_do_not_fit_are_named_and_never_filled_with_random_numbers(
    spoilable, capfd, edit, parts
):
    change(spoilable, edit)
    line = load_refusal(spoilable)
    assert all(part in line for part in [f"{spoilable}: ", *parts])
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_an_expert_of_which_a_part_is_missing_is_named(tiny_llama, tmp_path):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen2MoeConfig(vocab_size=296, shared_expert_intermediate_size=16, **sizes, **experts)
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path)
    tiny_llama[1].save_pretrained(tmp_path)
    load_model(str(tmp_path), "cpu", "float32")
    change(tmp_path, without("model.layers.0.mlp.experts.1.gate_proj.weight"))
    assert "parts missing or misshapen of 1 (model.layers.0.mlp.experts.gate_up_proj)" in load_refusal(
        tmp_path
    )


def test_a_tied_head_need_not_be_stored_but_its_table_must_be(spoilable, tiny_llama):
    tie(spoilable)
    change(spoilable, without("lm_head.weight"))
    model, _ = load_model(str(spoilable), "cpu", "float32")
    assert torch.equal(model.lm_head.weight, tiny_llama[0].model.embed_tokens.weight)
    change(spoilable, without("model.embed_tokens.weight"))
    assert "missing" in load_refusal(spoilable)


def test_rotary_tables_of_older_checkpoints_are_no_weights_and_load_without_a_word(spoilable, capfd):
    change(
        spoilable,
        lambda tensors: tensors | {TABLE: torch.ones(4), "model.rotary_emb.inv_freq": torch.ones(4)},
    )
    load_model(str(spoilable), "cpu", "float32")
    assert "[transformers]" not in capfd.readouterr().err


# ---- tokenizers


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(spoilable, tiny_llama, special):
    tokenizer = deepcopy(tiny_llama[1])
    tokens = [AddedToken(name, special=special) for name in ("<more>", "<other>")]
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": tokens})
    else:
        tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(spoilable)
    assert "the model has 296 tokens, the tokenizer further 2 (<more>, <other>)" in load_refusal(spoilable)


def test_a_token_that_only_the_tokenizers_class_adds_does_no_harm(tiny_qwen2, tmp_path):
    for part in tiny_qwen2:
        part.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), "cpu", "float32")
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 296 == model.lm_head.out_features
