"""What the tutor policy is taught: explanations that are what their manner says, stories, its prompts."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from cot.utils.answers import score_answer
from cot.utils.cli import PROFILES_DIR
from cot.utils.equations import equations
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.memory_arms import MemoryArms
from cot.utils.prompts import FENCE_OPEN
from cot.utils.students import STYLE_IN_WORDS, MemoryLog, load_profiles
from cot.utils.textbook import pick_chapters
from rl.lessons import (
    CHAPTERS,
    STORIES,
    Manner,
    bare_sums,
    calculations,
    draw_manner,
    draw_story,
    draw_wishes,
    explain,
    slip,
    word_problems,
)
from rl.moments import textbook_moments
from rl.warm_start import build_parser

GOLD = "They have 14 + 23 = <<14+23=37>>37 pens.\n#### 37"

# --- explanations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", sorted(EXPLANATION_STYLES))
@pytest.mark.parametrize("gold", [GOLD, "<<3*9=27>>27\n<<27-7=20>>20\n#### 20", "<<8+9+1=18>>18\n#### 18"])
def test_every_manner_of_the_tutor_meets_its_style(style, gold):
    steps = calculations(gold)
    for hint, because, full, support, joined in itertools.product((False, True), repeat=5):
        text = explain(steps, Manner(style, hint, because, full, joined, support))
        assert EXPLANATION_STYLES[style](text), text
        assert CHECKABLE_PREFERENCES["a hint first"](text) == hint
        assert CHECKABLE_PREFERENCES["no hint"](text) != hint
        assert CHECKABLE_PREFERENCES["a reason with because"](text) == because
        assert CHECKABLE_PREFERENCES["the answer in a full sentence"](text) >= full
        assert CHECKABLE_PREFERENCES["at most 60 words"](text)
        assert score_answer(text, gold).strict_correct
        found = equations(text)
        assert all(equation.valid for equation in found)
        if support:
            plain = explain(steps, Manner(style, hint, because, full, joined))
            assert len({e.key for e in found}) >= len({e.key for e in equations(plain)})


def test_an_instruction_is_met_by_the_explanation_that_it_decides():
    rng, seen = random.Random(0), set()
    for _ in range(300):
        instruction, wishes = draw_wishes("adding", rng)
        text = explain(calculations("<<3*9=27>> <<9+27=36>>"), replace(draw_manner(rng), **wishes))
        asked = {name for name in CHECKABLE_PREFERENCES if name in instruction}
        assert all(CHECKABLE_PREFERENCES[name](text) for name in asked), (instruction, text)
        styles = {name for name, words in STYLE_IN_WORDS.items() if words in instruction}
        assert all(EXPLANATION_STYLES[name](text) for name in styles), (instruction, text)
        seen |= asked | styles
    assert seen == {*CHECKABLE_PREFERENCES, *EXPLANATION_STYLES}


def test_a_slip_is_a_wrong_answer():
    steps = calculations(GOLD)
    assert slip(steps) == "14"
    assert not score_answer(explain(steps, Manner("numbered_steps"), slip(steps)), GOLD).correct


@pytest.mark.parametrize("gold", ["<<2*3+4=10>>", "<<2*3*4=24>>", "<<7=7>>"])
def test_a_calculation_without_words_for_it_is_refused(gold):
    with pytest.raises(ValueError, match="expected two numbers and a sign"):
        calculations(gold)


# --- stories ----------------------------------------------------------------------------------------------


def grams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}", " ", text).lower())
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


def test_every_story_is_filled_in_and_its_calculations_are_right():
    rng = random.Random(0)
    kinds = json.loads(STORIES.read_text(encoding="utf-8"))["kinds"]
    skills = {skill.id for chapter in pick_chapters(CHAPTERS) for skill in chapter.skills}
    seen = Counter()
    for _ in range(1500):
        story = draw_story(rng)
        assert not re.search(r"[{}_]|  ", story.question) and story.question[-1] in ".?"
        for step in story.steps:
            (equation,) = equations(str(step))
            assert equation.valid and int(step.result) > 0
        # every number of the first calculation stands in the text
        assert set(story.steps[0].terms) <= set(re.findall(r"\d+", story.question))
        seen[story.skill] += 1
    assert set(seen) == {kind["skill"] for kind in kinds} <= skills


def test_a_story_is_drawn_again_from_its_seed():
    assert draw_story(random.Random(5)) == draw_story(random.Random(5))
    assert len({draw_story(random.Random(seed)).question for seed in range(300)}) == 300


def test_no_sentence_of_a_story_shares_eight_words_in_a_row_with_a_test_template():
    test = [
        phrasing
        for chapter in pick_chapters(CHAPTERS)
        for template in chapter.templates
        if template.split == "test"
        for phrasing in (*template.phrasings, *template.novel_phrasings)
    ]
    held_out = set().union(*map(grams, test))
    kinds = json.loads(STORIES.read_text(encoding="utf-8"))["kinds"]
    sentences = [s for kind in kinds for shape in kind["shapes"] for place in shape for s in place]
    assert held_out and not [sentence for sentence in sentences if grams(sentence) & held_out]


# --- prompts ----------------------------------------------------------------------------------------------


def test_memories_stand_in_as_many_prompts_as_asked_for(tiny_llama):
    profiles, log = load_profiles(PROFILES_DIR), MemoryLog(PROFILES_DIR / "memory")
    arms = MemoryArms(profiles, {name: log.read(name) for name in profiles}, embedder=None, seed=0)
    moments = textbook_moments(arms, pick_chapters(CHAPTERS), "train", 40, 0)
    args, tokenizer = build_parser().parse_args([]), tiny_llama[1]
    for share, expected in ((0.0, 0), (1.0, 40)):
        lessons = word_problems(args, tokenizer, arms, moments, share)
        texts = [tokenizer.decode(lesson.prompt) for lesson in lessons]
        assert sum(FENCE_OPEN in text for text in texts) == expected
        own = [f"Student {moment.student_id}," in text for moment, text in zip(moments, texts, strict=True)]
        assert sum(own) == expected  # nobody else's


def test_a_bare_sum_is_right_and_without_slip(tiny_llama):
    for lesson in bare_sums(build_parser().parse_args([]), tiny_llama[1], 50):
        (step,) = lesson.steps
        (equation,) = equations(str(step))
        assert equation.valid and not lesson.slips
        assert f"What is {step.sign.join(step.terms)}?" in tiny_llama[1].decode(lesson.prompt)
