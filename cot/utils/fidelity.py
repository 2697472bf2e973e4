"""Does an explanation fit its student? One check for each style and each checkable preference, and copying.

Every check reads the reasoning as it is seen (`outline`): the text before the answer line, without the marks
of markdown and LaTeX. It is false for an explanation without a digit, for one that repeats itself, and above
20,000 characters, so that neither silence nor stuffing wins. A problem of one step can meet each of them, and
all preferences together with any one style, but that a hint first and no hint exclude each other: a style
overlooks a leading "Hint:" line, and the full-sentence answer a "Check:" line. A text's final number is what
`answers.final_answer` reads.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from cot.utils.answers import final_answer
from cot.utils.equations import Equation, equations, plain_number
from cot.utils.outline import (
    MAX_STEP_LINES,
    Line,
    distinct_words,
    has_answer_line,
    has_content,
    is_repetitive,
    numbered_runs,
    outline,
    sentences,
    split_sentences,
)

if TYPE_CHECKING:
    from cot.utils.students import Profile

MAX_SENTENCE_WORDS = 12
MAX_WORDS = 60
NGRAM = 8
REMEMBERED = 4096  # texts
MAX_COPYING = 0.2  # share of a text's 8-grams from the memory, above which the text counts as copied

_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)
_HINT = re.compile(r"(?:a )?hint\s?:\s*", re.IGNORECASE)
_CHECK = re.compile(
    r"(?:(?:check|verification)(?: (?:of )?(?:the|your|our) [a-z]{4,12})?\s?:\s*"
    r"|(?:(?:now,? )?let(?:'|’)?s |let us |we can |to )(?:double-?)?(?:check|verify)\b[^:.,\n]{0,60}[:.,]?"
    r"\s*)",
    re.IGNORECASE,
)
_STATED = re.compile(  # leads to a displayed formula as a statement does, and "write the answer:" does not
    r"\b(?:is|are|was|were|be|has|have|had|equals?|makes?|gives?|gets?|costs|needs?|total of)\b"
    r"[^.\n]{0,30}\Z",
    re.IGNORECASE,
)
_TERM = r"(?<![\d.,/$(])[$(]*+\d[\d.,/%]*+\)?"
_EQUATION = re.compile(  # in a sentence, however it is spaced: 68 - 8 = 60, 3 pizzas * 12 slices each = 36
    rf"(?:{_TERM}(?: [a-z/]++){{0,2}}+\s*+[-+*/×÷=]\s*+)+{_TERM}"
)
_NUMBER = re.compile(r"[0-9]++(?:,[0-9]{3})*+(?:\.[0-9]++)?(?:/[0-9]++)?")


def numbered_steps(text: str) -> bool:
    """Steps "1. ...", "2. ..." (also "1)" and "Step 1:"), in order from 1, at least two of them, each with an
    equation or three words (but for one more at the end, as a cut leaves it), no two the same; with what
    stands below them at least half of the lines."""
    lines = _body(text)
    runs = numbered_runs(lines)
    steps = [[" ".join(line.text for line in step) for step in run] for run in runs]
    if steps and len(steps[-1]) > 2 and not has_content(steps[-1][-1]):
        steps[-1].pop()
    covered = sum(min(len(step), MAX_STEP_LINES) for run in runs for step in run)
    filled = all(has_content(content) for run in steps for content in run)
    distinct = all(len(set(map(_squeezed, run))) == len(run) for run in steps)
    return any(len(run) >= 2 for run in steps) and 2 * covered >= len(lines) and filled and distinct


def short_sentences(text: str) -> bool:
    """At least two sentences, each of at most 12 words by white space (an equation is one, however it is
    spaced), with an equation or two words, closed by ".", "!" or a displayed formula; no question, no
    numbered line; at least half begin with a letter, as equations do not."""
    lines = _body(text)
    plain = not any(line.number is not None for line in lines)
    found = sentences(lines)
    formulas = {line.text for line in lines if line.is_formula}
    short = all(_count_words(s, formulas) <= MAX_SENTENCE_WORDS and _is_closed(s, formulas) for s in found)
    filled = all(has_content(sentence, words=2) for sentence in found)
    worded = 2 * sum(sentence[0].isalpha() for sentence in found) >= len(found)
    enough = len([sentence for sentence in found if sentence not in formulas]) >= 2
    return enough and plain and short and filled and worded


def guiding_questions(text: str) -> bool:
    """At least two different questions of three words or more, two of them alphabetic, each answered by the
    next sentence, which is no question and holds a number."""
    asked = {
        _squeezed(question)
        for question, answer in pairwise(sentences(_body(text)))
        if _is_question(question) and not answer.endswith("?") and _has_digit(answer)
    }
    return len(asked) >= 2


def equations_first(text: str) -> bool:
    """Every line begins with an equation of its own ("14+23=37 marbles"); one line is enough. A last line
    that gives the answer in the place of an answer line needs none."""
    lines = _body(text)
    if len(lines) > 1 and _gives_answer(lines[-1], text):
        lines = lines[:-1]
    leading = [None if line.number is not None else next(iter(equations(line.text)), None) for line in lines]
    keys = {equation.key for equation in leading if equation and equation.leads}
    return len(leading) > 0 and len(keys) == len(leading)


def check_at_end(text: str) -> bool:
    """The last line is "Check: ..." or "Let's check ..." with an exactly valid equation that uses the result
    before it (the last equation's, else the final number) and is none of the earlier ones, not even with its
    terms swapped. Its formulas may stand below it, and after them a line that gives the answer in the place
    of an answer line."""
    lines = _checked_lines(text)
    start = max((index for index, line in enumerate(lines) if _CHECK.match(line.text)), default=0)
    rest = lines[start + 1 :]
    if rest and _gives_answer(rest[-1], text):
        rest = rest[:-1]
    if start == 0 or not all(line.is_formula for line in rest):
        return False
    earlier = equations(_joined(lines[:start]))
    result = earlier[-1].numbers[-1] if earlier else _final_number(text)
    seen = {_unordered(equation) for equation in earlier}
    check = "\n".join([_CHECK.sub("", lines[start].text, count=1), *(line.text for line in rest)])
    return any(
        equation.valid and result in equation.numbers and _unordered(equation) not in seen
        for equation in equations(check)
    )


def one_step_per_line(text: str) -> bool:
    """At least two lines with an equation or three words, none with a second equation or sentence. A chain is
    one equation; a title (":" at its end), a displayed formula and an item ("Socks: $11") need no words."""
    lines = _body(text)
    single = all(_count_steps(line.text) <= 1 for line in lines)
    filled = [has_content(line.text) for line in lines]
    fair = all(
        is_filled or line.is_formula or line.text.endswith(":") or _is_item(line.text)
        for line, is_filled in zip(lines, filled, strict=True)
    )
    return sum(filled) >= 2 and single and fair


def hint_first(text: str) -> bool:
    """The first line is "Hint: ..." with at least three words and without the final number; more follows."""
    lines = _checked_lines(text)
    if len(lines) < 2 or not _HINT.match(lines[0].text):
        return False
    hint, final = _HINT.sub("", lines[0].text, count=1), _final_number(text)
    tells_nothing = final is not None and final not in _numbers(hint)  # two answers hide none
    return len(distinct_words(hint)) >= 3 and tells_nothing and _has_digit(_joined(lines[1:]))


def no_hint(text: str) -> bool:
    """No line is a "Hint: ...", and there is an equation or at least three words."""
    lines = _checked_lines(text)
    return has_content(_joined(lines)) and not any(_HINT.match(line.text) for line in lines)


def at_most_60_words(text: str) -> bool:
    """At most 60 words by white space (and 600 characters), with an equation or at least five words."""
    reasoning = _joined(_checked_lines(text))
    if not reasoning or len(reasoning.split()) > MAX_WORDS or len(reasoning) > 10 * MAX_WORDS:
        return False
    return len(distinct_words(reasoning)) >= 5 or bool(equations(reasoning))


def full_sentence_answer(text: str) -> bool:
    """The last sentence ends in ".", or in "is:" and the like with a displayed formula, has four words or
    more, three of them alphabetic, and holds the final number, after a colon only where a statement leads to
    it ("find the cost: 5*2=10." is none). A "Check:" line does not count, nor what only leads to the answer
    line."""
    lines = [line for line in _body(text) if not _CHECK.match(line.text)]
    found = sentences(lines)
    if found and found[-1].endswith(":") and has_answer_line(text):
        found.pop()
    if not found or not lines[-1].text:  # "Step 3:" and no more
        return False
    sentence, formula = found[-1], lines[-1].text if lines[-1].is_formula else ""
    is_statement = _STATED.search(sentence.removesuffix(formula)) is not None if formula else False
    complete = len(sentence.split()) >= 4 and len(distinct_words(sentence)) >= 3
    is_closed = sentence.endswith(".") or is_statement
    final, (head, colon, _) = _final_number(text), sentence.partition(":")
    is_told = not colon or final in _numbers(head) or _STATED.search(head) is not None
    return is_closed and is_told and complete and final in _numbers(sentence)


def reason_with_because(text: str) -> bool:
    """A sentence, no question, with one "because", a statement (three words or an equation) and a reason of
    at least three different words: "A because B.", or "Because B, A."."""
    for sentence in sentences(_checked_lines(text)):
        parts = re.split(r"\bbecause\b", sentence, flags=re.IGNORECASE)
        if len(parts) != 2 or sentence.endswith("?"):
            continue
        statement, reason = parts
        if not statement.strip():
            reason, _, statement = reason.partition(", ")
        if has_content(statement) and len(distinct_words(reason)) >= 3:
            return True
    return False


Check = Callable[[str], bool]
EXPLANATION_STYLES: dict[str, Check] = {
    "numbered_steps": numbered_steps,
    "short_sentences": short_sentences,
    "guiding_questions": guiding_questions,
    "equations_first": equations_first,
    "check_at_end": check_at_end,
}
CHECKABLE_PREFERENCES: dict[str, Check] = {
    "one step per line": one_step_per_line,
    "a hint first": hint_first,
    "no hint": no_hint,
    "at most 60 words": at_most_60_words,
    "the answer in a full sentence": full_sentence_answer,
    "a reason with because": reason_with_because,
}


@lru_cache(maxsize=REMEMBERED)  # rewards ask of one text for several students
def met_checks(text: str) -> tuple[str, ...]:
    """The names of all styles and checkable preferences that the text meets, styles first."""
    return tuple(name for name, check in (EXPLANATION_STYLES | CHECKABLE_PREFERENCES).items() if check(text))


def checkable_wishes(profile: "Profile") -> tuple[str, ...]:
    """The student's wishes that a check can judge, the style first; those in free text are left out."""
    style = [profile.explanation_style] if profile.explanation_style else []
    return *style, *(wish for wish in profile.learning_preferences if wish in CHECKABLE_PREFERENCES)


def has_wishes(profile: "Profile") -> bool:
    """Whether there is anything about the student that a check can judge."""
    return bool(checkable_wishes(profile))


def share_met(wishes: Sequence[str], met: Collection[str]) -> float | None:
    """Fidelity: the share in [0, 1] of a student's `checkable_wishes` that are met; None without wishes.

    Args:
        met: of a text, as `met_checks` names them.

    >>> share_met(("numbered_steps", "no hint"), ["short_sentences", "no hint"])
    0.5
    """
    return sum(wish in met for wish in wishes) / len(wishes) if wishes else None


def fidelity(text: str, profile: "Profile") -> float | None:
    """Share in [0, 1] of the student's checkable constraints that the text meets; None where it has none."""
    return share_met(checkable_wishes(profile), met_checks(text))


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
def _checked_lines(text: str) -> tuple[Line, ...]:
    """The lines as they are seen, none where the explanation is without a digit, repetitive or endless."""
    lines = outline(text)
    has_digit = any(line.number is not None or _has_digit(line.text) for line in lines)
    is_fair = has_digit and not is_repetitive(lines)
    return lines if is_fair else ()


def _body(text: str) -> tuple[Line, ...]:
    """The checked lines without a leading "Hint:" line."""
    lines = _checked_lines(text)
    return lines[1:] if lines and _HINT.match(lines[0].text) else lines


def _joined(lines: Sequence[Line]) -> str:
    return "\n".join(line.text for line in lines)


def _count_words(sentence: str, formulas: Collection[str]) -> int:
    """Words by white space; an equation is one, and so is a displayed formula at the end."""
    formula = next((formula for formula in formulas if sentence.endswith(formula)), "")
    words = _EQUATION.sub("=", sentence.removesuffix(formula)).split()
    return len(words) + bool(formula)


def _is_closed(sentence: str, formulas: Collection[str]) -> bool:
    return sentence.endswith((".", "!", *formulas))


def _count_steps(line: str) -> int:
    """Sentences, or equations where these are more; a chain is one."""
    return max(len(split_sentences(line)), sum(not equation.goes_on for equation in equations(line)))


def _is_item(line: str) -> bool:
    """Whether a line gives one thing its number: "Socks: $11", "Total = $71"."""
    return re.search(r"[A-Za-z]\s?:|=", line) is not None and _has_digit(line)


def _gives_answer(line: Line, text: str) -> bool:
    """Whether a last line says the final number in words, where no answer line does."""
    says = line.number is None and len(distinct_words(line.text)) >= 3 and not _CHECK.match(line.text)
    is_free = says and not equations(line.text) and not has_answer_line(text)
    return is_free and _final_number(text) in _numbers(line.text)


def _has_digit(text: str) -> bool:
    return re.search("[0-9]", text) is not None


def _is_question(sentence: str) -> bool:
    return sentence.endswith("?") and len(sentence.split()) >= 3 and len(distinct_words(sentence)) >= 2


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


def _numbers(text: str) -> list[str]:
    return [plain_number(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _final_number(text: str) -> str | None:
    """The text's final number without its sign, as `_numbers` writes it; None where there is none."""
    answer = final_answer(text, False).text  # called as the score does, it is found among what is remembered
    return answer.removeprefix("-") if answer else None


def _unordered(equation: Equation) -> tuple[str, ...]:
    left, _, right = equation.key.partition("=")
    return *sorted(re.findall(r"[0-9.]+|[-+*/%]", left)), right


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
