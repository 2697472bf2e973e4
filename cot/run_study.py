#!/usr/bin/env python3
"""Does memory help a model at inference, and at which level? A study without training, for any model.

Every question is asked for a few of the students, who are simulated, so that it is known what each needs.
`cot/utils/study.py` says under which conditions, and what is claimed beforehand: a student's own memory
against none, another student's, unrelated text and an instruction; the own memory after more and more
interactions; and memories that are irrelevant, stale or wrong. At the level `stated` the students say what
they need (`truth.json`); at `history` and `episodes` only what happened to them shows it.

Reads what `run_baseline_faiss.py` reads. Writes a folder: `results_temp_<T>_<stamp>.json` and
`summary_<stamp>.json` as every script (their `summary` has `rows_done, table, verdicts, timing`),
`answers.jsonl.gz`, from which all tables can be counted again, `study.md` and `study.png`. The same command
continues a study that was stopped. cot/README.md lists every key. Students first, then a smoke run and a
study:

    python rl/simulate_students.py --generate 20 --profiles_dir students
    python cot/run_study.py --profiles_dir students --model_name tutor --dataset textbook --subset_size 2 \
        --max_new_tokens 16 --output_dir /tmp/study
    python cot/run_study.py --profiles_dir students --model_name Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k \
        --max_new_tokens 512
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser, add_memory_flags, add_template_flags, number
from cot.utils.errors import UserError, script_frame
from cot.utils.paths import DATA_DIR, writable_dir
from cot.utils.run_flags import add_generation_flags, add_model_flags, add_output_flags, add_question_flags

LEVELS = ["stated", "history"]  # side by side unless told


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add_model_flags(parser)
    add_question_flags(parser)
    add_template_flags(parser)
    add_generation_flags(parser)
    add_memory_flags(parser, side_by_side=LEVELS)
    parser.add_argument(
        "--students_per_question",
        type=number(int, 1),
        default=2,
        metavar="N",
        help="ask each question for N of the students, all of them about equally often",
    )
    meaning = "folder of the study; without this flag data/<family>/study_<model>"
    add_output_flags(parser, output_dir=None, meaning=meaning)
    parser.set_defaults(students=["all"], subset_size=200, temperatures=[0.0, 0.7])
    return parser


def load_students(args: argparse.Namespace) -> tuple[dict, dict, dict]:
    """Profiles, histories and truths of the students, by id.

    Raises:
        UserError: no such student, too few for a question, or one of whom nothing is known that could be met.
    """
    from cot.utils.fidelity import has_wishes
    from cot.utils.student_files import MemoryLog, load_profiles, load_truths, pick_students
    from cot.utils.study import EVIDENCE

    profiles = load_profiles(args.profiles_dir)
    names = pick_students(args.students, profiles)
    least = max(2, args.students_per_question)
    if len(names) < least:
        raise UserError(f"--students: {len(names)} are too few; it takes {least} or more")
    truths = load_truths(args.profiles_dir, profiles)
    if lacking := [name for name in names if not has_wishes(truths[name])]:
        raise UserError(
            f"--students {lacking[0]}: nobody knows what it needs; rl/simulate_students.py --generate makes"
            " students of whom it is known"
        )
    log = MemoryLog(args.profiles_dir / "memory")
    histories = {name: log.read(name) for name in names}
    if short := [name for name in names if len(histories[name]) < EVIDENCE[-1]]:
        raise UserError(f"--students {short[0]}: its log holds less than {EVIDENCE[-1]} interactions")
    return {name: profiles[name] for name in names}, histories, {name: truths[name] for name in names}


def remember_levels(
    args: argparse.Namespace, profiles: dict, histories: dict, truths: dict, embedder
) -> dict:
    """The students' memories at each level; at the level `stated` they say what they need."""
    from cot.utils.mastery_model import load_mastery_model
    from cot.utils.memory_arms import remember
    from cot.utils.study import STATED

    model = load_mastery_model(args.mastery_parameters)
    return {
        level: remember(
            args, truths if level == STATED else profiles, histories, truths, embedder, model, level=level
        )
        for level in args.memory_level
    }


def run(args: argparse.Namespace) -> int:
    """Students and questions to conditions to answers to tables; returns the exit code."""
    from cot.utils.figures import save_figure
    from cot.utils.files import write_answers
    from cot.utils.formats import prepare_models
    from cot.utils.memory_arms import PromptShape
    from cot.utils.model_names import family
    from cot.utils.models import choose_model
    from cot.utils.questions import load_questions, worked_examples
    from cot.utils.runner import Run
    from cot.utils.scorers import load_scorers
    from cot.utils.study import build_rows, deal_students
    from cot.utils.study_results import (
        ANSWER_KEYS,
        add_measures,
        draw_study,
        prepare_answers,
        render_study,
        summarize,
    )
    from cot.utils.sweeps import announce

    # students and questions: checked before a model is loaded
    profiles, histories, truths = load_students(args)
    source = choose_model(args)
    name = Path(source.name).name.removesuffix(".gguf")  # of the policy, in what may be published
    folder = writable_dir(args.output_dir or DATA_DIR / family(source) / f"study_{name}")
    questions = load_questions(
        args.dataset, args.split, args.subset_size, args.seed if args.shuffle else None, args.offset
    )
    config = announce(args, source, questions) | {"students_asked": len(profiles)}
    tokenizers, args.max_new_tokens = prepare_models(args, {name: source}, args.max_new_tokens)
    scorers = load_scorers(config["device"])

    # who is asked what
    rows = build_rows(
        policy=name,
        questions=questions.questions,
        dealt=deal_students(list(profiles), len(questions.questions), args.students_per_question, args.seed),
        by_level=remember_levels(args, profiles, histories, truths, scorers.embedder),
        temperatures=args.temperatures,
        num_samples=args.num_samples,
    )
    conditions = dict.fromkeys(row.memory.arm for row in rows)
    print(f"rows:    {len(rows)} (conditions: {' '.join(conditions)})", flush=True)

    # their answers
    shape = PromptShape(
        instruction=args.cot_prompt,
        memory_tokens=args.memory_tokens,
        examples=tuple(worked_examples(args.num_fewshot)),
    )

    with Run(
        script=Path(__file__).name,
        args=args,
        rows=rows,
        sources={name: source},
        shape=shape,
        profiles=truths,
        config=config,
        folder=folder,
        scorers=scorers,
        tokenizers=tokenizers,
    ) as study:
        study.generate()
        if not study.is_main:  # process 0 puts the answers of all together
            return study.exit_code
        path, document = study.finish(
            summarize=lambda records: summarize(records, args.temperatures),
            measure=lambda records: add_measures(records, truths),
        )

        # what they say
        write_answers(prepare_answers(study.in_order(), truths), ANSWER_KEYS, folder / "answers.jsonl.gz")
        report = render_study(document["summary"], document["config"])
        (folder / "study.md").write_text(report, encoding="utf-8")
        save_figure(draw_study(document["summary"]["table"]), folder / "study.png")
    print(f"{report}\n{path}")
    return study.exit_code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
