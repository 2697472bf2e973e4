"""`--batch_invariant`: a row's numbers are the same to the last bit in any batch, process and attempt.

Sums of the same numbers in another order differ in the last bits, and what stands beside a row can change
the order. Three things do. The library that PyTorch multiplies with on a CPU, Intel's MKL, looks at where in
memory a matrix lies, unless it is in its reproducible mode (`devices.settle_sums`). A product takes other
paths for few rows than for many: here it gets `LEAST_ROWS` at least. Attention over padded rows sums the
padding's zeros among the other numbers: here rows of one length attend together, without padding.

Texts do not need it: a choice that a millionth decides is rare. Likelihoods differ by that millionth.
"""

import functools
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cot.utils.kv_cache import differs_by_head, use_attention

BY_LENGTH = "sdpa_by_length"
LEAST_ROWS = 16


class WideProducts(TorchFunctionMode):
    """While it is entered a linear layer gets at least `LEAST_ROWS` rows; zeros make up for the others."""

    def __torch_function__(self, func, _types, args=(), kwargs=None):
        if func is linear:
            rows = args[0].reshape(-1, args[0].shape[-1])  # (R, K)
            if len(rows) < LEAST_ROWS:
                wide = torch.cat([rows, rows.new_zeros(LEAST_ROWS - len(rows), rows.shape[1])])
                product = func(wide, *args[1:], **(kwargs or {}))[: len(rows)]
                return product.reshape(*args[0].shape[:-1], product.shape[1])
        return func(*args, **(kwargs or {}))


class Stretch(NamedTuple):
    """The tokens that a row can see, from `start` to before `end`.

    Attributes:
        whole: all of them, under the causal rule alone; else the mask says which.
    """

    start: int
    end: int
    whole: bool


@functools.lru_cache(maxsize=4)  # a model's layers share one mask, or one a kind of layer
def find_stretches(mask: torch.Tensor) -> list[Stretch]:
    """What each row of a mask (B, 1, t, T) sees, t being 1, or T where nothing came before.

    >>> mask = torch.ones(4, 4).tril().bool()
    >>> mask[:, 0] = False  # padding
    >>> find_stretches(mask[None, None])
    [Stretch(start=1, end=4, whole=True)]
    """
    visible = mask[:, 0]  # (B, t, T)
    seen = visible.any(dim=1)  # (B, T)
    starts = seen.int().argmax(dim=1)
    ends = seen.shape[1] - seen.flip(1).int().argmax(dim=1)
    whole = seen.sum(dim=1) == ends - starts
    if visible.shape[1] > 1:  # the first token sees itself, the last one all of them
        rows = torch.arange(len(mask))
        whole &= visible[rows, starts].sum(dim=1) == 1
        whole &= visible[rows, ends - 1].sum(dim=1) == ends - starts
    rows_found = zip(seen.any(dim=1).tolist(), starts.tolist(), ends.tolist(), whole.tolist(), strict=True)
    return [Stretch(*where) if sees else Stretch(0, 0, True) for sees, *where in rows_found]


def use_attention_by_length(model) -> None:
    """Makes a model with PyTorch's attention attend by length; others keep their own, and are found out."""
    use_attention(model, BY_LENGTH, _attend)


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of query (B, H, t, D) over key and value (B, h, T, D), H a multiple of h, to (B, t, H, D).

    Rows of one stretch attend together. A token that sees none gets zeros. Where heads see differently, or a
    mask is added and not asked, transformers' own attention is taken.
    """
    added = attention_mask is not None and attention_mask.dtype != torch.bool
    if added or differs_by_head(attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, _, tokens, _ = query.shape
    whole_length = Stretch(0, key.shape[2], True)
    stretches = [whole_length] * rows if attention_mask is None else find_stretches(attention_mask)
    output = query.new_zeros(rows, tokens, query.shape[1], value.shape[3])
    for stretch, group in groupby(range(rows), key=stretches.__getitem__):
        first, *others = group
        alike, sees = slice(first, first + 1 + len(others)), slice(stretch.start, stretch.end)
        asks = sees if tokens > 1 else slice(0, 1)
        if stretch.start < stretch.end:
            attended = scaled_dot_product_attention(
                query[alike, :, asks],
                key[alike, :, sees],
                value[alike, :, sees],
                attn_mask=None if stretch.whole else attention_mask[alike, :, asks, sees],
                is_causal=stretch.whole and tokens > 1,
                scale=scaling,
                enable_gqa=True,
            )
            output[alike, asks] = attended.transpose(1, 2)
    return output, None
