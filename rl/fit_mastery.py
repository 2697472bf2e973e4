#!/usr/bin/env python3
"""Fit to students' logs what is expected of their next answer, and judge it on students held out.

Two predictors: a logistic regression over a student's counts, ratings and last outcomes (in the manner of PFA
and Best-LR, with scikit-learn; `cot/utils/mastery_model.py` says what it reads), and Bayesian knowledge
tracing fitted for each skill by expectation maximization. The scripts show the better one in place of the
default mastery where they are given the file as `--mastery_parameters`.

Reads `<input>/memory/*.jsonl`, of which `skill`, `correct` and the order count. Writes a JSON file:
`schema_version, predictor, fitted_on, regression, tracing, evaluation`. `evaluation` is null unless
`--evaluate` asks for it: five folds by student, or the students of `--test`, one row an answer, AUC, log loss
and calibration of both predictors and of four simpler ones, with intervals over students. A picture of it
lies beside the file, as a PNG. rl/README.md lists every key.

    python rl/fit_mastery.py --input profiles --output /tmp/mastery.json
    python rl/fit_mastery.py --input /tmp/assist2015 --output /tmp/mastery.json --evaluate
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.cli import OneLineParser, number
from cot.utils.errors import EXIT_OK, UserError, script_frame
from cot.utils.files import timestamp, write_json

if TYPE_CHECKING:
    from rl.responses import Responses


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="FOLDER", help="of the students to fit on, with memory/")
    add("--output", type=Path, required=True, metavar="FILE.json", help="the file to write")
    add(
        "--predictor",
        default="auto",
        choices=["auto", "regression", "tracing"],
        help="which of the two prompts show; auto is the one with the lower log loss on a fifth of the"
        " students, fitted to the others",
    )
    add("--evaluate", action="store_true", help="score the predictors on students held out")
    add(
        "--test",
        type=Path,
        metavar="FOLDER",
        help="with --evaluate: score on these students; without this flag in five folds of --input",
    )
    add("--seed", type=number(int, 0), default=0, help="of the folds, the first of which decides for auto")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def fit(responses: "Responses") -> dict:
    """Both predictors, as they stand in the file."""
    from rl.mastery_fit import fit_regression, fit_tracing

    begin = time.monotonic()
    regression = fit_regression(responses)
    print(f"regression: fitted in {time.monotonic() - begin:.1f} s", flush=True)
    begin = time.monotonic()
    tracing = fit_tracing(responses)
    print(f"tracing: fitted in {time.monotonic() - begin:.1f} s", flush=True)
    return {"regression": regression, "tracing": tracing}


def compare_predictors(responses: "Responses", seed: int) -> dict[str, float]:
    """Mean log loss in nats of both, fitted to four fifths of the students, on the last one.

    Raises:
        UserError: too few students.
    """
    from rl.mastery_fit import fit_regression, fit_tracing, predict_regression, predict_tracing
    from rl.mastery_scores import log_losses
    from rl.responses import FOLDS, draw_folds

    if responses.students < FOLDS:
        got = f"--input has {responses.students}"
        raise UserError(f"--predictor auto: it needs {FOLDS} students, {got}; name one of the two")
    folds = draw_folds(responses.students, seed)
    fitting, held_out = responses.of(folds != 0), responses.of(folds == 0)
    predicted = {
        "regression": predict_regression(fit_regression(fitting), held_out),
        "tracing": predict_tracing(fit_tracing(fitting), held_out),
    }
    return {name: float(log_losses(held_out.correct, p).mean()) for name, p in predicted.items()}


def describe_data(folder: Path, responses: "Responses", losses: Mapping | None) -> dict:
    """What a model was fitted on, and how its predictor was chosen."""
    import sklearn

    return {
        "folder": str(folder),
        "students": responses.students,
        "answers": len(responses),
        "skills": len(responses.skills),
        "right": float(responses.correct.mean()),
        "content": responses.fingerprint,
        "held_out_log_loss": losses,
        "finished": timestamp(),
        "scikit_learn": sklearn.__version__,
    }


def refuse_shared_students(fitting: Path, test: Path) -> None:
    """Stops where a student is among those fitted on and those held out."""
    from cot.utils.student_files import MemoryLog

    shared = set.intersection(*(set(MemoryLog(folder / "memory").students()) for folder in (fitting, test)))
    if shared:
        raise UserError(f"--test {test}: student {min(shared)} is in --input, too; expected other students")


def evaluate(args: argparse.Namespace, responses: "Responses", fitted: dict, predictor: str) -> dict:
    """The scores of every predictor on students on whom it was not fitted, and their picture."""
    from rl.mastery_figures import draw_mastery
    from rl.mastery_scores import judge_states, predict_all, predict_folds, score_all
    from rl.responses import FOLDS, read_responses, use_skills

    if args.test:
        refuse_shared_students(args.input, args.test)
        held_out = use_skills(read_responses(args.test, "--test"), responses.skills)
        predicted = predict_all(responses, held_out, fitted["regression"], fitted["tracing"])
        on: dict = {"folder": str(args.test), "content": held_out.fingerprint, "folds": None}
    else:
        if responses.students < FOLDS:
            raise UserError(
                f"--evaluate: {FOLDS} folds need {FOLDS} students, --input has {responses.students}"
            )
        held_out = responses
        predicted = predict_folds(responses, args.seed)
        on = {"folder": str(args.input), "content": responses.fingerprint, "folds": FOLDS}
    if held_out.correct.all() or not held_out.correct.any():
        raise UserError("--evaluate: all held-out answers are right, or all are wrong: nothing to tell apart")

    scores = score_all(held_out, predicted)
    shown = {"regression": "regression", "tracing": "fitted_tracing"}[predictor]
    print(draw_mastery(held_out, predicted, scores, shown, args.output.with_suffix(".png")))
    return {"on": on, **scores, "states": judge_states(held_out, predicted[shown])}


def render_scores(evaluation: Mapping) -> str:
    """The scores as a table in Markdown."""
    lines = ["| predictor | AUC | log loss, nats | calibration error |", "|---|---|---|---|"]
    for name, scores in evaluation["predictors"].items():
        told = [
            f"{scores[key]['mean']:.4f} ({_told(scores[key]['low'])} to {_told(scores[key]['high'])})"
            for key in ("auc", "log_loss")
        ]
        lines.append(f"| {name} | {told[0]} | {told[1]} | {scores['calibration_error']:.4f} |")
    return "\n".join(lines)


def _told(bound: float | None) -> str:
    return "–" if bound is None else f"{bound:.4f}"


def run(args: argparse.Namespace) -> int:
    """Logs to answers to both predictors to their scores to the file; returns the exit code."""
    if args.test and not args.evaluate:
        raise UserError("--test: it is read with --evaluate alone")
    if args.output.suffix != ".json":
        raise UserError(f"--output {args.output}: expected a name that ends in .json")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: no such folder")

    from cot.utils.mastery_model import MasteryModel
    from rl.responses import read_responses

    responses = read_responses(args.input, "--input")
    print(
        f"{len(responses)} answers of {responses.students} students in {len(responses.skills)} skills",
        flush=True,
    )
    fitted = fit(responses)
    predictor, losses = args.predictor, None
    if predictor == "auto":
        losses = compare_predictors(responses, args.seed)
        predictor = min(losses, key=losses.__getitem__)
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        print(f"predictor: {predictor} (log loss on a fifth of the students held out: {told})", flush=True)
    described = describe_data(args.input, responses, losses)
    model = MasteryModel(predictor=predictor, fitted_on=described, **fitted)
    write_json(args.output, model.model_dump())

    if args.evaluate:
        evaluation = evaluate(args, responses, fitted, predictor)
        write_json(args.output, model.model_dump() | {"evaluation": evaluation})
        print(render_scores(evaluation), flush=True)
        for row in evaluation["states"]:
            print(f"{row['state']}: {row['answers']} answers, {row['right']['mean']:.1%} right")
    print(args.output)
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then fits."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
