"""`--grpo KEY=VALUE`, `--config FILE.yaml` defaults by device: checked before anything slow is imported."""

import argparse
import ast
import difflib
import importlib.util
import json
from pathlib import Path

from cot.utils.cli import DATA_DIR
from cot.utils.errors import UserError

TUTOR = DATA_DIR / "policies" / "tutor"  # not data/tutor/, where its results lie

# Set by flags of their own, or by the script: naming one under --grpo would contradict it.
BY_FLAG = {
    **{name: f"--{name}" for name in ("learning_rate", "beta", "max_steps", "num_generations", "seed")},
    **{name: f"--{name}" for name in ("max_completion_length", "loss_type", "scale_rewards", "output_dir")},
    **{name: f"--{name}" for name in ("use_vllm", "vllm_mode", "report_to", "per_device_train_batch_size")},
    "reward_weights": "--reward_weights",
    "resume_from_checkpoint": "--resume",
    "gradient_accumulation_steps": "--prompts_per_step",
    "shuffle_dataset": "--seed",
    "num_train_epochs": "--max_steps",
}
# The two kinds of machine: a GPU trains an adapter of a real model, a CPU the tutor policy.
DEFAULTS = {
    "gpu": {
        "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
        "dataset": "gsm8k",
        "num_generations": 16,
        "prompts_per_step": 16,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-6,
        "beta": 0.001,
        "max_steps": 500,
        "max_completion_length": 512,
        "max_prompt_length": 1024,
        "memory_tokens": 256,
        "top_k": 2,
        "use_peft": True,
    },
    "cpu": {
        "model_name": "tutor",
        "dataset": "textbook",
        "chapters": ["addition", "subtraction", "multiplication", "division", "two_step"],
        "num_generations": 8,
        "prompts_per_step": 8,
        "per_device_train_batch_size": 64,
        "learning_rate": 3e-4,
        "beta": 0.1,
        "max_steps": 120,
        "max_completion_length": 96,
        "max_prompt_length": 512,
        "memory_tokens": 48,
        "top_k": 0,
        "use_peft": False,
    },
}


def installed_fields() -> set[str]:
    """The names of GRPOConfig's fields, read from the installed sources: importing them takes ten seconds.

    Raises:
        UserError: TRL is not installed.
    """
    names: set[str] = set()
    for package, files in (
        ("trl", ("trainer/grpo_config.py", "trainer/base_config.py")),
        ("transformers", ("training_args.py",)),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{package} is not installed: pip install -r requirements.txt")
        for file in files:
            tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
            for definition in (node for node in tree.body if isinstance(node, ast.ClassDef)):
                fields = (node.target for node in definition.body if isinstance(node, ast.AnnAssign))
                names |= {field.id for field in fields if isinstance(field, ast.Name)}
    return names


def parse_grpo(entries: list[str]) -> dict:
    """`KEY=VALUE` entries as GRPOConfig's arguments; values are JSON where they parse, else text.

    Raises:
        UserError: no such field (the nearest one is named), a field that has a flag of its own, or no `=`.
    """
    options: dict = {}
    known = installed_fields() if entries else set()
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator:
            raise UserError(f"--grpo {entry}: expected KEY=VALUE")
        if key in BY_FLAG:
            raise UserError(f"--grpo {key}: set by the flag {BY_FLAG[key]}")
        if key not in known:
            raise UserError(f"--grpo {key}: GRPOConfig has no such field{suggestion(key, known)}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def suggestion(name: str, known: set[str]) -> str:
    """The nearest known name as a question, or nothing.

    >>> suggestion("temperatur", {"temperature", "beta"})
    '; did you mean temperature?'
    """
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file's keys as command-line arguments, so that both are checked alike.

    Raises:
        UserError: not a readable YAML mapping, or a key that is no flag.
    """
    import yaml

    from cot.utils.profiles import read_text

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected keys and values, got {type(content).__name__}")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    argv: list[str] = []
    for key, value in content.items():
        if key not in actions:
            raise UserError(f"--config {path}: {key}: no such flag{suggestion(str(key), set(actions))}")
        if isinstance(value, bool):
            argv.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, dict):
            argv += [f"--{key}", *(f"{name}={json.dumps(item)}" for name, item in value.items())]
        elif isinstance(value, list) and actions[key].nargs:
            argv += [f"--{key}", *map(str, value)]
        elif value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            argv.append(f"--{key}={text}")
    return argv


def parse_mix(text: str) -> list[float]:
    """Three shares that sum to 1: own memory, none, shuffled.

    >>> parse_mix("0.7,0.15,0.15")
    [0.7, 0.15, 0.15]
    """
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected three shares that sum to 1, as 0.70,0.15,0.15")
    return shares


def split_batch(prompts: int, generations: int, per_device: int, processes: int) -> tuple[int, int]:
    """Completions per device at once, and accumulation steps, so that one step sees `prompts` on all devices.

    Raises:
        UserError: the completions of a step cannot be divided so.

    >>> split_batch(prompts=16, generations=8, per_device=128, processes=2)
    (64, 1)
    """
    if generations < 2:
        raise UserError(f"--num_generations {generations}: a group needs at least 2")
    completions = prompts * generations
    share, rest = divmod(completions, processes)
    if rest:
        raise UserError(
            f"--prompts_per_step {prompts} x --num_generations {generations}:"
            f" not divisible by {processes} processes"
        )
    size = min(per_device, share)
    if share % size:
        valid = max(size for size in range(1, size + 1) if share % size == 0)
        raise UserError(
            f"--per_device_train_batch_size {per_device}: does not divide {share} completions; use {valid}"
        )
    return size, share // size


def find_tutor(model_name: str) -> str:
    """The folder of the bundled policy for `tutor`; any other name as it is.

    Raises:
        UserError: the folder is gone.
    """
    if model_name != "tutor":
        return model_name
    if not (TUTOR / "config.json").is_file():
        raise UserError(f"--model_name tutor: {TUTOR} is gone: python rl/make_tutor_policy.py makes it here")
    return str(TUTOR)


def fill_defaults(args: argparse.Namespace) -> None:
    """Sets what the user left open to what suits this machine."""
    if args.device_kind == "auto":
        import torch

        args.device_kind = "gpu" if torch.cuda.is_available() else "cpu"
    if not args.reward_weights:
        from rl.rewards import DEFAULT_WEIGHTS, TUTOR_WEIGHTS

        args.weights = dict(DEFAULT_WEIGHTS if args.device_kind == "gpu" else TUTOR_WEIGHTS)
    for name, value in DEFAULTS[args.device_kind].items():
        if getattr(args, name) in (None, "auto"):
            setattr(args, name, value)
    args.model_name = find_tutor(args.model_name)
