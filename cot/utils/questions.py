"""Questions: GSM8K from the hub or its cache, a local file, MathDial's problems, or the bundled textbook.

Every source yields the GSM8K fields: a question, and a worked solution that ends in `#### N`.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cot.utils.answers import GoldError, gold_answer
from cot.utils.errors import UserError
from cot.utils.files import LONE_SURROGATE, parse_json, read_json_lines, read_text
from cot.utils.mathdial import PREFIX, Dialogue, load_dialogues
from cot.utils.model_names import hub_answers
from cot.utils.textbook import Exercise, generate_exercises, load_chapters

GSM8K = "openai/gsm8k"
ALL = "all"  # of --subset_size: no limit
TEXTBOOK_EXERCISES = 20  # of each chapter
TEXTBOOK_SEED = 0  # the textbook's questions are a fixed data set, whatever --seed says


@dataclass(frozen=True)
class Question:
    """One problem.

    Attributes:
        id: stable within its source.
        question: the problem's text.
        gold_solution: worked solution whose last line is `#### N`.
        chapter: the textbook chapter's id, where there is one.
        skill: the skill practised, where it is known.
        skills: that the problem needs, the practised one first; empty outside the textbook.
        wording: `usual` or `novel`, of a textbook exercise.
    """

    id: str
    question: str
    gold_solution: str
    chapter: str | None = None
    skill: str | None = None
    skills: tuple[str, ...] = ()
    wording: str | None = None

    @property
    def gold_steps(self) -> int:
        """Calculations in the gold solution, at least 1."""
        return max(1, self.gold_solution.count("<<"))


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a run, and where they come from.

    Attributes:
        source: what was picked, in words.
        questions: in the order in which they are asked.
        excluded: ids of questions whose gold answer does not parse; they are never asked.
        fingerprint: SHA-256 over ids, questions and solutions.
    """

    source: str
    questions: tuple[Question, ...]
    excluded: tuple[str, ...]
    fingerprint: str


def question_of(exercise: Exercise) -> Question:
    """A textbook exercise as a question."""
    return Question(
        id=exercise.id,
        question=exercise.question,
        gold_solution=exercise.gold_solution,
        chapter=exercise.chapter,
        skill=exercise.skill,
        skills=exercise.skills,
        wording=exercise.wording,
    )


def load_questions(
    dataset: str,
    split: str = "test",
    subset_size: int | str = ALL,
    shuffle_seed: int | None = None,
    offset: int = 0,
) -> QuestionSet:
    """`subset_size` questions of a data set, shuffled before if `shuffle_seed` is given.

    Args:
        dataset: `auto` (GSM8K, else the textbook), `gsm8k`, `textbook`, a `.jsonl` or `.json` file, or
            `mathdial:FILE`.
        split: `train` or `test`, of GSM8K or the textbook.
        subset_size: how many at most, or `ALL`.
        offset: how many usable ones are left out before them, so that parts of a data set share none.

    Raises:
        UserError: the source is absent, unreachable, malformed, or holds no usable question, or no further
            one.
    """
    source, questions = _read_source(dataset, split)
    if shuffle_seed is not None:
        random.Random(f"shuffle {shuffle_seed}").shuffle(questions)

    kept, excluded, left_out = [], [], 0
    for question in questions:
        if len(kept) == subset_size:
            break
        try:
            gold_answer(question.gold_solution)
        except GoldError:
            if left_out == offset:
                excluded.append(question.id)
            continue
        if left_out < offset:
            left_out += 1
        else:
            kept.append(question)
    if left_out and not kept:
        raise UserError(f"--offset {offset}: {source} has {left_out} usable questions")
    if not kept:
        raise UserError(f"--dataset {dataset}: no question whose gold answer parses (expected '#### N')")

    text = json.dumps([[q.id, q.question, q.gold_solution] for q in kept])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    return QuestionSet(source, tuple(kept), tuple(excluded), fingerprint)


def worked_examples(count: int) -> list[tuple[str, str]]:
    """Question and solution of worked examples of the textbook, spread over its chapters."""
    pairs = [
        (example.question, example.solution)
        for place in range(2)
        for chapter in load_chapters()
        for example in chapter.worked_examples[place : place + 1]
    ]
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _read_source(dataset: str, split: str) -> tuple[str, list[Question]]:
    if dataset == "auto":
        try:
            return f"GSM8K {split}", _read_gsm8k(split)
        except UserError as error:
            return f"textbook {split} (picked because: {error})", _read_textbook(split)
    if dataset in ("gsm8k", GSM8K):
        return f"GSM8K {split}", _read_gsm8k(split)
    if dataset == "textbook":
        return f"textbook {split}", _read_textbook(split)
    if dataset.startswith(PREFIX):
        return dataset, _read_mathdial(dataset)
    path = Path(dataset)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(
            f"--dataset {dataset}: expected auto, gsm8k, textbook, or a .jsonl or .json file, or"
            " mathdial:FILE"
        )
    return str(path), list(_read_file(path))


def _read_gsm8k(split: str) -> list[Question]:
    answers = hub_answers()
    import datasets  # after hub_answers(): it reads HF_HUB_OFFLINE when imported

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(GSM8K, "main", split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        state = "not on the hub or not allowed" if answers else "hub unreachable and no copy in its cache"
        raise UserError(f"{GSM8K}: {state}; --dataset takes a .jsonl file, or textbook") from error
    return [
        Question(f"gsm8k-{split}-{number}", row["question"], row["answer"]) for number, row in enumerate(rows)
    ]


def _read_textbook(split: str) -> list[Question]:
    """The chapters in turn, so that the first N questions spread over all of them."""
    columns = [
        generate_exercises(chapter, split, TEXTBOOK_EXERCISES, TEXTBOOK_SEED) for chapter in load_chapters()
    ]
    return [question_of(exercise) for row in zip(*columns, strict=True) for exercise in row]


def _read_mathdial(dataset: str) -> list[Question]:
    """Each problem once, whose chapter says of which split of GSM8K it is."""
    first: dict[str, Dialogue] = {}
    for dialogue in load_dialogues(dataset):
        first.setdefault(dialogue.question_id, dialogue)
    return [
        Question(name, found.question, found.gold_solution, chapter=f"gsm8k {found.gsm8k_split}")
        for name, found in first.items()
    ]


def _read_file(path: Path) -> Iterator[Question]:
    """The questions of a file, numbered from 0 over its records."""
    if path.suffix == ".jsonl":
        records = [(f"line {number}", record) for number, record in read_json_lines(path)]
    else:
        data = parse_json(read_text(path), str(path))
        if not isinstance(data, list):
            raise UserError(f"{path}: expected a list of objects, got {type(data).__name__}")
        records = [(f"record {number}", record) for number, record in enumerate(data)]

    for number, (where, record) in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"{path}: {where}: expected an object, got {type(record).__name__}")
        for field in ("question", "answer"):
            if not isinstance(record.get(field), str) or not record[field].strip():
                got = type(record[field]).__name__ if field in record else "nothing"
                raise UserError(f"{path}: {where}: {field}: expected a non-empty string, got {got}")
            if LONE_SURROGATE.search(record[field]):
                raise UserError(f"{path}: {where}: {field}: holds half of a character (a lone surrogate)")
        labels = {key: record[key] for key in ("chapter", "skill") if isinstance(record.get(key), str)}
        yield Question(f"{path.stem}-{number}", record["question"], record["answer"], **labels)
