"""What the tutor policy is taught with: prompts of three kinds, and batches of them with explanations."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cot.utils.cli import COT_PROMPT
from cot.utils.profiles import STYLE_IN_WORDS
from cot.utils.prompts import build_prompt
from rl.prompts_dataset import Situation, Students, make_prompt
from rl.tutor_stories import draw_story
from rl.tutor_texts import Calculation, calculations, draw_manner, explain, slip

IGNORED = -100  # label of a token without loss: the prompt's and padding
BATCH_ROWS = 64
POOL = 8
PRACTICE_SHARE = 0.3  # of bare sums among all rows
STORY_SHARE = 0.8  # of stories among the word problems; the others are the textbook's
SKILL_STATES = {
    "Struggling": True,
    "In progress": True,
    "Mastered": False,
}  # and whether they ask for support
HINTS = {"a hint first": True, "no hint": False}
OTHER_PREFERENCES = {  # and what of a `Manner` they decide; every explanation is short
    "one step per line": {"joined": False},
    "at most 60 words": {},
    "the answer in a full sentence": {"full_sentence": True},
    "a reason with because": {"because": True},
}


@dataclass(frozen=True)
class Row:
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
    """An instruction in the words in which a memory speaks of a student, and the manner that it asks for."""
    lines, wishes = [], {}
    if rng.random() < 0.7:
        wishes["style"] = rng.choice(list(STYLE_IN_WORDS))
        lines.append(f"Explanation style: {STYLE_IN_WORDS[wishes['style']]}.")
    if rng.random() < 0.7:
        wanted = [rng.choice(list(HINTS))]
        wishes["hint"] = HINTS[wanted[0]]
        if rng.random() < 0.5:
            wanted.append(rng.choice(list(OTHER_PREFERENCES)))
            wishes |= OTHER_PREFERENCES[wanted[1]]
        lines.append(f"Prefers: {'; '.join(rng.sample(wanted, len(wanted)))}.")
    if rng.random() < 0.4 or not lines:
        label = rng.choice(list(SKILL_STATES))
        wishes["support"] = SKILL_STATES[label]
        lines.append(f"{label}: {skill.replace('_', ' ')}.")
    rng.shuffle(lines)
    return " ".join(lines), wishes


def word_problems(
    args, tokenizer, students: Students, situations: Sequence[Situation], memory_share: float
) -> list[Row]:
    """A row a situation: its exercise, or a story instead; a memory and an instruction in shares of them."""
    rng = random.Random(f"word problems {args.seed} {memory_share}")
    rows = []
    for situation in situations:
        question, steps = situation.question, calculations(situation.question.gold_solution)
        if rng.random() < STORY_SHARE:
            story = draw_story(rng)
            question, steps = replace(question, question=story.question, skill=story.skill), story.steps
        wishes: dict = {}
        if rng.random() < args.instruction_share:
            instruction, wishes = draw_wishes(question.skill, rng)
            # before or after it, so that the instruction is found by what it says, not by where it stands
            said = rng.sample([question.question, instruction], 2)
            question = replace(question, question=" ".join(said))
        arm = "own" if rng.random() < memory_share else "none"
        asked = replace(situation, question=question)
        prompt = make_prompt(tokenizer, students, asked, arm, COT_PROMPT, args.memory_tokens, None, args.seed)
        rows.append(Row(prompt.ids, steps, wishes))
    return rows


def bare_sums(args, tokenizer, count: int) -> list[Row]:
    """Sums of the size that the chapters have: arithmetic, cheaply."""
    rng = random.Random(f"sums {args.seed}")
    rows = []
    for _ in range(count):
        sign, a, b, k = rng.choice("+-*/"), rng.randint(2, 99), rng.randint(2, 60), rng.randint(2, 12)
        b = min(b, 15) if sign in "*/" else b
        terms, result = {
            "+": ((a, b), a + b),
            "-": ((a + b, b), a),
            "*": ((k, b), k * b),
            "/": ((k * b, k), b),
        }[sign]
        step = Calculation(tuple(map(str, terms)), sign, str(result))
        prompt = build_prompt(tokenizer, f"What is {sign.join(step.terms)}?", COT_PROMPT)
        rows.append(Row(prompt.ids, (step,), {}, slips=False))
    return rows


def sample_texts(students: Students, situations: Sequence[Situation], seed: int) -> list[str]:
    """Questions, explanations, memories and instructions for the tokenizer to learn its words from."""
    rng = random.Random(f"tokenizer {seed}")
    texts = ["user", "assistant"] * 1000
    for situation in situations:
        question, story = situation.question, draw_story(rng)
        recalled = students.conditioner(situation.as_of).recall(situation.student_id, question)
        steps = calculations(question.gold_solution)
        texts += [question.question, explain(steps, draw_manner(rng)), *recalled.lines[:8]]
        texts += [story.question, explain(story.steps, draw_manner(rng)), draw_wishes(story.skill, rng)[0]]
    return texts


def draw_batches(rows: Sequence[Row], rng: random.Random) -> list[list[Row]]:
    """`POOL` batches of random rows, each of rows alike in length, so that little of it is padding."""
    pool = sorted(rng.choices(rows, k=POOL * BATCH_ROWS), key=lambda row: len(row.prompt))
    batches = [pool[start : start + BATCH_ROWS] for start in range(0, len(pool), BATCH_ROWS)]
    rng.shuffle(batches)
    return batches


def make_batch(args, rows: Sequence[Row], tokenizer, rng: random.Random, words: list[int]):
    """Input ids and labels (B, T), right-padded; every row with an explanation drawn anew.

    A share of the prompt's words becomes other ones: a policy that has seen few sentences would otherwise
    hang on single words of them. A share of the explanations holds a slip.

    Args:
        words: ids that may be replaced, and that replace; no digit, mark or special token.
    """
    import torch

    replaceable = set(words)
    sequences = []
    for row in rows:
        prompt = [
            rng.choice(words) if word in replaceable and rng.random() < args.word_noise else word
            for word in row.prompt
        ]
        answer = slip(row.steps) if row.slips and rng.random() < args.slips else None
        text = explain(row.steps, replace(draw_manner(rng), **row.wishes), answer)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        sequences.append((prompt, [*tokens, tokenizer.eos_token_id]))
    length = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids = torch.full((len(sequences), length), tokenizer.pad_token_id)
    labels = torch.full((len(sequences), length), IGNORED)
    for row, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels
