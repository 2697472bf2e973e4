"""All reward parts of a batch at once: one bad row costs that row, and what was paid can be read with jq.

TRL asks one function after the other. The first call computes every part for every row, the others look
theirs up. A part that raises on a row makes all parts of that row None, so that TRL leaves the row out.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cot.utils.fidelity import copying, names_student
from cot.utils.results import dumps

# What scoring a text can raise: a gold answer that does not parse, broken arithmetic, a missing column.
ROW_ERRORS = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError)
SAMPLE_ROWS = 8  # written of each process's sampled batch: one group of the usual size


class Part:
    """One column of the table, as a reward function for TRL."""

    def __init__(self, name: str, table: "RewardTable") -> None:
        self.__name__ = name
        self._table = table

    def __call__(self, **batch) -> list[float | None]:
        """The part's values for the batch."""
        return self._table.column(self.__name__, batch)


class RewardTable:
    """The parts' values for the batch at hand.

    Attributes:
        errors: rows left out so far because a part raised.
        last_error: what it raised last.
        seconds: spent on rewards so far.

    Args:
        parts: reward functions by name.
        samples: file for sampled completions of all processes, None for none.
        sample_every: steps between two samples.
        writes: whether this process writes the file, as one of them does.
    """

    def __init__(
        self,
        parts: dict[str, Callable],
        samples: Path | None = None,
        sample_every: int = 10,
        writes: bool = True,
    ) -> None:
        self._parts = parts
        self._samples, self._sample_every, self._writes = samples, sample_every, writes
        self._batch: Sequence[str] | None = None  # held, so that its identity cannot be another batch's
        self._columns: dict[str, list[float | None]] = {}
        self.errors, self.last_error, self.seconds = 0, "", 0.0

    def functions(self) -> list[Part]:
        """One reward function a part, in the parts' order."""
        return [Part(name, self) for name in self._parts]

    def column(self, name: str, batch: dict) -> list[float | None]:
        """A part's values; computes the whole table when the batch is a new one."""
        if self._batch is not batch["completions"]:
            started = time.monotonic()
            self._fill(batch)
            self._batch = batch["completions"]
            self._report(batch)
            self.seconds += time.monotonic() - started
        return self._columns[name]

    def _fill(self, batch: dict) -> None:
        columns = {key: values for key, values in batch.items() if isinstance(values, list)}
        table: list[dict[str, float | None]] = []
        for row in range(len(batch["completions"])):
            one = {key: [values[row]] for key, values in columns.items()}
            try:
                table.append({name: part(**one)[0] for name, part in self._parts.items()})
            except ROW_ERRORS as error:
                self.errors += 1
                self.last_error = f"{type(error).__name__}: {error}"
                table.append(dict.fromkeys(self._parts))
        self._columns = {name: [values[name] for values in table] for name in self._parts}

    def _report(self, batch: dict) -> None:
        """Copying and naming as metrics of the step; now and then a group of completions as JSON lines."""
        texts, memories = batch["completions"], batch["memory"]
        copied = [copying(text, memory) for text, memory in zip(texts, memories, strict=True)]
        named = [
            names_student(text, student, "") for text, student in zip(texts, batch["student_id"], strict=True)
        ]
        if "log_metric" in batch:
            batch["log_metric"]("copying", sum(copied) / len(copied))
            batch["log_metric"]("names_student", sum(named) / len(named))
        step = 1 + batch["trainer_state"].global_step if "trainer_state" in batch else 1
        if self._samples is None or (step - 1) % self._sample_every:
            return
        from accelerate.utils import gather_object

        fields = ("student_id", "memory_arm", "question_id", "gold_solution", "memory")
        records = []
        for row in range(min(SAMPLE_ROWS, len(texts))):
            record = {"step": step, **{field: batch[field][row] for field in fields}}
            record |= {"prompt": batch["prompts"][row], "completion": texts[row]}
            record["rewards"] = {name: values[row] for name, values in self._columns.items()}
            records.append(record | {"copying": copied[row]})
        records = gather_object(records)  # every process takes part
        if self._writes:
            with self._samples.open("a", encoding="utf-8") as file:
                file.writelines(dumps(record) + "\n" for record in records)
