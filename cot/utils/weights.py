"""Whether a checkpoint and its model fit: no weight is made up, and none is left over.

transformers fills what a checkpoint lacks with random numbers, and overlooks what it does not know. Here both
are errors that name the weights.
"""

import contextlib
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cot.utils.devices import GIB
from cot.utils.errors import UserError
from cot.utils.gguf_header import read_header
from cot.utils.model_names import ModelSource, fetch_model, weight_files

NAMED = 3  # weights that a message names; it counts the others


def name_some(names: Collection[str]) -> str:
    """The first names, and how many there are.

    >>> name_some(["c", "a"]), name_some(["d", "b", "a", "c"])
    ('2 (a, c)', '4 (a, b, c, …)')
    """
    first = sorted(names)[:NAMED]
    return f"{len(names)} ({', '.join(first)}{', …' if len(names) > NAMED else ''})"


def name_shapes(shapes: Mapping[str, tuple]) -> str:
    """The same of weights whose shapes differ, by name (in the file, in the model).

    >>> name_shapes({"lm_head.weight": ((7, 2), (8, 2))})
    '1 (lm_head.weight [7, 2] instead of [8, 2])'
    """
    told = [f"{name} {list(stored)} instead of {list(wanted)}" for name, (stored, wanted) in shapes.items()]
    return name_some(told)


def refuse_misfits(
    name: str,
    fitted: str,
    missing: Collection[str] = (),
    unknown: Collection[str] = (),
    misshapen: Mapping[str, tuple] | None = None,
) -> None:
    """Raises where anything is named.

    Args:
        name: of the model.
        fitted: what the weights should fit.
        missing: names that the file lacks.
        unknown: names that nothing takes.
        misshapen: by name, the shapes in the file and in the model.

    Raises:
        UserError: the three groups, each with its first names.
    """
    problems = []
    if missing:
        problems.append(f"missing {name_some(missing)}")
    if unknown:
        problems.append(f"unknown {name_some(unknown)}")
    if misshapen:
        problems.append(f"of another shape {name_shapes(misshapen)}")
    if problems:
        raise UserError(f"--model_name {name}: its weights do not fit {fitted}: {'; '.join(problems)}")


def load_checked(name: str, folder: Path, **options):
    """`AutoModelForCausalLM.from_pretrained`, refusing what it would overlook.

    Raises:
        UserError: weights are missing, unknown or of another shape.
    """
    from transformers import AutoModelForCausalLM

    with _reports_kept_back() as reports:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except RuntimeError as error:
            if not reports:
                raise
            # parts that do not make up a whole, such as the experts of a layer; only the table names it
            parts = set(re.findall(r"^(\S+) *\|.*CONVERSION", reports[0], flags=re.MULTILINE))
            message = f"--model_name {name}: its weights do not fit: parts missing or misshapen of"
            raise UserError(f"{message} {name_some(parts)}") from error
    model, info = loaded
    buffers = [buffer for buffer, _ in model.named_buffers()]  # computed anew, as rotary tables are
    refuse_misfits(
        name,
        type(model).__name__,
        missing=info["missing_keys"],
        unknown=[
            key
            for key in info["unexpected_keys"]
            if not any(buffer == key or buffer.endswith(f".{key}") for buffer in buffers)
        ],
        misshapen={key: shapes for key, *shapes in info["mismatched_keys"]},
    )
    return model


def check_vocabulary(name: str, model, tokenizer) -> None:
    """Every token that a prompt can hold has a row in the model's table; the table may have more.

    A tokenizer's class may add a token for unknown text beyond the table, which no text ever gives.

    Raises:
        UserError: a token has none.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
    if rows and beyond:  # a table that is spread over devices shows no rows
        beyond = [token for token in beyond if _can_occur(tokenizer, token)]
    if rows and beyond:
        raise UserError(
            f"--model_name {name}: model and tokenizer do not belong together: the model has {rows} tokens,"
            f" the tokenizer further {name_some(beyond)}"
        )


def _can_occur(tokenizer, token: str) -> bool:
    """Whether a token can come from text or from the chat template, ends or pads a text."""
    special = {str(added) for added in tokenizer.added_tokens_decoder.values() if added.special}
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    named |= set(tokenizer.all_special_tokens) - {tokenizer.unk_token}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unknown = backend and getattr(backend.model, "unk_token", None)
    return (
        token not in special
        or token in named
        or token == unknown
        or token in str(tokenizer.chat_template or "")
    )


def read_shapes(source: ModelSource) -> list[tuple[int, ...]]:
    """Shapes of all weights of a model on this machine, from file headers; an adapter counts as its base."""
    if source.base:
        return read_shapes(fetch_model(source.base))
    if source.path.is_dir():
        return folder_shapes(source.path)
    return list(read_header(source.path).shapes.values())


def gib_needed(shapes: Collection[tuple[int, ...]], dtype) -> float:
    """GiB that weights take in `dtype`."""
    return sum(map(math.prod, shapes)) * dtype.itemsize / GIB


def folder_shapes(folder: Path) -> list[tuple[int, ...]]:
    """The same of a folder's safetensors; a `UserError` where one cannot be read."""
    from safetensors import SafetensorError, safe_open

    shapes = []
    for shard in weight_files(folder):
        try:
            with safe_open(shard, framework="pt") as tensors:
                shapes += [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"--model_name {folder}: cannot be loaded: {shard.name}: {error}") from error
    return shapes


@contextlib.contextmanager
def _reports_kept_back() -> Iterator[list[str]]:
    """Keeps transformers' tables of misfits off the terminal, where one line names them, and gives them."""
    reports: list[str] = []

    def is_no_report(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "LOAD REPORT" in message:
            reports.append(message)
            return False
        return True

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield reports
    finally:
        logger.removeFilter(is_no_report)
