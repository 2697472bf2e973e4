"""The journal of a run: append-only JSON lines beside the results, from which the same command continues.

Its first line is the header (`key`, `started`, what else the resumed run must know); each further line is one
batch: its records and the seconds it took. A line is on the disk before the next batch starts, so that a
killed process loses at most the batch in flight. It ends in a checksum, so that an edited one is never taken
for a result.
"""

import datetime
import json
import os
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.errors import UserError
from cot.utils.files import append_text, dumps, lock_file, read_timestamp, timestamp

if TYPE_CHECKING:
    from filelock import FileLock


class Journal:
    """One run's journal, locked for this process.

    Attributes:
        stamp: the run's timestamp, with a suffix where another run had the same second; in every file name.
        header: the first line.
        batches: what was read when the run continues: `{"records": {...}, "wall_s": float}` each.
    """

    def __init__(self, path: Path, lock: "FileLock", header: dict, batches: list[dict]) -> None:
        self.path = path
        self.stamp = path.stem.removeprefix("journal_")
        self.header = header
        self.batches = batches
        self._lock = lock

    @property
    def begun(self) -> datetime.datetime:
        """When the run began first, however often it was continued."""
        return read_timestamp(self.header["started"])

    def append(self, batch: dict) -> None:
        """Writes one batch and returns when it lies on the disk."""
        append_text(self.path, seal(batch))

    def finish(self) -> None:
        """Marks the run as complete: the same command then starts a new one."""
        self.append({"finished": timestamp()})
        self.close()

    def close(self) -> None:
        """Lets go of the lock."""
        for suffix in (".lock", ".pid"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        self._lock.release()


def open_journal(folder: Path, key: str, header: dict, reopen_finished: bool = False) -> Journal:
    """The unfinished journal of this very run, else a new one.

    Args:
        key: hash of all that decides the output.
        header: what a new journal's first line holds beside the key.
        reopen_finished: continue the newest journal of this key, be it finished or not, for a run that asks
            for more rows every time.

    Raises:
        UserError: another process is at this run, or a line in the middle of its journal is broken.
    """
    known = [path for path in sorted(folder.glob("journal_*.jsonl")) if _read_header(path).get("key") == key]
    usable = known[-1:] if reopen_finished else [path for path in known if not _is_finished(path)]
    if usable:
        path = usable[0]
        lock = _lock(path)
        return Journal(path, lock, _read_header(path), _read_batches(path))
    path = _create(folder)
    journal = Journal(path, _lock(path), {"key": key, **header}, [])
    journal.append(journal.header)
    return journal


def seal(line: dict) -> str:
    """A line of a journal: an object that is not empty, and the checksum of its text as a last key."""
    text = dumps(line)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def unseal(line: bytes) -> dict | None:
    """What a line says, without its checksum; None where it is not as it was written."""
    start, _, checksum = line.rstrip(b"\n").rpartition(b', "crc32": ')
    text = start + b"}"
    return json.loads(text) if checksum == b"%d}" % zlib.crc32(text) else None


def read_headers(folder: Path, finished: bool = False) -> dict[str, dict]:
    """By file name, the headers of the runs in a folder that have not come to their end.

    A broken header is empty, with a warning: that run cannot be continued.

    Args:
        finished: those that have come to it, too.
    """
    paths = sorted(folder.glob("journal_*.jsonl"))
    headers = {path.name: _read_header(path) for path in paths if finished or not _is_finished(path)}
    for name in (name for name, header in headers.items() if not header):
        problem = "its first line is broken, edited, or of an earlier version"
        print(f"warning: not continuing {folder / name}: {problem}", file=sys.stderr)
    return headers


def _read_header(path: Path) -> dict:
    """A journal's first line; empty where a crash left none, or where it is not as it was written."""
    with path.open("rb") as file:
        return unseal(file.readline()) or {}


def _is_finished(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 100))
        return file.read().rstrip(b"\n").rpartition(b"\n")[2].startswith(b'{"finished": ')


def _create(folder: Path) -> Path:
    """A new, empty journal; exclusive creation, so that two runs in one second get two names."""
    stamp = timestamp()
    for suffix in ["", *(f"_{number}" for number in range(2, 100))]:
        path = folder / f"journal_{stamp}{suffix}.jsonl"
        try:
            path.open("x").close()
        except FileExistsError:
            continue
        return path
    raise UserError(f"{folder}: a hundred runs started in the second {stamp}")


def _lock(path: Path) -> "FileLock":
    """Locks a journal, and leaves the process's number for whoever finds it locked."""
    owner = path.with_suffix(".pid")
    try:
        process = owner.read_text().strip()
    except FileNotFoundError:
        process = "unknown"
    busy = f"{path}: process {process} is at this run; wait for it or stop it"
    lock = lock_file(path.with_suffix(".lock"), busy)
    owner.write_text(f"{os.getpid()}\n")
    return lock


def _read_batches(path: Path) -> list[dict]:
    """All whole lines after the header but marks of an end; a torn last line is cut off, with a warning."""
    raw = path.read_bytes()
    whole, _, torn = raw.rpartition(b"\n")
    if torn:
        print(f"warning: {path}: torn last line dropped ({len(torn)} bytes)", file=sys.stderr)
        os.truncate(path, len(raw) - len(torn))
    batches = []
    for number, line in enumerate(whole.split(b"\n")[1:], 2):
        batch = unseal(line)
        if batch is None:
            problem = "not as it was written: its checksum differs"
            raise UserError(f"{path}: line {number}: {problem}; delete the line to go on without it")
        if "finished" not in batch:
            batches.append(batch)
    return batches
