"""First-generation Qwen checkpoints (`model_type: qwen`, such as Qwen/Qwen-7B) without their remote code.

That code no longer imports under transformers 5, but its architecture is Qwen2's: with the names mapped below
the logits are equal to the original's. Tensors go shard by shard into a model without memory of its own, so
at most one tensor exists twice. The tokenizer is converted from `qwen.tiktoken`. Valid up to `seq_length`
positions; beyond it the original rescales attention, so that becomes the context length.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.errors import UserError
from cot.utils.files import read_json
from cot.utils.model_names import weight_files

if TYPE_CHECKING:
    import torch

END_OF_TEXT_ID = 151643
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
OUTER_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "ln_1.weight": ("input_layernorm.weight",),
    "ln_2.weight": ("post_attention_layernorm.weight",),
    "attn.c_attn.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "attn.c_attn.bias": tuple(f"self_attn.{part}_proj.bias" for part in "qkv"),
    "attn.c_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.w1.weight": ("mlp.up_proj.weight",),
    "mlp.w2.weight": ("mlp.gate_proj.weight",),
    "mlp.c_proj.weight": ("mlp.down_proj.weight",),
}


def map_name(name: str) -> tuple[str, ...]:
    """Names in Qwen2 that one tensor fills: three for the fused attention input, split along dim 0, else one.

    >>> map_name("transformer.h.3.mlp.w2.weight")
    ('model.layers.3.mlp.gate_proj.weight',)

    Raises:
        KeyError: the name belongs to another architecture.
    """
    layer = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", name)
    if layer is None:
        return (OUTER_NAMES[name],)
    return tuple(f"model.layers.{layer[1]}.{target}" for target in LAYER_NAMES[layer[2]])


def build_config(folder: Path):
    """Translates config.json to a `Qwen2Config`."""
    from transformers import Qwen2Config

    old = read_json(folder / "config.json")
    try:
        return Qwen2Config(
            vocab_size=old["vocab_size"],
            hidden_size=old["hidden_size"],
            intermediate_size=old["intermediate_size"] // 2,  # the file counts gate and up together
            num_hidden_layers=old["num_hidden_layers"],
            num_attention_heads=old["num_attention_heads"],
            num_key_value_heads=old["num_attention_heads"],
            rms_norm_eps=old["layer_norm_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": float(old["rotary_emb_base"])},
            max_position_embeddings=old["seq_length"],
            tie_word_embeddings=old.get("tie_word_embeddings", False),
            eos_token_id=END_OF_TEXT_ID,
            pad_token_id=END_OF_TEXT_ID,
        )
    except KeyError as error:
        raise UserError(
            f"{folder / 'config.json'}: {error.args[0]}: missing in a first-generation Qwen"
        ) from error


def load_qwen1(folder: Path, dtype: "torch.dtype", device: "torch.device", tokenizer=None):
    """Loads model and tokenizer, unless the latter is given; runs no code from the folder.

    Returns:
        A `Qwen2ForCausalLM` in `dtype` on `device`, and its `PreTrainedTokenizerFast`.

    Raises:
        UserError: config.json, qwen.tiktoken or a tensor is missing, unknown or of another shape.
    """
    import torch
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device
    from safetensors import safe_open
    from transformers import Qwen2ForCausalLM

    config = build_config(folder)
    tokenizer = tokenizer or load_tokenizer(folder, config.max_position_embeddings)
    with init_empty_weights(include_buffers=False):  # the rotary table is computed, not stored
        model = Qwen2ForCausalLM(config)
    for shard in weight_files(folder):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                try:
                    targets = map_name(name)
                    for target, part in zip(
                        targets, tensors.get_tensor(name).chunk(len(targets)), strict=True
                    ):
                        set_module_tensor_to_device(
                            model, target, device, value=part.contiguous(), dtype=dtype
                        )
                except (KeyError, ValueError) as error:
                    raise UserError(
                        f"{shard}: {name}: does not fit a first-generation Qwen: {error}"
                    ) from error
    model.tie_weights()
    absent = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if absent:
        raise UserError(f"{folder}: {len(absent)} tensors are missing, first {absent[0]}")
    model.generation_config.eos_token_id = END_OF_TEXT_ID
    model.generation_config.pad_token_id = END_OF_TEXT_ID
    with torch.no_grad():
        return model.to(device).eval(), tokenizer  # type: ignore[arg-type]  # transformers wraps `to`


def load_tokenizer(folder: Path, context_length: int):
    """Converts `qwen.tiktoken`: the same ids and texts as the original, about 3 s.

    Like the original it composes Unicode (NFC) and reads a written `<|im_start|>` as the control token,
    unless called with `split_special_tokens=True`.
    """
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    vocabulary = folder / "qwen.tiktoken"
    if not vocabulary.is_file():
        raise UserError(f"{vocabulary}: missing; a first-generation Qwen cannot be tokenized without it")
    converted = TikTokenConverter(
        vocab_file=str(vocabulary), pattern=PRETOKENIZE_REGEX, extra_special_tokens=list(SPECIAL_TOKENS)
    ).converted()
    converted.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=converted,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
