"""The reasoning block of a thinking model: where it ends, what follows it, and what holds only outside it.

`split_thinking` is THE place that takes a text apart; `split_completion` does the same to generated tokens,
because a marker may be a special token that no decoded text shows. A reasoning that never closed is cut off:
what stands in it is no answer, whatever its last number is.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

# First and last mark of the blocks in use, of Qwen, DeepSeek, SmolLM and many others first.
MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


@dataclass(frozen=True)
class Reasoning:
    """A model's reasoning block.

    Attributes:
        begin: its first mark; empty where there is none.
        end: its last mark.
        opened: whether the prompt has opened it, so that a completion begins inside.
    """

    begin: str = MARKERS[0][0]
    end: str = MARKERS[0][1]
    opened: bool = False


NO_BLOCK = Reasoning()  # of a model that is not known to think: still read where it stands in a text


@dataclass(frozen=True)
class Split:
    """A completion, taken apart.

    Attributes:
        text: what follows the reasoning, up to a stop text.
        thinking_text: the reasoning without its marks; None where there is none.
        thinking_tokens: of the reasoning, its marks included; None where there is none.
        cut_off: whether the text ends inside the reasoning.
    """

    text: str
    thinking_text: str | None = None
    thinking_tokens: int | None = None
    cut_off: bool = False

    def whole(self, reasoning: Reasoning) -> str:
        """Reasoning and answer as one text, from which `split_thinking` reads the same again."""
        if self.thinking_text is None:
            return self.text
        begin = "" if reasoning.opened else reasoning.begin
        return begin + self.thinking_text + ("" if self.cut_off else f"{reasoning.end}\n{self.text}")


def split_thinking(
    text: str, end: str = NO_BLOCK.end, begin: str | None = None, opened: bool = False
) -> tuple[str, str, bool]:
    """The reasoning and the answer of a thinking model's text, and whether it was cut off while it thought.

    A text without either mark of a reasoning block is all answer, unless the prompt has opened the block.

    Args:
        begin: None for what `begin_of` makes of `end`.

    >>> split_thinking("<think>6 * 3 = 18</think>\\n\\n18 eggs")
    ('6 * 3 = 18', '18 eggs', False)
    """
    begin = begin_of(end) if begin is None else begin
    thinking, found, answer = text.rpartition(end)
    if found:
        reopened = bool(begin) and begin in answer
        thinking = thinking.replace(begin, "", 1) if begin else thinking
        return (text.strip(), "", True) if reopened else (thinking.strip(), answer.strip(), False)
    before, found, thinking = text.partition(begin) if begin else ("", "", text)
    if found:
        return thinking.strip(), before.strip(), True
    return (text.strip(), "", True) if opened else ("", text, False)


def begin_of(end: str) -> str:
    """The mark that begins a block with this end; empty where it has none.

    >>> begin_of("[/THINK]"), begin_of("<|done|>")
    ('[THINK]', '')
    """
    known = dict((last, first) for first, last in MARKERS)
    return known.get(end) or (end.replace("/", "", 1) if "/" in end else "")


def split_completion(
    tokenizer, ids: Sequence[int], reasoning: Reasoning = NO_BLOCK, stop: Sequence[str] = ()
) -> Split:
    """Generated tokens, without their end token, taken apart; stop texts end the answer alone."""
    raw = tokenizer.decode(ids, skip_special_tokens=False)  # a mark may be a special token
    thinking, answer, cut_off = split_thinking(raw, reasoning.end, reasoning.begin, reasoning.opened)
    if not cut_off and answer == raw:
        return Split(_up_to(tokenizer.decode(ids, skip_special_tokens=True), stop))
    if cut_off:
        return Split(answer, thinking, len(ids), True)

    ends = raw.count(reasoning.end)

    def closed(count: int) -> bool:
        return tokenizer.decode(ids[:count], skip_special_tokens=False).count(reasoning.end) >= ends

    count = bisect_left(range(len(ids)), True, key=closed)
    behind = tokenizer.decode(ids[:count], skip_special_tokens=False).rpartition(reasoning.end)[2]
    text = behind + tokenizer.decode(ids[count:], skip_special_tokens=True)
    return Split(_up_to(text.strip(), stop), thinking, count)


class StopWatch:
    """Whether a text that grows token by token has completed a stop text; inside a reasoning none counts.

    Args:
        tokenizer: for decoding.
        stop: the texts.
    """

    def __init__(self, tokenizer, stop: Sequence[str], reasoning: Reasoning = NO_BLOCK) -> None:
        self._tokenizer, self._stop, self._reasoning = tokenizer, stop, reasoning
        self._is_open = reasoning.opened
        marks = [*stop, reasoning.begin, reasoning.end]
        self._recent: deque[int] = deque(maxlen=max(len(mark.encode()) for mark in marks))  # ≥ 1 byte a token

    def add(self, token: int) -> bool:
        """Takes the newest token; whether it completes a stop text."""
        self._recent.append(token)
        tail, reasoning = (
            self._tokenizer.decode(list(self._recent), skip_special_tokens=False),
            self._reasoning,
        )
        begins = not self._is_open and bool(reasoning.begin) and reasoning.begin in tail
        if begins or reasoning.end in tail:
            self._is_open = begins
            self._recent.clear()  # what stands before a mark stops nothing behind it
            return False
        return not self._is_open and any(stop in tail for stop in self._stop)


def _up_to(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((text.index(mark) for mark in stop if mark in text), default=None)]
