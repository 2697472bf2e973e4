"""What is measured of many answers at once: similarity by a sentence embedder, steps and entities by spaCy.

A batch's texts are embedded as soon as it is journaled, so that a long run does not end in an hour of it; an
engine with processes of its own generates on meanwhile.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cot.utils.devices import is_out_of_memory
from cot.utils.errors import TEXT_ERRORS, UserError, require
from cot.utils.metrics import count_steps, entity_overlap, load_spacy, semantic_similarity
from cot.utils.progress import tell_how_far
from cot.utils.records import rounded, scoring_error
from cot.utils.retrieval import Embedder, load_embedder

if TYPE_CHECKING:
    from spacy.language import Language

Measure = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]  # (texts, golds) to values


@dataclass(frozen=True)
class Scorers:
    """What measures answers beside the checks that need no model.

    Attributes:
        nlp: a spaCy pipeline with entities and sentences.
    """

    embedder: Embedder
    nlp: "Language"

    def describe(self) -> dict:
        """What a result file records of them."""
        return {
            "embedder": {"name": self.embedder.name, "revision": self.embedder.revision},
            "spacy": f"{self.nlp.meta['name']} {self.nlp.meta['version']}",
        }

    def embed(self, records: Collection[dict]) -> None:
        """Embeds the texts of some answers, so that `add_metrics` need not.

        What fails is left to it: it finds the text, and memory may end only because the models lie beside.
        """
        _, texts, golds = _valid(records)
        with suppress(UserError, MemoryError, *TEXT_ERRORS):
            semantic_similarity(texts, golds, self.embedder)

    def add_metrics(self, records: Collection[dict]) -> None:
        """Fills in, in place, what these measure.

        A text on which one of them fails has the failure as its record's `error`.
        """
        valid, texts, golds = _valid(records)
        metrics: dict[str, Measure] = {
            "semantic_similarity": lambda texts, golds: semantic_similarity(texts, golds, self.embedder),
            "reasoning_steps": lambda texts, _: count_steps(texts, self.nlp),
            "entity_overlap": lambda texts, golds: entity_overlap(texts, golds, self.nlp),
        }
        for metric, measure in metrics.items():
            for record, value in zip(valid, _measure(measure, texts, golds), strict=True):
                if isinstance(value, Exception):
                    record["error"] = scoring_error(value)
                    record |= dict.fromkeys(metrics)
                elif record["error"] is None:
                    record[metric] = rounded(value)


def load_scorers(device: str) -> Scorers:
    """Both, from installed packages.

    Args:
        device: of the models. On a CUDA one texts are embedded there, too; else on the CPU.

    Raises:
        UserError: one of them is absent, or what retrieval and figures need; says how to install it.
    """
    require("faiss", "matplotlib", "sentence_transformers", "spacy")
    on = device if device.startswith("cuda") else "cpu"
    return Scorers(load_embedder(on, watch=tell_how_far("texts embedded")), load_spacy())


def _valid(records: Collection[dict]) -> tuple[list[dict], list[str], list[str]]:
    """The records without an error, with their texts and gold solutions."""
    valid = [record for record in records if record["error"] is None]
    texts = [record["generated_text"] for record in valid]
    return valid, texts, [record["gold_solution"] for record in valid]


def _measure(measure: Measure, texts: Sequence[str], golds: Sequence[str]) -> list:
    """A value for each text, or the exception that it raises: the texts are halved to find it."""
    try:
        return list(measure(texts, golds))
    except TEXT_ERRORS as failure:
        if is_out_of_memory(failure):  # the machine's, not the text's
            raise
        if len(texts) == 1:
            return [failure]
    half = len(texts) // 2
    return _measure(measure, texts[:half], golds[:half]) + _measure(measure, texts[half:], golds[half:])
