"""What an engine is asked for, what it gives, and a text while it grows: the same for every engine."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from cot.utils.sampling import ALL_TOKENS, Sampling
from cot.utils.thinking import NO_BLOCK, Reasoning, StopWatch, split_completion


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes:
        prompt_ids: token ids, (T,).
        temperature: 0 is greedy.
        seed_key: names the noise; the same key on the same kind of device draws the same noise.
        stop: texts at which a completion ends, as a base model needs that would go on with another question;
            inside a reasoning none ends it.
        reasoning: the block in which the model thinks before it answers.
        sampling: the tokens that a draw is made from; of no effect on a greedy text.
    """

    prompt_ids: tuple[int, ...]
    temperature: float
    seed_key: str
    stop: tuple[str, ...] = ()
    reasoning: Reasoning = NO_BLOCK
    sampling: Sampling = ALL_TOKENS

    @property
    def seed(self) -> int:
        """Of its noise, in 63 bits."""
        digest = hashlib.sha256(self.seed_key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Completion:
    """One generated text.

    Attributes:
        text: decoded, without prompt and special tokens, up to the stop text; of a thinking model what
            follows its reasoning.
        token_ids: all generated ids, (N,), the end token or stop text included.
        logprobs: natural log-probability of each of them at temperature 1, (N,).
        truncated: `max_new_tokens` was reached without an end.
        error: `{"type", "message"}` where there is no usable text.
        thinking_text: the reasoning; None where there is none.
        thinking_tokens: how many of the ids it takes, its marks included; None where there is none.
        thinking_cut_off: the ids end inside the reasoning.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    truncated: bool = False
    error: dict | None = None
    thinking_text: str | None = None
    thinking_tokens: int | None = None
    thinking_cut_off: bool = False


class Draft:
    """A text while it grows.

    Attributes:
        status: `running`; `ended` by an end token or a stop text; `truncated`; `not_finite`.

    Args:
        tokenizer: for decoding.
        end_ids: tokens that end a text.
        max_new_tokens: length at which a text is cut.
    """

    def __init__(self, request: Request, tokenizer, end_ids: Collection[int], max_new_tokens: int) -> None:
        self.request, self.status = request, "running"
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self._tokenizer, self._end_ids, self._max_new_tokens = tokenizer, end_ids, max_new_tokens
        self._stop_watch = StopWatch(tokenizer, request.stop, request.reasoning) if request.stop else None

    def add(self, token: int, logprob: float) -> None:
        """Takes the next token, and settles whether the text goes on."""
        if not math.isfinite(logprob):
            self.status = "not_finite"
            return
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if token in self._end_ids or (self._stop_watch and self._stop_watch.add(token)):
            self.status = "ended"
        elif len(self.token_ids) == self._max_new_tokens:
            self.status = "truncated"

    def complete(self) -> Completion:
        """The text, once it does not go on."""
        if self.status == "not_finite":
            message = f"the model's logits are not finite at new token {len(self.token_ids) + 1}"
            return Completion(error={"type": "not_finite", "message": message})
        ended_by_token = self.token_ids[-1] in self._end_ids
        ids = self.token_ids[:-1] if ended_by_token else self.token_ids
        split = split_completion(self._tokenizer, ids, self.request.reasoning, self.request.stop)
        return Completion(
            text=split.text,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            truncated=self.status == "truncated",
            thinking_text=split.thinking_text,
            thinking_tokens=split.thinking_tokens,
            thinking_cut_off=split.cut_off,
        )


def sort_out(
    requests: Sequence[Request], max_new_tokens: int, context_length: int | None
) -> tuple[list[tuple[int, Completion]], dict[int, list[int]]]:
    """What cannot be generated, and what is to be, in an order that lets equal prompts share their work.

    Equal requests are generated once: a prompt without memory is the same for every student, and so is a
    greedy text every time. The longest prompts come first: memory then runs out at once or not at all, and
    rows of like length stand together.

    Args:
        context_length: positions for a prompt and its answer; None where the model does not say.

    Returns:
        Pairs of (index in `requests`, error), and by the first index of equal requests all of them.
    """
    refused, equal = [], dict[Request, list[int]]()
    for i, request in enumerate(requests):
        if error := _refuse(request, max_new_tokens, context_length):
            refused.append((i, Completion(error=error)))
            continue
        drawn = request if request.temperature else replace(request, seed_key="", sampling=ALL_TOKENS)
        equal.setdefault(drawn, []).append(i)

    sharing = {indices[0]: indices for indices in equal.values()}
    queue = sorted(sharing, key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, i))
    return refused, {i: sharing[i] for i in queue}


def _refuse(request: Request, max_new_tokens: int, context_length: int | None) -> dict | None:
    """Why a request cannot be answered, or None."""
    length = len(request.prompt_ids)
    if length == 0:
        return {"type": "empty_prompt", "message": "the prompt has no tokens"}
    if context_length and length + max_new_tokens > context_length:
        message = f"{length} prompt and {max_new_tokens} new tokens do not fit {context_length}"
        return {"type": "prompt_too_long", "message": message}
    return None
