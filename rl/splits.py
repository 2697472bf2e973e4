"""Which questions a run trains on, and which are held out: no question is on both sides.

The textbook and GSM8K have a split of their own. A file has none: some of its questions are split off by the
run's seed, and a policy that was trained on the file is evaluated on those alone.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.memory_arms import MemoryArms, Moment
from cot.utils.questions import ALL, Question, load_questions
from cot.utils.textbook import pick_chapters
from rl.cohorts import load_arms
from rl.moments import crossed_moments, fingerprint_questions, fingerprint_students, textbook_moments

HELD_OUT_SHARE = 0.1  # of a file's different questions
MOST_HELD_OUT = 256


@dataclass(frozen=True)
class DataSource:
    """Which questions a run trains on and is evaluated on.

    Attributes:
        train: in words.
        held_out: in words.
        held_out_ids: of a file, which has no split: the questions that were split off; else None.
    """

    train: str
    held_out: str
    held_out_ids: list[str] | None = None


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Attributes:
        arms: its students, and what each memory arm shows of them.
        train, held_out: moments, in the order in which they are met.
        source: where their questions are from.
    """

    arms: MemoryArms
    train: list[Moment]
    held_out: list[Moment]
    source: DataSource

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the students and of the questions, as a run's identity names them."""
        return {
            "students_content": fingerprint_students(self.arms),
            "questions_content": fingerprint_questions(self.train),
        }


def load_data(args: argparse.Namespace) -> Data:
    """The students and the moments that the flags name; a `UserError` where there are none."""
    arms = load_arms(args)
    return Data(arms, *pick_moments(args, arms))


def pick_moments(args: argparse.Namespace, arms: MemoryArms) -> tuple[list[Moment], list[Moment], DataSource]:
    """Moments to train on, as many as training sees; held-out ones to evaluate on; where they are from."""
    count, size = args.max_steps * args.prompts_per_step, args.eval_size
    if args.dataset == "textbook":
        chapters = pick_chapters(args.chapters)
        train = textbook_moments(arms, chapters, "train", count, args.seed)
        held_out = textbook_moments(arms, chapters, "test", size, args.seed)
        return train, held_out, DataSource("textbook train", "textbook test")

    found = load_questions(args.dataset, "train")
    if not _is_file(args.dataset):
        test = load_questions(args.dataset, "test", size or 1)
        questions, others, source = found.questions, test.questions, DataSource(found.source, test.source)
    elif size == 0:
        questions, others, source = found.questions, (), DataSource(found.source, "none", [])
    else:
        questions, others = split_off(args.dataset, found.questions, args.seed)
        size = min(size, len(others) * len(arms.profiles))  # none is asked twice
        source = DataSource(
            train=f"{found.source}, {len(questions)} of {len(found.questions)} questions",
            held_out=f"{len(others)} questions of {found.source}, split off by seed {args.seed}",
            held_out_ids=[question.id for question in others],
        )
    train = crossed_moments(arms, questions, count, args.seed)
    return train, crossed_moments(arms, others, size, args.seed), source


def split_off(
    dataset: str, questions: Sequence[Question], seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Questions to train on, and held-out ones, of a data set that has no split.

    A question that is there twice is twice on one side. How many are held out does not depend on how many are
    asked, so that a run can be continued with another `--eval_size`.

    Args:
        dataset: its name, for the message.

    Raises:
        UserError: there are not two different questions.
    """
    texts = [" ".join(question.question.casefold().split()) for question in questions]
    different = sorted(set(texts))
    if len(different) < 2:
        raise UserError(
            f"--dataset {dataset}: a single question cannot be split into training and held-out ones;"
            " add questions, or use --eval_size 0"
        )
    count = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(different))))
    held_out = set(random.Random(f"split off {seed}").sample(different, count))
    sides = [text in held_out for text in texts]
    train = tuple(question for question, held in zip(questions, sides, strict=True) if not held)
    return train, tuple(question for question, held in zip(questions, sides, strict=True) if held)


def held_out_questions(
    dataset: str, runs: Sequence[Mapping], subset_size: int | str = ALL, offset: int = 0
) -> tuple[Sequence[Question], str]:
    """Test questions of a data set, and which these are; of a file those that no run has trained on.

    Args:
        runs: the `config` of each training run.
        subset_size, offset: as in `load_questions`.

    Raises:
        UserError: the runs have trained on all questions.
    """
    trained = [run for run in runs if _is_file(dataset) and _same_file(dataset, run.get("dataset"))]
    if not trained:
        found = load_questions(dataset, "test", subset_size, offset=offset)
        return found.questions, found.source
    found = load_questions(dataset, "test")
    questions, source = list(found.questions), found.source
    for run in trained:
        questions = [question for question in questions if question.id in (run.get("held_out") or ())]
        source = f"{found.source}, questions held out in training"
    if not questions:
        raise UserError(f"--dataset {dataset}: the policies were trained on all of its questions")
    left = questions[offset:]
    if not left:
        raise UserError(f"--offset {offset}: {source}: {len(questions)}")
    return left if isinstance(subset_size, str) else left[:subset_size], source


def _is_file(dataset: str) -> bool:
    return dataset.endswith((".json", ".jsonl"))


def _same_file(path: str, other: str | None) -> bool:
    return other is not None and Path(path).resolve() == Path(other).resolve()
