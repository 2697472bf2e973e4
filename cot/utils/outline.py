r"""What a reader sees of an explanation: lines, sentences, numbered steps, and whether it repeats itself.

The reasoning is the text before the last answer line. An answer line begins with `####` and holds a number or
nothing at all; `#### 2. Subtract` and `#### Step 2: Subtract` head a section. All but `reasoning_lines` is
rendered first (`rendering`). A displayed formula, `\[ ... \]`, is a line of its own and part of the sentence
that leads to it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from cot.utils.equations import MAX_CHARS, equations
from cot.utils.rendering import rendered_text

MAX_STEP_LINES = 8  # of one numbered step, that count as its own
MAX_REPEATED = 0.1  # share of the sentences that were said before

_TITLE = r"(?:step[^\S\n]?)?[0-9]{1,2}[.):]\**[^\S\n]+\S"
_ANSWER_LINE = re.compile(
    rf"^[^\S\n]*\**####(?![^\S\n]*\**{_TITLE})(?=[^\n]*[0-9]|[\s*#]*$)", re.MULTILINE | re.IGNORECASE
)
_NUMBERED = re.compile(
    r"(?:\(?([0-9]{1,2})[.):]\s+(?=\S)|step ?([0-9]{1,2})(?:[.):]\s*|\s[-–—]\s+|\Z))", re.IGNORECASE
)
_DISPLAYED = re.compile(r"\\\[(.*?)(?:\\\]|\Z)|\$\$(.*?)\$\$", re.DOTALL)
_FORMULA = "\ue000"  # stands before a displayed formula while the text is rendered
_SENTENCE_END = re.compile(r"(?<=[.!])\s+|(?<=\?)\s*")
_LEADS = re.compile(r"[A-Za-z:,]\Z")  # to a formula
_LABEL_ALONE = re.compile(r"(?:a )?(?:hint|check|verification)\s?:?", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """A line as it is seen.

    Attributes:
        text: stripped, without the number that it begins with.
        number: of a numbered step; None in other lines.
        indent: characters of white space before it.
        is_formula: whether it is a displayed formula, or goes on with one ("= 12").
        begins_paragraph: whether an empty line stands before it.
    """

    text: str
    number: int | None = None
    indent: int = 0
    is_formula: bool = False
    begins_paragraph: bool = False


def reasoning_lines(text: str) -> list[str]:
    """The non-empty lines before the last answer line, stripped, not rendered; all where there is none.

    >>> reasoning_lines("#### 1. Add\\n14+23=37\\n\\n 37-5=32\\n#### 32")
    ['#### 1. Add', '14+23=37', '37-5=32']
    """
    return [line.strip() for line in _reasoning(text).splitlines() if line.strip()]


@lru_cache(maxsize=1024)  # every check of a text begins with them
def outline(text: str) -> tuple[Line, ...]:
    """The lines of the reasoning as they are seen; none of a text above 20,000 characters."""
    if len(text) > MAX_CHARS:
        return ()
    reasoning = _DISPLAYED.sub(_on_its_own_line, _reasoning(text).replace(_FORMULA, " "))
    lines: list[Line] = []
    is_empty_before = False
    for row in rendered_text(reasoning).splitlines():
        seen = row.replace(_FORMULA, "").strip()
        if not re.search(r"\w", seen):
            is_empty_before = _FORMULA not in row  # a formula's own marks leave no empty line
            continue
        is_formula = _FORMULA in row or seen.startswith("=")
        numbered = None if is_formula else _NUMBERED.match(seen)
        if lines and lines[-1].number is None and not numbered and _LABEL_ALONE.fullmatch(lines[-1].text):
            lines[-1] = Line(f"{lines[-1].text.rstrip(': ')}: {seen}", indent=lines[-1].indent)
            continue
        number = int(numbered[1] or numbered[2]) if numbered else None
        seen = seen[numbered.end() :] if numbered else seen
        indent = len(row) - len(row.lstrip())
        lines.append(Line(seen, number, indent, is_formula, is_empty_before))
        is_empty_before = False
    return tuple(lines)


def has_answer_line(text: str) -> bool:
    """Whether an answer line ends the reasoning."""
    return _ANSWER_LINE.search(text) is not None


def sentences(lines: Sequence[Line]) -> list[str]:
    """The sentences of the lines, each on one line but for the formula that it leads to ("it is:")."""
    found: list[str] = []
    for line in lines:
        goes_on = line.is_formula and found and (line.text.startswith("=") or _LEADS.search(found[-1]))
        if goes_on:
            found[-1] += f" {line.text}"
        else:
            found += split_sentences(line.text)
    return found


def split_sentences(line: str) -> list[str]:
    """The sentences of one line."""
    return [sentence for sentence in _SENTENCE_END.split(line) if sentence]


def numbered_runs(lines: Sequence[Line]) -> list[list[list[Line]]]:
    """Runs of numbered steps, each from 1 on; a step is its lines. Empty where a number is out of order.

    A list within a step is part of it. To a step belong the lines up to the next one of its run; to the last
    one its formulas, what is indented, and what follows without an empty line where the steps before have
    such lines, too.
    """
    numbered = [index for index, line in enumerate(lines) if line.number is not None]
    outermost = min((lines[index].indent for index in numbered), default=0)
    numbered = [index for index in numbered if lines[index].indent < outermost + 2]
    runs: list[list[list[Line]]] = []
    for index, following in pairwise([*numbered, len(lines)]):
        number = lines[index].number
        if number != 1 and (not runs or number != len(runs[-1]) + 1):
            return []
        if number == 1:
            runs.append([])
        is_last = following == len(lines) or lines[following].number == 1
        has_bodies = all(len(step) > 1 for step in runs[-1]) and len(runs[-1]) > 0
        end = _end_of_last(lines, index, following, outermost, has_bodies) if is_last else following
        runs[-1].append(list(lines[index:end]))
    return runs


def is_repetitive(lines: Sequence[Line]) -> bool:
    """Whether more than a tenth of the sentences were said before, or one is said three times.

    A sentence has three words or a digit, its step's number being one. The steps of a plan may return as the
    heads of the steps.
    """
    heads = [line.text for line in lines if line.number is not None]
    short = [head for head in heads if not _is_sentence(head)]
    planned = {_squeezed(head) for head in heads if _is_sentence(head) and not re.search("[0-9]", head)}
    said = Counter(map(_squeezed, [*short, *filter(_is_sentence, sentences(lines))]))
    again = sum(count - 1 for key, count in said.items() if key not in planned or count > 2)
    return again > MAX_REPEATED * sum(said.values()) or any(count > 2 for count in said.values())


def has_content(text: str, words: int = 3) -> bool:
    """Whether a text holds an equation, or that many different words."""
    return len(distinct_words(text)) >= words or bool(equations(text))


def distinct_words(text: str) -> set[str]:
    """The alphabetic words of a text, in lower case."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def _reasoning(text: str) -> str:
    marks = list(_ANSWER_LINE.finditer(text))
    return text[: marks[-1].start()] if marks else text


def _on_its_own_line(formula: re.Match[str]) -> str:
    if not formula[0].endswith(("]", "$$")):  # cut off
        return "\n" + formula[0]
    inside = " ".join((formula[1] or formula[2] or "").split())
    return f"\n{_FORMULA}{inside}\n{_FORMULA}"


def _end_of_last(lines: Sequence[Line], head: int, following: int, outermost: int, has_bodies: bool) -> int:
    """Where the last step of a run ends, which begins at `head`."""
    is_title = lines[head].text.endswith(":")
    for index in range(head + 1, following):
        line = lines[index]
        is_inside = line.is_formula or line.indent > outermost
        leads_on = index == head + 1 and is_title
        goes_on = has_bodies and not line.begins_paragraph
        if not (is_inside or leads_on or goes_on):
            return index
    return following


def _is_sentence(text: str) -> bool:
    return len(text.split()) >= 3 or re.search("[0-9]", text) is not None


def _squeezed(text: str) -> str:
    return "".join(text.lower().split()).rstrip(".:")
