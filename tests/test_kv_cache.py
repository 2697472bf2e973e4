"""Architectures that the engine can decode in batches load; the others are one line at load."""

from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_tokenizer

from cot.utils.completions import Request
from cot.utils.engine import TransformersEngine
from cot.utils.errors import UserError
from cot.utils.models import load_model

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = SIZES | {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
NO_CACHE = "no cache of keys and values that grows"


def save(folder: Path, config: str, **sizes) -> Path:
    """A random model of an architecture, with the tests' tokenizer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = getattr(transformers, config)(vocab_size=len(tokenizer), initializer_range=0.4, **ids, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "sizes", "problem"),
    [
        ("MambaConfig", SIZES, NO_CACHE),
        ("RecurrentGemmaConfig", ATTENTION | {"num_hidden_layers": 3}, NO_CACHE),
        ("OpenAIGPTConfig", GPT, NO_CACHE),
        ("MiniMaxConfig", ATTENTION | {"num_local_experts": 2, "head_dim": 8, "block_size": 4}, ""),
        ("TrOCRConfig", BART, "a left-padded row gets other logits"),
    ],
)
def test_an_architecture_that_cannot_be_decoded_in_batches_is_named_at_load(tmp_path, config, sizes, problem):
    folder = save(tmp_path, config, **sizes)
    with pytest.raises(UserError, match=r"model_type .* cannot be decoded in batches: ") as caught:
        load_model(str(folder), "cpu", "float32")
    assert problem in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("DogeConfig", {}),  # its mask differs by head: the grouped attention would break it
        ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 4}),
        ("FalconH1Config", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8}),
        ("Lfm2Config", {"full_attn_idxs": [1]}),
    ],
)
def test_sliding_hybrid_and_other_attention_loads_and_decodes_as_without_cache(tmp_path, config, sizes):
    model, tokenizer = load_model(str(save(tmp_path, config, **ATTENTION | sizes)), "cpu", "float32")
    prompts = [(40, 50, 60, 70, 80), (90, 100)]
    assert model.config._attn_implementation == "sdpa"  # the check leaves it as it was
    engine = TransformersEngine(model, tokenizer, max_new_tokens=6)
    got = dict(pair for batch in engine.generate([Request(p, 0.0, "") for p in prompts]) for pair in batch)
    for place, prompt in enumerate(prompts):
        ids = list(prompt)
        with torch.inference_mode():
            for token in got[place].token_ids:
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert logits.argmax() == token
                ids.append(token)
