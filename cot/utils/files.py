"""Files that survive crashes: strict JSON, whole-file writes, JSON lines, locks, and the journal of a run.

A journal is append-only JSON lines beside the results, from which the same command continues. Its first line
is the header (`key`, `started`, what else the resumed run must know); each further line is one batch: its
records and the seconds it took. A line is on the disk before the next batch starts, so that a killed process
loses at most the batch in flight. It ends in a checksum, so that an edited one is never taken for a result.
"""

import datetime
import gzip
import itertools
import json
import math
import os
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot.utils.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

STAMP = "%Y%m%d_%H%M%S"


def to_jsonable(value: object) -> object:
    """A value that strict JSON can hold: NaN and infinities become null, numpy scalars become numbers.

    >>> to_jsonable({"a": float("nan"), "b": (1, "x\\ud800")})
    {'a': None, 'b': [1, 'x?']}

    Raises:
        TypeError: something that is no data.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate breaks jq
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {to_jsonable(str(key)): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return to_jsonable(str(value))
    if hasattr(value, "tolist"):  # a numpy scalar or array, a tensor
        return to_jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} is no JSON value")


def dumps(value: object, indent: int | None = None) -> str:
    """Strict JSON text."""
    return json.dumps(to_jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: object) -> None:
    """Writes a file as a whole or not at all: a reader sees the old content or the new, never a part.

    Raises:
        OSError: the disk is full or the folder is gone; the previous content is untouched.
    """
    _write_whole(path, [f"{dumps(value, indent=2)}\n".encode()])


def write_results(path: Path, document: dict) -> None:
    """The same of an object whose last key is `results`, a list, with one of these on each line.

    100,000 of them take a fourth of the time that `write_json` needs, and a signal has to wait for it.
    """
    *_, last = document
    assert last == "results"
    head = dumps({key: value for key, value in document.items() if key != last}, indent=2)
    lines = (b",\n    " * (number > 0) + _encode(result) for number, result in enumerate(document[last]))
    start = f'{head.removesuffix("}").rstrip()},\n  "{last}": [\n    '
    _write_whole(path, itertools.chain([start.encode()], lines, [b"\n  ]\n}\n"]))


def _encode(record: dict) -> bytes:
    """A record whose keys are strings; what is clean already needs no cleaning."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):  # no JSON, NaN, or a lone surrogate
        return dumps(record).encode()


def _write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    with _named_in_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # gone already where it became the file


def read_text(path: Path) -> str:
    """A UTF-8 file's text, with or without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 (its byte offset is named).
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def read_json(path: Path) -> dict:
    """The JSON object that a file holds.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """The line number and value of each line that is not blank; only a line feed ends a line.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    values = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: not JSON: {error}") from error
    return values


def text_field(
    record: Mapping, key: str, place: str, may_be_null: bool = False, may_be_empty: bool = False
) -> str | None:
    """A field of a record that is a text.

    Args:
        place: of the record, with which an error begins.

    Raises:
        UserError: it is not there, no text, or empty.
    """
    value = record.get(key)
    if value is None and may_be_null:
        return None
    if not isinstance(value, str):
        got = type(value).__name__ if key in record else "nothing"
        raise UserError(f"{place}: {key}: expected a text, got {got}")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{place}: {key}: expected a text, got an empty one")
    return value


def write_answers(records: Iterable[Mapping], keys: Sequence[str], path: Path) -> None:
    """Some keys of each record as JSON lines, compressed; equal records give equal bytes."""
    lines = "".join(dumps({key: record[key] for key in keys}) + "\n" for record in records)
    with _named_in_errors(path):
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def read_answers(path: Path) -> list[dict]:
    """The records that `write_answers` wrote.

    Raises:
        UserError: the file cannot be read, or is none of its files.
    """
    try:
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read answers: {error}") from error


def append_json_lines(path: Path, records: Iterable[object]) -> None:
    """Adds one line of strict JSON for each record; returns when all of them lie on the disk."""
    _append(path, "".join(f"{dumps(record)}\n" for record in records))


def _append(path: Path, text: str) -> None:
    with _named_in_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Lets an `OSError` name the file: the operating system names none where a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def timestamp() -> str:
    """Now, as it stands in file names: `YYYYmmdd_HHMMSS`, local time."""
    return datetime.datetime.now().strftime(STAMP)


def read_timestamp(stamp: str) -> datetime.datetime:
    """The moment that a `timestamp` names.

    >>> read_timestamp("20240726_235900")
    datetime.datetime(2024, 7, 26, 23, 59)
    """
    return datetime.datetime.strptime(stamp, STAMP)


def lock_file(path: Path, busy: str, timeout_s: float = 0.0) -> "FileLock":
    """A lock that this process now holds, until its `release()` or the process's end.

    Args:
        path: the lock's own file, not the one that it protects.
        busy: what to say where another process holds it.
        timeout_s: how long to wait for that process; it is not waited for unless told.

    Raises:
        UserError: `busy`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise UserError(busy) from error
    return lock


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
        _append(self.path, seal(batch))

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
