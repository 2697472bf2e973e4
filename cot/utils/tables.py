"""Records as a table: each is read once for all columns that statistics ask for, however they are grouped.

At 100,000 records it is reaching each of them, not the arithmetic, that takes the time.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

MEASURED = (  # numbers that most summaries ask for
    *("correct", "strict_correct", "flexible_correct", "truncated", "output_tokens", "perplexity"),
    *("mean_nll", "semantic_similarity", "reasoning_steps", "distinct_equations"),
    *("distinct_valid_equations", "equation_validity", "entity_overlap", "fidelity", "support_fit"),
    *("prerequisite_coverage", "over_explaining", "copying", "base_nll"),
)

Records = Sequence[dict]


class Table(Sequence):
    """A sequence of records that remembers its columns; a part of it takes its columns from it.

    Records must not change while a table of them is in use.
    """

    def __init__(self, records: Records) -> None:
        self._records = list(records)
        self._whole: Table | None = None  # of which this is a part,
        self._places: np.ndarray | None = None  # at these places (N,)
        self._columns: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, records: Records) -> "Table":
        """The records as a table, unless they are one."""
        return records if isinstance(records, Table) else cls(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place):
        return self._records[place]

    def __iter__(self) -> Iterator[dict]:
        return iter(self._records)

    def take(self, places: Sequence[int] | np.ndarray) -> "Table":
        """The records at these places, or those at which a mask is true, in the order given."""
        chosen = np.asarray(places)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        part = Table([self._records[place] for place in chosen.tolist()])
        part._whole, part._places = self, chosen
        return part

    def values(self, key: str) -> np.ndarray:
        """What the records have under a key, (N,) float; NaN where there is nothing."""
        if key not in self._columns:
            self._columns |= self._from_whole(key) or self._read(key)
        return self._columns[key]

    def add(self, key: str, values: Sequence[float | None]) -> None:
        """A column that the records do not have, None where there is nothing."""
        self._columns[key] = np.array(values, dtype=float)

    def codes(self, name: str, describe: Callable[[dict], Hashable]) -> np.ndarray:
        """Numbers that are equal where a description of the records is, (N,) int64.

        Args:
            name: of the description, for all that share this table.
        """
        if name not in self._columns and self._whole is not None:
            self._columns[name] = self._whole.codes(name, describe)[self._places]
        if name not in self._columns:
            self._columns[name] = number_names([describe(record) for record in self._records])
        return self._columns[name]

    def _from_whole(self, key: str) -> dict[str, np.ndarray]:
        return {} if self._whole is None else {key: self._whole.values(key)[self._places]}

    def _read(self, key: str) -> dict[str, np.ndarray]:
        names = MEASURED if key in MEASURED else (key,)
        rows = [[record.get(name) for name in names] for record in self._records]
        table = np.array(rows, dtype=float).reshape(len(rows), len(names))  # None becomes NaN
        return dict(zip(names, table.T, strict=True))


def number_names(names: Sequence[Hashable]) -> np.ndarray:
    """The names as numbers from 0, in the order of their first occurrence.

    >>> number_names(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def renumber(codes: np.ndarray) -> np.ndarray:
    """Codes (N,) as numbers from 0 without gaps, in the order of their first occurrence.

    >>> renumber(np.array([7, 2, 7])).tolist()
    [0, 1, 0]
    """
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def group(records: Records, *keys: str) -> dict:
    """Records by the value of a key, or by the values of several; parts of a table are tables."""
    places: dict = {}
    for place, record in enumerate(records):
        value = record[keys[0]] if len(keys) == 1 else tuple(record[key] for key in keys)
        places.setdefault(value, []).append(place)
    if isinstance(records, Table):
        return {value: records.take(found) for value, found in places.items()}
    return {value: [records[place] for place in found] for value, found in places.items()}


def usable(records: Records) -> Records:
    """Those whose answer was generated."""
    if isinstance(records, Table):
        return records.take([place for place, record in enumerate(records) if record["error"] is None])
    return [record for record in records if record["error"] is None]


def align(*sides: Records) -> list[Table]:
    """The usable records of the cells that all sides have, side by side.

    A cell is a student, a question, a temperature and which of the answers to the same prompt.
    """
    tables = [Table.of(usable(side)) for side in sides]
    places = [
        {
            (record["student_id"], record["question_id"], record["temperature"], record["sample"]): place
            for place, record in enumerate(table)
        }
        for table in tables
    ]
    shared = [cell for cell in places[0] if all(cell in found for found in places)]
    return [table.take([found[cell] for cell in shared]) for table, found in zip(tables, places, strict=True)]
