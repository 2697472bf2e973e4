"""What the tutor policy is taught: stories, instructions, memories to be overlooked, and its prompts.

A story is put together from `data/stories.json`: a kind of story (something comes in, is shared, is compared
...) has shapes, a shape is a list of places, each with several sentences to choose from. So a few hundred
sentences make thousands of wordings: a policy that saw only the textbook's few would learn them by heart. No
sentence shares eight words in a row (placeholders left out) with a template of the test split, but some
differ from one of its sentences in their nouns alone.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from cot.utils.cli import COT_PROMPT
from cot.utils.files import read_json
from cot.utils.manners import MannerRecord, Tried, render_record, support_target
from cot.utils.mastery import DEFAULT_PARAMETERS, SkillState, render_memory, sort_skills, update_mastery
from cot.utils.memory_arms import NEEDED_LINES, MemoryArms, Moment, PromptShape, StudentMemory, make_prompt
from cot.utils.paths import DATA_DIR
from cot.utils.prompts import build_prompt
from cot.utils.students import HINT_IN_WORDS, STYLE_IN_WORDS, SUPPORT_LEVELS, SupportLevel
from cot.utils.textbook import PEOPLE, Noun, evaluate, format_number, pick_chapters, render
from rl.explanations import Calculation, calculations
from rl.student_model import needs_of

CHAPTERS = ("addition", "subtraction", "multiplication", "division", "two_step")
STORIES = DATA_DIR / "stories.json"
PRACTICE_SHARE = 0.3  # of bare sums among all rows
MEMORY_TOKENS = (48, 48, 64, 96, 160, 256)  # budgets of a memory, each alike
MAX_TOKENS = 512  # of a memory with a whole exercise before it
UNRELATED_STORIES = 12  # more sentences than a memory holds
LINE_WORDS = 10  # of a line of scrambled words
NEW_SHARE = 0.25  # of the skills that ask for guided support
MISLEADING_SHARE = 0.3  # of the memories: other stories, or a wrong answer before the own lines
STORY_SHARE = 0.8  # of stories among the word problems; the others are the textbook's
OTHER_PREFERENCES = {  # and what of a `Manner` they decide; every explanation is short
    "one step per line": {"joined": False},
    "at most 60 words": {},
    "the answer in a full sentence": {"full_sentence": True},
    "a reason with because": {"because": True},
}


@lru_cache
def _skills() -> list[str]:
    """The skills of the chapters."""
    return [skill.id for chapter in pick_chapters(CHAPTERS) for skill in chapter.skills]


# --- stories ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A question, the textbook's skill that it needs, and its calculations."""

    question: str
    skill: str
    steps: tuple[Calculation, ...]


@lru_cache
def _kinds() -> tuple[dict[str, list], list[dict[str, Any]]]:
    """The words by slot, and the kinds of stories."""
    record = read_json(STORIES)
    words = {
        slot: [Noun(*word.split("/")) if "/" in word else word for word in found]
        for slot, found in record["words"].items()
    }
    return words, record["kinds"]


def draw_story(rng: random.Random) -> Story:
    """A story at random: its kind, wording, words and numbers."""
    words, kinds = _kinds()
    kind = rng.choice(kinds)
    values: dict[str, Any] = {slot: rng.choice(found) for slot, found in words.items()}
    values["place2"] = rng.choice([place for place in words["place"] if place != values["place"]])
    people = rng.sample(PEOPLE, 3)
    values |= dict(zip(("name", "friend", "other"), people, strict=True))
    numbers = _draw_numbers(kind, rng)
    shapes = kind["shapes"]
    weights = [sum(len(sentences) for sentences in shape) for shape in shapes]
    shape = rng.choices(shapes, weights)[0]
    text = " ".join(rng.choice(sentences) for sentences in shape)
    steps = []
    for number, expression in enumerate(kind["steps"], 1):
        left, sign, right = expression.split()
        result = numbers[f"r{number}"] = evaluate(expression, numbers)
        first, second, last = (format_number(value) for value in (numbers[left], numbers[right], result))
        steps.append(Calculation((first, second), sign, last))
    return Story(render(text, values | numbers), kind["skill"], tuple(steps))


def _draw_numbers(kind: dict[str, Any], rng: random.Random) -> dict[str, Fraction]:
    """Numbers that satisfy the kind's constraints."""
    while True:
        numbers = {name: Fraction(rng.randint(low, high)) for name, (low, high) in kind["numbers"].items()}
        for name, expression in kind.get("values", {}).items():
            numbers[name] = evaluate(expression, numbers)
        if all(evaluate(constraint, numbers) for constraint in kind.get("constraints", [])):
            return numbers


# --- prompts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """A prompt, what is to be computed, and what the question itself asks of the explanation.

    Attributes:
        wishes: attributes of a `Manner` that an instruction in the question decides; the others are free.
        slips: whether its explanation may hold a slip.
    """

    prompt: tuple[int, ...]
    steps: tuple[Calculation, ...]
    wishes: dict
    slips: bool = True


def draw_wishes(skill: str, rng: random.Random) -> tuple[str, dict]:
    """An instruction in the words in which a memory speaks of a student, and the manner that it asks for.

    What worked best for a student is asked for in the words of its record, a level of support by the state of
    the skill. The state of another skill asks for nothing.
    """
    lines: list[str] = []
    wishes: dict[str, Any] = {}
    if rng.random() < 0.65:
        style, hint = rng.choice(list(STYLE_IN_WORDS)), rng.random() < 0.5
        if rng.random() < 0.6:
            lines.append(_tell_record(style, hint, rng))
        else:
            lines += _tell_wishes(style, hint, wishes, rng)
        said = " ".join(lines)
        wishes |= {"style": style} if STYLE_IN_WORDS[style] in said else {}
        wishes |= {"hint": hint} if HINT_IN_WORDS[hint] in said else {}

    if not wishes.get("because") and (rng.random() < 0.7 or not lines):
        line, mastery = draw_skill_line(skill, rng)
        wishes["support"] = support_target(mastery)
        lines.append(line)
        if rng.random() < 0.4:
            other = rng.choice([name for name in _skills() if name != skill])
            lines.append(draw_skill_line(other, rng, at_hand=False)[0])
    rng.shuffle(lines)
    return " ".join(lines), wishes


def _tell_record(style: str, hint: bool, rng: random.Random) -> str:
    """The line of a record in which this style and this hint were best; now and then only one of them."""

    def tried(value: str | bool) -> tuple[Tried]:
        times = rng.randint(1, 9)
        return (Tried(value, rng.randint(0, times), times, 0.5),)

    styles = tried(style) if rng.random() < 0.85 else ()
    hints = tried(hint) if rng.random() < 0.85 or not styles else ()
    line = render_record(MannerRecord(styles, hints))
    assert line is not None
    return line


def _tell_wishes(style: str, hint: bool, wishes: dict, rng: random.Random) -> list[str]:
    """The same as wishes in a profile's words, sometimes with one wish more."""
    wanted = [HINT_IN_WORDS[hint]]
    if rng.random() < 0.5:
        wanted.append(rng.choice(list(OTHER_PREFERENCES)))
        wishes |= OTHER_PREFERENCES[wanted[1]]
    lines = [
        f"Explanation style: {STYLE_IN_WORDS[style]}.",
        f"Prefers: {'; '.join(rng.sample(wanted, len(wanted)))}.",
    ]
    return lines


def draw_skill_line(
    skill: str, rng: random.Random, wanted: SupportLevel | None = None, at_hand: bool = True
) -> tuple[str, float | None]:
    """A memory's line about a skill, and P(known) as it says; None for a skill that is new.

    Args:
        wanted: the level of support that the line asks for; None for each level alike.
        at_hand: whether it is the skill of the exercise; the line of another one asks for nothing.
    """
    wanted = wanted or rng.choice(SUPPORT_LEVELS)
    if at_hand and wanted == support_target(None) and rng.random() < NEW_SHARE:
        return render_memory(sort_skills([]), skill)[0], None
    while True:
        answers = [rng.random() < rng.random() for _ in range(rng.randint(1, 8))]
        mastery = DEFAULT_PARAMETERS.p_init
        for is_right in answers:
            mastery = update_mastery(mastery, is_right)
        if support_target(mastery) == wanted:
            break
    state = SkillState(skill, mastery, len(answers), sum(answers))
    (line,) = render_memory(sort_skills([state]), skill if at_hand else None)
    return line, mastery


def word_problems(
    args, tokenizer, arms: MemoryArms, moments: Sequence[Moment], memory_share: float
) -> list[Lesson]:
    """A lesson a moment: its exercise, or a story instead; a memory and an instruction in shares of them.

    Args:
        args: `seed, instruction_share, follow_memory` of `rl/warm_start.py`.
        memory_share: of the lessons whose prompt shows the student's own memory.
    """
    rng = random.Random(f"word problems {args.seed} {memory_share} {arms.level}")
    lessons = []
    for moment in moments:
        question, steps = moment.question, calculations(moment.question.gold_solution)
        if rng.random() < STORY_SHARE:
            story = draw_story(rng)
            question, steps = replace(question, question=story.question, skill=story.skill), story.steps

        asked, arm = replace(moment, question=question), "own" if rng.random() < memory_share else "none"
        memory, wishes = arms.show(asked, arm), {}
        if arm == "own" and rng.random() < MISLEADING_SHARE:
            memory = mislead(memory, question.question, rng)
        if args.follow_memory and memory.student_id is not None:
            needs = needs_of(arms.truths[moment.student_id])
            support = support_target(asked.skill_mastery)
            wishes = {"style": needs.style, "hint": needs.hint, "support": support}
        elif rng.random() < args.instruction_share:
            instruction, wishes = draw_wishes(question.skill, rng)
            # before or after it, so that the instruction is found by what it says, not by where it stands
            said = rng.sample([question.question, instruction], 2)
            asked = replace(asked, question=replace(question, question=" ".join(said)))

        shape = PromptShape(instruction=COT_PROMPT, memory_tokens=rng.choice(MEMORY_TOKENS))
        prompt = make_prompt(tokenizer, asked, memory, shape, line_order_seed=args.seed)
        lessons.append(Lesson(prompt.ids, steps, wishes))
    return lessons


def mislead(own: StudentMemory, question: str, rng: random.Random) -> StudentMemory:
    """A memory to be overlooked: other stories, or a past exercise whose answer is made up.

    Of other stories it holds the sentences in any order, or lines of their words. The past exercise, another
    story or this very question, stands before what the student's own memory begins with, so that all that the
    student needs is still told.
    """
    stories = [draw_story(rng).question for _ in range(UNRELATED_STORIES)]
    if rng.random() < 0.5:
        sentences = [sentence for story in stories for sentence in re.split(r"(?<=[.!?])\s+", story)]
        words = " ".join(stories).split()
        rng.shuffle(words)
        starts = range(0, len(words), LINE_WORDS)
        scrambled = [" ".join(words[start : start + LINE_WORDS]) for start in starts]
        return StudentMemory("random", tuple(rng.choice([rng.sample(sentences, len(sentences)), scrambled])))

    met = rng.choice([question, stories[0]])
    line = f'Past exercise: "{met}" The answer was {rng.randint(2, 120)}.'
    return replace(own, lines=(line, *own.lines[:NEEDED_LINES]), tokens=MAX_TOKENS)


def bare_sums(args, tokenizer, count: int) -> list[Lesson]:
    """Sums of the size that the chapters have: arithmetic, cheaply."""
    rng = random.Random(f"sums {args.seed}")
    lessons = []
    for _ in range(count):
        sign, a, b, k = rng.choice("+-*/"), rng.randint(2, 99), rng.randint(2, 60), rng.randint(2, 12)
        b = min(b, 15) if sign in "*/" else b
        first, second, result = {
            "+": (a, b, a + b),
            "-": (a + b, b, a),
            "*": (k, b, k * b),
            "/": (k * b, k, b),
        }[sign]
        step = Calculation((str(first), str(second)), sign, str(result))
        prompt = build_prompt(tokenizer, f"What is {sign.join(step.terms)}?", COT_PROMPT)
        lessons.append(Lesson(prompt.ids, (step,), {}, slips=False))
    return lessons
