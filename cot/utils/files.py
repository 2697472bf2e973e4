"""Files that survive crashes: strict JSON, whole-file writes, JSON lines, locks, and time in file names."""

import datetime
import gzip
import json
import math
import os
import re
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
WRITTEN_AT_ONCE = 2**20  # bytes
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # no tokenizer takes one


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


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file as a whole or not at all: a reader sees the old content or the new, never a part.

    Raises:
        OSError: the disk is full or the folder is gone; the previous content is untouched.
    """
    with _named_in_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb", buffering=WRITTEN_AT_ONCE) as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # gone already where it became the file


def write_json(path: Path, value: object) -> None:
    """A value as strict JSON; as `write_whole`."""
    write_whole(path, [f"{dumps(value, indent=2)}\n".encode()])


def write_results(path: Path, document: dict) -> None:
    """The same of an object whose last key is `results`, a list, with one of these on each line.

    Those that are bytes were encoded by `encode_record`: of 100,000 records that takes five seconds, and a
    signal has to wait for it.
    """
    *_, last = document
    assert last == "results"
    head = dumps({key: value for key, value in document.items() if key != last}, indent=2)
    start = f'{head.removesuffix("}").rstrip()},\n  "{last}": ['
    comma = b"\n    "  # before the first
    chunks = [start.encode()]
    for result in document[last]:
        chunks += [comma, result if isinstance(result, bytes) else encode_record(result)]
        comma = b",\n    "
    write_whole(path, [*chunks, b"\n  ]\n}\n"])


def encode_record(record: dict) -> bytes:
    """A record whose keys are strings, as it stands in a result file; what is clean needs no cleaning."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):  # no JSON, NaN, or a lone surrogate
        return dumps(record).encode()


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


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text.

    Args:
        place: of the text, with which an error begins.

    Raises:
        UserError: it is not JSON, nests too deeply, or holds a number of more than 4,300 digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error


def read_json(path: Path) -> dict:
    """The JSON object that a file holds.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    content = parse_json(read_text(path), str(path))
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
        if line.strip():
            values.append((number, parse_json(line, f"{path}: line {number}")))
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
    append_text(path, "".join(f"{dumps(record)}\n" for record in records))


def append_text(path: Path, text: str) -> None:
    """Adds whole lines to a file; returns when they lie on the disk."""
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
        timeout_s: how long to wait for that process; it is not waited for unless told. Below 0, for ever.

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
