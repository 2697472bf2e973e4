"""The bundled textbook: chapters from grade 2 to grade 8, and exercises drawn from their templates.

A chapter is one JSON file, `<two digits>_<id>.json`, with a text, worked examples and exercise templates
(their placeholders are described in `cot.utils.exercises`). An exercise's gold solution has GSM8K's form: one
line a step with `<<16-3=13>>13` in it, then `#### 13`. All arithmetic is exact.
"""

import hashlib
import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from cot.utils import exercises
from cot.utils.cli import DATA_DIR
from cot.utils.errors import UserError
from cot.utils.exercises import SPLITS, Template
from cot.utils.textbook_schema import Chapter, read_chapter

MAX_REPEATS = 200  # draws in a row that only repeat earlier questions before a template counts as used up


@dataclass(frozen=True)
class Exercise:
    id: str
    chapter: str
    grade: int
    skill: str
    skills: tuple[str, ...]
    template: str
    split: str
    question: str
    gold_solution: str
    answer: Fraction
    steps: int
    unit: str


@lru_cache
def load_chapters(folder: Path = DATA_DIR / "textbook") -> tuple[Chapter, ...]:
    """Load all chapters in teaching order, which is the order of the file names.

    Raises:
        UserError: naming file, chapter or template, and field, for a missing folder or a malformed file.
    """
    paths = sorted(Path(folder).glob("[0-9][0-9]_*.json"))
    if not paths:
        raise UserError(f"{folder}: no chapter files such as 01_addition.json here")
    chapters: dict[str, Chapter] = {}
    skills: set[str] = set()
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable as JSON: {error}") from error
        chapter = read_chapter(record, str(path), skills)
        skills.update(skill.id for skill in chapter.skills)
        for prerequisite in chapter.prerequisites:
            if prerequisite not in chapters:
                raise UserError(f"{path}: prerequisites: {prerequisite!r} is not an earlier chapter")
        if chapter.id in chapters:
            raise UserError(f"{path}: id: {chapter.id!r} is used by an earlier file")
        chapters[chapter.id] = chapter
    return tuple(chapters.values())


def pick_chapters(names: Collection[str] | None) -> list[Chapter]:
    """The chapters that a `--chapters` flag means, in teaching order: those named, or all for None.

    Raises:
        UserError: no such chapter.
    """
    chapters = load_chapters()
    known = [chapter.id for chapter in chapters]
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"--chapters {unknown[0]}: no such chapter; there are {', '.join(known)}")
    return [chapter for chapter in chapters if not names or chapter.id in names]


def generate_exercise(
    chapter: Chapter, template: Template, rng: random.Random, novel_phrasing: bool = False
) -> Exercise:
    """Draw one exercise; `novel_phrasing` words it in a register that ordinary phrasings never use.

    Raises:
        UserError: when the template's constraints cannot be satisfied.
    """
    values = exercises.draw_values(template, rng)
    phrasing = rng.choice(template.novel_phrasings if novel_phrasing else template.phrasings)
    question = exercises.render(phrasing, values)
    lines = [exercises.render_step(step, values) for step in template.steps]
    lines.append(f"#### {exercises.format_number(values['answer'])}")
    return Exercise(
        id=f"{chapter.id}/{template.id}/{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        chapter=chapter.id,
        grade=chapter.grade,
        skill=template.skills[0],
        skills=template.skills,
        template=template.id,
        split=template.split,
        question=question,
        gold_solution="\n".join(lines),
        answer=values["answer"],
        steps=len(template.steps),
        unit=exercises.fill(template.unit, values),
    )


def generate_exercises(
    chapter: Chapter, split: str, count: int, seed: int, novel_phrasing: bool = False
) -> list[Exercise]:
    """Draw `count` exercises with distinct questions, the split's templates in rotation.

    The same chapter, split, seed and phrasing kind give the same list, a smaller count its beginning.

    Raises:
        UserError: on an unknown split, a negative count, or more exercises than a template has questions.
    """
    if split not in SPLITS:
        raise UserError(f"split: {split!r}; allowed are {', '.join(SPLITS)}")
    if count < 0:
        raise UserError(f"count: {count}; must not be negative")
    rng = random.Random(f"{chapter.id}/{split}/{seed}")
    templates = [template for template in chapter.templates if template.split == split]
    rng.shuffle(templates)
    drawn: dict[str, Exercise] = {}
    for index in range(count):
        template = templates[index % len(templates)]
        for _ in range(MAX_REPEATS):
            exercise = generate_exercise(chapter, template, rng, novel_phrasing)
            if exercise.question not in drawn:
                drawn[exercise.question] = exercise
                break
        else:
            raise UserError(
                f"count: {count} {split} exercises of chapter {chapter.id}: only {index} distinct ones found "
                f"(template {template.id} repeats itself); ask for at most {index}"
            )
    return list(drawn.values())
