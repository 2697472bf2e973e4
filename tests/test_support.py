"""Levels of support: what a text gives, and what a student needs."""

import pytest

from cot.utils.support import support_fit, support_level, support_target


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("Adding gives 14+23=37.\n#### 37", "brief"),
        ("Adding gives 14+23=37 because we put the numbers together.\n#### 37", "guided"),
        ("Adding gives 14+23=37.\nSee, 37-14=23.\n#### 37", "worked_out"),
        ("Adding gives 14+23=37.\nAgain, 14+23=37.\n#### 37", "brief"),  # the same equation twice
        ("Adding gives 14+23=37.\nSee, 37-14=22.\n#### 37", "brief"),  # a wrong one supports nothing
        ("Adding gives 14+23=37.\nCheck: 37-23=14.\n#### 37", "brief"),  # the style's check
        ("Adding gives 14+23=37.\nSee, 37-14=23.\nCheck: 37-23=14.\n#### 37", "worked_out"),
        ("The answer is 37.\n#### 37", None),  # no step is shown
    ],
)
def test_a_texts_level_is_read_from_its_equations_and_reasons(text, level):
    assert support_level(text, gold_steps=1) == level


def test_a_problem_of_two_steps_needs_two_equations():
    assert support_level("14+23=37 and no more.", gold_steps=2) is None
    assert support_level("14+23=37, then 37-5=32.", gold_steps=2) == "brief"


def test_the_less_is_known_the_more_support_is_needed():
    targets = [support_target(mastery) for mastery in (0.0, 0.29, 0.3, 0.94, 0.95, 1.0)]
    assert targets == ["worked_out", "worked_out", "guided", "guided", "brief", "brief"]


def test_no_level_fits_more_than_one_target():
    assert [support_fit("guided", target) for target in ("worked_out", "guided", "brief")] == [0.0, 1.0, 0.0]
