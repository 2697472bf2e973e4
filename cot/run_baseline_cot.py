#!/usr/bin/env python3
"""Plain chain of thought: the baseline that memory-conditioned answers are compared with.

Each question is answered at every temperature, from one prefill of its prompt (Wei et al. 2022,
Chain-of-thought prompting elicits reasoning in large language models). Reads GSM8K, the bundled textbook
or a local file. Writes `results_temp_<T>_<timestamp>.json` for each temperature, `summary_<timestamp>.json`
over all of them, and the journal from which the same command continues an interrupted run. cot/README.md
lists every JSON key.

A small smoke run, and the run on a GPU:

    python run_baseline_cot.py --model_name bundled --dataset textbook --subset_size 4 --temperatures 0.0 0.6
    python run_baseline_cot.py --model_name Qwen/Qwen-7B --subset_size 50 --max_new_tokens 256 --device cuda
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser
from cot.utils.errors import script_frame
from cot.utils.paths import writable_dir
from cot.utils.run_flags import add_sweep_flags


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add_sweep_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Questions to prompts to engine to metrics to results; returns the exit code."""
    from cot.utils.formats import prepare_models
    from cot.utils.memory_arms import Moment, PromptShape, StudentMemory
    from cot.utils.model_names import family
    from cot.utils.models import choose_model
    from cot.utils.questions import load_questions, worked_examples
    from cot.utils.records import expand
    from cot.utils.runner import Run
    from cot.utils.scorers import load_scorers
    from cot.utils.sweeps import announce, finish_sweep

    # what is asked, of whom: checked before a model is loaded
    source = choose_model(args)
    folder = writable_dir(args.output_dir / family(source))
    questions = load_questions(
        args.dataset, args.split, args.subset_size, args.seed if args.shuffle else None, args.offset
    )
    config = announce(args, source, questions)
    tokenizers, args.max_new_tokens = prepare_models(args, {source.name: source}, args.max_new_tokens)
    scorers = load_scorers(config["device"])

    # one prompt a question, one row for each temperature and sample
    rows = []
    for index, question in enumerate(questions.questions):
        rows += expand(
            policy=source.name,
            index=index,
            moment=Moment(question),
            memory=StudentMemory(arm=None),
            temperatures=args.temperatures,
            num_samples=args.num_samples,
        )

    examples = tuple(worked_examples(args.num_fewshot))
    shape = PromptShape(instruction=args.cot_prompt, examples=examples)
    with Run(
        script=Path(__file__).name,
        args=args,
        rows=rows,
        sources={source.name: source},
        shape=shape,
        profiles={},
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
