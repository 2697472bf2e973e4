"""The settings of a training run: presets, `--config FILE.yaml`, and TRL's configuration.

Only `make_config` and `make_adapter` import a heavy library, so that a mistyped flag is answered at once.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot.utils.cli import json_object, number
from cot.utils.errors import UserError, require
from cot.utils.files import read_json
from cot.utils.model_names import fetch_model
from cot.utils.paths import PROFILES_DIR, writable_dir
from rl.grpo_options import check_options, parse_grpo, suggest

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import GRPOConfig

    from cot.utils.model_names import ModelSource

# A GPU trains an adapter of a real model, a CPU the tutor policy.
PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {
        "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
        "dataset": "gsm8k",
        "chapters": ["all"],
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
        "max_steps": 100,
        "max_completion_length": 96,
        "max_prompt_length": 512,
        "memory_tokens": 48,
        "top_k": 0,
        "use_peft": False,
    },
}
EPISODES = {"top_k": 4, "memory_tokens": 256}  # where past exercises are all that there is to learn from
GENERATED = ["generated:256"]  # the students to train for
THINKING_LENGTH = 2048  # tokens of a completion with reasoning, where no flag says otherwise


def add_adapter_flags(add: Callable, default: bool | None, note: str = "") -> None:
    """Whether an adapter is trained, and which.

    Args:
        add: `add_argument` of a parser.
        note: what the help says beside it.
    """
    whole = number(int, 1)
    trains = f"train a LoRA adapter instead of all weights{note}"
    add("--use_peft", action=argparse.BooleanOptionalAction, default=default, help=trains)
    add("--lora_r", type=whole, default=16, metavar="N", help="rank of the adapter")
    add("--lora_alpha", type=whole, default=32, metavar="N", help="scale of the adapter")


def in_presets(name: str) -> str:
    """What the presets say of a flag, for its help text.

    >>> in_presets("max_steps")
    '500 on a GPU, 100 on a CPU'
    """
    gpu, cpu = PRESETS["gpu"][name], PRESETS["cpu"][name]
    if isinstance(gpu, list):
        gpu, cpu = " ".join(gpu), " ".join(cpu)
    return f"{gpu} on a GPU, {cpu} on a CPU"


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the algorithm; where the default is None, the preset decides."""
    add, whole = parser.add_argument_group("training").add_argument, number(int, 1)

    def add_preset(name: str, kind, text: str) -> None:
        add(f"--{name}", type=kind, metavar="N", help=f"{text}; default: {in_presets(name)}")

    add("--reward_weights", metavar="PART=W,…", help="weights of the reward's parts; unset: by the preset")
    add_preset("num_generations", number(int, 2), "completions of a group")
    add_preset("prompts_per_step", whole, "groups in an optimizer step, over all devices")
    add_preset("per_device_train_batch_size", whole, "completions at once on a device, at most")
    add_preset("learning_rate", number(float, 0, 1), "constant for half of the run, then falling to 0")
    add_preset("beta", number(float, 0, 10), "weight of the KL divergence from the base")
    add_preset("max_steps", whole, "optimizer steps")
    length = f"cut a completion at N tokens; {THINKING_LENGTH} or half of the context where the model thinks"
    add_preset("max_completion_length", number(int, 5), length)
    add_preset("max_prompt_length", whole, "tokens of a prompt; memory gives way, then the row is dropped")
    add(
        "--loss_type",
        default="dapo",
        choices=["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"],
        help="loss of TRL's GRPO trainer",
    )
    add(
        "--scale_rewards",
        default="group",
        choices=["group", "batch", "none"],
        help="divide the advantage by the rewards' standard deviation over the group or the batch, or not",
    )
    add_adapter_flags(add, default=None, note=f"; default: {in_presets('use_peft')}")
    add("--use_vllm", action=argparse.BooleanOptionalAction, default=False, help="generate with vLLM")
    add(
        "--vllm_mode",
        default="colocate",
        choices=["colocate", "server"],
        help="run vLLM in this process, or ask a server",
    )
    add(
        "--report_to",
        default="none",
        choices=["none", "tensorboard", "trackio", "wandb"],
        help="send the metrics to a tracker, too",
    )
    add(
        "--grpo",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="set any other field of TRL's GRPOConfig, such as temperature=0.9",
    )


def fill_preset(args: argparse.Namespace) -> None:
    """Sets what the user left open to what suits this machine; `args.weights` are the reward's.

    `auto` takes the preset `gpu` where CUDA is there, else `cpu`.
    """
    if args.preset == "auto":
        import torch

        args.preset = "gpu" if torch.cuda.is_available() else "cpu"

    if not args.reward_weights:
        from rl.rewards import DEFAULT_WEIGHTS, TUTOR_WEIGHTS

        args.weights = dict(DEFAULT_WEIGHTS if args.preset == "gpu" else TUTOR_WEIGHTS)

    shown = EPISODES if args.memory_level == "episodes" else {}
    for name, value in (PRESETS[args.preset] | shown).items():
        if getattr(args, name) in (None, "auto"):
            setattr(args, name, value)

    # students whom the user has not named never say what they need, so their history has to
    if args.students is None:
        args.students = GENERATED if args.profiles_dir == PROFILES_DIR else ["all"]
    if args.memory_level is None:
        args.memory_level = "history" if args.students[0].startswith("generated:") else "stated"


def check_flags(args: argparse.Namespace) -> None:
    """What can be said of the flags without a library; sets `options`, those of `--grpo`, and `weights`.

    Raises:
        UserError: a value that cannot be meant, or a package that is absent.
    """
    args.options = parse_grpo(args.grpo)
    _check_packages(args)
    if args.reward_weights:
        from rl.rewards import parse_weights

        args.weights = parse_weights(args.reward_weights)
    if args.resume not in ("auto", "never") and not Path(args.resume).is_dir():
        raise UserError(f"--resume {args.resume}: expected auto, never or a checkpoint's folder")
    if args.output_dir:
        writable_dir(args.output_dir)


def _check_packages(args: argparse.Namespace) -> None:
    """Looks for the packages that only some flags need, and for what the end of a run does."""
    needed = {"--use_vllm": "vllm" if args.use_vllm else "none", "--report_to": args.report_to}
    for flag, package in needed.items():
        if package != "none" and importlib.util.find_spec(package) is None:
            raise UserError(f"{flag}: {package} is not installed: pip install {package}")
    require("matplotlib", *(["sentence_transformers"] if args.top_k else []))


def find_base(args: argparse.Namespace) -> "ModelSource":
    """The model to train, pinned to its weights.

    Raises:
        UserError: there is none, or it cannot be loaded or trained as the flags say.
    """
    from cot.utils.loading import Loading, check_loading
    from cot.utils.model_names import hub_answers, resolve_model

    source = resolve_model(args.model_name, args.revision)
    if source.kind == "bundled":
        hub_answers()  # PEFT asks the hub about a base that is no folder; a dead hub would cost a minute
    check_loading(Loading(args.attn_implementation), source)
    if args.use_vllm and args.vllm_mode == "colocate":
        _check_vllm(source)
    return source


def _check_vllm(source: "ModelSource") -> None:
    """Refuses a model that vLLM cannot load by its name, as it does before it gets the policy's weights."""
    kinds = {"bundled": "comes from a package", "gguf": "is a GGUF file", "adapter": "is an adapter"}
    problem = kinds.get(source.kind)
    if problem is None and read_json(fetch_model(source).path / "config.json").get("model_type") == "qwen":
        problem = "is a first-generation Qwen"
    if problem:
        raise UserError(
            f"--use_vllm: --model_name {source.name} {problem}, which vLLM cannot load by that name; train"
            " without it, or name a folder or hub model of safetensors"
        )


def settle_length(args: argparse.Namespace, source: "ModelSource", named: int | None):
    """The base's tokenizer, its template checked; where the model thinks, a completion gets room for it.

    Args:
        named: the `--max_completion_length` that the user gave; None where the preset's stands in `args`.
    """
    from cot.utils.formats import prepare_models

    preset = PRESETS[args.preset]["max_completion_length"]
    tokenizers, args.max_completion_length = prepare_models(
        args, {"": source}, named, budget=preset, thinking_budget=THINKING_LENGTH
    )
    return tokenizers[""]


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file's keys as command-line arguments, so that both are checked alike.

    Raises:
        UserError: not a readable YAML mapping, or a key that is no flag.
    """
    import yaml

    from cot.utils.files import read_text

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
            raise UserError(f"--config {path}: {key}: no such flag{suggest(str(key), actions)}")
        if isinstance(value, bool) and actions[key].choices:  # YAML reads on and off as true and false
            argv.append(f"--{key}={'on' if value else 'off'}")
        elif isinstance(value, bool):
            argv.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, dict) and actions[key].type is json_object:
            argv.append(f"--{key}={json.dumps(value)}")
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


def make_adapter(args: argparse.Namespace, revision: str | None = None) -> "LoraConfig":
    """The LoRA adapter that `--lora_r` and `--lora_alpha` describe, on every linear layer but the output.

    Args:
        revision: of the base, so that the adapter finds it again.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        revision=revision,
    )


def make_config(args: argparse.Namespace, processes: int) -> "GRPOConfig":
    """TRL's GRPOConfig from the flags, working unchanged on a CPU and on GPUs; its folder is set later.

    Args:
        args: the flags; `options` are those of `--grpo` and win.
        processes: of the run, over all machines.

    Raises:
        UserError: a batch that cannot be divided, or as `check_options`, or a value that GRPOConfig refuses.
    """
    import torch
    from trl import GRPOConfig

    check_options(args.options)
    gpu = torch.cuda.is_available()
    size, accumulation = split_batch(
        args.prompts_per_step, args.num_generations, args.per_device_train_batch_size, processes
    )
    settings = {
        "max_steps": args.max_steps,
        "learning_rate": args.learning_rate,
        "warmup_steps": min(5, args.max_steps // 10),
        "adam_beta2": 0.99,
        "max_grad_norm": 1.0,
        "beta": args.beta,
        "num_generations": args.num_generations,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "max_completion_length": args.max_completion_length,
        "temperature": 1.0,
        "loss_type": args.loss_type,
        "scale_rewards": args.scale_rewards,
        "reward_weights": list(args.weights.values()),
        "mask_truncated_completions": True,
        "shuffle_dataset": False,  # the rows are shuffled, and resuming keeps their order
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the alarm has to see them
        "save_steps": args.save_steps,
        "save_total_limit": 2,
        "save_strategy": "steps",
        "report_to": args.report_to,
        "seed": args.seed,
        "use_vllm": args.use_vllm,
        "vllm_mode": args.vllm_mode,
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "fp16": gpu and not torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": gpu,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
    }
    if "lr_scheduler_type" not in args.options:  # a constant rate to the end would leave noise
        settings["lr_scheduler_type"] = "warmup_stable_decay"
        settings["lr_scheduler_kwargs"] = {"num_decay_steps": args.max_steps // 2}
    if args.use_vllm and not gpu:
        raise UserError("--use_vllm: needs a CUDA GPU; without the flag transformers generates")
    try:
        return GRPOConfig(**(settings | args.options))
    except (ValueError, TypeError, ArithmeticError, ImportError) as error:
        raise UserError(f"--grpo or a flag is refused by GRPOConfig: {error}") from error


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
