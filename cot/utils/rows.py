"""A row: one answer to generate, of whom, to what, and with which noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.prompts import Prompt
from cot.utils.records import make_record
from cot.utils.students import Profile

if TYPE_CHECKING:
    from cot.utils.engine import Request


@dataclass(frozen=True)
class Row:
    """One answer to generate.

    Attributes:
        policy: who answers.
        index: the place of the question, or of the moment, in the run.
        memory: what the prompt shows of the student.
        temperature: 0 is greedy.
        sample: which of the answers to the same prompt.
    """

    policy: str
    index: int
    moment: Moment
    memory: StudentMemory
    temperature: float
    sample: int

    @property
    def cell(self) -> tuple[str, str, str]:
        """Student, question and arm: rows of one cell and policy share a prompt."""
        return self.moment.student_id or "", self.moment.question.id, self.memory.arm or ""

    @property
    def key(self) -> str:
        """Names the row within its run."""
        return "|".join([self.policy, *self.cell, str(self.temperature), str(self.sample)])

    def noise_key(self, seed: int) -> str:
        """Names the row's sampling noise: the same for every policy, student and arm."""
        return f"{seed}|{self.moment.question.id}|{self.temperature}|{self.sample}"


def expand(
    policy: str,
    index: int,
    moment: Moment,
    memory: StudentMemory,
    temperatures: Sequence[float],
    num_samples: int,
) -> list[Row]:
    """A prompt's rows: every temperature, `num_samples` times."""
    return [
        Row(policy, index, moment, memory, temperature, sample)
        for temperature in temperatures
        for sample in range(num_samples)
    ]


def make_requests(rows: Sequence[Row], prompts: Sequence[Prompt], seed: int) -> list["Request"]:
    """What an engine is asked, one a row."""
    from cot.utils.engine import Request

    return [
        Request(prompt.ids, row.temperature, row.noise_key(seed), prompt.stop, prompt.reasoning)
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def answer_now(
    engine, rows: Sequence[Row], prompts: Sequence[Prompt], profiles: Mapping[str, Profile], seed: int
) -> list[dict]:
    """The rows' records from a model that is loaded already, without journal or files."""
    records: list[dict | None] = [None] * len(rows)
    for batch in engine.generate(make_requests(rows, prompts, seed)):
        for place, completion in batch:
            profile = profiles.get(rows[place].moment.student_id)
            records[place] = make_record(rows[place], prompts[place], completion, profile)
    return records
