"""Checkpoints that do not hold what their model needs, and vocabularies that do not belong to it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cot.utils.errors import UserError
from cot.utils.models import load_model


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(folder: Path, edit) -> None:
    """Rewrites the weights of a folder as `edit` makes them of a dictionary."""
    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors", {"format": "pt"})


def rename_config(folder: Path, **changes) -> None:
    from cot.utils.files import read_json, write_json

    write_json(folder / "config.json", read_json(folder / "config.json") | changes)


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def refusal(folder: Path) -> str:
    """The line with which loading ends, which must be a usage error."""
    with pytest.raises(UserError) as caught:
        load_model(str(folder), "cpu", "float32")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_missing_head_is_named_and_not_filled_with_random_numbers(folder):
    change(folder, without("lm_head.weight"))
    assert f"{folder}: its weights do not fit LlamaForCausalLM: missing 1 (lm_head.weight)" in refusal(folder)


def test_renamed_weights_are_counted_and_the_first_named(folder, capfd):
    change(folder, lambda tensors: {f"old.{name}": tensor for name, tensor in tensors.items()})
    line = refusal(folder)
    # two layers of 9 tensors, embedding, last norm and head
    assert "missing 21 (lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm" in line
    assert "unknown 21 (old.lm_head.weight, " in line
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_weight_that_nothing_takes_is_named(folder):
    change(folder, lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    assert "unknown 1 (model.layers.0.self_attn.q_proj.bias)" in refusal(folder)


def test_another_shape_is_named_with_both(folder):
    change(folder, lambda tensors: tensors | {"model.norm.weight": torch.ones(31)})
    assert "of another shape 1 (model.norm.weight [31] instead of [32])" in refusal(folder)


def test_an_expert_of_which_a_part_is_missing_is_named(tiny_llama, tmp_path):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen2MoeConfig(vocab_size=296, shared_expert_intermediate_size=16, **sizes, **experts)
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path)
    tiny_llama[1].save_pretrained(tmp_path)
    load_model(str(tmp_path), "cpu", "float32")
    change(tmp_path, without("model.layers.0.mlp.experts.1.gate_proj.weight"))
    assert "parts missing or misshapen of 1 (model.layers.0.mlp.experts.gate_up_proj)" in refusal(tmp_path)


def test_a_tied_head_need_not_be_stored(folder, tiny_llama):
    rename_config(folder, tie_word_embeddings=True)
    change(folder, without("lm_head.weight"))
    model, _ = load_model(str(folder), "cpu", "float32")
    assert torch.equal(model.lm_head.weight, tiny_llama[0].model.embed_tokens.weight)


def test_a_tied_table_that_is_not_stored_at_all_is_missed(folder):
    rename_config(folder, tie_word_embeddings=True)
    change(folder, without("lm_head.weight", "model.embed_tokens.weight"))
    assert "missing" in refusal(folder)


def test_rotary_tables_of_older_checkpoints_are_no_weights(folder):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change(folder, lambda tensors: tensors | table | {"model.rotary_emb.inv_freq": torch.ones(4)})
    load_model(str(folder), "cpu", "float32")


# ---- tokenizers


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder, tiny_llama, special):
    from copy import deepcopy

    from tokenizers import AddedToken

    tokenizer = deepcopy(tiny_llama[1])
    tokens = [AddedToken(name, special=special) for name in ("<more>", "<other>")]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}) if special else tokenizer.add_tokens(
        tokens
    )
    tokenizer.save_pretrained(folder)
    assert "the model has 296 tokens, the tokenizer further 2 (<more>, <other>)" in refusal(folder)


def test_a_token_that_only_the_tokenizers_class_adds_does_no_harm(tiny_qwen2, tmp_path):
    for part in tiny_qwen2:
        part.save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), "cpu", "float32")
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 296 == model.lm_head.out_features


def test_an_honest_model_loads_without_a_word(tiny_folder, capfd):
    load_model(str(tiny_folder), "cpu", "float32")
    assert "[transformers]" not in capfd.readouterr().err
