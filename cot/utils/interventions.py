"""What a prompt could show beside the arms: the own memory of another amount of evidence, or a bad one.

after N  the own memory after N interactions
stale    the own memory as of long ago
wrong    what the own memory begins with, after a line that states a wrong answer to this very question
"""

from dataclasses import replace

from cot.utils.answers import gold_answer
from cot.utils.memory_arms import NEEDED_LINES, MemoryArms, Moment, StudentMemory
from cot.utils.questions import Question
from cot.utils.students import END

LARGE_BUDGET = 256  # tokens of memory, more of which is of no use
STALE_AFTER = 5  # interactions, as of which a memory is stale
WRONG_BY = 10  # of an answer that is made up


def time_after(arms: MemoryArms, student: str, count: int) -> str:
    """The moment at which a student has had so many interactions."""
    history = arms.histories[student]
    return history[count].time if count < len(history) else END


def recall_after(
    arms: MemoryArms, student: str, question: Question, count: int, number: int, arm: str
) -> tuple[Moment, StudentMemory]:
    """A student after so many interactions, and the own memory of them under a name of its own.

    Args:
        number: of the moment.
    """
    moment = arms.moment(student, question, time_after(arms, student, count), number)
    return moment, replace(arms.show(moment, "own"), arm=arm)


def recall_stale(arms: MemoryArms, moment: Moment) -> StudentMemory:
    """The student's memory as of long ago."""
    long_ago = time_after(arms, moment.student_id, STALE_AFTER)
    return replace(arms.show(replace(moment, as_of=long_ago), "own"), arm="stale")


def state_wrong_answer(own: StudentMemory, moment: Moment) -> StudentMemory:
    """What the memory begins with, after a line with a wrong answer to this very question."""
    answer = gold_answer(moment.question.gold_solution) + WRONG_BY
    line = f'Past exercise: "{moment.question.question}" The answer was {answer}.'
    return replace(own, arm="wrong", lines=(line, *own.lines[:NEEDED_LINES]), tokens=2 * LARGE_BUDGET)
