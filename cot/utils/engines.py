"""The engine of one model, opened with its weights: transformers' or vLLM's."""

import argparse
from typing import TYPE_CHECKING

from cot.utils.engine_choice import VLLM, limit_context
from cot.utils.loading import loading_of
from cot.utils.model_names import ModelSource

if TYPE_CHECKING:
    from cot.utils.engine import TransformersEngine
    from cot.utils.vllm_engine import VllmEngine

    Engine = TransformersEngine | VllmEngine


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
    engine = TransformersEngine(model, tokenizer, args.max_new_tokens, args.batch_size)
    engine.context_length = limit_context(engine.context_length, args.max_model_len)
    return engine
