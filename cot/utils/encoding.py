"""From text to token ids, so that no text of a student or a question becomes a control token.

A tokenizer looks for its added tokens before it encodes: `<|im_end|>`, `</think>` or `[/INST]` in a question
would each be one token, with the meaning that the model knows, whether they are called special or not. Here
the caller says which parts of a text are data. A text is encoded as a whole, as a chat template's user would,
because tokenizers of the SentencePiece family put a blank before every text that they get; only where data
spells such a token is it encoded in pieces. Runs of blanks and plain words that a tokenizer has as added
tokens are ordinary text.
"""

import re
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from cot.utils.errors import UserError

Part = tuple[str, bool]  # a piece of a text, and whether it is data
Span = tuple[int, int]  # of characters, its end excluded

# By tokenizer: what it depended on, and the ids that no data may become; Gemma has six thousand added tokens.
_CONTROL_IDS: WeakKeyDictionary = WeakKeyDictionary()
# Letters, digits, blanks and a sentence's marks: an added token of these alone is ordinary text.
_PLAIN = re.compile(r"[\w\s.,:;!?'’\"-]*")


def join_parts(parts: Iterable[Part]) -> tuple[str, list[Span]]:
    """The text that the parts make, and where in it the data stands.

    >>> join_parts([("Question: ", False), ("1 + 1?", True)])
    ('Question: 1 + 1?', [(10, 16)])
    """
    text, spans = "", []
    for piece, is_data in parts:
        if is_data and piece:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans


def encode_parts(tokenizer, parts: Iterable[Part], add_special_tokens: bool = False) -> list[int]:
    """Token ids of the text that the parts make; nothing in its data is a control token.

    Of ordinary text they are the tokenizer's own ids.

    Args:
        add_special_tokens: whether the tokenizer adds what it puts around a text, such as `<s>`.

    Raises:
        UserError: a tokenizer that cannot say where its tokens stand.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UserError(
            f"--model_name {tokenizer.name_or_path}: {name} has no fast version; use one that has"
        )
    text, spans = join_parts(parts)
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    control = _control_ids(tokenizer)
    ids: list[int] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spelled = token != tokenizer.unk_token_id or tokenizer.unk_token in text[start:end]
        if token in control and spelled and _stands_in(text, start, end, spans):
            ids += _encode_in_pieces(tokenizer, text[start:end], control)
        else:
            ids.append(token)
    return ids


def encode_data(tokenizer, text: str) -> list[int]:
    """Token ids of text in which nothing is a control token."""
    return encode_parts(tokenizer, [(text, True)])


def is_control(text: str, special: bool = False) -> bool:
    """Whether an added token means something to the model: it is special, or no plain word or blank.

    >>> [is_control(text) for text in ("</think>", "[/INST]", "  ", "▁▁", "Question: ", "| ")]
    [True, True, False, False, False, False]
    """
    text = text.replace("▁", " ")  # as SentencePiece writes a blank
    return special or (len(text.strip()) > 1 and not _PLAIN.fullmatch(text))


def _control_ids(tokenizer) -> frozenset[int]:
    """The ids that no data may become."""
    state = len(tokenizer), tuple(tokenizer.all_special_tokens)
    known = _CONTROL_IDS.get(tokenizer)
    if known is None or known[0] != state:
        added = tokenizer.added_tokens_decoder.items()
        ids = {number for number, token in added if is_control(token.content, token.special)}
        known = _CONTROL_IDS[tokenizer] = state, frozenset(ids | set(tokenizer.all_special_ids))
    return known[1]


def _stands_in(text: str, start: int, end: int, spans: Sequence[Span]) -> bool:
    """Whether a token's own characters, without blanks that it swallows at its sides, touch the data."""
    token = text[start:end]
    end = start + len(token.rstrip())
    start += len(token) - len(token.lstrip())
    return any(start < data_end and data_start < end for data_start, data_end in spans)


def _encode_in_pieces(tokenizer, text: str, control: frozenset[int]) -> list[int]:
    """The text of a control token as ordinary text: cut behind its first character, if need be again."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    cut = len(text) - len(text.lstrip()) + 1
    if control.isdisjoint(set(ids) - {tokenizer.unk_token_id}) or cut >= len(text):
        return ids
    pieces = text[:cut], text[cut:]
    return [token for piece in pieces for token in _encode_in_pieces(tokenizer, piece, control)]
