"""Chat templates and token ids: what a model's template makes of a user's turn, and no data a control token.

A template is rendered with a probe, and what stands around the probe is kept, so that the text of a student
or a question never passes through the template's own code. A template may trim the turn, change its case,
repeat it, or take it as a list of parts; what does anything else to it is refused in one line. A template
that asks for the date gets that of the run's start, so that a run that continues has the same prompts. Of a
thinking model the template also says how its reasoning begins, and whether it can be switched.

A tokenizer looks for its added tokens before it encodes: `<|im_end|>`, `</think>` or `[/INST]` in a question
would each be one token, with the meaning that the model knows, whether they are called special or not. Here
the caller says which parts of a text are data. A text is encoded as a whole, as a chat template's user would,
because tokenizers of the SentencePiece family put a blank before every text that they get; only where data
spells such a token is it encoded in pieces. Runs of blanks and plain words that a tokenizer has as added
tokens are ordinary text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from cot.utils.errors import UserError
from cot.utils.thinking import MARKERS, NO_BLOCK, Reasoning, begin_of

SWITCHES = ("enable_thinking", "thinking")  # variables by which templates turn reasoning on and off
_CORE = "Probe 8f1D6c0E"
_SYSTEM = "Probe 5b7E2a9D"  # stands for the system turn
_LEAD, _TRAIL = "\t\n\t", "\n\t\n"  # blanks around it, which a template may trim
_SAMPLE = 'Solve.\n\n<memory>\n| it\'s "5 < 6" & more\n</memory>\n\nQuestion: What is ½ + é, 3 * 4 {{ x }}?'
# Arguments of `apply_chat_template` that decide what comes back, and are no variables of a template.
_TAKEN = (
    *("add_generation_prompt", "continue_final_message", "conversation", "documents", "max_length"),
    *("messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors"),
    *("strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
)
Part = tuple[str, bool]  # a piece of a text, and whether it is data
Span = tuple[int, int]  # of characters, its end excluded

# By tokenizer: what it depended on, and the ids that no data may become; Gemma has six thousand added tokens.
_CONTROL_IDS: WeakKeyDictionary = WeakKeyDictionary()
# Letters, digits, blanks and a sentence's marks: an added token of these alone is ordinary text.
_PLAIN = re.compile(r"[\w\s.,:;!?'’\"-]*")


@dataclass(frozen=True)
class Change:
    """What a template does to one occurrence of the user's turn.

    Attributes:
        left, right: whether blanks at that side are trimmed.
        case: `upper`, `lower`, or empty where the case is kept.
    """

    left: bool = False
    right: bool = False
    case: str = ""

    def apply(self, parts: Iterable[Part]) -> list[Part]:
        """The parts of a turn as the template writes them."""
        changed = list(parts)
        if self.left:
            while changed and not changed[0][0].strip():
                changed.pop(0)
            changed[:1] = [(text.lstrip(), is_data) for text, is_data in changed[:1]]
        if self.right:
            while changed and not changed[-1][0].strip():
                changed.pop()
            changed[-1:] = [(text.rstrip(), is_data) for text, is_data in changed[-1:]]
        return [(getattr(text, self.case)() if self.case else text, is_data) for text, is_data in changed]


@dataclass(frozen=True)
class PromptFormat:
    """How a model's prompts are written.

    Attributes:
        template: the chat template's source; empty where the model has none, and prompts are plain text.
        literals: what stands before, between and behind the occurrences of the user's turn.
        changes: what becomes of each occurrence.
        system_prompt: the text of a system turn, which stands in the literals as `_SYSTEM`.
        reasoning: the block in which the model thinks, should it do so.
        thinks: whether an answer is expected to begin with such a block.
        notes: what the user should be told, a line each.
    """

    template: str = ""
    literals: tuple[str, ...] = ("", "")
    changes: tuple[Change, ...] = (Change(),)
    system_prompt: str = ""
    reasoning: Reasoning = NO_BLOCK
    thinks: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self.template)

    def write(self, turn: Iterable[Part]) -> list[Part]:
        """A whole prompt's parts, from those of the user's turn."""
        turn = list(turn)
        parts = self._with_system(self.literals[0])
        for change, literal in zip(self.changes, self.literals[1:], strict=True):
            parts += [*change.apply(turn), *self._with_system(literal)]
        return parts

    def _with_system(self, literal: str) -> list[Part]:
        """A literal's parts: the system turn in it is data, too."""
        if not self.system_prompt:
            return [(literal, False)]
        first, *others = literal.split(_SYSTEM)
        parts: list[Part] = [(first, False)]
        for other in others:
            parts += [(self.system_prompt, True), (other, False)]
        return parts


def read_format(
    tokenizer,
    kwargs: Mapping[str, Any] | None = None,
    thinking: str = "auto",
    think_end: str | None = None,
    started: datetime | None = None,
    model_name: str | None = None,
    system_prompt: str | None = None,
) -> PromptFormat:
    """How prompts for this tokenizer's model are written.

    Args:
        kwargs: variables of the chat template; `chat_template` names one of several.
        thinking: `on`, `off`, or `auto` for what the template does by itself.
        think_end: the mark that ends the reasoning; None for what template or tokenizer have.
        started: the date for a template that asks for one; None for now.
        model_name: for messages; None for the tokenizer's own name.
        system_prompt: the text of a system turn before the user's; None for none, or the template's own.

    Raises:
        UserError: no template among several is meant, or the template raises, loses the user's turn or the
            system's, or changes one in a way that cannot be followed.
    """
    model, given = f"--model_name {model_name or tokenizer.name_or_path}", dict(kwargs or {})
    if refused := sorted(set(given) & set(_TAKEN)):
        raise UserError(f"--chat_template_kwargs {refused[0]}: no variable of a chat template")
    switches = dict.fromkeys(SWITCHES, thinking == "on")
    if thinking != "auto" and (twice := sorted(set(given) & set(SWITCHES))):
        raise UserError(f"--chat_template_kwargs {twice[0]}: contradicts --thinking {thinking}; use one")

    if not tokenizer.chat_template:
        if given:
            raise UserError(f"--chat_template_kwargs: {model} has no chat template that could read them")
        if system_prompt:
            raise UserError(
                f"--system_prompt: {model} has no chat template, so no system turn; --cot_prompt can say it"
            )
        found, can_switch, is_off = PromptFormat(), False, False
    else:
        name, source = _pick_template(tokenizer, given.pop("chat_template", None), model)
        clock = (started or datetime.now()).strftime
        options = {"chat_template": source, "strftime_now": clock, **given}
        chosen = options if thinking == "auto" else options | switches
        found = _follow(tokenizer, chosen, f"{model}: {name}")
        if system_prompt:
            found = _follow(tokenizer, chosen, f"--system_prompt: {model}: {name}", system_prompt.strip())
        on, off = (_switched(tokenizer, options, to, found.system_prompt) for to in (True, False))
        can_switch = on is not None and off is not None and on != off
        is_off = can_switch and found == off
    return _add_reasoning(found, tokenizer, thinking, think_end, can_switch, is_off)


def template_source(tokenizer) -> str:
    """The text of a tokenizer's chat template, of all where there are several; empty where there is none."""
    templates = tokenizer.chat_template or ""
    return templates if isinstance(templates, str) else "\n".join(templates.values())


def _pick_template(tokenizer, wanted: str | None, flag: str) -> tuple[str, str]:
    """What to call the template that is meant, and its source."""
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        if wanted is not None:
            raise UserError(f"--chat_template_kwargs chat_template: {flag} has a single template")
        return "its chat template", templates

    names = ", ".join(sorted(templates))
    chosen = wanted or ("default" if len(templates) > 1 else next(iter(templates)))
    if chosen not in templates:
        problem = f"none of its chat templates ({names}) is called {chosen}"
        advice = f"""--chat_template_kwargs '{{"chat_template": "{sorted(templates)[0]}"}}'"""
        raise UserError(f"{flag}: {problem}; name one: {advice}")
    return f"its chat template {chosen!r}", templates[chosen]


def _follow(tokenizer, options: Mapping[str, Any], name: str, system_prompt: str = "") -> PromptFormat:
    """What stands around a user's turn, and what becomes of it."""
    turn = f"the {'system' if system_prompt else 'user'}'s turn"
    problem, system = "", _SYSTEM if system_prompt else ""
    for as_list in (False, True):  # of parts, as templates of models that also see pictures take it
        try:
            probed = _render(tokenizer, _LEAD + _CORE + _TRAIL, options, as_list, system)
            sample = _render(tokenizer, _SAMPLE, options, as_list, system_prompt)
        except _template_errors() as error:
            problem = problem or f"raises {type(error).__name__}: {str(error)[:200]}"
            continue
        found = _read_probe(options["chat_template"], probed, system_prompt)
        if found and join_parts(found.write([(_SAMPLE, True)]))[0] == sample:
            return found
        problem = f"changes {turn} in a way that cannot be followed" if found else problem
    raise UserError(f"{name} {problem or f'does not show {turn}'}")


def _switched(tokenizer, options: Mapping[str, Any], to: bool, system_prompt: str) -> PromptFormat | None:
    """The same with its reasoning switched; None where the template refuses."""
    try:
        return _follow(tokenizer, {**options, **dict.fromkeys(SWITCHES, to)}, "", system_prompt)
    except UserError:
        return None


def _add_reasoning(
    found: PromptFormat, tokenizer, thinking: str, think_end: str | None, can_switch: bool, is_off: bool
) -> PromptFormat:
    """The format with the model's reasoning block, and whether it is going to be used.

    Args:
        can_switch: whether the template knows a switch.
        is_off: whether the prompts are those with the switch at off.
    """
    vocabulary = tokenizer.get_added_vocab()
    told = [pair for pair in MARKERS if pair[1] in found.template]
    known = told or [pair for pair in MARKERS if pair[1] in vocabulary]
    begin, end = known[0] if known else MARKERS[0]
    if think_end:
        begin, end = begin_of(think_end), think_end
    tail = found.literals[-1].rstrip()
    opened = bool(begin) and tail.endswith(begin)
    closed = tail.endswith(end)
    expected = bool(told or think_end or (known and thinking == "on"))
    thinks = opened or (expected and not closed and not is_off)

    notes = []
    if thinking != "auto" and not can_switch:
        what = "the model has no chat template" if not found.is_chat else "the chat template knows no switch"
        notes.append(
            f"--thinking {thinking}: {what} for it ({', '.join(SWITCHES)}); prompts are as they were"
        )
    if thinking == "on" and not known and not think_end:
        notes.append("--thinking on: nothing names the end of a reasoning; --think_end does, else </think>")
    # a block without a first mark begins with the completion
    opened = opened or (thinks and not begin)
    return replace(found, reasoning=Reasoning(begin, end, opened), thinks=thinks, notes=tuple(notes))


def _render(tokenizer, turn: str, options: Mapping[str, Any], as_list: bool, system_prompt: str) -> str:
    turns = {"system": system_prompt, "user": turn} if system_prompt else {"user": turn}
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_list else text}
        for role, text in turns.items()
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


def _read_probe(source: str, rendered: str, system_prompt: str) -> PromptFormat | None:
    """What stands around the probe, and what became of it; None where it is lost, or the system turn is."""
    if system_prompt and _SYSTEM not in rendered:
        return None
    cases = {_CORE.upper(): "upper", _CORE.lower(): "lower"}
    literals, changes, place = [], [], 0
    for match in re.finditer(_CORE, rendered, re.IGNORECASE):
        left = not rendered.endswith(_LEAD, place, match.start())
        right = not rendered.startswith(_TRAIL, match.end())
        literals.append(rendered[place : match.start() - (0 if left else len(_LEAD))])
        changes.append(Change(left, right, cases.get(match[0], "")))
        place = match.end() + (0 if right else len(_TRAIL))
    if not changes:
        return None
    return PromptFormat(source, (*literals, rendered[place:]), tuple(changes), system_prompt)


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template's code can raise."""
    from jinja2 import TemplateError

    return TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError


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
    unknown_id, unknown = tokenizer.unk_token_id, tokenizer.unk_token  # slow to ask for
    ids: list[int] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spelled = token != unknown_id or unknown in text[start:end]
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
