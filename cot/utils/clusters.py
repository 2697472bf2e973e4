"""Which answers are one observation, and which hang together: what records give to the statistics.

A text that several cells share is one observation: the answer without memory is the same for every student.
Answers to one question are not independent, be they for other students, at other temperatures or further
samples, and neither are answers to exercises of one template. So intervals and tests are over clusters:
questions, or templates where there are any, crossed with students where a question is asked for several.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cot.utils.stats import Interval, clustered_mean, clustered_share, wilson_interval

# What depends on the student whom a text is for: the same text has another value for another student.
OF_THE_STUDENT = {"fidelity", "support_fit", "prerequisite_coverage", "over_explaining", "mastery"}
OF_THE_STUDENT |= {"specificity", "identification", "reciprocal_rank", "names_student"}
OF_THE_STUDENT |= {"teacher_similarity", "wrong_step_named", "wrong_number_repeated"}
COUNTED = {"output_tokens", "mean_nll", "base_nll", "reasoning_steps", "amount"}
COUNTED |= {"distinct_equations", "distinct_valid_equations"}
LIMITS = dict.fromkeys(COUNTED, (0.0, math.inf)) | {"perplexity": (1.0, math.inf)}
LIMITS |= dict.fromkeys(("semantic_similarity", "teacher_similarity", "specificity", "regret"), (-1.0, 1.0))
UNIT = (0.0, 1.0)  # of every other metric


class Sample(NamedTuple):
    """Observations: each a record, or one of each side that is compared; and their clusters.

    Attributes:
        rows: a tuple of records for each observation.
        ways: for questions (or templates) and students the cluster of each observation, (N,), from 0.
    """

    rows: list[tuple[dict, ...]]
    ways: tuple[np.ndarray, ...]

    @property
    def clusters(self) -> int:
        """Questions, or templates where there are any."""
        return len(np.unique(self.ways[0]))


def observe(*sides: Sequence[dict], by_student: bool = False, templates: bool = True) -> Sample:
    """The distinct observations among records, or among pairs of records that stand side by side.

    Students are a way of their own where they meet several questions; who meets one alone is part of it.

    Args:
        sides: records as long as each other, the same student and question side by side.
        by_student: one for each student, for metrics `OF_THE_STUDENT`.
        templates: exercises of one template are one cluster; else each question is.
    """
    distinct: dict[tuple, tuple[dict, ...]] = {}
    for row in zip(*sides, strict=True):
        of = row[0].get("student_id") if by_student else None
        distinct.setdefault((of, *map(name_text, row)), row)
    rows = list(distinct.values())

    first = [row[0] for row in rows]
    questions = [name_cluster(record) if templates else record["question_id"] for record in first]
    ways = [number_clusters(questions)]
    cells = {(record["question_id"], record.get("student_id")) for record in first}
    asked, students = ({cell[way] for cell in cells} for way in (0, 1))
    nested = len(students) == len(cells) and len(asked) > 1  # each student has a question of its own
    if len(cells) > len(asked) and not nested:
        ways.append(number_clusters([record.get("student_id") for record in first]))
    return Sample(rows, tuple(ways))


def name_text(record: dict) -> tuple:
    """What decides a text: the policy, the prompt, and the noise, of which greedy decoding has none."""
    noise = record["sample"] if record["temperature"] else None
    return record["policy"], record["question_id"], record["temperature"], noise, record["prompt"]


def name_cluster(record: dict) -> str:
    """The template of an exercise of the textbook, else the question.

    >>> name_cluster({"question_id": "money/money_07/5f0c", "chapter": "money"})
    'money/money_07'
    >>> name_cluster({"question_id": "gsm8k-test-7", "chapter": None})
    'gsm8k-test-7'
    """
    question, chapter = record["question_id"], record.get("chapter")
    return question.rsplit("/", 1)[0] if chapter and question.startswith(f"{chapter}/") else question


def number_clusters(names: Sequence[Hashable]) -> np.ndarray:
    """The names as numbers from 0, in the order of their first occurrence.

    >>> number_clusters(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def share_of(sample: Sample, key: str = "correct") -> Interval:
    """The share of answers for which a key is true, with its interval.

    It is Wilson's where every cluster occurs once, and else the one over clusters.
    """
    outcomes = np.array([bool(record[key]) for (record,) in sample.rows], dtype=float)
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


def effect_of(sample: Sample, metric: str, signs: Sequence[int] = (1,)) -> Interval:
    """Mean of a metric, or of its difference between sides, with interval and p-value over clusters.

    Args:
        signs: with which each side's value enters, such as (1, -1).
    """
    values = np.zeros(len(sample.rows))
    for side, sign in enumerate(signs):
        values += sign * np.array([row[side].get(metric) for row in sample.rows], dtype=float)  # None is NaN
    there = np.isfinite(values)
    low, high = LIMITS.get(metric, UNIT)
    if len(signs) > 1:
        high = (high - low) * len(signs) / 2
        low = -high
    return clustered_mean(values[there], [way[there] for way in sample.ways], (low, high))
