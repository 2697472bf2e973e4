"""The result files of a run, and what they say beside its records: the machine, and which code made them."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cot.utils.files import timestamp, write_json, write_results
from cot.utils.paths import REPO_ROOT

SCHEMA_VERSION = 3
REWRITE_EVERY_S = 10.0  # the files of a run that goes on; the journal is written after every batch
REWRITE_COST = 20  # times the last writing's duration that must lie between two of them
PACKAGES = ("torch", "transformers", "faiss-cpu", "sentence-transformers", "spacy", "numpy")
CODE = ("cot/**/*.py", "rl/*.py", "evaluate_rl.py", "data/textbook/*.json")  # what decides a record


class ResultFiles:
    """The files of one run: one for each temperature, and `summary_<stamp>.json` over all of them.

    Attributes:
        are_due: whether it is time to write the files of a run that goes on.

    Args:
        folder, stamp: where they lie, and what their names end in.
        config: read at every writing, as it grows with the models of a run.
    """

    def __init__(
        self,
        folder: Path,
        stamp: str,
        script: str,
        started: str,
        config: Mapping,
        environment: Mapping,
    ) -> None:
        self.folder, self.stamp = folder, stamp
        self._script, self._started = script, started
        self._config, self._environment = config, environment
        self._last_write = self._cost_s = 0.0

    @property
    def are_due(self) -> bool:
        """The larger the files, the rarer."""
        return time.monotonic() - self._last_write > max(REWRITE_EVERY_S, REWRITE_COST * self._cost_s)

    def write(
        self,
        status: str,
        results: Mapping[float, Sequence[dict | bytes]],
        summaries: Mapping[float | None, dict],
    ) -> tuple[Path, dict]:
        """Writes all files; the path and the content of the last.

        Args:
            results: by temperature the records, or what `encode_record` made of them.
            summaries: by temperature; of all records under None.
        """
        start, files = time.monotonic(), []
        for temperature, rows in results.items():
            summary = summaries[temperature]
            path = self.folder / f"results_temp_{temperature}_{self.stamp}.json"
            write_results(path, self._document(status, temperature, summary, rows))
            files.append({"temperature": temperature, "file": path.name, "summary": summary})

        path = self.folder / f"summary_{self.stamp}.json"
        content = self._document(status, None, summaries[None], files)
        write_json(path, content)
        self._last_write = time.monotonic()
        self._cost_s = self._last_write - start
        return path, content

    def _document(self, status: str, temperature: float | None, summary: dict, results: Sequence) -> dict:
        """A file's content, its keys in the contract's order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "script": self._script,
            "temperature": temperature,
            "started": self._started,
            "finished": None if status == "running" else timestamp(),
            "config": self._config,
            "environment": self._environment,
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
