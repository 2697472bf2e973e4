"""The command line: parser, validators, the flags of students and templates, and what is recorded of them."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cot.utils.errors import EXIT_USAGE
from cot.utils.paths import PROFILES_DIR

MEMORY_LEVELS = ("stated", "history", "episodes")
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
