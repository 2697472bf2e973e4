"""Word problems put together from `data/stories.json`, for the tutor policy to learn reading from.

A kind of story (something comes in, is shared, is compared ...) has shapes; a shape is a list of places, each
with several sentences to choose from. So a few hundred sentences make thousands of wordings: a policy that
saw only the textbook's few would learn them by heart. No sentence is one of the textbook's test templates.
"""

import json
import random
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from cot.utils import exercises
from cot.utils.cli import DATA_DIR
from rl.tutor_texts import Calculation

STORIES = DATA_DIR / "stories.json"


@dataclass(frozen=True)
class Story:
    """A question, the textbook's skill that it needs, and its calculations."""

    question: str
    skill: str
    steps: tuple[Calculation, ...]


@lru_cache
def _kinds() -> tuple[dict[str, list], list[dict[str, Any]]]:
    """The words by slot, and the kinds of stories."""
    record = json.loads(STORIES.read_text(encoding="utf-8"))
    words = {
        slot: [exercises.Noun(*word.split("/")) if "/" in word else word for word in found]
        for slot, found in record["words"].items()
    }
    return words, record["kinds"]


def draw_story(rng: random.Random) -> Story:
    """A story at random: its kind, wording, words and numbers."""
    words, kinds = _kinds()
    kind = rng.choice(kinds)
    values: dict[str, Any] = {slot: rng.choice(found) for slot, found in words.items()}
    values["place2"] = rng.choice([place for place in words["place"] if place != values["place"]])
    people = rng.sample(exercises.PEOPLE, 3)
    values |= dict(zip(("name", "friend", "other"), people, strict=True))
    numbers = _draw_numbers(kind, rng)
    shapes = kind["shapes"]
    weights = [sum(len(sentences) for sentences in shape) for shape in shapes]
    shape = rng.choices(shapes, weights)[0]
    text = " ".join(rng.choice(sentences) for sentences in shape)
    steps = []
    for number, expression in enumerate(kind["steps"], 1):
        left, sign, right = expression.split()
        result = numbers[f"r{number}"] = exercises.evaluate(expression, numbers)
        first, second, last = (
            exercises.format_number(value) for value in (numbers[left], numbers[right], result)
        )
        steps.append(Calculation((first, second), sign, last))
    return Story(exercises.render(text, values | numbers), kind["skill"], tuple(steps))


def _draw_numbers(kind: dict[str, Any], rng: random.Random) -> dict[str, Fraction]:
    """Numbers that satisfy the kind's constraints."""
    while True:
        numbers = {name: Fraction(rng.randint(low, high)) for name, (low, high) in kind["numbers"].items()}
        for name, expression in kind.get("values", {}).items():
            numbers[name] = exercises.evaluate(expression, numbers)
        if all(exercises.evaluate(constraint, numbers) for constraint in kind.get("constraints", [])):
            return numbers
