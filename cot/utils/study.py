"""The study without training: who is asked what, what each prompt shows, and what is claimed beforehand.

Every question is asked for a few students, under conditions. Where a condition shows a memory, its name bears
the level of it, such as `own@history`:

none, instructed         the arms of that name (`memory_arms.py`)
own, shuffled, random    the arms of that name
after_N                  the own memory after N interactions, for one student of each question; not where the
                         memory states the wishes, which takes no evidence
irrelevant, stale, wrong bad memories (`interventions.py`; irrelevant is random text), at the highest
                         temperature, with further random numbers
resample                 nothing, with these very numbers: what a second answer changes by itself

The hypotheses stood here before any answer was asked for. They speak of greedy answers (of those at the
lowest temperature), but for those about bad memories.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from cot.utils.findings import Hypothesis
from cot.utils.interventions import recall_after, recall_stale, state_wrong_answer
from cot.utils.memory_arms import MemoryArms, Moment, StudentMemory
from cot.utils.questions import Question
from cot.utils.records import Row, expand

EVIDENCE = (0, 2, 5, 10, 20)  # interactions
STATED = "stated"  # the level that takes no evidence
MISUSED = ("irrelevant", "stale", "wrong")
FIDELITY_GAIN = 0.10  # over another student's memory, where the memory states the wishes
ACCURACY_LOSS = 0.03  # that unrelated text in the memory's place may cost
MISUSE = 0.05  # of right answers, which a bad memory may turn wrong


class Side(NamedTuple):
    """Which answers: their condition, with its level, and their temperature."""

    memory_arm: str
    temperature: float


def deal_students(students: Sequence[str], questions: int, each: int, seed: int) -> list[list[str]]:
    """For whom each question is asked: `each` students, all of them about equally often.

    >>> deal_students(["S1", "S2", "S3", "S4"], questions=2, each=2, seed=0)
    [['S2', 'S1'], ['S3', 'S4']]
    """
    rng, dealt = random.Random(f"deal {seed}"), []
    while len(dealt) < questions:
        deck = rng.sample(list(students), len(students))
        dealt += [deck[start : start + each] for start in range(0, len(deck) - each + 1, each)]
    return dealt[:questions]


def build_rows(
    policy: str,
    questions: Sequence[Question],
    dealt: Sequence[Sequence[str]],
    by_level: Mapping[str, MemoryArms],
    temperatures: Sequence[float],
    num_samples: int,
) -> list[Row]:
    """All answers of a study, question by question.

    Args:
        dealt: for each question its students.
        by_level: the same students' memories, at each level.
        num_samples: of each prompt but those of evidence and of bad memories, which have one.
    """
    lowest, highest = min(temperatures), max(temperatures)
    rows: list[Row] = []

    def ask(index: int, moment: Moment, memory: StudentMemory) -> None:
        rows.extend(expand(policy, index, moment, memory, temperatures, num_samples))

    for index, (question, students) in enumerate(zip(questions, dealt, strict=True)):
        for place, student in enumerate(students):
            for number, (level, arms) in enumerate(by_level.items()):
                moment = arms.moment(student, question, number=index)
                for arm in () if number else ("none", "instructed"):  # the same at every level
                    ask(index, moment, arms.show(moment, arm))
                for arm in ("own", "shuffled", "random"):
                    ask(index, moment, at_level(arms.show(moment, arm), level))

                if place == 0 and level != STATED:
                    for count in EVIDENCE:
                        arm = f"after_{count}@{level}"
                        past = recall_after(arms, student, question, count, number=index, arm=arm)
                        rows.append(Row(policy, index, *past, lowest, sample=0))

                if highest > 0:  # greedy, a second answer is the first
                    bad = [*misuse(arms, moment, level)]
                    bad += [] if number else [replace(arms.show(moment, "none"), arm="resample")]
                    rows += [Row(policy, index, moment, memory, highest, num_samples) for memory in bad]
    return rows


def at_level(memory: StudentMemory, level: str, condition: str | None = None) -> StudentMemory:
    """The memory as a condition, named after its arm unless told."""
    return replace(memory, arm=f"{condition or memory.arm}@{level}")


def misuse(arms: MemoryArms, moment: Moment, level: str) -> Iterator[StudentMemory]:
    """What a memory may do wrong at a moment, in the order of `MISUSED`."""
    yield at_level(arms.show(moment, "random"), level, "irrelevant")
    yield at_level(recall_stale(arms, moment), level)
    yield at_level(state_wrong_answer(arms.show(moment, "own"), moment), level)


def list_hypotheses(levels: Sequence[str], temperatures: Sequence[float], students: int) -> list[Hypothesis]:
    """What the study claims, at each level of memory.

    Args:
        students: among whom a text is to identify its own.
    """
    found, lowest, highest = [], min(temperatures), max(temperatures)
    none, told, again = Side("none", lowest), Side("instructed", lowest), Side("resample", highest)
    for level in levels:
        at = f"at level {level}"
        own, shuffled, unrelated, first, last = (
            Side(f"{condition}@{level}", lowest)
            for condition in ("own", "shuffled", "random", f"after_{EVIDENCE[0]}", f"after_{EVIDENCE[-1]}")
        )

        # a, b. memory helps to be right, and it is this student's memory that does
        claim = f"own memory {at} raises accuracy over no memory"
        found.append(Hypothesis("a", claim, "accuracy", own, none, above=0.0))
        claim = f"own memory {at} raises accuracy over another student's"
        found.append(Hypothesis("b", claim, "accuracy", own, shuffled, above=0.0))

        # c. a memory, whatever it says, costs no accuracy
        claim = f"unrelated text as long as the memory {at} costs at most 3 points of accuracy"
        found.append(Hypothesis("c", claim, "accuracy", unrelated, none, above=-ACCURACY_LOSS))

        # d, e, f. the explanation fits the student, less than one that is told how, and tells who it is for
        gain, points = (FIDELITY_GAIN, "10 points above") if level == STATED else (0.0, "above")
        claim = f"fidelity with own memory {at} is {points} that with another student's"
        found.append(Hypothesis("d", claim, "fidelity", own, shuffled, above=gain))
        claim = f"fidelity with the wishes as an instruction is above that with own memory {at}"
        found.append(Hypothesis("e", claim, "fidelity", told, own, above=0.0))
        claim = f"a text with own memory {at} identifies its student more often than chance does"
        found.append(Hypothesis("f", claim, "identification", own, minus=1 / students, above=0.0))

        # g. a bad memory does no harm
        for condition in MISUSED:
            claim = f"a memory {at} that is {condition} turns at most 5 % more right answers wrong than a"
            claim += " second answer does"
            bad = Side(f"{condition}@{level}", highest)
            found.append(Hypothesis("g", claim, "breakage", bad, again, below=MISUSE))

        # h. the more evidence, the better
        if level != STATED:
            claim = f"fidelity {at} rises from no interaction to {EVIDENCE[-1]}"
            found.append(Hypothesis("h", claim, "fidelity", last, first, above=0.0))
    return found
