"""Which devices are here, how much memory they have, and which number format a model computes in there.

A CPU without bfloat16 instructions computes in bfloat16 several times more slowly than in float32, one with
them several times faster. Nothing says so but the clock: one matrix product is timed in both, and a line says
where the format that was named is slow.
"""

import ctypes
import errno
import functools
import math
import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.errors import UserError

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
SLOW_PARAMETERS = 50_000_000  # from here on a model is slow enough to say so
KEEP = {-4: 0, -1: (1 << 31) - 1, -2: 64 << 20}  # mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD in bytes
CPUS = Path("/proc/cpuinfo")
DTYPES = ("float32", "bfloat16", "float16")
ROWS = 32  # that a CPU decodes together
MOST_ELEMENTS = 1 << 23  # of the probe's matrix: more cost time and tell no more
PROBE_S = 0.2  # for each of two formats, beside the time of a first product
FASTER = 2.0  # how much faster another format must be to be taken, or named


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


def use_one_gpu(config) -> str | None:
    """Lets a training without a launcher use one GPU; a line that says so where there are several.

    Else transformers would spread each batch over all of them (`DataParallel`), which GRPO refuses, but only
    when the model has loaded.

    Args:
        config: transformers' `TrainingArguments`.
    """
    count = config.n_gpu
    if count < 2:
        return None
    config._n_gpu = 1
    return f"gpu:   the first of {count}; for all: accelerate launch --num_processes {count} {sys.argv[0]}"


def warn_of_cpu(named: str, parameters: int) -> str | None:
    """A line where `--device cpu` was named for a model that a GPU of this machine answers much faster."""
    import torch

    if named != "cpu" or parameters < SLOW_PARAMETERS or not torch.cuda.is_available():
        return None
    return "--device cpu is slow for this model, and a CUDA GPU is here; use --device cuda"


def gib_present(device) -> float:
    """Free GPU memory, or all of the host's: it pages, so only what can never fit is refused."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return psutil.virtual_memory().total / GIB


def keep_freed_memory() -> None:
    """Lets the C library keep what tensors free, instead of giving it back to the system (glibc only).

    On a CPU a small model's step otherwise spends a good part of its time on page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in KEEP.items():
            mallopt(option, value)


def settle_sums(reproducible: bool, cpus: Path = CPUS) -> None:
    """Puts Intel's MKL, which PyTorch multiplies with on a CPU, into its reproducible mode (CNR).

    Where that is asked for, and on AMD's processors without AVX-512, where MKL takes its path for AVX2 in no
    other mode, and is slower. It looks once, at a process's first product; what the user has set stays.
    """
    described = cpus.read_text() if cpus.exists() else ""
    if "AuthenticAMD" in described and "avx2" in described and "avx512f" not in described:
        os.environ.setdefault("MKL_CBWR", "AVX2")
    elif reproducible:
        os.environ.setdefault("MKL_CBWR", "AUTO")


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


def _gpu_driver_present() -> bool:
    """Whether torch could find a GPU at all: it opens the same library (CUDA), or this device (ROCm)."""
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class DtypeChoice:
    """A number format and where it comes from.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        reason: why `auto` took it; None where it was named.
        probe: milliseconds of a product by format, such as `{"float32_ms": 3.1, "bfloat16_ms": 9.4}`; None
            where nothing was timed.
        warning: one line where another format is much faster here.
    """

    dtype: str
    reason: str | None = None
    probe: dict[str, float] | None = None
    warning: str | None = None


def choose_dtype(
    name: str, device: "torch.device", shapes: Collection[tuple[int, ...]], warn: bool = True
) -> DtypeChoice:
    """Settles `--dtype` for a model.

    `auto` is bfloat16 on a CUDA GPU that computes in it and float16 on an older one. On a CPU a probe
    decides between float32 and bfloat16. Elsewhere, and for models below 50 million parameters on a CPU, it
    is float32.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`.
        device: where the model is going to be.
        shapes: of the model's weights.
        warn: whether a format that was named is timed, too.

    Raises:
        UserError: the name is none of these.
    """
    check_dtype(name)
    if device.type != "cpu":
        return DtypeChoice(name) if name != "auto" else _choose_on_gpu(device)
    if sum(map(math.prod, shapes)) < SLOW_PARAMETERS:
        reason = "less than 50 million parameters" if name == "auto" else None
        return DtypeChoice("float32" if name == "auto" else name, reason)
    if name != "auto" and not warn:
        return DtypeChoice(name)

    outputs, inputs = max((shape for shape in shapes if len(shape) == 2), key=math.prod)
    outputs = min(outputs, max(1, MOST_ELEMENTS // inputs))
    other = name if name in ("bfloat16", "float16") else "bfloat16"
    probe = {f"{dtype}_ms": time_product(dtype, outputs, inputs) for dtype in ("float32", other)}
    if name == "auto":
        return faster_dtype(**probe)
    return DtypeChoice(name, probe=probe, warning=warn_of_slow(name, probe))


def check_dtype(name: str) -> None:
    """Raises a `UserError` for a name that is none of `auto` and the three formats."""
    if name not in ("auto", *DTYPES):
        raise UserError(f"--dtype {name}: expected auto, {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")


def faster_dtype(float32_ms: float, bfloat16_ms: float) -> DtypeChoice:
    """What `auto` is on a CPU where a product takes so long: bfloat16 only if it is at least twice as fast.

    >>> [faster_dtype(float32_ms=7.0, bfloat16_ms=ms).dtype for ms in (3.5, 3.6)]
    ['bfloat16', 'float32']
    """
    probe = {"float32_ms": float32_ms, "bfloat16_ms": bfloat16_ms}
    reason = f"a product takes {float32_ms:.1f} ms in float32, {bfloat16_ms:.1f} ms in bfloat16"
    return DtypeChoice("bfloat16" if bfloat16_ms * FASTER <= float32_ms else "float32", reason, probe)


def warn_of_slow(name: str, probe: dict[str, float]) -> str | None:
    """The line for a format that was named and is much slower than the other that was timed.

    >>> warn_of_slow("bfloat16", {"float32_ms": 2.0, "bfloat16_ms": 6.0})
    '--dtype bfloat16 is slow on this CPU: a product takes 6.0 ms, in float32 2.0 ms; use --dtype float32'
    >>> warn_of_slow("float32", {"float32_ms": 6.0, "bfloat16_ms": 4.0})
    """
    own_ms = probe[f"{name}_ms"]
    (other, other_ms), *_ = (
        (key.removesuffix("_ms"), ms) for key, ms in probe.items() if key != f"{name}_ms"
    )
    if own_ms < FASTER * other_ms:
        return None
    return (
        f"--dtype {name} is slow on this CPU: a product takes {own_ms:.1f} ms, in {other} {other_ms:.1f} ms;"
        f" use --dtype {other}"
    )


@functools.cache  # two models of one run, base and trained, get one answer
def time_product(dtype: str, outputs: int, inputs: int) -> float:
    """Milliseconds of 32 rows (32, inputs) times a matrix (outputs, inputs) on the CPU, the best of a few."""
    import torch

    matrix = torch.ones(outputs, inputs, dtype=getattr(torch, dtype))
    rows = torch.ones(ROWS, inputs, dtype=getattr(torch, dtype))
    times: list[float] = []
    with torch.inference_mode():
        while not times or (sum(times) < PROBE_S and len(times) < 5):
            start = time.perf_counter()
            torch.nn.functional.linear(rows, matrix)
            times.append(time.perf_counter() - start)
    return round(1000 * min(times), 3)


def _choose_on_gpu(device: "torch.device") -> DtypeChoice:
    import torch

    if device.type != "cuda":
        return DtypeChoice("float32", "on this device")
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice("bfloat16", "the GPU computes in it")
        return DtypeChoice("float16", "the GPU does not compute in bfloat16")
