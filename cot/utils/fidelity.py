"""Does an explanation fit its student? One check for each style and each checkable preference, and copying.

Every check reads the reasoning: the text before the last `####` line. It is false for an explanation
without a digit, for one that repeats a line or a sentence, and above 20,000 characters, so that neither
silence nor stuffing wins. A problem of one step can meet each of them, and all preferences together with any
one style, but that a hint first and no hint exclude each other: a style overlooks a leading "Hint:" line, and
the full-sentence answer a "Check:" line. A text's final number is what `answers.final_answer` reads.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from cot.utils.answers import final_answer
from cot.utils.equations import MAX_CHARS, Equation, equations, plain_number

if TYPE_CHECKING:
    from cot.utils.students import Profile

MAX_SENTENCE_WORDS = 12
MAX_WORDS = 60
NGRAM = 8
MAX_COPYING = 0.2  # share of a text's 8-grams from the memory, above which the text counts as copied

_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)
_ANSWER_LINE = re.compile(r"^[^\S\n]*\**####", re.MULTILINE)
_NUMBERED = re.compile(r"\**(?:step )?(\d{1,2})[.):]\**\s+(?=\S)", re.IGNORECASE)
_LABEL = r"\**{}\s?:\**\s*"
_HINT = re.compile(_LABEL.format("hint"), re.IGNORECASE)
_CHECK = re.compile(_LABEL.format("check"), re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!])\s+|(?<=\?)\s*")
_NUMBER = re.compile(r"[0-9]++(?:,[0-9]{3})*+(?:\.[0-9]++)?(?:/[0-9]++)?")


def reasoning_lines(text: str) -> list[str]:
    """The non-empty lines before the last `####` line, stripped; all of them where there is none.

    >>> reasoning_lines("14+23=37\\n\\n 37-5=32\\n#### 32")
    ['14+23=37', '37-5=32']
    """
    marks = list(_ANSWER_LINE.finditer(text))
    before = text[: marks[-1].start()] if marks else text
    return [line.strip() for line in before.splitlines() if line.strip()]


def numbered_steps(text: str) -> bool:
    """Lines "1. ...", "2. ..." (also "1)" and "Step 1:"), in order from 1, at least two of them, each with
    an equation or three words, and together at least half of the lines."""
    lines = _body(text)
    steps = [(match, line[match.end() :]) for line in lines if (match := _NUMBERED.match(line))]
    in_order = [int(match[1]) for match, _ in steps] == list(range(1, len(steps) + 1))
    filled = all(_has_content(content) for _, content in steps)
    distinct = len({_squeezed(content) for _, content in steps}) == len(steps)
    return len(steps) >= 2 and 2 * len(steps) >= len(lines) and in_order and filled and distinct


def short_sentences(text: str) -> bool:
    """At least two sentences, each of at most 12 words by white space, with an equation or two words, closed
    by "." or "!"; no question, no numbered line; at least half begin with a letter, as equations do not."""
    lines = _body(text)
    sentences = [sentence for line in lines for sentence in _sentences(line)]
    plain = not any(_NUMBERED.match(line) for line in lines)
    short = all(len(s.split()) <= MAX_SENTENCE_WORDS and s.endswith((".", "!")) for s in sentences)
    filled = all(_has_content(sentence, words=2) for sentence in sentences)
    worded = 2 * sum(sentence[0].isalpha() for sentence in sentences) >= len(sentences)
    return len(sentences) >= 2 and plain and short and filled and worded


def guiding_questions(text: str) -> bool:
    """At least two different questions of three words or more, two of them alphabetic, each answered by the
    next sentence, which is no question and holds a number."""
    sentences = [sentence for line in _body(text) for sentence in _sentences(line)]
    asked = {
        _squeezed(question)
        for question, answer in pairwise(sentences)
        if _is_question(question) and not answer.endswith("?") and _has_digit(answer)
    }
    return len(asked) >= 2


def equations_first(text: str) -> bool:
    """Every line begins with an equation of its own ("14+23=37 marbles"); one line is enough."""
    leading = [next(iter(equations(line)), None) for line in _body(text)]
    keys = {equation.key for equation in leading if equation and equation.leads}
    return len(leading) > 0 and len(keys) == len(leading)


def check_at_end(text: str) -> bool:
    """The last line is "Check: ..." with an exactly valid equation that uses the result before it (the last
    equation's, else the final number) and is none of the earlier ones, not even with its terms swapped."""
    lines = _checked_lines(text)
    if len(lines) < 2 or not _CHECK.match(lines[-1]):
        return False
    earlier = equations("\n".join(lines[:-1]))
    result = earlier[-1].numbers[-1] if earlier else _final_number(text)
    seen = {_unordered(equation) for equation in earlier}
    return any(
        equation.valid and result in equation.numbers and _unordered(equation) not in seen
        for equation in equations(_CHECK.sub("", lines[-1], count=1))
    )


def one_step_per_line(text: str) -> bool:
    """At least two lines, each with an equation or three words, none with a second equation or sentence."""
    lines = [_unnumbered(line) for line in _body(text)]
    single = all(len(equations(line)) <= 1 and len(_sentences(line)) == 1 for line in lines)
    return len(lines) >= 2 and single and all(_has_content(line) for line in lines)


def hint_first(text: str) -> bool:
    """The first line is "Hint: ..." with at least three words and without the final number; more follows."""
    lines = _checked_lines(text)
    if len(lines) < 2 or not _HINT.match(lines[0]):
        return False
    hint, final = _HINT.sub("", lines[0], count=1), _final_number(text)
    tells_nothing = final is not None and final not in _numbers(hint)  # two answers hide none
    return len(_words(hint)) >= 3 and tells_nothing and _has_digit("".join(lines[1:]))


def no_hint(text: str) -> bool:
    """No line is a "Hint: ...", and there is an equation or at least three words."""
    lines = _checked_lines(text)
    return _has_content(" ".join(lines)) and not any(_HINT.match(line) for line in lines)


def at_most_60_words(text: str) -> bool:
    """At most 60 words by white space (and 600 characters), with an equation or at least five words."""
    reasoning = "\n".join(_checked_lines(text))
    if not reasoning or len(reasoning.split()) > MAX_WORDS or len(reasoning) > 10 * MAX_WORDS:
        return False
    return len(_words(reasoning)) >= 5 or bool(equations(reasoning))


def full_sentence_answer(text: str) -> bool:
    """The last sentence ends in ".", has four words or more, three of them alphabetic, and holds the final
    number. A "Check:" line does not count."""
    lines = [line for line in _body(text) if not _CHECK.match(line)]
    if not lines:
        return False
    sentence = _sentences(lines[-1])[-1]
    complete = sentence.endswith(".") and len(sentence.split()) >= 4 and len(_words(sentence)) >= 3
    return complete and _final_number(text) in _numbers(sentence)


def reason_with_because(text: str) -> bool:
    """A sentence, no question, with "because" between a statement (three words or an equation) and a reason
    of at least three different words."""
    for sentence in (sentence for line in _checked_lines(text) for sentence in _sentences(line)):
        parts = re.split(r"\bbecause\b", sentence, flags=re.IGNORECASE)
        if (
            len(parts) == 2
            and not sentence.endswith("?")
            and _has_content(parts[0])
            and len(_words(parts[1])) >= 3
        ):
            return True
    return False


EXPLANATION_STYLES: dict[str, Callable[[str], bool]] = {
    "numbered_steps": numbered_steps,
    "short_sentences": short_sentences,
    "guiding_questions": guiding_questions,
    "equations_first": equations_first,
    "check_at_end": check_at_end,
}
CHECKABLE_PREFERENCES: dict[str, Callable[[str], bool]] = {
    "one step per line": one_step_per_line,
    "a hint first": hint_first,
    "no hint": no_hint,
    "at most 60 words": at_most_60_words,
    "the answer in a full sentence": full_sentence_answer,
    "a reason with because": reason_with_because,
}


def constraint_report(text: str, profile: "Profile") -> dict[str, bool]:
    """Which of the student's machine-checkable constraints the text meets, the style first.

    Preferences that are free text have no check and are left out.

    Raises:
        KeyError: the explanation style is none of `EXPLANATION_STYLES`.
    """
    report = {profile.explanation_style: EXPLANATION_STYLES[profile.explanation_style](text)}
    for preference in profile.learning_preferences:
        if preference in CHECKABLE_PREFERENCES:
            report[preference] = CHECKABLE_PREFERENCES[preference](text)
    return report


def fidelity(text: str, profile: "Profile") -> float:
    """Share in [0, 1] of the student's machine-checkable constraints that the text meets."""
    report = constraint_report(text, profile)
    return sum(report.values()) / len(report)


def copying(text: str, memory: str) -> float:
    """Share in [0, 1] of the text's word 8-grams that occur in the memory; 0 below eight words.

    |{i : w_i ... w_(i+7) in 8-grams(memory)}| / (n - 7), over the n lower-cased words and numbers of the
    text; punctuation is ignored.

    Source: the overlap measure of Chowdhery et al. 2022 (arXiv 2204.02311), section 8, with the memory in
    the place of the training data.

    >>> copying("one two three four five six seven eight nine", "One two three four five six seven eight!")
    0.5
    """
    grams, remembered = _ngrams(text), set(_ngrams(memory))
    return sum(gram in remembered for gram in grams) / len(grams) if grams else 0.0


def names_student(text: str, student_id: str, grade_level: str) -> bool:
    """Whether the text gives away the student's id or grade, as whole words, in any case.

    A grade with a number is recognised in its usual forms: "5th grade", "fifth-grader", "grade 5".

    >>> names_student("As a fifth grader you can do it.", "S005", "5th grade")
    True
    """
    forms = [re.escape(student_id), r"[\s-]+".join(map(re.escape, grade_level.split()))]
    number = re.search(r"\d+", grade_level)
    if number:
        value = int(number[0][:3])
        ordinal = f"|{_ORDINALS[value - 1]}" if 1 <= value <= len(_ORDINALS) else ""
        forms += [rf"(?:{value}(?:st|nd|rd|th){ordinal})[\s-]+grade", rf"grade[\s-]+{value}"]
    found = [rf"(?<!\w){form}(?:rs?)?(?!\w)" for form in forms if form]
    return re.search("|".join(found), text, re.IGNORECASE) is not None if found else False


@lru_cache(maxsize=1024)  # every check of a text begins with them
def _checked_lines(text: str) -> tuple[str, ...]:
    """The reasoning lines, none where the explanation is empty, without a digit, repetitive or endless."""
    lines = reasoning_lines(text) if len(text) <= MAX_CHARS else []
    numeric = [_squeezed(_unnumbered(line)) for line in lines if _has_digit(line)]
    sentences = [_squeezed(s) for line in lines for s in _sentences(line) if len(s.split()) >= 3]
    distinct = len(set(numeric)) == len(numeric) and len(set(sentences)) == len(sentences)
    return tuple(lines) if numeric and distinct else ()


def _body(text: str) -> tuple[str, ...]:
    """The checked lines without a leading "Hint:" line."""
    lines = _checked_lines(text)
    return lines[1:] if lines and _HINT.match(lines[0]) else lines


def _sentences(line: str) -> list[str]:
    return [sentence for sentence in _SENTENCE_END.split(_unnumbered(line)) if sentence]


def _unnumbered(line: str) -> str:
    return _NUMBERED.sub("", line, count=1) if _NUMBERED.match(line) else line


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def _has_content(text: str, words: int = 3) -> bool:
    return len(_words(text)) >= words or bool(equations(text))


def _has_digit(text: str) -> bool:
    return re.search("[0-9]", text) is not None


def _is_question(sentence: str) -> bool:
    return sentence.endswith("?") and len(sentence.split()) >= 3 and len(_words(sentence)) >= 2


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


def _numbers(text: str) -> list[str]:
    return [plain_number(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _final_number(text: str) -> str | None:
    """The text's final number without its sign, as `_numbers` writes it; None where there is none."""
    answer = final_answer(text).text
    return answer.removeprefix("-") if answer else None


def _unordered(equation: Equation) -> tuple[str, ...]:
    left, _, right = equation.key.partition("=")
    return *sorted(re.findall(r"[0-9.]+|[-+*/%]", left)), right


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
