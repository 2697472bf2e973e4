"""Which tokens a sampled text may draw: top-k, top-p and min-p, and what a checkpoint would have taken.

They are defined as in transformers, and applied in its order: to the logits divided by the temperature, first
top-k, then top-p over what is left, then min-p. Each row has its own. What is recorded of a drawn token stays
its log-probability at temperature 1 among all tokens.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Generation settings of a checkpoint that do not change which tokens are drawn, or that a run sets itself.
HARMLESS = {
    *("_from_model_config", "transformers_version", "use_cache", "do_sample", "max_length", "max_new_tokens"),
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
}


@dataclass(frozen=True)
class Sampling:
    """The tokens that a draw is made from.

    Attributes:
        top_p: the fewest tokens whose probabilities reach this sum; 1 for all.
        top_k: so many of the most probable ones, and those that tie with the last; 0 for all.
        min_p: those at least this share as probable as the most probable one; 0 for all.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


ALL_TOKENS = Sampling()
_GOLDEN = 0x1E3779B97F4A7C15  # odd; the step's share of a place


def sampling_of(args: argparse.Namespace) -> Sampling:
    """What the flags `top_p, sampling_top_k, min_p` ask for."""
    return Sampling(top_p=args.top_p, top_k=args.sampling_top_k, min_p=args.min_p)


def forbid_tokens(
    scores: "torch.Tensor",
    logits: "torch.Tensor",
    temperatures: "torch.Tensor",
    samplings: Sequence[Sampling],
) -> "torch.Tensor":
    """The scores with -inf for the tokens that may not be drawn; the most probable one always may.

    Args:
        scores: whose highest is drawn, (B, V).
        logits: (B, V).
        temperatures: (B, 1); not read where a row's `Sampling` takes all tokens.
        samplings: one a row.
    """
    rows = [i for i, sampling in enumerate(samplings) if sampling != ALL_TOKENS]
    if not rows:
        return scores
    scaled, chosen = logits[rows] / temperatures[rows], [samplings[i] for i in rows]  # (R, V)
    size = scaled.shape[-1]
    left = scaled

    # the k-th highest; whatever ties with it stays
    if any(sampling.top_k for sampling in chosen):
        ranks = [[min(sampling.top_k or size, size) - 1] for sampling in chosen]
        highest = left.topk(max(rank for (rank,) in ranks) + 1, dim=-1).values
        lowest = highest.gather(1, _column(ranks, scaled).long())  # (R, 1)
        left = left.masked_fill(left < lowest, -math.inf)

    # the tail that holds at most 1 - p
    if any(sampling.top_p < 1 for sampling in chosen):
        tails = _column([[1 - sampling.top_p] for sampling in chosen], scaled)  # (R, 1)
        ordered, order = left.sort(dim=-1)
        in_tail = (ordered.softmax(dim=-1).cumsum(dim=-1) <= tails) & (tails > 0)
        in_tail[:, -1] = False
        left = left.masked_fill(in_tail.scatter(1, order, in_tail), -math.inf)

    # less probable than a share of the highest
    shares = _column([[sampling.min_p] for sampling in chosen], scaled)  # (R, 1)
    probabilities = left.softmax(dim=-1)
    highest_probability, best = probabilities.max(dim=-1, keepdim=True)
    forbidden = (left == -math.inf) | (probabilities < shares * highest_probability)
    forbidden.scatter_(1, best, False)

    # noise can be -inf for a token that may be drawn: it still comes before those that may not
    lowest_score = scores.new_full((), -3e38)
    scores = scores.clone()
    scores[rows] = scores[rows].maximum(lowest_score).masked_fill(forbidden, -math.inf)
    return scores


def counted_noise(seeds: "torch.Tensor", steps: "torch.Tensor", size: int) -> "torch.Tensor":
    """Uniform numbers in (0, 1), (B, V) float32, where each is a function of its row's seed and its place.

    So a row's noise depends on no other row, and all rows' come from a few launches, however many there are.

    Args:
        seeds: (B,) int64.
        steps: tokens that each row has drawn before, (B,) int64.
        size: V.

    Source: the finalizer of MurmurHash3 (Appleby), twice, over the seed and then over step and token.
    """
    import torch

    token = torch.arange(size, device=seeds.device)
    mixed = _mix(_mix(seeds + steps * _GOLDEN)[:, None] + token)  # (B, V) int64, modulo 2 ** 64
    return ((mixed >> 41) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)  # 23 bits: no 0 and no 1


def _mix(numbers: "torch.Tensor") -> "torch.Tensor":
    for shift, factor in ((33, -49064778989728563), (33, -4265267296055464877)):
        numbers = (numbers ^ ((numbers >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return numbers ^ ((numbers >> 33) & 0x7FFFFFFF)


def _column(values: Sequence[Sequence[float]], like: "torch.Tensor") -> "torch.Tensor":
    """Values for rows, (R, 1), where the logits are."""
    return like.new_tensor(values)


def own_settings(generation_config) -> dict:
    """A checkpoint's own generation settings that would change which tokens are drawn, by name."""
    own = generation_config.to_diff_dict()
    return {name: value for name, value in own.items() if name not in HARMLESS and value is not None}


def ignored_settings(own: dict, args: argparse.Namespace) -> dict:
    """Those of `own_settings` that differ from what the flags ask for."""
    used = {"top_p": [args.top_p], "top_k": [args.sampling_top_k], "min_p": [args.min_p]}
    used |= {"temperature": args.temperatures, "repetition_penalty": [1.0]}
    return {name: value for name, value in own.items() if value not in used.get(name, ())}
