#!/usr/bin/env python3
"""Memory-conditioned chain of thought (mCoT): the same sweep, with what is remembered of a student.

By default each question retrieves the student profile nearest to it (exact FAISS search over the embedded
profiles). That validates retrieval, but each question then always meets the same student; `--students`
instead crosses every question with every named student, and `--memory` puts several arms side by side: the
student's own memory, none, another student's, random text of the same length, and no memory but the student's
wishes as an instruction. Reads profiles (`profiles/*.json`) and memories (`profiles/memory/*.jsonl`) beside
what `run_baseline_cot.py` reads, and writes the same files; records carry the student, the arm, what was
retrieved, and how the answer fits. cot/README.md lists every JSON key.

A small smoke run, a factorial one, and the run on a GPU:

    python run_baseline_faiss.py --model_name bundled --dataset textbook --subset_size 4 --temperatures 0.6
    python run_baseline_faiss.py --model_name bundled --dataset textbook --subset_size 6 \
        --temperatures 0.0 --students all --memory own none shuffled random
    python run_baseline_faiss.py --model_name Qwen/Qwen-7B --subset_size 50 --max_new_tokens 256 --device cuda
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import Distinct, OneLineParser, add_memory_flags
from cot.utils.errors import UserError, script_frame
from cot.utils.paths import writable_dir
from cot.utils.run_flags import add_sweep_flags

NEAREST = ["nearest"]  # of --students: each question retrieves its own


def as_of(text: str) -> str:
    """`--as_of`'s validator; its module is imported when the flag is used."""
    from cot.utils.students import check_as_of

    return check_as_of(text)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add_sweep_flags(parser)
    add_memory_flags(parser)
    parser.add_argument(
        "--memory",
        nargs="+",
        action=Distinct,
        default=["own"],
        choices=["own", "none", "shuffled", "random", "instructed"],
        help="what the prompt shows of the student; several arms run side by side",
    )
    parser.add_argument(
        "--as_of",
        type=as_of,
        default="end",
        metavar="TIME",
        help="show the memory as it was before this moment, e.g. 2026-03-01T09:00:00Z",
    )
    parser.set_defaults(students=NEAREST)
    return parser


def place_students(args: argparse.Namespace, questions, arms, embedder) -> list[tuple]:
    """Who is asked what: (index of the question, moment), for every named student, or the nearest one."""
    from cot.utils.retrieval import nearest_profiles
    from cot.utils.student_files import pick_students

    if args.students == NEAREST:
        found = nearest_profiles(arms.profiles, [question.question for question in questions], embedder)
    else:
        named: list = [(student, None) for student in pick_students(args.students, arms.profiles)]
        found = [named] * len(questions)
    return [
        (index, arms.moment(student, question, as_of=args.as_of, number=index, retrieval_score=score))
        for index, (question, placed) in enumerate(zip(questions, found, strict=True))
        for student, score in placed
    ]


def run(args: argparse.Namespace) -> int:
    """Questions to retrieval to prompts to engine to metrics to results; returns the exit code."""
    from cot.utils.formats import prepare_models
    from cot.utils.mastery_model import load_mastery_model
    from cot.utils.memory_arms import PromptShape, remember
    from cot.utils.model_names import family
    from cot.utils.models import choose_model
    from cot.utils.questions import load_questions, worked_examples
    from cot.utils.records import expand
    from cot.utils.runner import Run
    from cot.utils.scorers import load_scorers
    from cot.utils.student_files import MemoryLog, load_profiles, load_truths, pick_students
    from cot.utils.sweeps import announce, finish_sweep

    # the students: checked before anything is loaded
    profiles = load_profiles(args.profiles_dir)
    if args.students != NEAREST:
        pick_students(args.students, profiles)
    if "shuffled" in args.memory and len(profiles) < 2:
        raise UserError("--memory shuffled: needs a second profile whose memory can stand in")
    truths = load_truths(args.profiles_dir, profiles)
    mastery_model = load_mastery_model(args.mastery_parameters)
    log = MemoryLog(args.profiles_dir / "memory")
    histories = {student: log.read(student) for student in profiles}

    # what is asked, of whom: checked before a model is loaded
    source = choose_model(args)
    folder = writable_dir(args.output_dir / family(source))
    questions = load_questions(
        args.dataset, args.split, args.subset_size, args.seed if args.shuffle else None, args.offset
    )
    config = announce(args, source, questions)
    tokenizers, args.max_new_tokens = prepare_models(args, {source.name: source}, args.max_new_tokens)
    scorers = load_scorers(config["device"])

    # one prompt for every question, student and arm; one row for each temperature and sample
    arms = remember(args, profiles, histories, truths, scorers.embedder, mastery_model)
    rows = []
    for index, moment in place_students(args, questions.questions, arms, scorers.embedder):
        for arm in args.memory:
            rows += expand(
                policy=source.name,
                index=index,
                moment=moment,
                memory=arms.show(moment, arm),
                temperatures=args.temperatures,
                num_samples=args.num_samples,
            )
    print(f"rows:    {len(rows)} (arms: {' '.join(args.memory)})", flush=True)

    shape = PromptShape(
        instruction=args.cot_prompt,
        memory_tokens=args.memory_tokens,
        examples=tuple(worked_examples(args.num_fewshot)),
    )
    with Run(
        script=Path(__file__).name,
        args=args,
        rows=rows,
        sources={source.name: source},
        shape=shape,
        profiles=truths,
        config=config,
        folder=folder,
        scorers=scorers,
        tokenizers=tokenizers,
    ) as sweep:
        sweep.generate()
        if not sweep.is_main:  # process 0 puts the answers of all together
            return sweep.exit_code
        finish_sweep(sweep)
    return sweep.exit_code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
