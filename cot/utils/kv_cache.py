"""Decoding without copying the past: cache tensors with room to grow, and which models can be decoded so.

transformers' dynamic cache concatenates at every step, and its attention under a mask repeats the key-value
heads for every query head: two copies of the whole past for each token, which on a CPU cost more than the
arithmetic. Neither changes a number that is computed.

Some architectures have no such cache. Others count positions from the left, padding included: their texts
would be wrong without a word. Two short forward passes tell, once a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cot.utils.devices import is_out_of_memory
from cot.utils.errors import UserError

GROUPED = "sdpa_grouped"
# Largest difference that rounding makes: root mean square, relative to the logits' standard deviation.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), views of tensors with room for more tokens.

    Args:
        parts: filled layers, one after another.
        index: the row of them that each row goes on from, (B,).
        room: tokens that are going to be added.
        lengths: how many of the last tokens of each part count; shorter ones are padded on the left.
    """

    def __init__(
        self, parts: Sequence[DynamicLayer], index: torch.Tensor, room: int, lengths: Sequence[int]
    ) -> None:
        super().__init__()
        keys, values = parts[0].keys, parts[0].values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        shape = (len(index), keys.shape[1], max(lengths) + room)
        self._keys = keys.new_empty(*shape, keys.shape[3])
        self._values = values.new_empty(*shape, values.shape[3])
        self._show(max(lengths))

        first = 0
        for part, length in zip(parts, lengths, strict=True):
            rows = ((first <= index) & (index < first + len(part.keys))).nonzero()[:, 0]
            for target, source in ((self.keys, part.keys), (self.values, part.values)):
                padding = target.shape[2] - length
                target[rows, :, :padding] = 0  # what is masked must be finite all the same
                target[rows, :, padding:] = source[index[rows] - first, :, source.shape[2] - length :]
            first += len(part.keys)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def update(self, key_states, value_states, *_args, **_kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new tokens (B, H, t, D) behind the old ones; returns all of them."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps the rows of an index (b,)."""
        length = self.keys.shape[2]
        self._keys, self._values = self._keys[beam_idx], self._values[beam_idx]
        self._show(length)


def only_grows(cache: DynamicCache) -> bool:
    """Whether its layers are plain growing ones: no sliding windows, no recurrent states."""
    return all(type(layer) in (DynamicLayer, RoomyLayer) for layer in cache.layers)


def make_room(
    parts: Sequence[DynamicCache], index: torch.Tensor, room: int, lengths: Sequence[int] | None = None
) -> DynamicCache:
    """Turns caches into one for decoding: a row for each of `index` (B,), with room.

    Args:
        parts: one after another; a single one where it does not `only_grows`, whose other layers are
            reordered in place.
        index: the row of them that each row goes on from, counted over all parts.
        room: tokens that are going to be added.
        lengths: how many of the last tokens of each part count; without, all of each.
    """
    cache = parts[0]
    for place, layer in enumerate(cache.layers):
        if type(layer) in (DynamicLayer, RoomyLayer):
            same = [part.layers[place] for part in parts]
            counted = lengths or [layer.keys.shape[2] for layer in same]  # type: ignore[union-attr]
            cache.layers[place] = RoomyLayer(same, index, room, counted)  # type: ignore[arg-type]
        else:
            layer.reorder_cache(index)  # type: ignore[arg-type]  # int64, as it asks for
    return cache


def use_grouped_attention(model) -> None:
    """Makes a model with PyTorch's attention attend over grouped heads in place; others keep their own."""
    use_attention(model, GROUPED, _attend)


def use_attention(model, name: str, attend: Callable) -> None:
    """Makes a model with PyTorch's attention attend by a function of this name; others keep their own."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)
        model.set_attn_implementation(name)


def differs_by_head(mask: torch.Tensor | None, options: Mapping) -> bool:
    """Whether heads do not see alike: a mask (B, H, t, T) as in Doge, or a bias for positions."""
    return (mask is not None and mask.shape[1] > 1) or options.get("position_bias") is not None


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of query (B, H, t, D) over key and value (B, h, T, D), H a multiple of h.

    For a single new token the H / h query heads that share a key-value head stand where a sequence's
    positions stand: they see the same keys under the same mask, so the heads need not be repeated. Where they
    do not, as under a mask or bias for each head, transformers' own attention is taken.
    """
    (rows, heads, tokens, size), shared = query.shape, key.shape[1]
    grouping_pays = tokens == 1 and heads != shared and attention_mask is not None
    if not grouping_pays or differs_by_head(attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.view(rows, shared, heads // shared, size)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, value.shape[3]), None


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
    make_room([cache], torch.tensor([1, 1], device=model.device), room=1)
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
