"""Mastery against arithmetic and pyBKT; consolidation is a replayable function of the log."""

import math
from fractions import Fraction
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
from conftest import past
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.errors import UserError
from cot.utils.mastery import (
    BKTParameters,
    Evidence,
    SkillState,
    consolidate,
    mastery_by_skill,
    render_memory,
    update_mastery,
)
from cot.utils.students import Interaction, in_time_order

PARAMETERS = BKTParameters(p_init=0.3, p_transit=0.1, p_slip=0.1, p_guess=0.2)
# Right, wrong, right; before and after each answer, with the parameters above:
# 1: .27/(.27+.14) = 27/41          + 14/41 * .1    = 284/410     = 142/205
# 0: 14.2/(14.2+50.4) = 71/323      + 252/323 * .1  = 962/3230    = 481/1615
# 1: 432.9/(432.9+226.8) = 481/733  + 252/733 * .1  = 5062/7330   = 2531/3665
SEQUENCE = [Fraction(3, 10), Fraction(142, 205), Fraction(481, 1615), Fraction(2531, 3665)]


def practised(*answers, skill="add", days=None, **changes) -> list[Interaction]:
    """One interaction a day (or on the given days of January) at nine, right or wrong."""
    days = days or range(1, len(answers) + 1)
    return [
        past("S1", f"2026-01-{day:02}", f"{skill} {day}?", skill=skill, correct=bool(correct), **changes)
        for day, correct in zip(days, answers, strict=True)
    ]


# --- mastery ---------------------------------------------------------------------------------------------


def test_mastery_is_the_hand_computed_sequence_of_each_skill():
    history, other = practised(1, 0, 1), practised(0, 1, skill="sub")
    for n in range(1, 4):
        mastery = mastery_by_skill(history[:n], PARAMETERS)
        assert mastery == {"add": pytest.approx(float(SEQUENCE[n]), abs=1e-12)}
    assert mastery_by_skill(history + other) == mastery_by_skill(history) | mastery_by_skill(other)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certainty_and_impossible_answers_are_no_error(p):
    never = BKTParameters(p_init=p, p_transit=0.0, p_slip=0.0, p_guess=0.0)
    assert update_mastery(p, True, never) == update_mastery(p, False, never) == p


def test_parameters_out_of_range_are_refused():
    for values in ({"p_slip": 0.5}, {"p_guess": 0.5}, {"p_init": 1.1}, {"p_init": math.nan}):
        with pytest.raises(ValueError, match=next(iter(values))):
            BKTParameters(**values)
    for half_life in (0.0, math.nan, math.inf):
        with pytest.raises(UserError, match="--memory_half_life"):
            mastery_by_skill(practised(1), half_life_days=half_life)


def test_a_half_of_what_was_learned_is_forgotten_in_a_half_life():
    p1 = float(SEQUENCE[1])  # after one right answer on 1 January
    faded = pytest.approx(0.3 + (p1 - 0.3) / 2, abs=1e-12)  # on 11 January, ten days later
    on_the_11th = "2026-01-11T09:00:00Z"
    assert mastery_by_skill(practised(1), PARAMETERS, 10.0, as_of=on_the_11th) == {"add": faded}
    # at the log's end the moment is that of the last exercise, in whatever skill
    both = practised(1) + practised(1, skill="sub", days=[11])
    assert mastery_by_skill(both, PARAMETERS, 10.0)["add"] == faded
    assert mastery_by_skill(both, PARAMETERS)["add"] == pytest.approx(p1, abs=1e-12)
    # between two exercises it is forgotten as well
    again = update_mastery(0.3 + (p1 - 0.3) / 2, True, PARAMETERS)
    twice = practised(1, 1, days=[1, 11])
    assert mastery_by_skill(twice, PARAMETERS, 10.0) == {"add": pytest.approx(again, abs=1e-12)}


@pytest.mark.skipif(not find_spec("pyBKT"), reason="pyBKT absent: pip install -r tests/requirements.txt")
def test_mastery_is_what_pybkt_predicts():
    with mock.patch("sklearn.metrics._classification._log_loss", side_effect=TypeError):
        # pyBKT 1.4 tries every metric of scikit-learn at import and expects a TypeError from some
        from pyBKT.fit import predict_onestep
    answers = np.random.default_rng(1).random((5, 30)) < 0.6  # of five students
    chances = {"learns": 0.12, "forgets": 0.0, "slips": 0.08, "guesses": 0.22}
    model = {"prior": 0.35} | {name: np.array([chance]) for name, chance in chances.items()}
    data = {"data": (answers.ravel() + 1)[None, :], "resources": np.ones(150, dtype=int)}  # 1 wrong, 2 right
    data |= {"starts": np.arange(5) * 30 + 1, "lengths": np.full(5, 30)}
    p_correct, p_states = predict_onestep.run(model, data, parallel=False)

    parameters = BKTParameters(p_init=0.35, p_transit=0.12, p_slip=0.08, p_guess=0.22)
    ours = np.full((5, 30), parameters.p_init)  # before each answer
    for student, place in np.ndindex(5, 29):
        ours[student, place + 1] = update_mastery(ours[student, place], answers[student, place], parameters)
    ours = ours.ravel()
    np.testing.assert_allclose(ours, p_states[1], atol=1e-10, rtol=0)
    np.testing.assert_allclose(ours * 0.92 + (1 - ours) * 0.22, p_correct, atol=1e-10, rtol=0)


# --- consolidation ---------------------------------------------------------------------------------------


def test_skills_are_sorted_into_mastered_in_progress_and_struggling():
    history = (
        practised(1, 1, 1, 1, skill="easy") + practised(1, skill="begun") + practised(0, 0, skill="hard")
    )
    result = consolidate(history + practised(0, skill="once_wrong"))
    # easy: .3 > .692683 > .911... > .98...; hard: .3 > .03/.59 = 3/59, + 56/59 * .1 = .145763 > lower
    assert [(s.skill, s.exercises, s.right) for s in result.mastered] == [("easy", 4, 4)]
    assert [s.skill for s in result.in_progress] == ["begun"]
    assert [(s.skill, s.exercises) for s in result.struggling] == [("once_wrong", 1), ("hard", 2)]
    assert result.struggling[0].mastery == pytest.approx(3 / 59 + 56 / 590, abs=1e-12)
    # forgotten, what was mastered is in progress and never struggling
    faded = consolidate(history[:4], as_of="2030-01-01T00:00:00Z", half_life_days=10.0)
    assert faded.in_progress == (SkillState("easy", pytest.approx(0.3), 4, 4),)
    with pytest.raises(ValueError, match="one student"):
        consolidate([*history, history[0].model_copy(update={"student_id": "S2"})])


def test_an_error_recurs_from_its_second_time_and_is_resolved_by_three_later_successes():
    twice = practised(0, 0, error_type="forgot_to_carry")
    error = Evidence("add", "forgot_to_carry", 2, "2026-01-02T09:00:00Z")
    assert consolidate(twice[:1]).recurring_errors == ()
    assert consolidate(twice).recurring_errors == (error,)
    other_skill = practised(1, 1, 1, days=[3, 4, 5], skill="sub")
    assert consolidate(twice + other_skill).recurring_errors == (error,)
    later = practised(1, 1, 1, days=[3, 4, 5])
    assert consolidate(twice + later[:2]).recurring_errors == (error,)
    assert consolidate(twice + later).recurring_errors == ()
    again = practised(0, days=[6], error_type="forgot_to_carry")
    assert consolidate(twice + later + again).recurring_errors == (
        Evidence("add", "forgot_to_carry", 3, "2026-01-06T09:00:00Z"),
    )


def test_evidence_comes_by_count_then_latest_first_and_fades_with_a_half_life():
    history = practised(0, 0, error_type="a") + practised(0, 0, 0, days=[3, 4, 5], error_type="b")
    history += practised(0, 0, days=[6, 7], error_type="c", what_helped="a drawing")
    result = consolidate(history)
    assert [(e.text, e.count) for e in result.recurring_errors] == [("b", 3), ("c", 2), ("a", 2)]
    assert result.what_helped == (Evidence("add", "a drawing", 2, "2026-01-07T09:00:00Z"),)

    history = practised(0, 0, days=[1, 11], error_type="a", what_helped="b")
    # on 21 January with a half-life of 10 days: 1/4 + 1/2; on 31 January 1/8 + 1/4; ten days later 3/16
    for day, kept in [("2026-01-21", True), ("2026-01-31", True), ("2026-02-10", False)]:
        result = consolidate(history, as_of=f"{day}T09:00:00Z", half_life_days=10.0)
        assert [bool(result.recurring_errors), bool(result.what_helped)] == [kept, kept]
    assert consolidate(history, as_of="2036-01-01T00:00:00Z").recurring_errors


histories = st.lists(
    st.builds(
        lambda day, skill, correct, error: practised(
            correct, skill=skill, days=[day], error_type=error, what_helped=f"{error} helped"
        )[0],
        st.integers(1, 31),
        st.sampled_from(["add", "sub", "mul"]),
        st.booleans(),
        st.sampled_from(["a", "b"]),
    ),
    max_size=30,
    unique_by=lambda item: item.time,
)


@settings(deadline=None, max_examples=20)
@given(histories)
def test_the_memory_of_a_moment_is_that_of_what_happened_before_it(history):
    whole = in_time_order(history)
    for n, item in enumerate(whole):
        assert consolidate(whole, as_of=item.time) == consolidate(whole[:n])
    assert consolidate(whole, as_of="2027-01-01T00:00:00Z") == consolidate(whole)


@settings(deadline=None, max_examples=50)
@given(histories, st.sampled_from([None, 2.0, 30.0]), st.randoms(use_true_random=False))
def test_duplicates_and_the_order_of_arrival_change_nothing(history, half_life, rng):
    once = consolidate(history, half_life_days=half_life)
    doubled = history + rng.sample(history, rng.randint(0, len(history)))
    rng.shuffle(doubled)
    assert consolidate(doubled, half_life_days=half_life) == once


# --- rendering -------------------------------------------------------------------------------------------


def test_the_memory_reads_as_short_lines_most_relevant_first():
    history = practised(1, 1, 1, skill="add_two_numbers")
    history += practised(0, 0, skill="mul", error_type="lost_it")
    history += practised(1, days=[9], skill="sub", what_helped="a  drawing\nof bars")
    lines = render_memory(consolidate(history))
    # add: .692683 > .623415/.684878 = .910256 > .919231 > .827308/.843462 = .980848 > .982763
    # mul: .145763 > .014576/.697966 = .020884 > .118796
    assert lines == [
        "Struggling: mul (0.12 after 2 exercises, 0 right).",
        "In progress: sub (0.69 after 1 exercise, 1 right).",
        "Recurring error in mul: lost it (2 times, last on 2026-01-02).",
        "Helped with sub (once): a drawing of bars",
        "Mastered: add two numbers (0.98 after 3 exercises).",
    ]
    about_sub = render_memory(consolidate(history), skill="sub")
    at_hand = "Skill at hand, in progress: 0.69 after 1 exercise, 1 right."
    assert about_sub == [at_hand, lines[3], lines[0], lines[2], lines[4]]
    assert render_memory(consolidate(history), skill="div") == [
        "Skill at hand, new: no exercise yet.",
        *lines,
    ]
    assert render_memory(consolidate([])) == []
