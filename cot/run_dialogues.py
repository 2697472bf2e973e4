#!/usr/bin/env python3
"""Does an explanation meet the confusion that a real teacher described? A study on MathDial's dialogues.

Every dialogue is a student with a wrong solution. The question is asked with that solution, the teacher's
description of the confusion and the student's profile as memory, without, with another dialogue's, and with
unrelated text (`cot/utils/dialogue_study.py`, which also says what is claimed beforehand). Two thirds of
MathDial's questions are GSM8K's training questions: its test questions are reported apart.

Reads MathDial's JSON lines (https://github.com/eth-nlped/mathdial, CC BY-SA 4.0). Writes a folder:
`results_temp_<T>_<stamp>.json` and `summary_<stamp>.json` as every script (their `summary` has `rows_done,
table, verdicts, timing`), `answers.jsonl.gz`, `dialogues.md`, and for MathTutorBench's scorers
`generations-<model>-mathdial_<arm>.json`. The same command continues a study that was stopped.
cot/README.md lists every key. A smoke run and a study:

    python cot/run_dialogues.py --dataset mathdial:test.jsonl --model_name tutor --subset_size 2 \
        --max_new_tokens 16 --output_dir /tmp/dialogues
    python cot/run_dialogues.py --dataset mathdial:test.jsonl --model_name Qwen/Qwen2.5-1.5B-Instruct \
        --max_new_tokens 512
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser, add_template_flags, number
from cot.utils.errors import UserError, script_frame
from cot.utils.paths import DATA_DIR, writable_dir
from cot.utils.run_flags import add_generation_flags, add_model_flags, add_output_flags, add_question_flags

ANSWER_KEYS = (  # of the raw answers, which hold no text of the data set
    *("policy", "memory_arm", "temperature", "sample", "question_id", "student_id", "gsm8k_split"),
    *("generated_text", "output_tokens", "truncated", "correct", "teacher_similarity", "wrong_step_named"),
    *("wrong_number_repeated", "copying", "error"),
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add_model_flags(parser)
    add_question_flags(parser, has_splits=False)
    add_template_flags(parser)
    add_generation_flags(parser)
    parser.add_argument(
        "--memory_tokens",
        type=number(int, 1),
        default=256,
        metavar="N",
        help="cut a prompt's memory at N tokens",
    )
    meaning = "folder of the study; without this flag data/<family>/dialogues_<model>"
    add_output_flags(parser, output_dir=None, meaning=meaning)
    parser.set_defaults(subset_size="all", temperatures=[0.0])
    return parser


def write_exports(records: list[dict], named: dict, name: str, folder: Path, temperature: float) -> None:
    """One file for each arm, of the texts at one temperature."""
    from cot.utils.dialogue_study import ARMS, export_for_mathtutorbench
    from cot.utils.files import write_json

    model = name.replace("-", "_")  # the scorer splits the file's name at its hyphens
    for arm in ARMS:
        chosen = [
            record
            for record in records
            if (record["memory_arm"], record["temperature"], record["sample"]) == (arm, temperature, 0)
        ]
        path = folder / f"generations-{model}-mathdial_{arm}.json"
        write_json(path, list(export_for_mathtutorbench(chosen, named)))


def run(args: argparse.Namespace) -> int:
    """Dialogues to prompts to answers to tables; returns the exit code."""
    from cot.utils.dialogue_study import (
        add_measures,
        build_rows,
        describe_students,
        name_students,
        render_study,
        summarize,
    )
    from cot.utils.files import write_answers
    from cot.utils.formats import prepare_models
    from cot.utils.mathdial import PREFIX, load_dialogues
    from cot.utils.memory_arms import PromptShape
    from cot.utils.model_names import family
    from cot.utils.models import choose_model
    from cot.utils.questions import load_questions, worked_examples
    from cot.utils.runner import Run
    from cot.utils.scorers import load_scorers
    from cot.utils.sweeps import announce

    # the dialogues: checked before a model is loaded
    if not args.dataset.startswith(PREFIX):
        raise UserError(f"--dataset {args.dataset}: expected {PREFIX}FILE, such as {PREFIX}test.jsonl")
    named = name_students(load_dialogues(args.dataset))
    profiles = describe_students(named)
    source = choose_model(args)
    name = Path(source.name).name.removesuffix(".gguf")  # of the policy, in what may be published
    folder = writable_dir(args.output_dir or DATA_DIR / family(source) / f"dialogues_{name}")
    shuffle_seed = args.seed if args.shuffle else None
    questions = load_questions(
        args.dataset, subset_size=args.subset_size, shuffle_seed=shuffle_seed, offset=args.offset
    )
    config = announce(args, source, questions)
    tokenizers, args.max_new_tokens = prepare_models(args, {name: source}, args.max_new_tokens)
    scorers = load_scorers(config["device"])

    # every dialogue of every question, in every arm
    rows = build_rows(
        policy=name,
        questions=questions.questions,
        named=named,
        profiles=profiles,
        temperatures=args.temperatures,
        num_samples=args.num_samples,
        seed=args.seed,
    )
    config["dialogues"] = len({row.moment.student_id for row in rows})
    print(f"rows:    {len(rows)} ({config['dialogues']} dialogues)", flush=True)

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
        profiles=profiles,
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
            measure=lambda records: add_measures(records, named, scorers.embedder),
        )

        # what they say
        records = study.in_order()
        write_answers(records, ANSWER_KEYS, folder / "answers.jsonl.gz")
        write_exports(records, named, name, folder, temperature=min(args.temperatures))
        report = render_study(document["summary"], document["config"])
        (folder / "dialogues.md").write_text(report, encoding="utf-8")
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
