"""What the two sweeps share: the first lines of a run, what scores its answers, and its end."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cot.utils.devices import pick_device
from cot.utils.engine_choice import settle_engine
from cot.utils.errors import require
from cot.utils.figures import draw_sweep
from cot.utils.metrics import load_spacy
from cot.utils.model_names import ModelSource
from cot.utils.progress import tell_how_far
from cot.utils.questions import QuestionSet
from cot.utils.records import add_metrics
from cot.utils.retrieval import Embedder, load_embedder
from cot.utils.runner import Run
from cot.utils.summary import summarize

if TYPE_CHECKING:
    from spacy.language import Language


@dataclass(frozen=True)
class Scorers:
    """What measures answers beside the checks that need no model: the embedder and the spaCy pipeline."""

    embedder: Embedder
    nlp: "Language"

    def describe(self) -> dict:
        """What a result file records of them."""
        return {
            "embedder": {"name": self.embedder.name, "revision": self.embedder.revision},
            "spacy": f"{self.nlp.meta['name']} {self.nlp.meta['version']}",
        }


def load_scorers(device: str) -> Scorers:
    """Both, from installed packages.

    Args:
        device: of the models. On a CUDA one texts are embedded there, too; else on the CPU.

    Raises:
        UserError: one of them is absent, or what retrieval and figures need; says how to install it.
    """
    require("faiss", "matplotlib", "sentence_transformers", "spacy")
    on = device if device.startswith("cuda") else "cpu"
    return Scorers(load_embedder(on, watch=tell_how_far("texts embedded")), load_spacy())


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


def finish_sweep(sweep: Run, scorers: Scorers) -> None:
    """Metrics, result files, figures; the last line on standard output is the summary's path."""
    path, _ = sweep.finish(
        measure=lambda records: add_metrics(records, scorers.embedder, scorers.nlp),
        summarize=lambda records: summarize(records, sweep.profiles),
    )
    draw_sweep(sweep.in_order(), sweep.folder / "figures", sweep.stamp)
    print(path)
