"""Decoding without copying the past: cache tensors with room to grow, attention over grouped heads in place.

transformers' dynamic cache concatenates at every step, and its attention under a mask repeats the key-value
heads for every query head: two copies of the whole past for each token, which on a CPU cost more than the
arithmetic. Neither changes a number that is computed.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped"


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), views of tensors with room for more tokens.

    Args:
        layer: filled by the prefill, a row a prompt.
        index: the prompt of each row to decode, (B,).
        room: tokens that are going to be added.
    """

    def __init__(self, layer: DynamicLayer, index: torch.Tensor, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        shape = (len(index), *layer.keys.shape[1:2], layer.keys.shape[2] + room)
        self._keys = layer.keys.new_empty(*shape, layer.keys.shape[3])
        self._values = layer.values.new_empty(*shape, layer.values.shape[3])
        self._show(0)
        self.update(layer.keys[index], layer.values[index])

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


def make_room(cache: DynamicCache, index: torch.Tensor, room: int) -> None:
    """Turns a prefilled cache into one for decoding, in place: a row for each of `index` (B,), with room.

    Layers that are no plain growing ones (sliding windows, recurrent states) are only reordered.
    """
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = RoomyLayer(layer, index, room)
        else:
            layer.reorder_cache(index)  # type: ignore[arg-type]  # int64, as it asks for


def use_grouped_attention(model) -> None:
    """Makes a model on a CPU attend over grouped heads in place; others keep the attention they have."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, _attend)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of query (B, H, t, D) over key and value (B, h, T, D), H a multiple of h.

    For a single new token the H / h query heads that share a key-value head stand where a sequence's
    positions stand: they see the same keys under the same mask, so the heads need not be repeated. Where they
    do not, as under a mask or bias for each head, transformers' own attention is taken.
    """
    (rows, heads, tokens, size), shared = query.shape, key.shape[1]
    own_mask = attention_mask is not None and attention_mask.shape[1] > 1  # a mask for each head, as in Doge
    biased = kwargs.get("position_bias") is not None
    if tokens > 1 or heads == shared or attention_mask is None or own_mask or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.view(rows, shared, heads // shared, size)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, value.shape[3]), None
