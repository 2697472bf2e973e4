"""A training around TRL's GRPO trainer: its processes, its model, its held-out exercises, and how it ends."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object, parse_flag_from_env
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from trl import GRPOConfig

from cot.utils.devices import is_out_of_memory, keep_freed_memory, use_one_gpu
from cot.utils.engine import TransformersEngine
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.files import read_json, read_timestamp, write_json
from cot.utils.formats import format_of
from cot.utils.loading import Loading
from cot.utils.memory_arms import MemoryArms, Moment, PromptShape, make_prompt
from cot.utils.model_names import ModelSource
from cot.utils.models import describe_model, end_token_ids, load_model
from cot.utils.records import Row, answer_now
from cot.utils.templates import PromptFormat, read_format
from rl.alarms import Alarms
from rl.recorder import Recorder, asked_to_end
from rl.rollouts import MemoryTrainer, make_generation_neutral, prepare_vllm
from rl.settings import make_adapter

FREED_WITHIN_S = 0.2  # what the library's threads hold, after the last word between the processes


def start_processes():
    """This process among those of the run: accelerate's state, alone unless launched with others.

    From here on no library draws progress bars: the run's own lines say what goes on.
    """
    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    return PartialState(cpu=not torch.cuda.is_available())


def place() -> tuple[int, int]:
    """This process's number in the run, and how many there are."""
    distributed = torch.distributed
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def part_processes(processes) -> None:
    """Lets the processes of a run that has ended go: all at once, and none with a connection open.

    One that leaves early does so while its library's threads still talk to the others, and may abort there:
    the launcher would then end the one that is still writing the results. The threads themselves need this
    one to free what they were given last: were they joined at once, both would wait for ever.
    """
    processes.wait_for_everyone()
    time.sleep(FREED_WITHIN_S)
    processes.destroy_process_group()


def spreads_weights(processes) -> bool:
    """Whether FSDP spreads the weights over the processes; on a CPU accelerate ignores its flags."""
    whole = DistributedType.NO, DistributedType.MULTI_CPU
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and processes.distributed_type not in whole


def may_evaluate(processes) -> bool:
    """Whether held-out exercises can be answered: each process has all weights, or FSDP 2 can gather them."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return False
    return not spreads_weights(processes) or os.environ.get("FSDP_VERSION") == "2"


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Each process holds all weights in the block, so that no pass through the model waits for another's.

    All processes enter and leave at the same point. Without FSDP 2 they hold them anyway.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            if shard is not model:  # the outermost keeps its few between the passes of a step
                again = AcceleratorState().fsdp_plugin.reshard_after_forward
                shard.set_reshard_after_forward(again, recurse=False)


def settle_devices(config: GRPOConfig, use_peft: bool, processes) -> None:
    """Without a launcher one GPU is used; with FSDP 2 the reference policy has to be right in every process.

    Raises:
        UserError: only the first process would read its weights, and the others' parts of it would be random.
    """
    if line := use_one_gpu(config):
        print(line, flush=True)
    if not spreads_weights(processes):
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            print("FSDP:  off; accelerate spreads weights over several GPUs only", flush=True)
        return
    spared = parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING")
    if os.environ.get("FSDP_VERSION") == "2" and spared and config.beta and not use_peft:
        remedy = "add --fsdp_cpu_ram_efficient_loading false to accelerate launch, or use --beta 0"
        raise UserError(f"FSDP 2 spoils the reference policy that --beta {config.beta:g} needs: {remedy}")


class Base(NamedTuple):
    """The model to train on this process's device, and how its prompts are written.

    Attributes:
        described: what a result file records of the model.
    """

    model: Any
    tokenizer: Any
    prompt_format: PromptFormat
    described: dict


def load_base(args, source: ModelSource, processes, tokenizer, started: str) -> Base:
    """The base; one line says which of the checkpoint's generation settings are set aside.

    Args:
        started: when the run was begun first, whose date a chat template may show.
    """
    prompt_format = format_of(args, tokenizer, source, started=read_timestamp(started))
    # of a model that is spread over devices, the trainer brings each part to its place; of several processes
    # on a CPU accelerate numbers the CPU
    spread = spreads_weights(processes) or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    on_cpu = spread or processes.device.type == "cpu"
    device = "cpu" if on_cpu else str(processes.device)
    # half of the bits will do for weights that stay as they are; those that an optimizer moves need all
    dtype = "auto" if args.use_peft else "float32"
    model, tokenizer = load_model(source, device, dtype, tokenizer, Loading(args.attn_implementation))
    described = describe_model(source, model)

    set_aside = make_generation_neutral(model, tokenizer)
    if set_aside and processes.is_main_process:
        named = ", ".join(f"{name} {value}" for name, value in set_aside.items())
        print(f"generation settings of the model that are not used: {named}", flush=True)
    return Base(model, tokenizer, prompt_format, described)


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


def make_trainer(
    args, config, model, tokenizer, rows: list[dict], table, recorder, prompt_format: PromptFormat
) -> MemoryTrainer:
    """The trainer on the rows, with a new LoRA adapter where `--use_peft` says so."""
    # vLLM knows no stop text that holds outside a reasoning only: the trainer cuts there afterwards
    stop = [] if prompt_format.thinks else rows[0]["stop"]
    longest = max(len(row["prompt_ids"]) for row in rows) + config.max_completion_length
    prepare_vllm(config, sorted(end_token_ids(model, tokenizer)), stop, longest)
    trainer = MemoryTrainer(
        model=model,
        reward_funcs=table.functions(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=make_adapter(args, args.revision) if args.use_peft else None,
        callbacks=[recorder],
        reasoning=prompt_format.reasoning,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the recorder prints a shorter line
    return trainer


def make_recorder(args, config: GRPOConfig, folder: Path, table, evaluate, model, tokenizer) -> Recorder:
    """What logs, saves and ends the run in its folder.

    Args:
        evaluate: from the model to its held-out scores; None where none are asked for.
    """
    alarms = Alarms(
        max_completion_length=config.max_completion_length,
        masked=config.mask_truncated_completions,
        tokenizer=tokenizer,
        end_ids=end_token_ids(model, tokenizer),
    )
    return Recorder(
        metrics=folder / "metrics.jsonl",
        table=table,
        alarms=alarms,
        evaluate=evaluate,
        eval_every=args.eval_every,
        save_minutes=args.save_minutes,
        max_steps=args.max_steps,
    )


def train_to_the_end(trainer, checkpoint: Path | None) -> bool:
    """Trains, from the checkpoint where there is one; a full memory becomes one line with what fits.

    Returns:
        Whether no signal to any of the processes ended it early; its last step is saved then.
    """
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory; try {smaller_batch(trainer.args)}", EXIT_UNEXPECTED) from error
    return not asked_to_end(trainer.model.device)


def smaller_batch(config: GRPOConfig) -> str:
    """What to try after memory ran out: the next valid batch, else what else saves memory."""
    size = config.per_device_train_batch_size
    total = size * config.gradient_accumulation_steps
    valid = [smaller for smaller in range(1, size // 2 + 1) if total % smaller == 0]
    if valid:
        return f"--per_device_train_batch_size {max(valid)}"
    return "--use_peft, or a smaller --max_completion_length or --num_generations"


def save_policy(trainer, folder: Path) -> None:
    """Saves the weights, or the adapter; every process takes part, as each may hold a share of them."""
    if trainer.is_fsdp_enabled:  # by itself it saves none at the end
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))


def make_evaluator(
    tokenizer,
    arms: MemoryArms,
    moments: Sequence[Moment],
    arm: str,
    shape: PromptShape,
    max_prompt_tokens: int | None,
    max_new_tokens: int,
    seed: int,
    temperature: float = 0.0,
    base_file: Path | None = None,
    prompt_format: PromptFormat | None = None,
) -> Callable[[torch.nn.Module], dict]:
    """A function that lets a policy answer a fixed set of moments and gives the answers' means.

    The processes of a run share the moments, and all call it at the same point; the first gets the means.

    accuracy; fidelity; style, the explanation style alone; support_fit; copying; names_student, all in
    [0, 1]; and output_tokens. With `base_file` also breakage: the share of what the first policy had right
    and this one has wrong, None where nothing was right. An answer that failed counts as wrong in everything.
    One for which memory ran out says nothing about the policy: it is left out, with a warning.

    Args:
        arm: the memory that the prompts show.
        temperature: 0 is greedy.
        base_file: where the first policy's correctness is kept, so that a resumed run compares with it.
        prompt_format: the model's; None reads it from the tokenizer.
    """
    prompt_format = prompt_format or read_format(tokenizer)
    rows = [
        Row(
            policy="",
            index=index,
            moment=moment,
            memory=arms.show(moment, arm),
            temperature=temperature,
            sample=0,
        )
        for index, moment in enumerate(moments)
    ]
    prompts = [
        make_prompt(tokenizer, row.moment, row.memory, shape, max_prompt_tokens, prompt_format=prompt_format)
        for row in rows
    ]

    def evaluate(model) -> dict:
        was_training = model.training
        model.eval()
        rank, count = place()
        own = slice(len(rows) * rank // count, len(rows) * (rank + 1) // count)
        engine = TransformersEngine(model, tokenizer, max_new_tokens)
        with whole_weights(model):
            answers = answer_now(engine, rows[own], prompts[own], arms.truths, seed)
        records = gather_object(answers) if count > 1 else answers
        model.train(was_training)
        if rank:
            return {}

        columns = {
            "accuracy": "correct",
            "fidelity": "fidelity",
            "style": "style_met",
            "support_fit": "support_fit",
            "copying": "copying",
            "names_student": "names_student",
            "output_tokens": "output_tokens",
        }
        answered = [record for record in records if not _ran_out_of_memory(record)]
        if len(answered) < len(records):
            lost = len(records) - len(answered)
            print(f"warning: memory ran out for {lost} of {len(records)} held-out answers", flush=True)
        means = {
            name: round(statistics.fmean(float(record[key] or 0) for record in answered), 4)
            if answered
            else None
            for name, key in columns.items()
        }
        if base_file is None:
            return means

        right = [None if _ran_out_of_memory(record) else bool(record["correct"]) for record in records]
        if not base_file.exists():
            write_json(base_file, {"correct": right})
        before = read_json(base_file)["correct"]
        broken = [not now for now, then in zip(right, before, strict=True) if then and now is not None]
        return means | {"breakage": round(statistics.fmean(broken), 4) if broken else None}

    return evaluate


def _ran_out_of_memory(record: dict) -> bool:
    return record["error"] is not None and record["error"]["type"] == "out_of_memory"
