"""Find the number that a text answers with: at the last mark of an answer, else in its conclusion.

`first_turn`       the text up to a further question that the model asks itself
`standing_text`    the text without what a correction ("wait, ...") takes back, and without "not 18"
`read_marks`       the last mark with a number: `####`, `\\boxed{}`, "answer is", "Answer:", `<answer>`;
                   a `####` that heads a section is none; two that differ, with nothing between them, conflict
`read_bold`        the last bold number, where nothing is calculated behind it
`read_conclusion`  the number of the last sentence that has one
"""

import math
import re
from fractions import Fraction
from typing import Literal, NamedTuple

from cot.utils.numerals import (
    NUMBER_PATTERN,
    Number,
    Reason,
    has_digit,
    read_sentence,
    read_start,
    read_words,
)

Mark = Literal[
    "hash",  # #### 18
    "boxed",  # \boxed{18}
    "phrase",  # the answer is 18, Answer: 18, <answer>18</answer>, **18** at the end
    "last_number",  # no mark
]

MAX_ANSWER_CHARS = 400
MAX_MARKS = 100  # of one text, counted from its end
MAX_CONCLUSION_CHARS = 2000  # before the last digit of a text without a mark

# What is no answer.
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # 9*2=<<9*2=18>>18
_NEXT_TURN = re.compile(
    r"\n[#*\s]{0,9}(?:(?:next )?question|next problem|(?:problem|exercise) [0-9]|q|human|user|assistant)"
    r"\s?[0-9]{0,3}\*{0,2}[:\n]|<\|(?:im_end|endoftext|eot_id)\|>",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"(?:\A|[.!?,;\n(—-]\s{0,3})(?:no,? )?"
    r"(?:wait|hold on|actually|oops|hmm|scratch that|correction|sorry)\s?(?:[,.!:—…]|- |(?:no|that|I)\b)"
    r"|\blet me (?:recalculate|redo|correct|fix|try again|reconsider)\b|\b(?:a|my) mistake\b|\ban error\b"
    r"|\bthat(?:['’]s| is) (?:not right|wrong|incorrect)\b",
    re.IGNORECASE,
)
_CHECKING = re.compile(r"[^\n]{0,60}\b(?:check|verif|confirm)", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor)|n['’]t)\s(?:be\s)?(?:(?:equal(?: to)?|simply|just)\s)?[*$]{0,3}"
    + NUMBER_PATTERN,
    re.IGNORECASE,
)
_RECITED = re.compile(  # before a mark: the line tells how an answer looks, or what each answer is worth
    r"(?:\b(?:examples?|format|such as|finish with|your (?:final )?answer"
    r"|(?:answer|line|response|solution)s? (?:should|must|ends?))\b|e\.g\.)[^\n]{0,60}\Z"
    r"|\b(?:each|every|per) (?:\w{1,12} )?\Z",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\W*(?:unknown|undefined|none|n/a|nan|inf(?:inity)?|impossible|not enough|cannot|no answer)",
    re.IGNORECASE,
)

# Marks, and what stands behind them.
_BRACED = rf"(?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]{{0,99}}\}}){{0,200}}+\}}){{0,{MAX_ANSWER_CHARS}}}+"
_MARK = re.compile(
    rf"(?P<hash>#{{4,}})|(?:\\f?boxed|\\(?:f|frame)box|\bboxed)\s{{0,2}}\{{(?P<boxed>{_BRACED})\}}"
    r"|(?P<tag><(?:final_)?answer>)|(?P<behind>\s(?:is|as) (?:the|our|my) (?:final |correct )?answer\b)"
    r"|(?P<phrase>"
    r"(?<![A-Za-z])(?:answer|ans|final result|respuesta|réponse|resposta|risposta|antwort)(?![A-Za-z])"
    r"(?:\s(?:to|for)\s[^.:\n]{1,80}?)?[*_\s]{0,4}"
    r"(?:\b(?:is|was|equals|(?:would|should|must|will) be|es|est|é|è|ist|lautet)\b|(?=can)|[:=→—]|-\s)"
    r"|\bfinal\s{1,2}answer\b|\banswer(?=[*_ ]{0,4}\n)|(?:答案|答え|答)\s?(?:[是为は]|:))",
    re.IGNORECASE,
)
_MARK_NAMES: dict[str, Mark] = {
    "hash": "hash",
    "boxed": "boxed",
    "tag": "phrase",
    "phrase": "phrase",
    "behind": "phrase",
}
_FACTORIAL = re.compile(r"\s*([1-6]?[0-9])!\s*")
_OPENING = re.compile(r"answer[*_\s]{0,4}:?", re.IGNORECASE)  # of the answer, or of the whole solution
_CHECK = re.compile(r"\n[\W0-9]{0,9}(?:check|verif|note|explanation|reason)\w{0,9}[*_]{0,2}[:\n]", re.I)
_NEXT_STEP = re.compile(r"\n\W{0,5}(?:next|now|then|second|step)\b(?![^\n]{0,60}(?:check|verif))", re.I)

# A `####` that heads a section: "1. Calculate", "1st day", or a lone number above the section's text.
_HASH_LABEL = re.compile(r"[\W_]*(?:[A-Z]|total|sum|result|answer|solution)\s?[:=]", re.IGNORECASE)
_ITEM = re.compile(r"[\s*]*\(?(?P<item>[0-9]{1,2})(?:[.):]|\s-|(?:st|nd|rd|th)\b:?)\s+\S*?[A-Za-z\\0-9]")
_SECTION = re.compile(r"[^\S\n]*(?P<title>[0-9][^\n]*)\n[^\S\n]*[^\s#]")

# What is said without a mark.
_BOLD = re.compile(r"\*\*([^*\n]{1,100})\*\*|__([^_\n]{1,100})__|<(?:b|strong)>([^<\n]{1,100})</")
_BARE = re.compile(  # Total: 18 eggs
    r"[\W_]*(?:[A-Za-z '-]{1,40}[:=])?[\W_]*[0-9][0-9.,]*(?:[^\S\n]?[A-Za-z%°$€£²]{1,15}){0,2}[\s.!)*_]{0,5}"
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|therefore|hence|should|total|altogether|in all|leaves)\b", re.IGNORECASE
)
_CHATTER = re.compile(r"\b(?:let me know|I hope|hope this|feel free|happy to help|anything else)\b", re.I)
_AT_FIRST = re.compile(r"\b(?:started|began|begins|originally|initially|at first)\b", re.IGNORECASE)
_ENUMERATED = re.compile(r"\A\s*(?:[-*•#]{1,6}\s+)?\(?[0-9]{1,3}[.)]\s+(?=\S)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Answer(NamedTuple):
    """What a text answers: exact value and plain text, or the reason why there is none; and by which mark."""

    value: Fraction | None
    text: str | None
    reason: Reason | None
    mark: Mark | None


def first_turn(text: str) -> str:
    """The text up to where another question begins behind a first number."""
    first = re.search("[0-9]", text)
    turn = _NEXT_TURN.search(text, first.start()) if first else None
    return text[: turn.start()] if turn else text


def standing_text(text: str) -> str:
    """The text without what a correction takes back, denied numbers and GSM8K's calculator annotations."""
    text = _ANNOTATION.sub("", text)
    last, begin = _last_digit(text), 0
    for correction in _CORRECTION.finditer(text):
        end = correction.end()
        is_check = _CHECKING.match(text, end) and not _CONCLUDES.search(text, end, end + MAX_ANSWER_CHARS)
        if end <= last and not is_check:
            begin = end
    return _DENIED.sub("not", text[begin:])


def read_marks(text: str) -> Answer | None:
    """The last marked answer; None where no mark has one."""
    marks = list(_MARK.finditer(text))[-MAX_MARKS:]
    headings = _find_headings(text, marks)
    next_step = max((step.start() for step in _NEXT_STEP.finditer(text)), default=-1)
    answer, later = None, None
    for mark in reversed(marks):
        is_step = mark.lastgroup != "hash" and mark.end() <= next_step and answer is None
        number = None if is_step or mark.start() in headings else _read_mark(text, mark)
        if number is None:
            continue
        if answer is None:
            answer = Answer(*number, _MARK_NAMES[mark.lastgroup])
        elif not _is_silent(text[mark.end() : later.start()], mark.lastgroup):
            break
        elif number.reason == "conflicting_answers" or number.value not in (None, answer.value):
            return Answer(None, None, "conflicting_answers", answer.mark)
        later = mark
    return answer


def read_bold(text: str) -> Answer | None:
    """The last bold number that is all of its span, where the text calculates nothing behind it."""
    end = len(text)
    for bold in reversed(list(_BOLD.finditer(text))[-MAX_MARKS:]):
        if "=" in text[bold.end() : end] or _CONCLUDES.search(text, bold.end(), end):
            return None
        end = bold.start()
        if not _BARE.fullmatch(bold[1] or bold[2] or bold[3]):
            continue
        line = text[text.rfind("\n", 0, bold.start()) + 1 :].partition("\n")[0][:MAX_CONCLUSION_CHARS]
        if len(_BOLD.findall(line)) > 1:  # **18** eggs in **3** days
            number = read_sentence(line)
        else:
            number = read_start(text[bold.start() : bold.end() + MAX_ANSWER_CHARS])
        return Answer(*number, "phrase") if number else None
    return None


def read_conclusion(text: str) -> Answer:
    """The number of the last sentence that has one."""
    for said_after in (_CHATTER, _CHECK):
        before = said_after.split(text, maxsplit=1)[0]
        text = before if has_digit(before) else text
    last = _last_digit(text)
    if last < 0:
        return Answer(*(read_words(text) or Number(None, None, "no_number")), None)

    spare = None
    for line in reversed(text[max(0, last - MAX_CONCLUSION_CHARS) :].split("\n")):
        for sentence in reversed(_SENTENCE_END.split(_ENUMERATED.sub("", line))):
            is_said_before = _AT_FIRST.search(sentence) and "=" not in sentence
            if not is_said_before and (number := read_sentence(sentence)):
                return Answer(*number, "last_number")
            spare = spare or read_sentence(sentence, names=True)
    return Answer(*(spare or Number(None, None, "no_number")), "last_number" if spare else None)


def _read_mark(text: str, mark: re.Match[str]) -> Number | None:
    """The number behind one mark; None where it is no answer: a placeholder, a recited format, a heading."""
    if _RECITED.search(text[max(0, mark.start() - 150) : mark.start()]):
        return None
    kind, segment = mark.lastgroup, text[mark.end() : mark.end() + MAX_ANSWER_CHARS]
    if kind == "boxed":
        return _read_box(mark["boxed"], segment)
    if kind == "behind":  # 18 is the answer
        return read_sentence(_SENTENCE_END.split(text[max(0, mark.start() - 150) : mark.start()])[-1])
    if kind == "tag":
        segment = segment.partition("</")[0].strip().rpartition("\n")[2]

    line = segment.lstrip("*_: \n").partition("\n")[0]
    sentence = _SENTENCE_END.split(line)[0]
    if _OPENING.fullmatch(mark[0]) and not _BARE.fullmatch(sentence):
        behind = text[text.index(sentence, mark.end()) + len(sentence) :]
        if "=" in _CHECK.split(behind)[0]:
            return None  # "Answer: 16 - 7 = 9 eggs are left. 9 * 2 = 18"

    if number := read_start(segment, label=_HASH_LABEL if kind == "hash" else None):
        return number
    if _REFUSED.match(line):
        return Number(None, None, "no_number")
    if kind == "hash":
        return None if has_digit(segment) else read_words(line)
    return read_sentence(sentence) or read_words(sentence)


def _read_box(content: str, following: str) -> Number | None:
    if factorial := _FACTORIAL.fullmatch(content):
        product = math.factorial(int(factorial[1]))
        return Number(Fraction(product), str(product), None)
    number = read_start(content)
    if number and number.reason == "expression":  # \boxed{15 + 12} = 27
        number = read_start(content + following)
    return number or read_sentence(content) or read_words(content)


def _find_headings(text: str, marks: list[re.Match[str]]) -> set[int]:
    """Where the `####` stand that head a section."""
    headings, titles = set(), {}
    for mark in marks:
        if mark.lastgroup != "hash":
            continue
        if item := _ITEM.match(text, mark.end()):
            number, before = int(item["item"]), text[max(0, mark.start() - 4000) : mark.start()]
            if number < 10 or re.search(rf"^[#\s*]*{number - 1}[.):]", before, re.MULTILINE):
                headings.add(mark.start())
        elif section := _SECTION.match(text, mark.end()):
            titles[mark.start()] = section
    if len({section["title"].strip() for section in titles.values()}) > 1:
        return headings | set(titles)
    for start, section in titles.items():
        # nothing stands above it, and what stands below comes to another number
        title, below = section["title"].strip(), text[section.end() - 1 :]
        is_first = not has_digit(text[:start]) and not _CHECK.match(text, section.end("title"))
        is_followed = "=" in below or (title == "1" and has_digit(below))
        if is_first and is_followed and read_conclusion(below).value != read_start(title).value:
            headings.add(start)
    return headings


def _is_silent(gap: str, kind: str | None) -> bool:
    """Whether nothing is said between two marks, apart from the first one's own line and "So, the ..."."""
    if kind != "boxed":
        gap = re.sub(r"\A[^\n]*?(?:[.;]\s|\n|\Z)", "", gap)
    return not re.search(r"\b(?!(?:so|thus|therefore|hence|and|or|the|final|correct|my)\b)[^\W_]", gap, re.I)


def _last_digit(text: str) -> int:
    """Where the last digit stands; -1 where there is none."""
    return max(text.rfind(digit) for digit in "0123456789")
