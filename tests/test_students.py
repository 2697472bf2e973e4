"""Students: an interaction's fields, its id and its time, and a profile in a prompt."""

import argparse
import hashlib
import json

import pytest
from conftest import FIELDS, PROFILE
from pydantic import ValidationError

from cot.utils.errors import UserError
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.students import END, Interaction, Profile, check_as_of, in_time_order, render_profile


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


def test_the_id_is_the_hash_of_the_canonical_content():
    canonical = json.dumps(FIELDS, sort_keys=True, separators=(",", ":"))
    assert interaction().id == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": 1},
        {"correct": "true"},
        {"skill": ""},
        {"question": ""},
        {"tutor_correct": 1},
        {"mood": "good"},
        {"time": "2026-01-05 09:00:00"},
        {"time": "2026-01-05T09:00:00+01:00"},
        {"time": "2026-1-5T9:00:00Z"},
        {"time": "2026-02-30T09:00:00Z"},
        {"time": "2026-01-05T24:00:00Z"},
        {"time": "2026-01-05T09:00:00Z\n"},
        {"time": "２０２６-01-05T09:00:00Z"},
    ],
)
def test_a_field_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValidationError):
        Interaction(**FIELDS | changes)


def test_as_of_on_a_command_line_is_a_time_or_the_end():
    assert check_as_of("2026-03-01T09:00:00Z") == "2026-03-01T09:00:00Z"
    assert check_as_of("end") == END
    for text in ("2026-03-01", "End", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected a UTC time such as .*; or end"):
            check_as_of(text)


def test_each_interaction_comes_once_by_time_then_as_given_and_strictly_before_a_moment():
    first, z, a, last = interaction(0), interaction(1, question="z"), interaction(1), interaction(2)
    ordered = [first, z, a, last]
    given = [last, z, a, first, z, last]
    assert in_time_order(given) == in_time_order(given, as_of=END) == ordered
    assert in_time_order(given, as_of=last.time) == ordered[:3]
    assert in_time_order(given, as_of=first.time) == []
    with pytest.raises(UserError, match=r"as_of: .*'2026-01-05'"):
        in_time_order(given, as_of="2026-01-05")
