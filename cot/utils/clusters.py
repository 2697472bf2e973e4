"""Which answers are one observation, and which hang together: what records give to the statistics.

A text that several cells share is one observation: the answer without memory is the same for every student.
Answers to one question are not independent, be they for other students, at other temperatures or further
samples, and neither are answers to exercises of one template. So intervals and tests are over clusters:
questions, or templates where there are any, crossed with students where a question is asked for several.
"""

import math
from collections.abc import Sequence

import numpy as np

from cot.utils.stats import Interval, clustered_mean, clustered_share, wilson_interval
from cot.utils.tables import Records, Table, renumber

# What depends on the student whom a text is for: the same text has another value for another student.
OF_THE_STUDENT = {"fidelity", "support_fit", "prerequisite_coverage", "over_explaining", "mastery"}
OF_THE_STUDENT |= {"specificity", "identification", "reciprocal_rank", "names_student"}
OF_THE_STUDENT |= {"teacher_similarity", "wrong_step_named", "wrong_number_repeated"}
COUNTED = {"output_tokens", "mean_nll", "base_nll", "reasoning_steps", "amount"}
COUNTED |= {"distinct_equations", "distinct_valid_equations"}
LIMITS = dict.fromkeys(COUNTED, (0.0, math.inf)) | {"perplexity": (1.0, math.inf)}
LIMITS |= dict.fromkeys(
    ("semantic_similarity", "teacher_similarity", "specificity", "regret", "learning_gain"), (-1.0, 1.0)
)
UNIT = (0.0, 1.0)  # of every other metric


class Sample:
    """Observations: each a record, or one of each side that is compared; and their clusters.

    Attributes:
        sides: tables of the N observations' records.
        ways: for questions (or templates) and students the cluster of each observation, (N,), from 0.
    """

    def __init__(self, sides: Sequence[Table], ways: Sequence[np.ndarray]) -> None:
        self.sides, self.ways = tuple(sides), tuple(ways)

    def __len__(self) -> int:
        return len(self.sides[0])

    @property
    def clusters(self) -> int:
        """Questions, or templates where there are any."""
        return len(np.unique(self.ways[0]))


def observe(*sides: Records, by_student: bool = False, templates: bool = True) -> Sample:
    """The distinct observations among records, or among pairs of records that stand side by side.

    Students are a way of their own where they meet several questions; who meets one alone is part of it.

    Args:
        sides: records as long as each other, the same student and question side by side.
        by_student: one for each student, for metrics `OF_THE_STUDENT`.
        templates: exercises of one template are one cluster; else each question is.
    """
    tables = [Table.of(side) for side in sides]
    texts = [table.codes("text", name_text) for table in tables]
    if by_student:
        texts.append(tables[0].codes("student", name_student))
    distinct = np.sort(np.unique(_cross(texts), return_index=True)[1])
    tables = [table.take(distinct) for table in tables]

    question = renumber(tables[0].codes("question", name_question))
    student = renumber(tables[0].codes("student", name_student))
    ways = [renumber(tables[0].codes("cluster", name_cluster)) if templates else question]
    cells, questions, students = (
        len(np.unique(codes)) for codes in (_cross([question, student]), question, student)
    )
    nested = students == cells and questions > 1  # each student has a question of its own
    if cells > questions and not nested:
        ways.append(student)
    return Sample(tables, ways)


def _cross(codes: Sequence[np.ndarray]) -> np.ndarray:
    """One number for each combination of codes, (N,)."""
    crossed = codes[0]
    for further in codes[1:]:
        crossed = renumber(crossed) * (int(further.max(initial=0)) + 1) + further
    return crossed


def name_question(record: dict) -> str:
    """The question."""
    return record["question_id"]


def name_student(record: dict) -> str | None:
    """The student whom the answer is for, if any."""
    return record.get("student_id")


def name_text(record: dict) -> tuple:
    """What decides a text: the policy, the prompt, and the noise, of which greedy decoding has none."""
    temperature = record["temperature"]
    noise = record["sample"] if temperature else None
    return record["policy"], record["question_id"], temperature, noise, record["prompt"]


def name_cluster(record: dict) -> str:
    """The template of an exercise of the textbook, else the question.

    >>> name_cluster({"question_id": "money/money_07/5f0c", "chapter": "money"})
    'money/money_07'
    >>> name_cluster({"question_id": "gsm8k-test-7", "chapter": None})
    'gsm8k-test-7'
    """
    question, chapter = record["question_id"], record.get("chapter")
    return question.rsplit("/", 1)[0] if chapter and question.startswith(f"{chapter}/") else question


def share_of(sample: Sample, key: str = "correct") -> Interval:
    """The share of answers for which a key is true, with its interval.

    It is Wilson's where every cluster occurs once, and else the one over clusters.
    """
    outcomes = np.nan_to_num(sample.sides[0].values(key))
    if sample.clusters < len(outcomes):
        return clustered_share(outcomes, sample.ways)
    n, right = len(outcomes), int(outcomes.sum())
    low, high = wilson_interval(right, n) or (None, None)
    return {"n": n, "mean": right / n if n else None, "low": low, "high": high}


def mean_of(sample: Sample, metric: str) -> Interval:
    """Mean of a metric and its interval over clusters; records without a value are left out."""
    interval = effect_of(sample, metric)
    del interval["p"]
    return interval


def effect_of(sample: Sample, metric: str, signs: Sequence[float] = (1,)) -> Interval:
    """Mean of a metric, or of its difference between sides, with interval and p-value over clusters.

    Args:
        signs: with which each side's value enters, such as (1, -1).
    """
    values = np.zeros(len(sample))
    for side, sign in zip(sample.sides, signs, strict=True):
        values += sign * side.values(metric)
    there = np.isfinite(values)
    low, high = LIMITS.get(metric, UNIT)
    if len(signs) > 1:
        high = (high - low) * len(signs) / 2
        low = -high
    return clustered_mean(values[there], [way[there] for way in sample.ways], (low, high))
