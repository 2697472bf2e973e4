"""How weights are loaded beside their number format: attention, and four bits; checked before they are.

What a flag names is used or refused in one line, never replaced.
"""

import argparse
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cot.utils.devices import pick_device
from cot.utils.errors import UserError
from cot.utils.model_names import ModelSource

if TYPE_CHECKING:
    import torch

FLASH_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
NOT_IN_4BIT = {
    "gguf": "a GGUF file is quantized in its own way and unpacked at load",
    "adapter": "an adapter cannot be merged into weights of 4 bits",
    "qwen": "a first-generation Qwen is converted at load",
}
SHARE_OF_4BIT = 0.25  # of two bytes, at least: embeddings and norms keep them


@dataclass(frozen=True)
class Loading:
    """What the flags ask for.

    Attributes:
        attn_implementation: as the flag names it; `auto` is what transformers takes for the architecture.
        load_in_4bit: the linear layers' weights in bitsandbytes' NF4.
        batch_invariant: the engine computes a row alike in any batch.
    """

    attn_implementation: str = "auto"
    load_in_4bit: bool = False
    batch_invariant: bool = False

    def options(self, dtype: "torch.dtype") -> dict[str, Any]:
        """Arguments of `from_pretrained`.

        Args:
            dtype: what products of 4-bit weights are computed in.
        """
        options: dict[str, Any] = {}
        if self.attn_implementation != "auto":
            options["attn_implementation"] = self.attn_implementation
        if self.load_in_4bit:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        return options


AS_IT_COMES = Loading()


def loading_of(args: argparse.Namespace) -> Loading:
    """What the flags `attn_implementation, load_in_4bit, batch_invariant` ask for."""
    return Loading(args.attn_implementation, args.load_in_4bit, args.batch_invariant)


def check_loading(loading: Loading, source: ModelSource, device: str = "auto", dtype: str = "auto") -> None:
    """Whether this machine can load a model so, before its weights are read.

    Args:
        device, dtype: as the flags name them.

    Raises:
        UserError: a package or a GPU is absent, or the model or number format is not one for it.
    """
    name = loading.attn_implementation
    if name in FLASH_PACKAGES:
        flag = f"--attn_implementation {name}"
        if pick_device(device).type != "cuda":
            raise UserError(f"{flag}: needs a CUDA GPU; sdpa runs everywhere")
        if importlib.util.find_spec(FLASH_MODULES[name]) is None:
            raise UserError(f"{flag}: its package is absent: pip install {FLASH_PACKAGES[name]}, or use sdpa")
        if dtype == "float32":
            raise UserError(f"{flag}: takes no float32; use --dtype bfloat16 or float16")

    if loading.load_in_4bit:
        if pick_device(device).type != "cuda":
            raise UserError("--load_in_4bit: needs a CUDA GPU; leave it out, or use a GGUF file on a CPU")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("--load_in_4bit: bitsandbytes is not installed: pip install bitsandbytes")
        if source.kind in NOT_IN_4BIT:
            raise UserError(f"--load_in_4bit: --model_name {source.name}: {NOT_IN_4BIT[source.kind]}")
