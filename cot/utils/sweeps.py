"""What the two sweeps share: the first lines of a run, and its end."""

import argparse

from cot.utils.devices import pick_device
from cot.utils.engine_choice import settle_engine
from cot.utils.figures import draw_sweep
from cot.utils.model_names import ModelSource
from cot.utils.questions import QuestionSet
from cot.utils.runner import Run
from cot.utils.summary import summarize


def announce(args: argparse.Namespace, source: ModelSource, questions: QuestionSet) -> dict:
    """Prints what was picked; returns it for the result files' `config`."""
    device = str(pick_device(args.device))
    print(f"data:    {questions.source}, {len(questions.questions)} questions", flush=True)
    if questions.excluded:
        print(f"         {len(questions.excluded)} left out: their gold answer does not parse", flush=True)
    print(f"model:   {source.name}{' (picked)' if args.model_name == 'auto' else ''}", flush=True)
    print(f"device:  {device}{' (picked)' if args.device == 'auto' else ''}", flush=True)
    engine = settle_engine(args, [source])
    return {
        "device": device,
        "engine": engine,
        "dataset_source": questions.source,
        "dataset_fingerprint": questions.fingerprint,
        "questions": len(questions.questions),
        "questions_excluded": list(questions.excluded),
    }


def finish_sweep(sweep: Run) -> None:
    """Metrics, result files, figures; the last line on standard output is the summary's path."""
    path, _ = sweep.finish(lambda records: summarize(records, sweep.profiles))
    draw_sweep(sweep.in_order(), sweep.folder / "figures", sweep.stamp)
    print(path)
