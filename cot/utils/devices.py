"""Which devices are here, and how much memory they have."""

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.errors import UserError

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
SLOW_PARAMETERS = 50_000_000  # from here on a model is slow enough to say so
KEEP = {-4: 0, -1: (1 << 31) - 1, -2: 64 << 20}  # mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD in bytes


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
