"""The Bayes choice: its likelihood against a sum over all that a student may have known."""

import itertools
import math

import pytest

from cot.utils.manners import support_target
from cot.utils.mastery import BKTParameters, update_mastery
from cot.utils.students import Interaction, Manner
from cot.utils.textbook import load_chapters
from rl.bayes_choice import likely_needs, log_likelihood
from rl.student_model import Needs, generate_student, needs_of, odds_after

COURSE = load_chapters()[:5]
PARAMETERS = BKTParameters(p_init=0.3, p_transit=0.2, p_slip=0.08, p_guess=0.15)


def happened(number: int, correct: bool, style: str, hint: bool, support="guided") -> Interaction:
    return Interaction(
        student_id="S1",
        time=f"2026-01-05T15:0{number}:00Z",
        chapter="addition",
        skill="add_two_numbers",
        question=f"Question {number}?",
        correct=correct,
        manner=Manner(style=style, hint=hint, support=support),
    )


HISTORY = [
    happened(0, True, "numbered_steps", True),
    happened(1, False, "numbered_steps", False, "brief"),
    happened(2, True, "check_at_end", True, "worked_out"),
]


@pytest.mark.parametrize("needs", [Needs("numbered_steps", True), Needs("check_at_end", False)])
def test_the_likelihood_is_the_sum_over_what_the_student_may_have_known(needs):
    total = 0.0
    for known in itertools.product((False, True), repeat=len(HISTORY)):
        p = PARAMETERS.p_init if known[0] else 1 - PARAMETERS.p_init
        mastery = None
        for place, item in enumerate(HISTORY):
            supported = item.manner.support == support_target(mastery)
            if_known, if_not, learning = odds_after(PARAMETERS, needs.met_by(item.manner), supported)
            right = if_known if known[place] else if_not
            p *= right if item.correct else 1 - right
            if place + 1 < len(HISTORY):
                to_known = 1.0 if known[place] else learning
                p *= to_known if known[place + 1] else 1 - to_known
            before = PARAMETERS.p_init if mastery is None else mastery
            mastery = update_mastery(before, item.correct, PARAMETERS)
        total += p
    assert log_likelihood(needs, HISTORY, {"addition": PARAMETERS}) == pytest.approx(math.log(total))


def test_the_more_has_happened_the_more_often_it_is_right():
    students = [generate_student(number, COURSE, 5) for number in range(30)]
    found = []
    for count in (2, 20, 60):
        chosen = [likely_needs(student.profile, student.history[:count], COURSE) for student in students]
        truths = [needs_of(student.truth) for student in students]
        found.append(sum(a.style == b.style for a, b in zip(chosen, truths, strict=True)) / 30)
    assert found[0] < found[1] < found[2] and found[2] > 0.75
