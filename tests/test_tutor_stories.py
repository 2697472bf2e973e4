"""The stories that the tutor policy learns reading from."""

import random
import re
from collections import Counter

from cot.utils.equations import equations
from cot.utils.textbook import load_chapters
from rl.tutor_stories import _kinds, draw_story
from rl.tutor_texts import CHAPTERS

CHAPTERS_TAUGHT = [chapter for chapter in load_chapters() if chapter.id in CHAPTERS]


def words(text: str) -> list[str]:
    return re.findall(r"\{[^}]*\}|[a-z]+", text.lower())


def grams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    found = words(re.sub(r"\{[^}]*\}", "_", text))
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


def test_every_story_is_filled_in_and_its_calculations_are_right():
    rng = random.Random(0)
    skills = {skill.id for chapter in CHAPTERS_TAUGHT for skill in chapter.skills}
    seen = Counter()
    for _ in range(3000):
        story = draw_story(rng)
        assert not re.search(r"[{}_]|  ", story.question) and story.question[-1] in ".?"
        for step in story.steps:
            (equation,) = equations(str(step))
            assert equation.valid and int(step.result) > 0
        # every number of the first calculation stands in the text
        assert set(story.steps[0].terms) <= set(re.findall(r"\d+", story.question))
        assert story.skill in skills
        seen[story.skill] += 1
    assert set(seen) == {kind["skill"] for kind in _kinds()[1]}


def test_a_story_is_drawn_again_from_its_seed():
    assert draw_story(random.Random(5)) == draw_story(random.Random(5))
    assert len({draw_story(random.Random(seed)).question for seed in range(300)}) == 300


def test_no_sentence_of_a_story_is_one_of_the_test_templates():
    test = [
        phrasing
        for chapter in CHAPTERS_TAUGHT
        for template in chapter.templates
        if template.split == "test"
        for phrasing in (*template.phrasings, *template.novel_phrasings)
    ]
    held_out = set().union(*map(grams, test))
    sentences = [s for kind in _kinds()[1] for shape in kind["shapes"] for place in shape for s in place]
    assert not [sentence for sentence in sentences if grams(sentence) & held_out]
