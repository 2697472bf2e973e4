"""TRL's GRPO trainer for prompts that are already tokens, and its configuration."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cot.utils.errors import UserError
from cot.utils.model_source import ModelSource
from rl.grpo_flags import split_batch


class MemoryTrainer(GRPOTrainer):
    """GRPO on the data set's own token ids.

    TRL would encode a prompt's text anew, and a `<|im_end|>` that a question spells would become the control
    token; a chat template with a start token would also get it twice.
    """

    def __init__(self, *args, train_dataset: Dataset, **kwargs) -> None:
        ids = zip(train_dataset["prompt"], train_dataset["prompt_ids"], strict=True)
        self._ids_of_prompt = dict(ids)
        super().__init__(*args, train_dataset=train_dataset.remove_columns("prompt_ids"), **kwargs)

    def _tokenize_prompts(self, prompts: list):
        return [self._ids_of_prompt[prompt] for prompt in prompts], None, {}

    def create_model_card(self, *_args, **_kwargs) -> None:
        """The run writes a card of its own, with its data and results."""


def make_config(args, folder: Path, weights: Sequence[float], options: dict, processes: int) -> GRPOConfig:
    """GRPOConfig from the flags, working unchanged on a CPU and on GPUs.

    Raises:
        UserError: a batch that cannot be divided, or a value that GRPOConfig refuses.
    """
    gpu = torch.cuda.is_available()
    size, accumulation = split_batch(
        args.prompts_per_step, args.num_generations, args.per_device_train_batch_size, processes
    )
    settings = {
        "output_dir": str(folder),
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
        "reward_weights": list(weights),
        "mask_truncated_completions": True,
        "shuffle_dataset": False,  # the rows are shuffled, and resuming keeps their order
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the alarm has to see them
        "save_steps": args.save_steps,
        "save_total_limit": 2,
        "save_strategy": "steps",
        "report_to": args.report_to,
        "run_name": folder.name,
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
    if "lr_scheduler_type" not in options:  # a constant rate to the end would leave noise
        settings["lr_scheduler_type"] = "warmup_stable_decay"
        settings["lr_scheduler_kwargs"] = {"num_decay_steps": args.max_steps // 2}
    try:
        return GRPOConfig(**(settings | options))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"--grpo or a flag is refused by GRPOConfig: {error}") from error


def quiet_libraries() -> None:
    """No progress bars for loading and saving: the run's own lines say what goes on."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def keep_reference(
    config: GRPOConfig, use_peft: bool, model, source: ModelSource, folder: Path, processes
) -> None:
    """Makes sure that TRL, which loads the reference policy by name, finds these very weights.

    A GGUF file, a first-generation Qwen or an adapter merged into its base is in no folder that TRL could
    load: it is saved as one.
    """
    loadable = source.kind in ("folder", "hub", "bundled") and model.config._name_or_path
    if use_peft or config.beta == 0 or loadable:
        return
    reference = folder / "reference"
    if processes.is_main_process:
        model.save_pretrained(reference)
    processes.wait_for_everyone()
    model.config._name_or_path = str(reference)


def make_trainer(args, config, model, tokenizer, rows: list[dict], table, recorder) -> MemoryTrainer:
    """The trainer on the rows, with a new LoRA adapter where `--use_peft` says so."""
    peft_config = None
    if args.use_peft:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=args.lora_r, lora_alpha=args.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = MemoryTrainer(
        model=model,
        reward_funcs=table.functions(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[recorder],
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the recorder prints a shorter line
    return trainer


def smaller_batch(config: GRPOConfig) -> str:
    """What to try after memory ran out: the next valid batch, else what else saves memory."""
    size = config.per_device_train_batch_size
    total = size * config.gradient_accumulation_steps
    valid = [smaller for smaller in range(1, size // 2 + 1) if total % smaller == 0]
    if valid:
        return f"--per_device_train_batch_size {max(valid)}"
    return "--use_peft, or a smaller --max_completion_length or --num_generations"


def metrics_lines(path: Path) -> list[dict]:
    """The records of `metrics.jsonl`."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
