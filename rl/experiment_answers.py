"""Held-out answers of one policy: every measure of every text, as JSON lines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cot.utils.answers import score_answer
from cot.utils.fidelity import copying, fidelity
from cot.utils.results import dumps
from cot.utils.style_checks import EXPLANATION_STYLES
from rl.probe import ProbeItem, answer_probe, make_probe
from rl.prompts_dataset import Situation, Students

# Which wordings are asked with which memory: `novel` ones are of a kind that no training prompt has.
SETS = (("usual", "own"), ("usual", "none"), ("novel", "own"))


@dataclass(frozen=True)
class HeldOut:
    """What every policy is asked.

    Attributes:
        situations: by wording, `usual` and `novel`.
        prompt: `instruction`, `memory_tokens` and `max_prompt_tokens`, as in training.
        max_new_tokens: of an answer.
        temperatures: 0 is greedy.
    """

    students: Students
    situations: dict[str, Sequence[Situation]]
    prompt: dict
    max_new_tokens: int
    temperatures: Sequence[float]
    seed: int


def answer_held_out(model, tokenizer, held_out: HeldOut, path: Path) -> None:
    """Answers everything and writes the file as a whole."""
    records = []
    for wording, memory in SETS:
        situations = held_out.situations[wording]
        if memory == "none":  # the same prompt for every student: asked once
            situations = list({s.question.id: s for s in situations}.values())
        probe = make_probe(
            tokenizer, held_out.students, situations, memory, seed=held_out.seed, **held_out.prompt
        )
        for temperature in held_out.temperatures:
            texts = answer_probe(model, tokenizer, probe, held_out.max_new_tokens, temperature, held_out.seed)
            named = {"wording": wording, "memory": memory, "temperature": temperature}
            for item, text in zip(probe, texts, strict=True):
                records.append(named | _measure(item, text, held_out.students, tokenizer))
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(dumps(record) + "\n" for record in records), encoding="utf-8")
    temporary.replace(path)


def read_answers(path: Path) -> list[dict]:
    """The records of a policy's file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _measure(item: ProbeItem, text: str, students: Students, tokenizer) -> dict:
    student, question = item.situation.student_id, item.situation.question
    fits = {name: fidelity(text, profile) for name, profile in students.profiles.items()}
    best = max(fits.values())
    style = students.profiles[student].explanation_style
    return {
        "question_id": question.id,
        "chapter": question.chapter,
        "student_id": student,
        "correct": score_answer(text, question.gold_solution).correct,
        "fits": fits,
        "fidelity": fits[student],
        "style": EXPLANATION_STYLES[style](text),
        # of the students whom the text fits best, the share that is the right one: ties share the credit
        "identification": (fits[student] == best) / sum(fit == best for fit in fits.values()),
        "copying": copying(text, item.prompt.memory),
        "tokens": len(tokenizer.encode(text, add_special_tokens=False)),
        "text": text,
    }
