"""Batched generation and likelihood with transformers: one prefill for all temperatures, noise for each row.

Every distinct prompt of a batch is computed once; its cache is then copied to one row for each temperature
and repeat, and all rows are decoded together. A row samples by the Gumbel-max trick, argmax(logits + T·g),
with noise that its own key names: its text depends on no other row, batch size or order.
Log-probabilities come from the logits that decoding computes anyway.

How likely a text is that another model wrote takes a forward pass of its own (`answer_nll`). Perplexity under
each policy's own weights does not compare policies, as a policy that has become sure of itself has a low one
whatever it writes. Under one fixed model it does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import transformers

from cot.utils.batch_invariance import WideProducts, use_attention_by_length
from cot.utils.completions import Completion, Draft, Request, sort_out
from cot.utils.devices import is_out_of_memory
from cot.utils.engine_choice import TRANSFORMERS
from cot.utils.kv_cache import make_room, only_grows, use_grouped_attention
from cot.utils.model_names import ModelSource
from cot.utils.models import context_length, describe_model, end_token_ids, estimate_rows
from cot.utils.sampling import ALL_TOKENS, counted_noise, forbid_tokens

CACHED_LOGITS = 2**21  # of the rows that a CPU draws for at a time: 8 MiB of float32
PREFILL_TOKENS = 8192  # read at a time: more take more memory, and on a CPU more time
SHRINK_SHARE = 0.25  # finished rows that make it worth copying the cache of the others


class _Row(Draft):
    """A text with the noise that its seed key names; greedy ones need none, nor do those on a GPU."""

    def __init__(self, request: Request, device: torch.device, **how) -> None:
        super().__init__(request, **how)
        self.generator = None
        if request.temperature and device.type != "cuda":
            self.generator = torch.Generator(device=device).manual_seed(request.seed)


class _Draw:
    """How the rows at hand, (B,), draw a token; made anew when some of them leave."""

    def __init__(self, rows: Sequence[_Row], device: torch.device) -> None:
        self.rows = list(rows)
        heat = [[row.request.temperature] for row in rows]
        self.temperature = torch.tensor(heat, device=device)  # (B, 1)
        self.seeds = torch.tensor([row.request.seed for row in rows], device=device)  # (B,)
        self.sampling = [row.request.sampling if row.request.temperature else ALL_TOKENS for row in rows]

    def _parts(self, logits: torch.Tensor) -> list[slice]:
        """Rows whose numbers stay in a processor's cache; a GPU takes all at once."""
        size = len(self.rows) if logits.device.type == "cuda" else max(1, CACHED_LOGITS // logits.shape[1])
        return [slice(start, start + size) for start in range(0, len(self.rows), size)]

    def _draw(self, logits: torch.Tensor, step: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of some of the rows, (b,), and their log-probabilities at temperature 1, (b,)."""
        logits = logits[rows].float()  # (b, V)
        scores = logits
        if any(row.request.temperature for row in self.rows[rows]):
            gumbel = self._noise(logits, step, rows).log_().neg_().log_().neg_()  # (b, V)
            noisy = gumbel.mul_(self.temperature[rows]).add_(logits)
            scores = forbid_tokens(noisy, logits, self.temperature[rows], self.sampling[rows])
        tokens = scores.argmax(dim=-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)

    def _noise(self, logits: torch.Tensor, step: int, rows: slice) -> torch.Tensor:
        """Uniform in (0, 1), (b, V). On a GPU a launch a row would cost more than the numbers."""
        if logits.device.type == "cuda":
            return counted_noise(self.seeds[rows], step, logits.shape[1])
        uniform = torch.full_like(logits, 0.5)
        for i, row in enumerate(self.rows[rows]):
            if row.generator is not None and row.status == "running":
                uniform[i].uniform_(generator=row.generator)  # [0, 1): a 0 becomes -inf, which is never drawn
        return uniform

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Draws one token a row, (B,), and records it; finished rows stay untouched until they leave.

        Args:
            logits: (B, V).
            step: of the batch, from 1.
        """
        parts = [self._draw(logits, step, rows) for rows in self._parts(logits)]
        tokens, chosen = (torch.cat(found) for found in zip(*parts, strict=True))  # (B,) each

        # one copy from the device; a token's number is exact in float32 below 2 ** 24
        numbers, logprobs = torch.stack([tokens.float(), chosen]).tolist()
        for row, number, logprob in zip(self.rows, numbers, logprobs, strict=True):
            if row.status == "running":
                row.add(int(number), logprob)
        return tokens


class TransformersEngine:
    """Answers requests in batches of rows.

    Args:
        model: a causal language model in eval mode, on its device.
        tokenizer: for decoding and for the end tokens.
        max_new_tokens: length at which a text is cut.
        batch_size: rows decoded together; None sizes it by the device. Halved when memory ends, but not for a
            row that fits in no batch.
        batch_invariant: likelihoods are the same in any batch to the last bit, where `check_invariance` finds
            that they can be.
    """

    def __init__(
        self,
        model,
        tokenizer,
        max_new_tokens: int,
        batch_size: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.joins_caches = True  # until a prefill shows that this model's cannot be joined
        self.end_ids = end_token_ids(model, tokenizer)
        self.context_length = context_length(model)
        self.products = WideProducts if batch_invariant else nullcontext
        (use_attention_by_length if batch_invariant else use_grouped_attention)(model)

    def describe(self, source: ModelSource, longest: int) -> dict:
        """What a result file records of the model and how it is decoded.

        Args:
            longest: tokens of the longest prompt and its answer.
        """
        engine = {"name": TRANSFORMERS, "version": transformers.__version__}
        size = self.batch_size or estimate_rows(self.model, longest)
        return describe_model(source, self.model) | {"engine": engine, "batch_size": size}

    def generate(
        self, requests: Sequence[Request], watch: Callable[[int, int], None] | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yields after each batch its pairs of (index in `requests`, completion); each index exactly once.

        Prompts that do not fit the context come first, as errors. The rest goes from the longest prompt to
        the shortest: memory runs out at once or not at all, and rows of like length share a batch. Equal
        requests are decoded once: a prompt without memory is the same for every student, and so is a
        greedy text every time.

        Args:
            watch: told after each step of a batch how many tokens it has and how many rows go on.
        """
        refused, sharing = sort_out(requests, self.max_new_tokens, self.context_length)
        if refused:
            yield refused
        queue = list(sharing)

        fitted = self.batch_size  # of the last batch that was decoded
        while queue:
            batch = self._take_batch(queue, requests)
            asked = [requests[i] for i in batch]
            try:
                completions = self.decode_now(asked, watch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                completions = None
                message = " ".join(str(error).split())
            if completions is None:  # outside the handler, whose traceback keeps the batch's tensors alive
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(batch) > 1:
                    self.batch_size = len(batch) // 2
                    continue
                completions = [Completion(error={"type": "out_of_memory", "message": message})]
                self.batch_size = fitted  # what one row needs says nothing about the others
            fitted = self.batch_size

            queue = queue[len(batch) :]
            yield [(i, text) for first, text in zip(batch, completions, strict=True) for i in sharing[first]]

    def _take_batch(self, queue: list[int], requests: Sequence[Request]) -> list[int]:
        """The first rows that fit, ending between two prompts where one prompt's rows are not too many."""
        longest = len(requests[queue[0]].prompt_ids) + self.max_new_tokens
        rows = self.batch_size or estimate_rows(self.model, longest)
        end = min(rows, len(queue))
        while 0 < end < len(queue) and requests[queue[end - 1]].prompt_ids == requests[queue[end]].prompt_ids:
            end -= 1
        return queue[: end or rows]

    def decode_now(
        self, requests: list[Request], watch: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """The texts of one batch, in order; the arguments are those of `generate`."""
        with self.products():
            return self._decode(requests, self._prefill(requests), watch)

    @torch.inference_mode()
    def _decode(
        self, requests: list[Request], prefilled: tuple, watch: Callable[[int, int], None] | None
    ) -> list[Completion]:
        """Decodes all rows together, until each has ended or is as long as it may be.

        Args:
            prefilled: what `_prefill` gave for them.
        """
        rows = [
            _Row(
                request,
                self.model.device,
                tokenizer=self.tokenizer,
                end_ids=self.end_ids,
                max_new_tokens=self.max_new_tokens,
            )
            for request in requests
        ]
        logits, cache, mask = prefilled
        position = mask.sum(dim=1, keepdim=True)  # (B, 1)
        draw = _Draw(rows, self.model.device)
        for step in range(1, self.max_new_tokens + 1):
            tokens = draw.choose(logits, step)  # (B,)
            keep = [i for i, row in enumerate(draw.rows) if row.status == "running"]
            if watch:
                watch(step, len(keep))
            if not keep:
                break

            # Finished rows leave, together, once there are enough of them.
            if len(draw.rows) - len(keep) >= SHRINK_SHARE * len(draw.rows):
                index = torch.tensor(keep, device=mask.device)
                cache.reorder_cache(index)
                tokens, mask, position = tokens[index], mask[index], position[index]
                draw = _Draw([draw.rows[i] for i in keep], self.model.device)

            mask = torch.cat([mask, mask.new_ones(len(draw.rows), 1)], dim=1)
            output = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            logits, cache, position = output.logits[:, -1], output.past_key_values, position + 1
        return [row.complete() for row in rows]

    @torch.inference_mode()
    def _prefill(self, requests: list[Request]) -> tuple:
        """Runs each distinct prompt once, left-padded, and copies its cache and logits to its rows.

        Prompts are read some at a time, all at once only where their caches cannot be joined.

        Returns:
            Of the B rows logits (B, V), cache, and mask (B, T).
        """
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        length = max(len(prompt) for prompt in prompts)
        device = self.model.device
        padding = [length - len(prompt) for prompt in prompts]
        padded = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        ids = torch.tensor(padded, device=device)  # (P, T)
        mask = torch.arange(length, device=device) >= torch.tensor(padding, device=device)[:, None]
        mask = mask.long()  # (P, T)

        size = max(1, PREFILL_TOKENS // length) if self.joins_caches else len(prompts)
        outputs: list = []
        while (start := size * len(outputs)) < len(prompts):
            part = mask[start : start + size]
            output = self.model(
                input_ids=ids[start : start + size],
                attention_mask=part,
                position_ids=(part.cumsum(dim=1) - 1).clamp_min(0),  # left padding is silently wrong without
                use_cache=True,
                logits_to_keep=1,
            )
            if size < len(prompts) and not only_grows(output.past_key_values):
                self.joins_caches, size = False, len(prompts)
                continue
            outputs.append(output)

        place = {prompt: i for i, prompt in enumerate(prompts)}
        index = torch.tensor([place[request.prompt_ids] for request in requests], device=device)  # (B,)
        logits = torch.cat([output.logits[:, -1] for output in outputs])[index]  # (B, V)
        cache = make_room([output.past_key_values for output in outputs], index, self.max_new_tokens)
        return logits, cache, mask[index]


def answer_nll(
    model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 32
) -> list[float | None]:
    """Mean negative log-likelihood of each answer's tokens given its prompt, in nats per token.

    -(1/N) sum_i ln p(answer_i | prompt, answer_<i), at temperature 1. Prompt and padding do not count; an
    end token counts where the caller has put one behind the answer.

    Args:
        model: a causal language model in eval mode.
        pairs: token ids of prompt and answer; a prompt has at least one.
        batch_size: sequences in one forward pass.

    Returns:
        One value a pair, None for an empty answer.
    """
    order = [index for index, (_, answer) in enumerate(pairs) if len(answer)]
    order.sort(key=lambda index: -sum(map(len, pairs[index])))  # rows of like length share a batch
    values: list[float | None] = [None] * len(pairs)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for row, value in zip(rows, _batch_nll(model, [pairs[row] for row in rows]), strict=True):
                values[row] = value
    return values


def _batch_nll(model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """The same of one batch, in one forward pass."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)  # (B, T), padded on the right
    mask, counted = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, :end] = 1
        counted[row, len(prompt) : end] = 1

    ids, mask, counted = (part.to(model.device) for part in (ids, mask, counted))
    keep = length - min(len(prompt) for prompt, _ in pairs) + 1  # positions from a prompt's last token on
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits.float()  # (B, K, V)
    targets, counted = ids[:, -keep + 1 :], counted[:, -keep + 1 :]  # (B, K - 1)
    logprobs = logits[:, :-1].log_softmax(dim=-1).gather(2, targets[:, :, None])[:, :, 0]  # (B, K - 1)
    return (-(logprobs * counted).sum(dim=1) / counted.sum(dim=1)).tolist()
