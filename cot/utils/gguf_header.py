"""The header of a GGUF file: its fields and its tensors' names and shapes, in a fraction of a second.

The package `gguf` keeps every token of the vocabulary as an array of its own, which takes it ten seconds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from cot.utils.errors import UserError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, FLOAT32 = 8, 9, 0


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the weights.

    Attributes:
        fields: by key, numbers and texts; of an array how many elements it has.
        shapes: of the tensors by name, in torch's order.
        offsets: in bytes from the file's first, where a tensor is stored in float32.
    """

    fields: dict[str, int | float | bool | str]
    shapes: dict[str, tuple[int, ...]]
    offsets: dict[str, int]


def read_header(path: Path) -> GgufHeader:
    """Reads fields and tensor table, no weights.

    Raises:
        UserError: the file is no GGUF, of another version than 2 and 3, or ends too early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header()
    except (struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a GGUF file of version 2 or 3, or cut off: {error}") from error


def read_float32(path: Path, header: GgufHeader, name: str) -> tuple[float, ...] | None:
    """The values of a tensor that is stored in float32; None of any other."""
    if name not in header.offsets:
        return None
    count = math.prod(header.shapes[name])
    with path.open("rb") as file:
        file.seek(header.offsets[name])
        return struct.unpack(f"<{count}f", file.read(4 * count))


class _Reader:
    """A place in the file, which goes on with every value read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("its first bytes are not GGUF")
        self.place = 4
        version, tensors, fields = self.numbers("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        values = {self.text(): self.value() for _ in range(fields)}

        shapes, stored = {}, {}
        for _ in range(tensors):
            name = self.text()
            (dimensions,) = self.numbers("I")
            shapes[name] = self.numbers(f"{dimensions}Q")[::-1]  # the file's fastest comes first
            kind, offset = self.numbers("IQ")
            if kind == FLOAT32:
                stored[name] = offset
        alignment = int(values.get("general.alignment", 32))
        start = -(-self.place // alignment) * alignment  # of the tensors, rounded up
        return GgufHeader(values, shapes, {name: start + offset for name, offset in stored.items()})

    def numbers(self, layout: str) -> tuple:
        values = struct.unpack_from(f"<{layout}", self.data, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        (length,) = self.numbers("Q")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self):
        """A number or a text; of an array its length."""
        (kind,) = self.numbers("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind])[0]
        kind, length = self.numbers("IQ")
        if kind == STRING:
            for _ in range(length):
                self.place += 8 + struct.unpack_from("<Q", self.data, self.place)[0]
        else:
            self.place += length * struct.calcsize(f"<{NUMBERS[kind]}")
        return length
