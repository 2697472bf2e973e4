"""The engine of one model, opened with its weights: transformers' or vLLM's."""

import argparse
from typing import TYPE_CHECKING

from cot.utils.engine_choice import VLLM, limit_context
from cot.utils.errors import UserError
from cot.utils.loading import loading_of
from cot.utils.model_names import ModelSource

if TYPE_CHECKING:
    from cot.utils.engine import TransformersEngine
    from cot.utils.vllm_engine import VllmEngine

    Engine = TransformersEngine | VllmEngine

TRIED_LENGTHS, TRIED_TIMES = (60, 37, 9), (2, 5, 12)  # of rows that are compared in batches and alone


def open_engine(
    name: str, args: argparse.Namespace, source: ModelSource, tokenizer, device: str, dtype: str
) -> "Engine":
    """Loads the model into the engine of this name.

    Args:
        args: flags of `run_flags`: the model's, the engine's and the decoding's.
        source: fetched.
        dtype: settled.
    """
    if name == VLLM:
        from cot.utils.vllm_engine import VllmEngine

        return VllmEngine(
            source,
            tokenizer,
            device,
            dtype,
            args.max_new_tokens,
            batch_size=args.batch_size,
            max_model_len=args.max_model_len,
            tensor_parallel_size=args.tensor_parallel_size,
            gpu_memory_utilization=args.gpu_memory_utilization,
        )
    from cot.utils.engine import TransformersEngine
    from cot.utils.models import load_model

    model, tokenizer = load_model(source, device, dtype, tokenizer, loading_of(args))
    engine = TransformersEngine(
        model, tokenizer, args.max_new_tokens, args.batch_size, batch_invariant=args.batch_invariant
    )
    if args.batch_invariant:
        check_invariance(model, tokenizer)
    engine.context_length = limit_context(engine.context_length, args.max_model_len)
    return engine


def check_invariance(model, tokenizer) -> None:
    """Compares rows of unlike lengths in batches of several sizes with the same rows alone, to the last bit.

    Raises:
        UserError: the device, the processor, the number format or the architecture does not allow it.
    """
    from cot.utils.completions import Request
    from cot.utils.engine import TransformersEngine

    problem = f"--batch_invariant: of {model.name_or_path} on {model.device}"
    if model.device.type != "cpu":
        raise UserError(f"{problem} it has not been tried; use --device cpu, or leave it out")

    engine = TransformersEngine(model, tokenizer, max_new_tokens=3, batch_invariant=True)
    room = (engine.context_length or sum(TRIED_LENGTHS)) - engine.max_new_tokens
    size = model.get_input_embeddings().weight.shape[0]
    requests = [
        Request(
            tuple(size * place // (length + 1) for place in range(1, length + 1))[:room], 1.0, str(length)
        )
        for length in TRIED_LENGTHS
    ]
    alone = [engine.decode_now([request])[0].logprobs for request in requests]
    for times in TRIED_TIMES:
        batch = engine.decode_now(requests * times)
        if [row.logprobs for row in batch] != alone * times:
            dtype = str(model.dtype).removeprefix("torch.")
            raise UserError(f"{problem} in {dtype} likelihoods depend on the batch; leave it out")
