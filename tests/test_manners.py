"""What worked for a student: counts, forgetting, order and words of the record. Levels of support."""

import pytest
from conftest import past

from cot.utils.manners import (
    record_manners,
    render_manner,
    render_record,
    support_fit,
    support_level,
    support_target,
)
from cot.utils.students import Manner


def tried(day: str, style: str, correct: bool, hint: bool | None = None, student: str = "S1"):
    """An exercise after an explanation in a style."""
    return past(student, day, f"{day} {style}", correct=correct, manner=Manner(style=style, hint=hint))


LOG = [
    tried("2026-01-01", "numbered_steps", True),
    tried("2026-01-02", "numbered_steps", False),
    tried("2026-01-03", "numbered_steps", False),
    tried("2026-01-04", "short_sentences", True),
    tried("2026-01-05", "short_sentences", True),
]


def test_what_was_followed_by_right_answers_comes_first():
    best, other = record_manners(LOG).styles
    assert (best.value, best.right, best.times) == ("short_sentences", 2, 2)
    assert best.odds == (1 + 2) / (2 + 2)
    assert (other.value, other.right, other.times) == ("numbered_steps", 1, 3)
    assert other.odds == (1 + 1) / (2 + 3)


def test_only_what_happened_before_the_moment_is_counted():
    (only,) = record_manners(LOG, as_of="2026-01-03T09:00:00Z").styles
    assert (only.value, only.right, only.times) == ("numbered_steps", 1, 2)


def test_with_a_half_life_the_newer_answers_outweigh_the_older_ones():
    early = [tried(f"2026-01-0{day}", "numbered_steps", True) for day in range(1, 7)]
    late = [tried(f"2026-02-0{day}", "numbered_steps", False) for day in range(1, 4)]
    late += [tried(f"2026-02-0{day}", "guiding_questions", True) for day in range(4, 6)]
    kept = record_manners(early + late)  # 6 of 9 is (1+6)/(2+9), 2 of 2 is (1+2)/(2+2)
    assert [entry.odds for entry in kept.styles] == [3 / 4, 7 / 11]
    faded = record_manners(early + late, half_life_days=5.0)
    assert faded.styles[0].value == "guiding_questions"
    assert faded.styles[1].odds < 0.5  # what is left speaks against it
    assert (faded.styles[1].right, faded.styles[1].times) == (6, 9)  # the counts that are told stay


def test_hints_have_a_record_of_their_own():
    log = [
        tried("2026-01-01", "numbered_steps", True, hint=False),
        tried("2026-01-02", "short_sentences", False, hint=True),
    ]
    assert [(entry.value, entry.right) for entry in record_manners(log).hints] == [(False, 1), (True, 0)]


def test_nothing_was_tried_nothing_is_told():
    record = record_manners([past("S1", "2026-01-01", "What is 1+1?")])
    assert render_record(record) is None and record.styles == record.hints == ()


def test_what_worked_best_is_told_and_what_worked_less_is_not():
    log = [
        tried("2026-01-01", "equations_first", True, hint=True),
        tried("2026-01-02", "short_sentences", False, hint=False),
    ]
    best = "every line begins with its equation (1 of 1 right); a hint first (1 of 1 right)"
    assert render_record(record_manners(log)) == f"What worked best: {best}."


def test_what_was_not_noted_of_a_manner_is_not_counted():
    assert record_manners(LOG).hints == ()
    best = "What worked best: short sentences of at most 12 words (2 of 2 right)."
    assert render_record(record_manners(LOG)) == best


def test_a_manner_of_which_nothing_is_known_has_no_words():
    assert render_manner(Manner()) == ""


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
