"""Folders that the scripts share: this repository's own, the cache, and where results may be written."""

import os
from pathlib import Path

from cot.utils.errors import UserError

REPO_ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = REPO_ROOT / "data"
PROFILES_DIR = REPO_ROOT / "profiles"


def cache_dir() -> Path:
    """Where what can be made again is kept between runs; created by whoever writes there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcot"


def writable_dir(path: Path) -> Path:
    """The folder, created if need be.

    Raises:
        UserError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}; name a folder you may write to") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path}: not writable; name a folder you may write to")
    return path
