"""Batched generation and likelihood with transformers: one prefill for all temperatures, noise for each row.

Every distinct prompt of a batch is computed once; its cache is then copied to one row for each temperature
and repeat, and all rows are decoded together. A row samples by the Gumbel-max trick, argmax(logits + T·g),
with noise that its own key names: its text depends on no other row, batch size or order.
Log-probabilities come from the logits that decoding computes anyway. Their last bits may depend on what a row
is computed beside: a batch is decoded to its end, so that a run which continues forms the same batches.
Under `--batch_invariant` they do not, and the places of rows that have ended go to others at once.

How likely a text is that another model wrote takes a forward pass of its own (`answer_nll`). Perplexity under
each policy's own weights does not compare policies, as a policy that has become sure of itself has a low one
whatever it writes. Under one fixed model it does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import transformers
from torch.nn.functional import pad

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
ROOM_SHARE = 0.25  # of the places; so many empty ones make it worth copying the cache of the others


class _Row(Draft):
    """A text with the noise that its seed key names; greedy ones need none, nor do those on a GPU.

    Attributes:
        place: of its request.
    """

    def __init__(self, place: int, request: Request, device: torch.device, **how) -> None:
        super().__init__(request, **how)
        self.place, self.generator = place, None
        if request.temperature and device.type != "cuda":
            self.generator = torch.Generator(device=device).manual_seed(request.seed)


class _Batch:
    """Rows that are decoded together, B of them, and what they draw their next token from.

    Attributes:
        rows: of which some may have ended; they stay untouched until they leave.
        logits: (B, V).
        steps: how many tokens each has drawn, (B,).
        cache: of all tokens but the newest.
        mask: which of the cache's T places are a row's own, (B, T).
    """

    def __init__(self, rows: Sequence[_Row], logits: torch.Tensor, cache, mask: torch.Tensor) -> None:
        self.logits, self.cache, self.mask = logits, cache, mask
        self._set_rows(rows)

    def _set_rows(self, rows: Sequence[_Row]) -> None:
        device = self.mask.device
        self.rows = list(rows)
        heat = [[row.request.temperature] for row in rows]
        self.temperature = torch.tensor(heat, device=device)  # (B, 1)
        self.seeds = torch.tensor([row.request.seed for row in rows], device=device)  # (B,)
        self.steps = torch.tensor([len(row.token_ids) for row in rows], device=device)  # (B,)
        self.sampling = [row.request.sampling if row.request.temperature else ALL_TOKENS for row in rows]

    def keep(self, places: Sequence[int]) -> None:
        """Lets all rows but those of some places leave."""
        if places:
            index = torch.tensor(places, device=self.mask.device)
            self.cache.reorder_cache(index)
            self.mask = self.mask[index]
        self._set_rows([self.rows[place] for place in places])

    @torch.inference_mode()
    def join(self, other: "_Batch", room: int) -> None:
        """Takes in the rows of another batch, which are to draw their first token.

        Args:
            room: tokens that a row may still get, at most.
        """
        own = self.mask[:, int(self.mask.any(dim=0).int().argmax()) :]  # without what is padding in all rows
        masks = own, other.mask
        lengths = [mask.shape[1] for mask in masks]
        index = torch.arange(len(self.rows) + len(other.rows), device=own.device)
        self.cache = make_room([self.cache, other.cache], index, room, lengths)
        self.logits = torch.cat([self.logits, other.logits])
        self.mask = torch.cat([pad(mask, (max(lengths) - mask.shape[1], 0)) for mask in masks])
        self._set_rows([*self.rows, *other.rows])

    def _parts(self, logits: torch.Tensor) -> list[slice]:
        """Rows whose numbers stay in a processor's cache; a GPU takes all at once."""
        size = len(self.rows) if logits.device.type == "cuda" else max(1, CACHED_LOGITS // logits.shape[1])
        return [slice(start, start + size) for start in range(0, len(self.rows), size)]

    def _draw(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of some of the rows, (b,), and their log-probabilities at temperature 1, (b,)."""
        logits = logits[rows].float()  # (b, V)
        scores = logits
        if any(row.request.temperature for row in self.rows[rows]):
            gumbel = self._noise(logits, rows).log_().neg_().log_().neg_()  # (b, V)
            noisy = gumbel.mul_(self.temperature[rows]).add_(logits)
            scores = forbid_tokens(noisy, logits, self.temperature[rows], self.sampling[rows])
        tokens = scores.argmax(dim=-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)

    def _noise(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Uniform in (0, 1), (b, V). On a GPU a launch a row would cost more than the numbers."""
        if logits.device.type == "cuda":
            return counted_noise(self.seeds[rows], self.steps[rows], logits.shape[1])
        uniform = torch.full_like(logits, 0.5)
        for i, row in enumerate(self.rows[rows]):
            if row.generator is not None and row.status == "running":
                uniform[i].uniform_(generator=row.generator)  # [0, 1): a 0 becomes -inf, which is never drawn
        return uniform

    def draw(self) -> torch.Tensor:
        """Draws a token for each row, (B,), and adds it to those that go on."""
        parts = [self._draw(self.logits, rows) for rows in self._parts(self.logits)]
        tokens, chosen = (torch.cat(found) for found in zip(*parts, strict=True))  # (B,) each

        # one copy from the device; a token's number is exact in float32 below 2 ** 24
        numbers, logprobs = torch.stack([tokens.float(), chosen]).tolist()
        for row, number, logprob in zip(self.rows, numbers, logprobs, strict=True):
            if row.status == "running":
                row.add(int(number), logprob)
        self.steps += 1
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
            that they can be. Rows that have ended then make room for others.
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
        self.refills = batch_invariant
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
        described = describe_model(source, self.model)
        return described | {"engine": engine, "batch_size": self._rows_for(longest)}

    def generate(
        self, requests: Sequence[Request], watch: Callable[[int, int], None] | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yields pairs of (index in `requests`, completion) as rows end; each index exactly once.

        Prompts that do not fit the context come first, as errors. The rest goes from the longest prompt to
        the shortest: memory runs out at once or not at all, and rows of like length share a batch. Equal
        requests are decoded once: a prompt without memory is the same for every student, and so is a
        greedy text every time.

        Args:
            watch: told after each step how many tokens the longest row has that goes on or has just ended,
                and how many rows go on; before the first, with 0, how many prompts have been read.
        """
        refused, sharing = sort_out(requests, self.max_new_tokens, self.context_length)
        if refused:
            yield refused

        queue, fitted = list(sharing), self.batch_size
        batch: _Batch | None = None
        ended: list[tuple[int, Completion]] = []
        while sharing:
            message = None
            try:
                if batch is None:
                    size = self._rows_for(len(requests[queue[0]].prompt_ids) + self.max_new_tokens)
                    batch = self._prefill(requests, _take(requests, queue, size), watch)
                free = size - len(batch.rows)
                if self.refills and self.joins_caches and queue and free >= ROOM_SHARE * size:
                    other = self._prefill(requests, _take(requests, queue, free), watch)
                    batch.join(other, self.max_new_tokens)
                ended += self._step(batch, watch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = " ".join(str(error).split())

            if message is not None:  # outside the handler, whose traceback keeps the batch's tensors alive
                batch, ended = None, []
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
                together, queue = len(sharing) - len(queue), list(sharing)
                if together > 1:
                    self.batch_size = together // 2
                    continue
                completion = Completion(error={"type": "out_of_memory", "message": message})
                yield [(i, completion) for i in sharing.pop(queue.pop(0))]
                self.batch_size = fitted  # what one row needs says nothing about the others
                continue

            if ended and (self.refills or not batch.rows):
                yield [(i, text) for first, text in ended for i in sharing.pop(first)]
                ended = []
            if not batch.rows:
                batch, fitted = None, self.batch_size

    def decode_now(self, requests: Sequence[Request]) -> list[Completion]:
        """The texts of requests that are decoded together, equal ones as well, in order."""
        batch, ended = self._prefill(requests, range(len(requests))), {}
        while batch.rows:
            ended |= dict(self._step(batch))
        return [ended[place] for place in range(len(requests))]

    def _rows_for(self, tokens: int) -> int:
        """How many rows of so many tokens, prompt and answer, are decoded together."""
        return self.batch_size or estimate_rows(self.model, tokens)

    @torch.inference_mode()
    def _step(
        self, batch: _Batch, watch: Callable[[int, int], None] | None = None
    ) -> list[tuple[int, Completion]]:
        """Draws a token for each row and computes what the next are drawn from; gives the rows that left."""
        tokens = batch.draw()  # (B,)
        running = [place for place, row in enumerate(batch.rows) if row.status == "running"]
        if watch:
            watch(max(len(row.token_ids) for row in batch.rows), len(running))

        # Rows that have ended leave together, once there are enough of them.
        ended = []
        if len(batch.rows) - len(running) >= ROOM_SHARE * len(batch.rows):
            ended = [(row.place, row.complete()) for row in batch.rows if row.status != "running"]
            batch.keep(running)
            tokens = tokens[running]

        if running:
            position = batch.mask.sum(dim=1, keepdim=True)  # (B, 1)
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)
            with self.products():
                output = self.model(
                    input_ids=tokens[:, None],
                    attention_mask=batch.mask,
                    position_ids=position,
                    past_key_values=batch.cache,
                    use_cache=True,
                )
            batch.logits, batch.cache = output.logits[:, -1], output.past_key_values
        return ended

    @torch.inference_mode()
    def _prefill(
        self,
        requests: Sequence[Request],
        places: Sequence[int],
        watch: Callable[[int, int], None] | None = None,
    ) -> _Batch:
        """Runs each distinct prompt once, left-padded, and copies its cache and logits to its rows.

        Prompts are read some at a time, all at once only where their caches cannot be joined.

        Args:
            places: of the requests that become rows.
            watch: as of `generate`.
        """
        asked = [requests[place] for place in places]
        prompts = list(dict.fromkeys(request.prompt_ids for request in asked))
        length = max(len(prompt) for prompt in prompts)
        device = self.model.device
        padding = [length - len(prompt) for prompt in prompts]
        padded = [[0] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
        ids = torch.tensor(padded, device=device)  # (P, T)
        mask = torch.arange(length, device=device) >= torch.tensor(padding, device=device)[:, None]
        mask = mask.long()  # (P, T)

        size = max(1, PREFILL_TOKENS // length) if self.joins_caches else len(prompts)
        outputs: list = []
        while (start := size * len(outputs)) < len(prompts):
            part = mask[start : start + size]
            with self.products():
                output = self.model(
                    input_ids=ids[start : start + size],
                    attention_mask=part,
                    position_ids=(part.cumsum(dim=1) - 1).clamp_min(0),  # silently wrong without
                    use_cache=True,
                    logits_to_keep=1,
                )
            self.joins_caches = only_grows(output.past_key_values)
            if size < len(prompts) and not self.joins_caches:
                size = len(prompts)
                continue
            outputs.append(output)
            if watch:
                watch(0, min(size * len(outputs), len(prompts)))

        order = {prompt: i for i, prompt in enumerate(prompts)}
        index = torch.tensor([order[request.prompt_ids] for request in asked], device=device)  # (B,)
        caches = [output.past_key_values for output in outputs]
        how = {"tokenizer": self.tokenizer, "end_ids": self.end_ids, "max_new_tokens": self.max_new_tokens}
        return _Batch(
            rows=[_Row(place, requests[place], device, **how) for place in places],
            logits=torch.cat([output.logits[:, -1] for output in outputs])[index],
            cache=make_room(caches, index, self.max_new_tokens),
            mask=mask[index],
        )


def _take(requests: Sequence[Request], queue: list[int], rows: int) -> list[int]:
    """Takes the first rows off a queue, so many at most; up to the end of a prompt's, if that is not far."""
    end = whole = min(rows, len(queue))
    while (
        0 < whole < len(queue) and requests[queue[whole - 1]].prompt_ids == requests[queue[whole]].prompt_ids
    ):
        whole -= 1
    taken = queue[: whole if whole >= (1 - ROOM_SHARE) * end else end]
    del queue[: len(taken)]
    return taken


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
