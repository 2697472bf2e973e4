"""Which engine answers: transformers, on every device, or vLLM, where it is installed and asked for.

Settled before any weights load. Both give the same record. They agree in what they compute and not in its
last bits: float sums in another order turn a close choice of a token, and the text after it, so that their
texts are never claimed to be equal.
"""

import argparse
import importlib.util
from collections.abc import Collection
from pathlib import Path

from cot.utils.devices import pick_device, settle_sums
from cot.utils.errors import UserError
from cot.utils.files import read_json
from cot.utils.model_names import ModelSource, fetch_model

TRANSFORMERS, VLLM = "transformers", "vllm"
VLLM_FLAGS = ("tensor_parallel_size", "gpu_memory_utilization")
VLLM_HOTTEST = 2.0  # temperature
INSTALL = "pip install vllm==0.32.0, or on a CPU as cot/README.md says under Engines"
# Of an adapter's config: what vLLM does not apply, though PEFT does.
UNAPPLIED = ("modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "layer_replication")


def settle_engine(args: argparse.Namespace, sources: Collection[ModelSource]) -> str:
    """The engine that `--engine` means for these models; says which.

    `auto` is vLLM on a CUDA device where it is installed and loads every model as it is. A run that
    continues under `auto` stays with the engine that it began with, where it can.

    Args:
        args: of the script, among them `device` and those of `add_engine_flags` and `add_loading_flags`.

    Raises:
        UserError: `vllm` was named and cannot be used here; a flag of it was named and it is not used.
    """
    wanted = args.engine == VLLM or _is_pick(args)
    problem = _what_keeps_vllm(args, sources) if wanted else None
    if args.engine == VLLM and problem:
        raise UserError(f"--engine vllm: {problem}")

    name = VLLM if wanted and not problem else TRANSFORMERS
    if name != VLLM and (named := [flag for flag in VLLM_FLAGS if getattr(args, flag) is not None]):
        raise UserError(f"--{named[0]}: of vLLM, and the engine is {name}; add --engine vllm or leave it out")
    settle_sums(args.batch_invariant)
    picked = f" (picked: {problem})" if problem else " (picked)" if args.engine == "auto" else ""
    print(f"engine:  {name}{picked}", flush=True)
    return name


def stay_with(begun: str, picked: str, args: argparse.Namespace, source: ModelSource) -> str:
    """The engine of a run that continues: as it began, unless another is named or that one is not here."""
    if args.engine != "auto" or (begun == VLLM and _what_keeps_vllm(args, [source])):
        return picked
    return begun


def limit_context(context: int | None, max_model_len: int | None) -> int | None:
    """Positions for a prompt and its answer: the model's, or fewer where `--max_model_len` says so.

    Raises:
        UserError: the flag names more than the model has.
    """
    if max_model_len is not None and context is not None and max_model_len > context:
        raise UserError(f"--max_model_len {max_model_len}: the model has {context} positions")
    return context if max_model_len is None else max_model_len


def why_not_in_vllm(source: ModelSource) -> str | None:
    """What a model is that vLLM does not load as it is, or None."""
    source = fetch_model(source)
    base, adapter = split_adapter(source)
    if adapter and (problem := _why_not_applied(fetch_model(base), adapter.path)):
        return problem
    if base.kind == "gguf":
        return "a GGUF file, which vLLM does not load"
    folder = fetch_model(base).path
    if base.kind != "bundled" and read_json(folder / "config.json").get("model_type") == "qwen":
        return "a first-generation Qwen, which vLLM does not load without remote code"
    return None


def split_adapter(source: ModelSource) -> tuple[ModelSource, ModelSource | None]:
    """What vLLM loads: a base, and the adapter to apply to it, or None."""
    return (source.base, source) if source.base else (source, None)


def adapter_rank(folder: Path) -> int:
    """The largest rank of a LoRA adapter's matrices."""
    config = read_json(folder / "adapter_config.json")
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def _is_pick(args: argparse.Namespace) -> bool:
    """Whether `auto` takes vLLM, if it can answer with the models."""
    if args.engine != "auto" or importlib.util.find_spec("vllm") is None:
        return False
    return pick_device(args.device).type == "cuda"


def _what_keeps_vllm(args: argparse.Namespace, sources: Collection[ModelSource]) -> str | None:
    """Why vLLM cannot answer with these models on this device, or None."""
    if importlib.util.find_spec("vllm") is None:
        return f"vLLM is not installed: {INSTALL}"
    if max(args.temperatures) > VLLM_HOTTEST:
        return f"vLLM draws at temperatures up to {VLLM_HOTTEST:g}"
    if args.load_in_4bit or args.batch_invariant or args.attn_implementation != "auto":
        return "--load_in_4bit, --batch_invariant and --attn_implementation are of transformers"
    device = pick_device(args.device)
    if device.index and (args.tensor_parallel_size or 1) > 1:
        return f"--device {device} is one GPU; choose several by CUDA_VISIBLE_DEVICES, with --device cuda"
    from vllm.platforms import current_platform

    if current_platform.device_type != device.type:
        built_for = current_platform.device_type or "no device of this machine"
        return f"the vLLM that is installed computes on {built_for}, and --device is {device.type}"
    for source in sources:
        if problem := why_not_in_vllm(source):
            return f"{source.name} is {problem}; use its safetensors, or --engine transformers"
    return None


def _why_not_applied(base: ModelSource, folder: Path) -> str | None:
    if base.base:
        return "an adapter on an adapter, and vLLM applies one"
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        return f"an adapter of kind {config.get('peft_type')}, and vLLM applies LoRA"
    if found := [name for name in UNAPPLIED if config.get(name)]:
        return f"an adapter with {found[0]}, which vLLM does not apply"
    return None
