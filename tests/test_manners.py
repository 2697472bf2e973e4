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


def tried(day: str, style: str, correct: bool, hint: bool | None = None):
    """An exercise after an explanation in a style."""
    return past("S1", day, f"{day} {style}", correct=correct, manner=Manner(style=style, hint=hint))


LOG = [tried(f"2026-01-0{day}", "numbered_steps", day == 1) for day in (1, 2, 3)]
LOG += [tried(f"2026-01-0{day}", "short_sentences", True) for day in (4, 5)]


def test_what_was_followed_by_right_answers_comes_first_as_of_the_moment():
    best, other = record_manners(LOG).styles
    assert (best.value, best.right, best.times, best.odds) == ("short_sentences", 2, 2, (1 + 2) / (2 + 2))
    assert (other.value, other.right, other.times, other.odds) == ("numbered_steps", 1, 3, (1 + 1) / (2 + 3))
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


def test_what_worked_best_is_told_and_what_worked_less_or_was_not_noted_is_not():
    log = [
        tried("2026-01-01", "equations_first", True, True),
        tried("2026-01-02", "short_sentences", False, False),
    ]
    record = record_manners(log)
    assert [(entry.value, entry.right) for entry in record.hints] == [(True, 1), (False, 0)]
    best = "every line begins with its equation (1 of 1 right); a hint first (1 of 1 right)"
    assert render_record(record) == f"What worked best: {best}."
    best = "What worked best: short sentences of at most 12 words (2 of 2 right)."
    assert render_record(record_manners(LOG)) == best and record_manners(LOG).hints == ()
    nothing = record_manners([past("S1", "2026-01-01", "What is 1+1?")])
    assert render_record(nothing) is None and nothing.styles == nothing.hints == ()
    assert render_manner(Manner()) == ""


# ---- levels of support


@pytest.mark.parametrize(
    ("text", "steps", "level"),
    [
        ("Adding gives 14+23=37.\n#### 37", 1, "brief"),
        ("Adding gives 14+23=37 because we put the numbers together.\n#### 37", 1, "guided"),
        ("Adding gives 14+23=37.\nSee, 37-14=23.\n#### 37", 1, "worked_out"),
        ("Adding gives 14+23=37.\nAgain, 14+23=37.\n#### 37", 1, "brief"),  # the same equation twice
        ("Adding gives 14+23=37.\nSee, 37-14=22.\n#### 37", 1, "brief"),  # a wrong one supports nothing
        ("Adding gives 14+23=37.\nCheck: 37-23=14.\n#### 37", 1, "brief"),  # the style's check
        ("Adding gives 14+23=37.\nSee, 37-14=23.\nCheck: 37-23=14.\n#### 37", 1, "worked_out"),
        ("The answer is 37.\n#### 37", 1, None),  # no step is shown
        ("14+23=37 and no more.", 2, None),
        ("14+23=37, then 37-5=32.", 2, "brief"),
    ],
)
def test_a_texts_level_is_read_from_its_equations_and_reasons(text, steps, level):
    assert support_level(text, gold_steps=steps) == level


def test_the_less_is_known_the_more_support_is_needed_and_no_level_fits_more_than_one_target():
    targets = [support_target(mastery) for mastery in (0.0, 0.29, 0.3, 0.94, 0.95, 1.0)]
    assert targets == ["worked_out", "worked_out", "guided", "guided", "brief", "brief"]
    assert [support_fit("guided", target) for target in ("worked_out", "guided", "brief")] == [0.0, 1.0, 0.0]
