"""Whether a model can be decoded as the engine does it: left-padded rows, a cache that grows in place.

Some architectures have no such cache. Others count positions from the left, padding included: their texts
would be wrong without a word. Two short forward passes tell, once a model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.cache_utils import DynamicCache

from cot.utils.devices import is_out_of_memory
from cot.utils.errors import UserError
from cot.utils.kv_cache import make_room, use_grouped_attention

# Largest difference that rounding makes: root mean square, relative to the logits' standard deviation.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def check_batching(name: str, model) -> None:
    """Compares a left-padded row, its last token decoded from the cache, with the same row without padding.

    Args:
        name: of the model.
        model: in eval mode; one whose weights are spread over devices is not checked.

    Raises:
        UserError: the architecture has no cache that grows, or is wrong under left padding.
    """
    table = model.get_input_embeddings().weight
    if table.device.type == "meta" or table.numel() == 0:
        return
    try:
        with torch.inference_mode(), _grouped_attention(model):
            problem = _find_problem(model, table.shape[0])
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        problem = f"{type(error).__name__}: {error}"
        cause = error
    else:
        cause = None
    if problem:
        raise UserError(
            f"--model_name {name}: {type(model).__name__} (model_type {model.config.model_type}) cannot be"
            f" decoded in batches: {problem[:300]}"
        ) from cause


def _find_problem(model, vocabulary: int) -> str | None:
    """What keeps the model from being decoded in batches, or None."""
    first, second, third = (vocabulary * part // 4 for part in (1, 2, 3))
    rows = [[first, second, third, 0], [0, 0, first, second]]
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]], device=model.device)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
        use_cache=True,
        logits_to_keep=ids.shape[1],
    )
    cache, logits = getattr(output, "past_key_values", None), output.logits  # (2, 4, V)
    if not isinstance(cache, DynamicCache):
        kind = "none" if cache is None else f"a {type(cache).__name__}"
        return f"it has no cache of keys and values that grows (past_key_values: {kind})"
    if _differ(logits[1, 3], logits[0, 1]):
        return "a left-padded row gets other logits than the same row without padding"

    # the padded row goes on twice, then one of the two leaves
    make_room(cache, torch.tensor([1, 1], device=model.device), room=1)
    cache.reorder_cache(torch.tensor([0], device=model.device))  # type: ignore[arg-type]  # int64 it is
    output = model(
        input_ids=ids[:1, 2:3],
        attention_mask=torch.cat([mask[1:], mask.new_ones(1, 1)], dim=1),
        position_ids=mask.new_full((1, 1), 2),
        past_key_values=cache,
        use_cache=True,
    )
    if _differ(output.logits[0, -1], logits[0, 2]):
        return "a token decoded from the cache gets other logits than in one forward pass"
    return None


def _differ(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits (V,) differ by more than rounding; what is not finite is the engine's to report."""
    tolerance = TOLERANCE.get(logits.dtype, max(TOLERANCE.values()))
    logits, expected = logits.float(), expected.float()
    if not (logits.isfinite().all() and expected.isfinite().all()):
        return False
    spread = expected.std() + 0.01 * expected.abs().max()  # all logits can be the same but for rounding
    return bool((logits - expected).square().mean().sqrt() > tolerance * spread)


@contextmanager
def _grouped_attention(model) -> Iterator[None]:
    """The engine's attention for a while."""
    before = model.config._attn_implementation
    use_grouped_attention(model)
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
