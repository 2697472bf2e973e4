"""Share of preferences met, copying, naming, and fit to the right student."""

import doctest
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils import fidelity as module
from cot.utils.fidelity import (
    CHECKABLE_PREFERENCES,
    EXPLANATION_STYLES,
    constraint_report,
    copying,
    fidelity,
    memory_specificity,
    names_student,
    profile_identification,
)

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)  # lone surrogates included


@dataclass
class Student:
    explanation_style: str
    learning_preferences: list[str] = field(default_factory=list)
    student_id: str = "S005"
    grade_level: str = "5th grade"


NUMBERED = "1. 14+23=37\n2. 37-5=32\n#### 32"


def test_the_fixed_sets_are_complete():
    assert list(EXPLANATION_STYLES) == [
        "numbered_steps",
        "short_sentences",
        "guiding_questions",
        "equations_first",
        "check_at_end",
    ]
    assert list(CHECKABLE_PREFERENCES) == [
        "one step per line",
        "a hint first",
        "no hint",
        "at most 60 words",
        "the answer in a full sentence",
        "a reason with because",
    ]


def test_fidelity_is_the_share_of_checkable_constraints():
    student = Student("numbered_steps", ["one step per line", "likes football", "a hint first"])
    assert constraint_report(NUMBERED, student) == {
        "numbered_steps": True,
        "one step per line": True,
        "a hint first": False,
    }
    assert fidelity(NUMBERED, student) == pytest.approx(2 / 3)  # the free phrase does not count
    assert fidelity(NUMBERED, Student("check_at_end")) == 0.0
    assert fidelity(NUMBERED, Student("numbered_steps")) == 1.0
    with pytest.raises(KeyError):
        fidelity(NUMBERED, Student("singing"))


def test_copying_counts_positions_of_the_text():
    memory = "a b c d e f g h i j"
    assert copying(memory, memory) == 1.0
    # 16 words have 9 eight-grams; only "a ... h", at its second place too, stands in the memory: 2 of 9
    assert copying("a b c d e f g h a b c d e f g h", memory) == pytest.approx(2 / 9)
    assert copying("A, b; C d e f g H!", memory) == 1.0  # case and punctuation do not hide it
    assert copying("b a c d e f g h", memory) == 0.0
    assert copying("a b c d e f g", memory) == 0.0  # seven words
    assert copying("", memory) == 0.0
    assert copying(memory, "") == 0.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("For S005 we add.", True),
        ("for s005: add", True),
        ("S0051 and XS005", False),
        ("As a 5th grade student", True),
        ("Dear 5th-graders,", True),
        ("In grade 5 we add.", True),
        ("a fifth grader", True),
        ("a fifth of the class", False),
        ("grade 55, 15th grade", False),
        ("She has 5 eggs.", False),
        ("", False),
    ],
)
def test_naming_the_student(text, named):
    assert names_student(text, "S005", "5th grade") is named


def test_naming_treats_ids_as_text_and_ignores_empty_ones():
    assert names_student("about a.c", "a.c", "college")
    assert not names_student("about abc", "a.c", "college")
    assert names_student("College is far", "S1", "college")
    assert not names_student("any text", "", "")


def test_specificity_compares_own_with_others_texts_for_the_same_student():
    # scores[made for, judged against, question], one question
    scores = np.array([[[1.0], [0.2]], [[0.4], [0.9]]])
    # student 0: own 1.0, the other's text 0.4; student 1: own 0.9, the other's text 0.2
    assert memory_specificity(scores) == pytest.approx(((1.0 - 0.4) + (0.9 - 0.2)) / 2)
    assert memory_specificity(np.full((3, 3, 2), 0.5)) == 0.0


def test_specificity_leaves_missing_cells_out():
    scores = np.array([[[1.0, np.nan], [0.2, 0.2]], [[0.4, 0.4], [0.9, 0.9]]])
    # of student 0 only question 0 is left; student 1 has both
    assert memory_specificity(scores) == pytest.approx((0.6 + 0.7 + 0.7) / 3)
    assert memory_specificity(np.full((2, 2, 1), np.nan)) is None
    assert memory_specificity(np.ones((1, 1, 3))) is None  # nobody to compare with


def test_identification_ranks_students_for_each_text():
    scores = np.zeros((3, 3, 1))
    scores[0, :, 0] = [0.9, 0.5, 0.1]  # rank 1
    scores[1, :, 0] = [0.9, 0.5, 0.1]  # rank 2
    scores[2, :, 0] = [0.9, 0.5, 0.1]  # rank 3
    result = profile_identification(scores)
    assert result == {
        "n": 3,
        "top1": pytest.approx(1 / 3),
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 3) / 3),
        "chance": pytest.approx(1 / 3),
    }


def test_identification_shares_credit_in_ties():
    constant = profile_identification(np.full((4, 4, 5), 0.5))
    assert constant["top1"] == constant["chance"] == 0.25  # no better than guessing
    assert constant["mrr"] == pytest.approx(1 / 2.5)  # mean of the ranks 1 to 4
    scores = np.zeros((2, 3, 1))
    scores[0, :, 0] = [1.0, 1.0, 0.0]  # two tied for best: half a hit, rank 1.5
    scores = np.concatenate([scores, np.array([[[0.0], [0.0], [1.0]]])])  # rank 1
    scores[1, :, 0] = [1.0, 0.5, 0.5]  # tied behind one: no hit, rank 2.5
    result = profile_identification(scores)
    assert result["top1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert result["mrr"] == pytest.approx((1 / 1.5 + 1 / 2.5 + 1) / 3)


def test_identification_leaves_missing_cells_out():
    scores = np.array([[[1.0, np.nan], [np.nan, 0.3]], [[0.4, 0.9], [0.6, 0.1]]])
    # text (0, 0): rank 1 of 1; (0, 1): own score missing; (1, 0): rank 1 of 2; (1, 1): rank 2 of 2
    result = profile_identification(scores)
    assert result["n"] == 3
    assert result["top1"] == pytest.approx(2 / 3)
    assert result["mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert result["chance"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    empty = {"n": 0, "top1": None, "mrr": None, "chance": None}
    assert profile_identification(np.full((2, 2, 1), np.nan)) == empty
    assert profile_identification(np.zeros((0, 0, 0))) == empty


@given(ANY_TEXT, ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_any_text_is_judged_without_an_exception(text, other):
    student = Student("numbered_steps", [*CHECKABLE_PREFERENCES, other])
    assert 0.0 <= fidelity(text, student) <= 1.0
    assert 0.0 <= copying(text, other) <= 1.0
    assert names_student(text, other, text) in (True, False)


def test_doctests():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_import_is_light():
    code = "import sys, cot.utils.fidelity; print({'numpy', 'pydantic', 'scipy', 'spacy'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "set()"
