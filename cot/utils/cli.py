"""Flags that the scripts share: their validators, groups and defaults, and what is recorded of them."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cot.utils.errors import EXIT_USAGE
from cot.utils.paths import DATA_DIR, PROFILES_DIR

MEMORY_LEVELS = ("stated", "history", "episodes")
TEMPERATURE_DECIMALS = 6  # as every real number in a record
ATTENTIONS = ("auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
MIN_SIMILARITY = 0.2  # cosine below which a past exercise is left out of a memory
COT_PROMPT = (
    "Solve the problem step by step, one short step on each line. "
    "Then write the final answer alone on the last line as '#### ' and the number."
)


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help where there is one to name: not for None, and not for a switch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        named = action.default is not None and action.default is not False
        return super()._get_help_string(action) if named else action.help


class OneLineParser(argparse.ArgumentParser):
    """Argparse that refuses abbreviations and reports a mistake in one line."""

    def __init__(self, **kwargs) -> None:
        super().__init__(allow_abbrev=False, formatter_class=DefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> None:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """A validator of an `int` or `float` in [low, high], for argparse's `type`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            upper = "" if high == math.inf else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {kind.__name__} of at least {low:g}{upper}")
        return value

    return parse


def temperature(text: str) -> float:
    """A sampling temperature: 0 is greedy; negative, infinite and NaN are refused.

    So are more decimals than a record keeps, whose answers no result file would find again.
    """
    value = number(float, 0.0, 10.0)(text) + 0.0  # + 0.0 turns -0.0 into 0.0
    if value != round(value, TEMPERATURE_DECIMALS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected at most {TEMPERATURE_DECIMALS} decimals")
    return value


def batch_size(text: str) -> int | None:
    """`auto` (None) or a positive number of rows."""
    return None if text == "auto" else number(int, 1)(text)


def subset_size(text: str) -> int | str:
    """`all` or a positive number of questions."""
    return text if text == "all" else number(int, 1)(text)


def absolute_path(text: str) -> Path:
    """A path that means the same file wherever it is read again, for argparse's `type`."""
    return Path(text).resolve()


def some_text(text: str) -> str:
    """A text of more than blanks, for argparse's `type`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("empty: expected a text")
    return text


def json_object(text: str) -> dict:
    """A JSON object, for argparse's `type`.

    >>> json_object('{"enable_thinking": false}')
    {'enable_thinking': False}
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JSON object such as '{{\"name\": true}}'")
    return value


class Distinct(argparse.Action):
    """Stores a list flag and refuses a value given twice."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if len(set(values)) < len(values):
            parser.error(f"argument {option_string}: a value occurs twice in {' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """--model_name --device --dtype, how its weights are loaded, and the engine's."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name",
        default="auto",
        help="bundled, tutor, a hub name, a folder or a .gguf file; auto is Qwen/Qwen-7B on a CUDA GPU and"
        " the bundled SmolLM2-135M-Instruct elsewhere",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:N or mps; auto is the first of CUDA, MPS and CPU that this machine has",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="number format of the weights; auto is bfloat16 on a CUDA GPU (float16 on one without it), and"
        " elsewhere float32, or bfloat16 on a CPU that is at least twice as fast in it",
    )
    add_loading_flags(group.add_argument)
    add_engine_flags(parser)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """--engine --tensor_parallel_size --gpu_memory_utilization --max_model_len."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        default="auto",
        choices=["auto", "transformers", "vllm"],
        help="what generates; auto is vLLM on a CUDA GPU where it is installed and loads the model, and"
        " transformers elsewhere",
    )
    group.add_argument(
        "--tensor_parallel_size",
        type=number(int, 1),
        metavar="N",
        help="vLLM: spread the weights over N GPUs",
    )
    group.add_argument(
        "--gpu_memory_utilization",
        type=number(float, 0.01, 1),
        metavar="SHARE",
        help="vLLM: take this share of the device's memory",
    )
    group.add_argument(
        "--max_model_len",
        type=number(int, 2),
        metavar="N",
        help="tokens of a prompt and its answer together, where that is less than the model has; vLLM then"
        " needs less memory",
    )


def add_loading_flags(add: Callable, of: str = "--model_name") -> None:
    """--revision --attn_implementation --load_in_4bit.

    Args:
        add: `add_argument` of a parser or group.
        of: the flag that names the model which `--revision` belongs to.
    """
    add_revision_flag(add, of)
    add_attention_flag(add)
    add(
        "--load_in_4bit",
        action="store_true",
        help="keep the weights in 4 bits (bitsandbytes NF4); needs a CUDA GPU and a plain checkpoint",
    )


def add_revision_flag(add: Callable, of: str = "--model_name") -> None:
    """--revision; the arguments are those of `add_loading_flags`."""
    add(
        "--revision",
        metavar="COMMIT",
        help=f"branch, tag or commit of a hub model that {of} names; without this flag its main branch",
    )


def add_attention_flag(add: Callable) -> None:
    """--attn_implementation; the argument is that of `add_loading_flags`."""
    add(
        "--attn_implementation",
        default="auto",
        choices=ATTENTIONS,
        help="how attention is computed; auto is what transformers takes for the architecture, mostly sdpa",
    )


def add_question_flags(parser: argparse.ArgumentParser, has_splits: bool = True) -> None:
    """--dataset --split --subset_size --offset --shuffle --cot_prompt --num_fewshot.

    Args:
        has_splits: whether the questions may come from a source with splits, which takes `--split`.
    """
    group = parser.add_argument_group("questions and prompt")
    group.add_argument(
        "--dataset",
        default="auto",
        help="gsm8k, textbook, a .jsonl or .json file, or mathdial:FILE; auto is GSM8K, and the textbook"
        " where GSM8K cannot be had",
    )
    if has_splits:
        group.add_argument(
            "--split", default="test", choices=["test", "train"], help="part of gsm8k or of the textbook"
        )
    add_subset_flags(group.add_argument)
    group.add_argument(
        "--shuffle", action="store_true", help="shuffle the questions by --seed before taking N of them"
    )
    group.add_argument("--cot_prompt", default=COT_PROMPT, help="the instruction before the question")
    group.add_argument(
        "--num_fewshot",
        type=number(int, 0, 24),
        default=0,
        metavar="N",
        help="show N worked examples of the textbook in every prompt",
    )


def add_subset_flags(add: Callable, note: str = "") -> None:
    """--subset_size --offset.

    Args:
        add: `add_argument` of a parser or group.
        note: what the help says beside it.
    """
    add(
        "--subset_size",
        type=subset_size,
        default=50,
        metavar="N|all",
        help=f"ask N questions, or all{note}",
    )
    add(
        "--offset", type=number(int, 0), default=0, metavar="N", help=f"leave out the first N questions{note}"
    )


def add_template_flags(parser: argparse.ArgumentParser) -> None:
    """--system_prompt --thinking --chat_template_kwargs --think_end."""
    group = parser.add_argument_group("chat template")
    group.add_argument(
        "--system_prompt",
        type=some_text,
        metavar="TEXT",
        help="a system turn before the question; without this flag what the chat template has by itself",
    )
    group.add_argument(
        "--thinking",
        default="auto",
        choices=["auto", "on", "off"],
        help="let a thinking model reason before it answers, or not; auto is what its chat template does",
    )
    group.add_argument(
        "--chat_template_kwargs",
        type=json_object,
        metavar="JSON",
        help="variables of the chat template as a JSON object; chat_template names one of several templates",
    )
    group.add_argument(
        "--think_end",
        metavar="TEXT",
        help="the mark that ends the reasoning; without this flag what the template or tokenizer has, such as"
        " </think>",
    )


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """--max_new_tokens --temperatures, --top_p and the like, --num_samples --batch_size --seed."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max_new_tokens",
        type=number(int, 1),
        metavar="N",
        help="cut an answer at N tokens (default: 256), reasoning included; the default is 4096 where the"
        " model thinks, and at most half of its context",
    )
    group.add_argument(
        "--temperatures",
        type=temperature,
        nargs="+",
        action=Distinct,
        default=[0.0, 0.3, 0.6, 0.9],
        metavar="T",
        help="sampling temperatures, with a result file each; 0 is greedy",
    )
    group.add_argument(
        "--top_p",
        type=number(float, 1e-6, 1),
        default=1.0,
        metavar="P",
        help="draw from the fewest tokens whose probabilities sum to P; 1 is all",
    )
    group.add_argument(
        "--sampling_top_k",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="draw from the N most probable tokens; 0 is all",
    )
    group.add_argument(
        "--min_p",
        type=number(float, 0, 1),
        default=0.0,
        metavar="SHARE",
        help="draw from the tokens that have at least this share of the highest probability; 0 is all",
    )
    group.add_argument(
        "--num_samples",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="generate N answers for every prompt and temperature",
    )
    group.add_argument(
        "--batch_size",
        type=batch_size,
        default="auto",
        metavar="N|auto",
        help="answers generated at once; auto is what fits into half of a GPU's free memory, and on a CPU 32,"
        " or 128 for a model below 100 million parameters",
    )
    group.add_argument(
        "--seed", type=number(int, 0), default=0, help="seed of whatever the script draws at random"
    )


def add_output_flags(
    parser: argparse.ArgumentParser,
    output_dir: Path | None = DATA_DIR,
    meaning: str = "write the results into a folder in this one, named after the model's family, as in qwen",
) -> None:
    """--output_dir --fail_on_error --retry_failed --debug.

    Args:
        output_dir: its default.
        meaning: its help text.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, default=output_dir, metavar="FOLDER", help=meaning)
    group.add_argument(
        "--fail_on_error",
        type=number(float, 0.0, 1.0),
        default=0.05,
        metavar="SHARE",
        help="end with exit code 3 when more than this share of the answers failed",
    )
    add_retry_flag(group.add_argument)
    group.add_argument("--debug", action="store_true", help="print the traceback of an error, too")


def add_retry_flag(add: Callable) -> None:
    """--retry_failed.

    Args:
        add: `add_argument` of a parser or group.
    """
    add(
        "--retry_failed",
        action="store_true",
        help="continue the newest run of these flags, finished or not, and generate its failed answers again",
    )


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every sweep: model, questions, prompt, template, generation, output."""
    add_model_flags(parser)
    add_question_flags(parser)
    add_template_flags(parser)
    add_generation_flags(parser)
    add_output_flags(parser)


def add_memory_flags(parser: argparse.ArgumentParser, side_by_side: Sequence[str] = ()) -> None:
    """Whose memory is shown, at which level, and how much of it.

    Args:
        side_by_side: levels that stand side by side unless told; without, there is one level.
    """
    group = parser.add_argument_group("student memory")
    group.add_argument(
        "--profiles_dir",
        type=Path,
        default=PROFILES_DIR,
        metavar="FOLDER",
        help="folder with a profile <student_id>.json for each student, and with what each has done in"
        " memory/<student_id>.jsonl",
    )
    group.add_argument(
        "--students",
        nargs="+",
        action=Distinct,
        metavar="ID",
        help="ids of the students to answer for, or all; nearest, where it is the default, is for each"
        " question the student whose profile is most similar to it",
    )
    several: dict[str, Any] = {"nargs": "+", "action": Distinct} if side_by_side else {}
    group.add_argument(
        "--memory_level",
        **several,
        default=list(side_by_side) or MEMORY_LEVELS[0],
        choices=MEMORY_LEVELS,
        help="what a memory tells of how to teach the student: its wishes as it states them, the history of"
        " which manner of explaining was followed by right answers, or past episodes alone (--top_k)",
    )
    group.add_argument(
        "--top_k",
        type=number(int, 0),
        default=2,
        metavar="N",
        help="show at most N past exercises that resemble the question",
    )
    group.add_argument(
        "--min_similarity",
        type=number(float, -1, 1),
        default=MIN_SIMILARITY,
        metavar="COSINE",
        help="leave out past exercises whose cosine similarity to the question is lower",
    )
    group.add_argument(
        "--memory_tokens",
        type=number(int, 1),
        default=256,
        metavar="N",
        help="cut a prompt's memory at N tokens",
    )
    group.add_argument(
        "--memory_half_life",
        type=number(float, 1e-3),
        metavar="DAYS",
        help="days after which half of what a student has learned is forgotten; without this flag nothing is",
    )
    group.add_argument(
        "--mastery_parameters",
        type=absolute_path,
        metavar="FILE.json",
        help="tell mastery as a model fitted to real students expects the next answer (rl/fit_mastery.py);"
        " without this flag it is traced with the default parameters",
    )


def flags_of(args: argparse.Namespace) -> dict:
    """The flags as JSON values, for a run's record; those that change no result are left out."""
    kept = {name: value for name, value in vars(args).items() if name not in ("debug", "retry_failed")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def this_command() -> str:
    """The command line that runs this script again."""
    return shlex.join(["python", *sys.argv])
