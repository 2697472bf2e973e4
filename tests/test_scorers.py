"""Metrics of many answers at once, and their texts embedded beforehand."""

from contextlib import nullcontext

import pytest
from conftest import make_completion

from cot.utils.errors import UserError
from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.metrics import load_spacy
from cot.utils.prompts import Prompt
from cot.utils.questions import Question
from cot.utils.records import Row, make_record
from cot.utils.retrieval import load_embedder
from cot.utils.scorers import Scorers

METRICS = ("semantic_similarity", "reasoning_steps", "entity_overlap")


@pytest.fixture(scope="module")
def nlp():
    return load_spacy()


def answer(*texts: str) -> list[dict]:
    """A record of each text, all to one question."""
    moment = Moment(Question("q1", "Tom has 2 pears and buys 6. How many?", "2+6 = <<2+6=8>>8\n#### 8"))
    row = Row("base", 0, moment, StudentMemory(arm=None), temperature=0.0, sample=0)
    return [make_record(row, Prompt("", (1,), "chat"), make_completion(text), None) for text in texts]


class Odd:
    """An embedder that fails on one text."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def encode(self, texts):
        if any("odd" in text for text in texts):
            raise self.failure
        return [[1.0, 0.0]] * len(texts)


def test_a_text_on_which_a_metric_fails_costs_its_record_alone(nlp):
    records = answer("1 + 1 = 2", "two", "an odd one", "3 + 4 = 7", "#### 8")
    Scorers(Odd(IndexError("no token")), nlp).add_metrics(records)
    failed = records.pop(2)
    assert failed["error"] == {"type": "scoring", "message": "IndexError: no token"}
    assert failed["generated_text"] == "an odd one"
    assert [failed[key] for key in METRICS] == [None] * 3
    assert all(record["error"] is None and record["semantic_similarity"] == 1.0 for record in records)
    assert [record["reasoning_steps"] for record in records] == [1, 1, 1, 0]


def test_what_was_embedded_while_answers_came_in_is_not_embedded_again(nlp):
    told = []
    scorers = Scorers(load_embedder("cpu", watch=lambda *done: told.append(done)), nlp)
    early, late = answer("2 + 6 = 8", "Eight.", ""), answer("2 + 6 = 8", "It is 8.")
    scorers.embed(early)
    assert told == [(3, 3)]  # two texts and the gold solution
    scorers.add_metrics([*early, *late])
    assert told == [(3, 3), (1, 1)]

    at_once = answer("2 + 6 = 8", "Eight.", "", "2 + 6 = 8", "It is 8.")
    Scorers(load_embedder("cpu"), nlp).add_metrics(at_once)
    assert at_once == [*early, *late]  # to the last bit
    assert early[2]["semantic_similarity"] is None


@pytest.mark.parametrize(
    "failure", [UserError("not finite"), RuntimeError("CUDA out of memory."), IndexError("no token")]
)
def test_texts_that_cannot_be_embedded_yet_wait_for_the_end(failure, nlp):
    records = answer("an odd one")
    scorers = Scorers(Odd(failure), nlp)
    scorers.embed(records)
    assert records == answer("an odd one")
    is_the_texts = isinstance(failure, IndexError)
    with nullcontext() if is_the_texts else pytest.raises(type(failure), match=str(failure)):
        scorers.add_metrics(records)
