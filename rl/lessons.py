"""What the tutor policy is taught: explanations in every manner, stories, instructions, and its prompts.

An explanation is written from an exercise's calculations and a manner; nothing in it looks at a student. A
story is put together from `data/stories.json`: a kind of story (something comes in, is shared, is compared
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

from cot.utils.cli import COT_PROMPT, DATA_DIR
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.files import read_json
from cot.utils.manners import MannerRecord, Tried, render_record
from cot.utils.mastery import DEFAULT_PARAMETERS, SkillState, render_memory, sort_skills, update_mastery
from cot.utils.memory_arms import NEEDED_LINES, MemoryArms, Moment, PromptShape, StudentMemory, make_prompt
from cot.utils.prompts import build_prompt
from cot.utils.students import HINT_IN_WORDS, STYLE_IN_WORDS, SUPPORT_LEVELS, SupportLevel
from cot.utils.support import support_target
from cot.utils.textbook import PEOPLE, Noun, evaluate, format_number, pick_chapters, render
from rl.student_model import needs_of

CHAPTERS = ("addition", "subtraction", "multiplication", "division", "two_step")
STORIES = DATA_DIR / "stories.json"
PRACTICE_SHARE = 0.3  # of bare sums among all rows
MEMORY_TOKENS = (48, 48, 64, 96, 160, 256)  # budgets of a memory, each alike
MAX_TOKENS = 512  # of a memory with a whole exercise before it
UNRELATED_STORIES = 12  # more sentences than a memory holds
NEW_SHARE = 0.25  # of the skills that ask for guided support
MISLEADING_SHARE = 0.3  # of the memories: sentences of other stories, or a wrong answer before the own lines
STORY_SHARE = 0.8  # of stories among the word problems; the others are the textbook's
CALCULATION = re.compile(r"<<([^<>=]+)=([^<>]+)>>")
OPERATIONS = {  # sign: (verb, gerund, reason, sign that undoes it)
    "+": ("add", "adding", "because we put the numbers together", "-"),
    "-": ("subtract", "subtracting", "because we need the difference", "+"),
    "*": ("multiply", "multiplying", "because all groups are equal", "/"),
    "/": ("divide", "dividing", "because we share it equally", "*"),
}
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


# --- explanations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calculation:
    """One step: two `terms` joined by `sign` (one of + - * /) give `result`, all as they are written."""

    terms: tuple[str, str]
    sign: str
    result: str

    def __str__(self) -> str:
        return f"{self.sign.join(self.terms)}={self.result}"


@dataclass(frozen=True)
class Manner:
    """How an explanation is written.

    Attributes:
        style: a key of `EXPLANATION_STYLES`.
        support: `worked_out` shows by another calculation that the result fits, `guided` gives a reason.
        hint, full_sentence: a hint line first; the answer in a sentence of its own.
        joined: sentences on one line, where the style does not need lines.
        because: a reason where the support is `worked_out`, too.
    """

    style: str
    hint: bool = False
    support: SupportLevel = "brief"
    full_sentence: bool = False
    joined: bool = False
    because: bool = False

    @property
    def gives_reason(self) -> bool:
        return self.support == "guided" or (self.support == "worked_out" and self.because)

    @property
    def confirms(self) -> bool:
        return self.support == "worked_out"


def draw_manner(rng: random.Random, **wishes) -> Manner:
    """A manner at random, each style and each level of support as likely as the others.

    Args:
        wishes: attributes that are decided.
    """
    support = rng.choice(SUPPORT_LEVELS[:2] if wishes.get("because") else SUPPORT_LEVELS)
    drawn: dict[str, Any] = {
        "style": rng.choice(list(EXPLANATION_STYLES)),
        "support": support,
        "hint": rng.random() < 0.5,
        "joined": rng.random() < 0.5,
        "full_sentence": rng.random() < 0.3,
        "because": rng.random() < 0.3,
    }
    return Manner(**(drawn | wishes))


def calculations(gold_solution: str) -> tuple[Calculation, ...]:
    """The calculations of a worked solution, in order, each of two numbers: 3+4+5 becomes 3+4 and 7+5.

    Raises:
        ValueError: a calculation with two kinds of signs, which these explanations have no words for, or with
            more than two numbers and another sign than +.

    >>> [str(step) for step in calculations("3 * 9 = <<3*9=27>>27. 9 + 27 + 1 = <<9+27+1=37>>37.")]
    ['3*9=27', '9+27=36', '36+1=37']
    """
    found = []
    for left, result in CALCULATION.findall(gold_solution):
        signs = set(re.findall(r"[-+*/()]", left))
        first, *others = re.split(r"[-+*/]", left)
        if len(signs) != 1 or not signs <= set(OPERATIONS) or (len(others) > 1 and signs != {"+"}):
            raise ValueError(f"{left!r}: expected two numbers and a sign out of + - * /, or a sum")
        sign = signs.pop()
        for place, other in enumerate(others):
            value = result if place == len(others) - 1 else str(int(first) + int(other))
            found.append(Calculation((first, other), sign, value))
            first = value
    return tuple(found)


def slip(steps: Sequence[Calculation]) -> str:
    """The answer of someone who stops too soon: the number with which the last calculation began.

    >>> slip(calculations("<<3*9=27>> <<9+27=36>>")), slip(calculations("<<28+15=43>>"))
    ('9', '28')
    """
    return steps[-1].terms[0]


def explain(steps: Sequence[Calculation], manner: Manner, answer: str | None = None) -> str:
    """The calculations in a manner, ending in `#### ` and the answer, the last one's result unless told.

    >>> print(explain(calculations("<<4+3=7>>"), Manner("check_at_end", True, "worked_out")))
    Hint: think of adding.
    Adding gives 4+3=7.
    See, 7-4=3.
    Check: 7-3=4.
    #### 7
    """
    last = steps[-1]
    answer = answer or last.result
    lines = _STYLES[manner.style](steps, manner, answer)
    if manner.full_sentence and manner.style != "equations_first":
        lines.append(f"So the answer is {answer}.")
    if manner.style == "numbered_steps":
        lines = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
    elif manner.joined and manner.style != "equations_first":
        lines = [" ".join(lines)]
    if manner.style == "check_at_end":
        lines.append(f"Check: {_undo(last)}.")
    if manner.hint:
        lines.insert(0, f"Hint: think of {OPERATIONS[steps[0].sign][1]}.")
    return "\n".join([*lines, f"#### {answer}"])


def _undo(step: Calculation) -> Calculation:
    """The calculation backwards, from its result to its first term: 4+3=7 becomes 7-3=4."""
    return Calculation((step.result, step.terms[1]), OPERATIONS[step.sign][3], step.terms[0])


def _fits(step: Calculation) -> Calculation:
    """Another calculation with the same numbers, not `_undo`: 4+3=7 becomes 7-4=3, and 7-3=4 7-4=3."""
    if step.sign in "+*":
        return Calculation((step.result, step.terms[0]), OPERATIONS[step.sign][3], step.terms[1])
    return Calculation((step.terms[0], step.result), step.sign, step.terms[1])


def _statements(steps: Sequence[Calculation], manner: Manner) -> list[str]:
    lines = [f"{OPERATIONS[step.sign][1].capitalize()} gives {step}" for step in steps]
    if manner.gives_reason:
        lines[-1] += f" {OPERATIONS[steps[-1].sign][2]}"
    return [f"{line}." for line in lines]


def _support(steps: Sequence[Calculation], manner: Manner) -> list[str]:
    return [f"See, {_fits(steps[-1])}."] if manner.confirms else []


def _numbered(steps: Sequence[Calculation], manner: Manner, _answer: str) -> list[str]:
    start = [f"Take the numbers {' and '.join(steps[0].terms)}."] if len(steps) == 1 else []
    return start + _statements(steps, manner) + _support(steps, manner)


def _short(steps: Sequence[Calculation], manner: Manner, _answer: str) -> list[str]:
    starts = ["First", *["Then"] * (len(steps) - 1)]
    announced = [f"{start} we {OPERATIONS[step.sign][0]}." for start, step in zip(starts, steps, strict=True)]
    pairs = zip(announced, _statements(steps, manner), strict=True)
    return [line for pair in pairs for line in pair] + _support(steps, manner)


def _guiding(steps: Sequence[Calculation], manner: Manner, _answer: str) -> list[str]:
    given = ["What do we know?", f"We know {' and '.join(steps[0].terms)}."] if len(steps) == 1 else []
    questions = ["What comes first?", *["What comes next?"] * (len(steps) - 1)]
    pairs = zip(questions, _statements(steps, manner), strict=True)
    return given + [line for pair in pairs for line in pair] + _support(steps, manner)


def _equations(steps: Sequence[Calculation], manner: Manner, answer: str) -> list[str]:
    lines = [str(step) for step in steps]
    if manner.gives_reason:
        lines[-1] += f" {OPERATIONS[steps[-1].sign][2]}"
    if manner.full_sentence:
        lines[-1] += f", so the answer is {answer}"
    if manner.confirms:
        lines.insert(len(lines) - manner.full_sentence, f"{_fits(steps[-1])} shows it")
    return [f"{line}." for line in lines]


def _checked(steps: Sequence[Calculation], manner: Manner, _answer: str) -> list[str]:
    return _statements(steps, manner) + _support(steps, manner)


_STYLES = {
    "numbered_steps": _numbered,
    "short_sentences": _short,
    "guiding_questions": _guiding,
    "equations_first": _equations,
    "check_at_end": _checked,
}


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
    """A memory to be overlooked: sentences of other stories, or a past exercise whose answer is made up.

    The past exercise, another story or this very question, stands before what the student's own memory begins
    with, so that all that the student needs is still told.
    """
    stories = [draw_story(rng).question for _ in range(UNRELATED_STORIES)]
    if rng.random() < 0.5:
        sentences = [sentence for story in stories for sentence in re.split(r"(?<=[.!?])\s+", story)]
        return StudentMemory("random", lines=tuple(rng.sample(sentences, len(sentences))))

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
