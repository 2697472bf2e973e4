"""The journal of a run: append-only JSON lines beside the results, from which the same command continues.

Its first line is the header (`key`, `started`, what else the resumed run must know); each further line is one
batch: its records and the seconds it took. A line is on the disk before the next batch starts, so that a
killed process loses at most the batch in flight. It ends in a checksum, so that an edited one is never taken
for a result.

Several processes share a run by writing beside each other: process 0 into `journal_<stamp>.jsonl`, process k
into `journal_<stamp>_rank<k>.jsonl`. Each locks its own part for as long as it lives. Whoever opens the run
again reads all parts.
"""

import datetime
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cot.utils.errors import UserError
from cot.utils.files import append_text, dumps, lock_file, read_timestamp, timestamp

if TYPE_CHECKING:
    from filelock import FileLock

PART = "_rank"  # before a process's number, in the name of its part
WAIT_FOR_EVER = -1.0


class Journal:
    """One run's journal, of which this process has locked the part that it writes.

    Attributes:
        path: the part of process 0.
        stamp: the run's timestamp, with a suffix where another run had the same second; in every file name.
        header: the first line.
        batches: what was read of all parts when it continues: `{"records": {...}, "wall_s": float}` each.
    """

    def __init__(self, path: Path, part: Path, lock: "FileLock", header: dict, batches: list[dict]) -> None:
        self.path, self._part = path, part
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
        append_text(self._part, seal(batch))

    def read_others(self) -> list[dict]:
        """What stands in the other parts by now; their processes may be writing on."""
        return [batch for part in _further_parts(self.path) for batch in _read_batches(part, live=True)]

    @contextmanager
    def take_over(self, rank: int) -> Iterator[list[dict]]:
        """Waits until the process of that number has ended, however it did, and gives its batches.

        Until the body ends, no process can be at that part.
        """
        part = _part_of(self.path, rank)
        lock = _lock(part, timeout_s=WAIT_FOR_EVER)
        try:
            yield _read_batches(part) if part.exists() else []
        finally:
            _unlock(part, lock)

    def finish(self) -> None:
        """Marks the run as complete: the same command then starts a new one."""
        self.append({"finished": timestamp()})
        self.close()

    def close(self) -> None:
        """Lets go of the lock."""
        _unlock(self._part, self._lock)


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
    known = [path for path in _runs(folder) if _read_header(path).get("key") == key]
    usable = known[-1:] if reopen_finished else [path for path in known if not _is_finished(path)]
    if usable:
        path = usable[0]
        lock = _lock(path)
        parts = _further_parts(path)
        for part in parts:  # a process may have outlived process 0
            _unlock(part, _lock(part))
        batches = [batch for part in (path, *parts) for batch in _read_batches(part)]
        return Journal(path, path, lock, _read_header(path), batches)
    path = _create(folder)
    journal = Journal(path, path, _lock(path), {"key": key, **header}, [])
    journal.append(journal.header)
    return journal


def join_journal(path: Path, rank: int) -> Journal:
    """The journal of a run that process 0 of this launch has opened, for another process.

    Where process 0 is at the other's part already, it is waited for.

    Raises:
        UserError: the run is not here.
    """
    if not path.exists():
        raise UserError(f"{path}: process {rank} does not find it; all machines must share --output_dir")
    part = _part_of(path, rank)
    lock = _lock(part, timeout_s=WAIT_FOR_EVER)
    if not part.exists() or not part.stat().st_size:
        append_text(part, seal({"part_of": path.name}))
    parts = (path, *_further_parts(path))
    batches = [batch for each in parts for batch in _read_batches(each, live=True)]
    return Journal(path, part, lock, _read_header(path), batches)


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
    headers = {path.name: _read_header(path) for path in _runs(folder) if finished or not _is_finished(path)}
    for name in (name for name, header in headers.items() if not header):
        problem = "its first line is broken, edited, or of an earlier version"
        print(f"warning: not continuing {folder / name}: {problem}", file=sys.stderr)
    return headers


def _runs(folder: Path) -> list[Path]:
    """The first parts of all journals in a folder."""
    return [path for path in sorted(folder.glob("journal_*.jsonl")) if PART not in path.stem]


def _part_of(path: Path, rank: int) -> Path:
    return path.with_stem(f"{path.stem}{PART}{rank}")


def _further_parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}{PART}*.jsonl"))


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


def _lock(path: Path, timeout_s: float = 0.0) -> "FileLock":
    """Locks a part of a journal, and leaves the process's number for whoever finds it locked."""
    owner = path.with_suffix(".pid")
    try:
        process = owner.read_text().strip()
    except FileNotFoundError:
        process = "unknown"
    busy = f"{path}: process {process} is at this run; wait for it or stop it"
    lock = lock_file(path.with_suffix(".lock"), busy, timeout_s)
    owner.write_text(f"{os.getpid()}\n")
    return lock


def _unlock(path: Path, lock: "FileLock") -> None:
    for suffix in (".lock", ".pid"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    lock.release()


def _read_batches(path: Path, live: bool = False) -> list[dict]:
    """All whole lines after the header but marks of an end; a torn last line is cut off, with a warning.

    Args:
        live: a process may be writing: its last line is not torn but not yet written.
    """
    raw = path.read_bytes()
    whole, _, torn = raw.rpartition(b"\n")
    if torn and not live:
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
