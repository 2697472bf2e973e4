"""`--grpo KEY=VALUE`: fields of TRL's GRPOConfig, read, and checked before a model loads.

Only `check_options` imports a heavy library, so that a mistyped flag is answered at once.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import typing
from collections.abc import Iterable

from cot.utils.errors import UserError

# Fields of GRPOConfig with a flag of their own: naming one under --grpo would contradict it.
SAME_NAMES = (
    *("beta", "chat_template_kwargs", "learning_rate", "loss_type", "max_completion_length", "max_steps"),
    *("num_generations", "output_dir", "per_device_train_batch_size", "report_to", "reward_weights"),
    *("save_steps", "scale_rewards", "seed", "use_vllm", "vllm_mode"),
)
FLAG_OF_FIELD = {
    **{name: f"--{name}" for name in SAME_NAMES},
    "eval_strategy": "--eval_every",
    "gradient_accumulation_steps": "--prompts_per_step",
    "num_train_epochs": "--max_steps",
    "resume_from_checkpoint": "--resume",
    "shuffle_dataset": "--seed",
}
# Fields that the trainer refuses, or that need what this script has not, hours or minutes later.
REFUSED = {
    "auto_find_batch_size": "GRPO cannot change its batch as it goes; --per_device_train_batch_size sets it",
    "do_eval": "held-out exercises are answered by --eval_every and --eval_size",
    "eval_on_start": "held-out exercises are answered before the first step anyway, by --eval_size",
    "load_best_model_at_end": "the last policy is the result; evaluate_rl.py takes a checkpoint, too",
    "model_init_kwargs": "the policy would not obey them; --attn_implementation and --revision are flags",
    "push_to_hub": "a finished run folder can be uploaded by hf upload",
}
PACKAGES = {  # what a value needs that is no requirement
    "deepspeed": "deepspeed",
    "use_liger_kernel": "liger-kernel",
}
# Fields that may be negative although their default is not.
SIGNED = {"entropy_coef", "entropy_coef_min"}
SAMPLERS = {  # transformers' classes that check a value, but only when a text is sampled
    "top_p": "TopPLogitsWarper",
    "min_p": "MinPLogitsWarper",
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
}


def parse_grpo(entries: Iterable[str]) -> dict:
    """`KEY=VALUE` entries as GRPOConfig's arguments; a value is JSON where it parses, else text.

    Whether GRPOConfig has such a field is for `check_options`: the list of its fields takes ten seconds to
    import.

    Raises:
        UserError: a field that has a flag of its own or is refused, a package that is absent, no `=`, or a
            temperature that samples nothing.

    >>> parse_grpo(["temperature=0.5", "optim=adamw_torch", "bf16=false"])
    {'temperature': 0.5, 'optim': 'adamw_torch', 'bf16': False}
    """
    options: dict = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator:
            raise UserError(f"--grpo {entry}: expected KEY=VALUE")
        if key in FLAG_OF_FIELD:
            raise UserError(f"--grpo {key}: set by the flag {FLAG_OF_FIELD[key]}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
        if options[key] and key in REFUSED:
            raise UserError(f"--grpo {entry}: {REFUSED[key]}")
        if (package := _needed_package(key, options[key])) and not _is_installed(package):
            raise UserError(f"--grpo {entry}: {package} is not installed: pip install {package}")
    temperature = options.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise UserError(f"--grpo temperature={temperature}: expected a number above 0")
    return options


def check_options(options: dict) -> None:
    """Compares values with GRPOConfig's types and obvious ranges: what it takes can fail hours later.

    A number may be negative only where the default is, or in a field of `SIGNED`; a count whose default is 1
    or more is 1 or more. What samples tokens must be what transformers takes.

    Raises:
        UserError: no such field, or a value that cannot be meant.
    """
    from pydantic import TypeAdapter, ValidationError
    from transformers.generation import logits_process
    from trl import GRPOConfig

    defaults = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    types = typing.get_type_hints(GRPOConfig)
    for name, value in options.items():
        if name not in defaults:
            raise UserError(f"--grpo {name}: GRPOConfig has no such field{suggest(name, defaults)}")
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(f"--grpo {name}={value}: {error.errors()[0]['msg']}") from error

        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        low = _lowest(name, types[name], defaults[name])
        if is_number and not low <= value < math.inf:
            raise UserError(f"--grpo {name}={value}: expected at least {low:g}, and finite")
        if is_number and name in SAMPLERS:
            try:
                getattr(logits_process, SAMPLERS[name])(float(value))
            except ValueError as error:
                raise UserError(f"--grpo {name}={value}: {error}") from error


def _needed_package(key: str, value: object) -> str | None:
    """The package that a field's value needs beside the requirements."""
    if key == "optim" and any(part in str(value) for part in ("8bit", "bnb", "paged")):
        return "bitsandbytes"
    return PACKAGES.get(key) if value else None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _lowest(name: str, kind: object, default: object) -> float:
    """The lowest value that a field may have."""
    given = default if isinstance(default, int | float) else 0
    if name in SIGNED or given < 0:
        return -math.inf
    return 1 if kind is int and given >= 1 else 0


def suggest(name: str, names: Iterable[str]) -> str:
    """The nearest of the names as a question, or nothing.

    >>> suggest("temperatur", ["temperature", "beta"])
    '; did you mean temperature?'
    """
    near = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
