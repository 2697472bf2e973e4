"""Profiles and interactions: what is refused, what comes when, how a profile reads."""

import argparse

import pytest
from conftest import FIELDS, PROFILE
from pydantic import ValidationError

from cot.utils.errors import UserError
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.student_files import MemoryLog
from cot.utils.students import Interaction, Profile, check_as_of, in_time_order, render_profile


def interaction(second: int = 0, **changes) -> Interaction:
    return Interaction(**FIELDS | {"time": f"2026-01-05T09:00:{second:02}Z"} | changes)


def test_a_profile_reads_as_short_lines_without_an_empty_one():
    assert render_profile(Profile(**PROFILE | {"strengths": [], "notes": "Likes trains."})) == [
        "Student S005, 5th grade.",
        "Explanation style: a last line 'Check:' with another equation that confirms the answer.",
        "Prefers: a hint first.",
        "Challenges: careless slips.",
        "Likes trains.",
    ]
    for style in EXPLANATION_STYLES:
        assert len(render_profile(Profile(**PROFILE | {"explanation_style": style}))) == 5


TIMES = ["2026-01-05 09:00:00", "2026-01-05T09:00:00+01:00", "2026-02-30T09:00:00Z", "2026-01-05T09:00:00Z\n"]
LOOKALIKES = ["", ".", "..", ".S1", "S1 ", " S1", "S1\n", "S1\x00", "S1/../S10", "../S1", "/S1", "S\\1"]
LOOKALIKES += ["\u0405" + "1", "S\uff11", "S1\u200b", "S\u0661", "é1", "S" * 65]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("correct", [1, "true"]),
        ("question", [""]),
        ("tutor_correct", [1]),
        ("mood", ["good"]),
        ("time", [*TIMES, "２０２６-01-05T09:00:00Z"]),
        ("student_id", LOOKALIKES),
    ],
)
def test_a_field_that_does_not_fit_is_refused(tmp_path, field, values):
    for value in values:
        with pytest.raises(ValidationError):
            Interaction(**FIELDS | {field: value})
        if field == "student_id":  # could look like another's, or leave the folder
            with pytest.raises(UserError, match="student id"):
                MemoryLog(tmp_path).read(value)
        if field == "time":
            with pytest.raises(argparse.ArgumentTypeError, match=r"; or end$") as refused:
                check_as_of(value)
            assert repr(value) in str(refused.value)


def test_each_interaction_comes_once_by_time_then_as_given_and_strictly_before_a_moment():
    first, z, a, last = interaction(0), interaction(1, question="z"), interaction(1), interaction(2)
    given = [last, z, a, first, z, last]
    assert in_time_order(given) == in_time_order(given, as_of=check_as_of("end")) == [first, z, a, last]
    assert in_time_order(given, as_of=check_as_of(last.time)) == [first, z, a]
    assert in_time_order(given, as_of=first.time) == []
    with pytest.raises(UserError, match=r"as_of: .*'2026-01-05'"):
        in_time_order(given, as_of="2026-01-05")
