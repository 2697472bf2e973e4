"""What a result file says beside its records: its shape, the machine, and which code made it."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess

from cot.utils.files import timestamp
from cot.utils.paths import REPO_ROOT

SCHEMA_VERSION = 3
PACKAGES = ("torch", "transformers", "faiss-cpu", "sentence-transformers", "spacy", "numpy")
CODE = ("cot/**/*.py", "rl/*.py", "evaluate_rl.py", "data/textbook/*.json")  # what decides a record


def document(
    script: str,
    status: str,
    temperature: float | None,
    started: str,
    config: dict,
    environment: dict,
    summary: dict,
    results: list[dict],
) -> dict:
    """A result file's content, its keys in the contract's order."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "script": script,
        "temperature": temperature,
        "started": started,
        "finished": None if status == "running" else timestamp(),
        "config": config,
        "environment": environment,
        "summary": summary,
        "results": results,
    }


def environment(device: str) -> dict:
    """What the run ran on: versions, machine, code. No environment variable is recorded."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "commit": _commit(),
        "code": code_version(),
    }


@functools.cache
def code_version() -> str:
    """First 16 hex digits of a SHA-256 over the scripts, the modules and the textbook."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in REPO_ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(REPO_ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """This repository's commit, with `+changes` when tracked files differ from it; None outside git."""
    git = ["git", "-C", str(REPO_ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
