"""What the tutor policy is taught: explanations that are what their manner says, stories, its prompts."""

import itertools
import json
import random
import re
from collections import Counter

import pytest

from cot.utils.answers import score_answer
from cot.utils.equations import equations
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.manners import support_level
from cot.utils.memory_arms import MemoryArms, StudentMemory
from cot.utils.paths import PROFILES_DIR
from cot.utils.prompts import FENCE_OPEN
from cot.utils.student_files import MemoryLog, load_profiles
from cot.utils.students import HINT_IN_WORDS, STYLE_IN_WORDS, SUPPORT_LEVELS
from cot.utils.textbook import pick_chapters
from rl.cohorts import arms_of
from rl.explanations import Phrasing, calculations, draw_phrasing, explain
from rl.lessons import (
    CHAPTERS,
    MISLEADING_SHARE,
    STORIES,
    draw_story,
    draw_wishes,
    mislead,
    word_problems,
)
from rl.moments import textbook_moments
from rl.student_model import generate_student
from rl.warm_start import build_parser

ASKED_FOR = {"struggling": "worked_out", "in progress": "guided", "new": "guided", "mastered": "brief"}
GOLD = "They have 14 + 23 = <<14+23=37>>37 pens.\n#### 37"

# --- explanations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", sorted(EXPLANATION_STYLES))
@pytest.mark.parametrize("gold", ["<<3*9=27>>27\n<<27-7=20>>20\n#### 20", "<<8+9+1=18>>18\n#### 18"])
def test_every_manner_of_the_tutor_meets_its_style(style, gold):
    steps = calculations(gold)
    flags = itertools.product((False, True), repeat=4)
    for (hint, because, full, joined), support in itertools.product(flags, SUPPORT_LEVELS):
        manner = Phrasing(style, hint, support, full, joined, because)
        text = explain(steps, manner)
        assert support_level(text, len(steps)) == support, text
        assert EXPLANATION_STYLES[style](text), text
        assert CHECKABLE_PREFERENCES["a hint first"](text) == hint
        assert CHECKABLE_PREFERENCES["no hint"](text) != hint
        assert CHECKABLE_PREFERENCES["a reason with because"](text) == manner.gives_reason
        assert CHECKABLE_PREFERENCES["the answer in a full sentence"](text) >= full
        assert CHECKABLE_PREFERENCES["at most 60 words"](text)
        assert score_answer(text, gold).strict_correct
        assert all(equation.valid for equation in equations(text))


def test_an_instruction_is_met_by_the_explanation_that_it_decides():
    rng, seen = random.Random(0), set()
    for _ in range(400):
        instruction, wishes = draw_wishes("add_two_numbers", rng)
        text = explain(calculations("<<3*9=27>> <<9+27=36>>"), draw_phrasing(rng, **wishes))
        asked = {name for name in CHECKABLE_PREFERENCES if name in instruction}
        assert all(CHECKABLE_PREFERENCES[name](text) for name in asked), (instruction, text)
        styles = {name for name, words in STYLE_IN_WORDS.items() if words in instruction}
        assert all(EXPLANATION_STYLES[name](text) for name in styles), (instruction, text)
        # the state of another skill asks for nothing
        states = re.findall(r"Skill at hand, ([a-z ]+):", instruction)
        assert all(support_level(text, 2) == ASKED_FOR[state] for state in states), (instruction, text)
        seen |= asked | styles | set(states)
    assert seen == {*CHECKABLE_PREFERENCES, *EXPLANATION_STYLES, *ASKED_FOR}


def test_a_misleading_memory_is_of_other_stories_or_states_a_made_up_answer():
    rng, question = random.Random(0), "Tom has 12 pears and eats 5. How many are left?"
    own = StudentMemory("own", lines=("grade", "record", "state", "more", "last"), student_id="S1")
    unrelated, answered = [], []
    for _ in range(60):
        memory = mislead(own, question, rng)
        (answered if memory.student_id else unrelated).append(memory.lines)
    assert unrelated and answered
    assert not any(set(own.lines) & set(lines) for lines in unrelated)
    # the lines that tell what the student needs stand behind the exercise
    assert all(lines[1:] == own.lines[:4] for lines in answered)
    assert all(re.search(r"The answer was \d+\.$", lines[0]) for lines in answered)
    about = [question in lines[0] for lines in answered]
    assert any(about) and not all(about)


# --- stories ----------------------------------------------------------------------------------------------


def grams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}", " ", text).lower())
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


def test_every_story_is_filled_in_and_its_calculations_are_right():
    rng = random.Random(0)
    kinds = json.loads(STORIES.read_text(encoding="utf-8"))["kinds"]
    skills = {skill.id for chapter in pick_chapters(CHAPTERS) for skill in chapter.skills}
    seen = Counter()
    for _ in range(600):
        story = draw_story(rng)
        assert not re.search(r"[{}_]|  ", story.question) and story.question[-1] in ".?"
        for step in story.steps:
            (equation,) = equations(str(step))
            assert equation.valid and int(step.result) > 0
        # every number of the first calculation stands in the text
        assert set(story.steps[0].terms) <= set(re.findall(r"\d+", story.question))
        seen[story.skill] += 1
    assert set(seen) == {kind["skill"] for kind in kinds} <= skills
    assert draw_story(random.Random(5)) == draw_story(random.Random(5)) != draw_story(random.Random(6))


@pytest.mark.parametrize("split", ["test", "confirm"])
def test_no_sentence_of_a_story_shares_eight_words_in_a_row_with_a_held_out_template(split):
    held_out = {
        gram
        for chapter in pick_chapters(["all"])
        for template in chapter.templates
        if template.split == split
        for phrasing in (*template.phrasings, *template.novel_phrasings)
        for gram in grams(phrasing)
    }
    kinds = json.loads(STORIES.read_text(encoding="utf-8"))["kinds"]
    sentences = [s for kind in kinds for shape in kind["shapes"] for place in shape for s in place]
    assert len(held_out) > 100 and not [sentence for sentence in sentences if grams(sentence) & held_out]


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
        whose = [re.findall(r"Student (S\d+),", text) for text in texts]
        # nobody else's; in a share of them, sentences of other stories are nobody's
        assert all(found in ([], [moment.student_id]) for found, moment in zip(whose, moments, strict=True))
        unrelated = sum(not found for found in whose) - (40 - expected)
        assert 0 < unrelated < MISLEADING_SHARE * expected or unrelated == expected == 0


@pytest.mark.parametrize("follow", [False, True])
def test_a_lesson_follows_the_student_only_where_it_is_told_to(tiny_llama, follow):
    chapters = pick_chapters(CHAPTERS)
    arms = arms_of([generate_student(number, chapters, 0) for number in range(6)], seed=0, level="history")
    moments = textbook_moments(arms, chapters, "train", 40, 0)
    flags = ["--instruction_share", "0", *(["--follow_memory"] if follow else [])]
    lessons = word_problems(build_parser().parse_args(flags), tiny_llama[1], arms, moments, 1.0)
    for lesson, moment in zip(lessons, moments, strict=True):
        is_shown = f"Student {moment.student_id}," in tiny_llama[1].decode(lesson.prompt)
        if not (follow and is_shown):
            assert lesson.wishes == {}
            continue
        truth = arms.truths[moment.student_id]
        assert lesson.wishes["style"] == truth.explanation_style
        assert HINT_IN_WORDS[lesson.wishes["hint"]] in truth.learning_preferences
