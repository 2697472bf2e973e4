"""Adapters that fit their base, and the ways in which they do not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import load_refusal, make_model
from safetensors.torch import load_file, save_file

from cot.utils.model_names import resolve_model
from cot.utils.models import describe_model, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PEFT, while it saves
]

WEIGHTS = "adapter_model.safetensors"
IDS = torch.tensor([[40, 50, 60]])


@pytest.fixture(scope="module")
def tied_folder(tiny_llama, tmp_path_factory) -> Path:
    """The tiny model with one table for both ends."""
    folder = tmp_path_factory.mktemp("tied")
    model = make_model("llama", 296)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(folder)
    tiny_llama[1].save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, rows: int | None = None, **config) -> torch.Tensor:
    """Saves an adapter whose weights are not zero; returns the adapted model's logits."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = load_model(str(base), "cpu", "float32")[0]
    if rows:
        model.resize_token_embeddings(rows)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **config)).eval()
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    adapted.save_pretrained(folder)
    with torch.inference_mode():
        return adapted(IDS).logits


def change(folder: Path, edit) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


@pytest.fixture(scope="module")
def honest(tiny_folder, tmp_path_factory) -> Path:
    """An adapter as the training writes it."""
    folder = tmp_path_factory.mktemp("adapters") / "honest"
    train(tiny_folder, folder, target_modules="all-linear", task_type="CAUSAL_LM")
    return folder


@pytest.fixture
def adapter(honest, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(honest, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("tied", "config"),
    [
        (False, {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}),
        (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        (True, {"target_modules": ["embed_tokens", "lm_head"]}),
        (True, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
        (True, {"target_modules": ["q_proj"], "trainable_token_indices": [40]}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_merged_adapter_answers_as_the_adapted_model_did(tiny_folder, tied_folder, tmp_path, tied, config):
    logits = train(tied_folder if tied else tiny_folder, tmp_path / "adapter", **config)
    source = resolve_model(str(tmp_path / "adapter"))
    model, _ = load_model(source, "cpu", "float32")
    assert describe_model(source, model)["base"] == str(tied_folder if tied else tiny_folder)
    with torch.inference_mode():
        merged = model(IDS).logits
        torch.testing.assert_close(merged, logits, atol=2e-3, rtol=1e-4)
        model.save_pretrained(tmp_path / "merged")  # as the reference policy of a training is
    again = type(model).from_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(again(IDS).logits, merged)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        # two layers of 7 matrices, each with A and B
        (
            lambda tensors: {name.replace("layers", "blocks"): t for name, t in tensors.items()},
            ["missing 28 (base_model.model.", "unknown 28 (base_model.model.model.blocks.0.mlp.down_proj."],
        ),
        (
            lambda tensors: {name: t for name, t in tensors.items() if "layers.0" in name},
            ["missing 14 (base_model.model.model.layers.1."],
        ),
        (
            lambda tensors: tensors | {n.replace("s.0", "s.2"): t.clone() for n, t in tensors.items()},
            ["unknown 14 (base_model.model.model.layers.2."],
        ),
    ],
    ids=["other names", "half of the layers", "a deeper base"],
)
def test_weights_that_do_not_fit_the_base_are_refused(adapter, edit, parts):
    change(adapter, edit)
    line = load_refusal(adapter)
    assert all(part in line for part in ["/adapter: its weights do not fit its base ", *parts])


def test_another_rank_is_named(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    assert "lora_A.weight [2, 64] instead of [4, 64], " in load_refusal(adapter)


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_that_was_made_larger_is_taken_over(tiny_folder, tied_folder, tmp_path, tied):
    base = tied_folder if tied else tiny_folder
    logits = train(base, tmp_path / "adapter", rows=300, target_modules="all-linear")
    model, _ = load_model(str(tmp_path / "adapter"), "cpu", "float32")
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, logits, atol=1e-3, rtol=1e-4)
    assert model.config.vocab_size == 300 == logits.shape[-1]


def test_a_learned_prompt_is_no_adapter_that_merges(tiny_folder, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    model = load_model(str(tiny_folder), "cpu", "float32")[0]
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    assert "an adapter of kind PROMPT_TUNING cannot be merged" in load_refusal(tmp_path / "adapter")
