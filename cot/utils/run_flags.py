"""Flags of the scripts that ask models: the model, its engine, the questions, decoding, and the results."""

import argparse
from collections.abc import Callable
from pathlib import Path

from cot.utils.cli import (
    COT_PROMPT,
    Distinct,
    add_attention_flag,
    add_revision_flag,
    add_template_flags,
    number,
)
from cot.utils.paths import DATA_DIR

TEMPERATURE_DECIMALS = 6  # as every real number in a record


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
    """--revision --attn_implementation --load_in_4bit --batch_invariant.

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
    add(
        "--batch_invariant",
        action="store_true",
        help="likelihoods to the last bit the same at any --batch_size and number of processes; texts are so"
        " without it. On a CPU. Answers that have ended then make room for others at once",
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
