"""Records as a table: each is read once for all columns that statistics ask for, however they are grouped.

At 100,000 records it is reaching each of them, not the arithmetic, that takes the time.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

MEASURED = (  # numbers that most summaries ask for
    *("correct", "strict_correct", "flexible_correct", "truncated", "output_tokens", "perplexity"),
    *("mean_nll", "semantic_similarity", "reasoning_steps", "distinct_equations"),
    *("distinct_valid_equations", "equation_validity", "entity_overlap", "fidelity", "support_fit"),
    *("prerequisite_coverage", "over_explaining", "copying", "names_student", "base_nll"),
)

Records = Sequence[dict]


class Table(Sequence):
    """A sequence of records that remembers its columns; a part of it takes its columns from it.

    Records must not change while a table of them is in use.
    """

    def __init__(self, records: Records) -> None:
        self._records: list[dict] | None = list(records)
        self._whole: Table | None = None  # of which this is a part,
        self._places: np.ndarray | None = None  # at these places (N,)
        self._columns: dict[tuple[str, str], np.ndarray] = {}  # by kind and name: a flag is no value

    @classmethod
    def of(cls, records: Records) -> "Table":
        """The records as a table, unless they are one."""
        return records if isinstance(records, Table) else cls(records)

    def __len__(self) -> int:
        return len(self._records) if self._places is None else len(self._places)

    def __getitem__(self, place):
        return self._listed()[place]

    def __iter__(self) -> Iterator[dict]:
        return iter(self._listed())

    def take(self, places: Sequence[int] | np.ndarray) -> "Table":
        """The records at these places, or those at which a mask is true, in the order given."""
        chosen = np.asarray(places)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        part = Table([])
        part._records, part._whole, part._places = None, self, chosen
        return part

    def values(self, key: str) -> np.ndarray:
        """What the records have under a key, (N,) float; NaN where there is nothing."""
        return self._column("value", key, lambda whole: whole._read(key))

    def codes(self, name: str, describe: Callable[[dict], Hashable]) -> np.ndarray:
        """Numbers that are equal where a description of the records is, (N,) int64.

        Args:
            name: of the description, for all that share this table.
        """
        return self._column("code", name, lambda whole: number_names([describe(each) for each in whole]))

    def flags(self, name: str, holds: Callable[[dict], bool]) -> np.ndarray:
        """Whether something holds of each record, (N,) bool; `name` is as in `codes`."""
        return self._column("flag", name, lambda whole: np.array([holds(each) for each in whole], dtype=bool))

    def add(self, key: str, values: Sequence[float | None]) -> None:
        """A column that the records do not have, None where there is nothing."""
        self._columns["value", key] = np.array(values, dtype=float)

    def _listed(self) -> list[dict]:
        if self._records is None:
            self._records = [self._whole[place] for place in self._places.tolist()]
        return self._records

    def _column(self, kind: str, name: str, make: Callable[["Table"], np.ndarray]) -> np.ndarray:
        """A column, made by the whole table for all parts of it."""
        if (kind, name) not in self._columns:
            whole = self._whole
            column = make(self) if whole is None else whole._column(kind, name, make)[self._places]
            self._columns[kind, name] = column
        return self._columns[kind, name]

    def _read(self, key: str) -> np.ndarray:
        """The column of a key; those of all `MEASURED` are read with the first of them."""
        names = MEASURED if key in MEASURED else (key,)
        rows = [[record.get(name) for name in names] for record in self]
        table = np.array(rows, dtype=float).reshape(len(rows), len(names))  # None becomes NaN
        self._columns |= {("value", name): column for name, column in zip(names, table.T, strict=True)}
        return self._columns["value", key]


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
        return records.take(records.flags("usable", lambda record: record["error"] is None))
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
