r"""A text as its reader sees it: markdown and LaTeX rendered, one line a line.

Models write `**Add**: \( 9 \times \frac{6}{2} = 27 \)` and a reader sees "Add: 9 × 6/2 = 27". What is said is
kept and its marks are dropped; what needs the marks of an answer (`####`, `\boxed{}`, bold) reads
`numerals.plain_text`, with which this shares the spelling of characters and numbers. A list's dash, a
heading's `#` and the `$` around a formula go; the `$` of $18, the `*` of 9 * 2 and a list's numbers stay.
"""

import re
from functools import lru_cache

from cot.utils.numerals import plain_text

MAX_NESTING = 5  # of commands within arguments of others

_MARKS = re.compile(r"[\\*_#`~<>$&•·∙]|^[^\S\n]*[-+]\s", re.MULTILINE)  # without any, nothing is to be done
_CALCULATED = re.compile(r"(?<!\A)[-+*×÷]|\\(?:times|cdot|div)\b|/\s*[0-9(]")  # of a fraction's side

# LaTeX. An argument without braces of its own, so that each pass opens the innermost commands.
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|bb|cal)?|mbox|hbox|operatorname\*?|emph|underline"
    r"|fbox|framebox|f?boxed)[^\S\n]?\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac[^\S\n]?\{([^{}]*)\}[^\S\n]?\{([^{}]*)\}")
_LATEX = (
    (re.compile(r"\\(?:begin|end)\{[^{}\n]{0,30}\}(?:\{[^{}\n]{0,30}\})?"), ""),
    (re.compile(r"\\\\(?=\s|&|\Z)[^\S\n]*\n?"), "\n"),  # a row of a table of equations
    (re.compile(r"(?<!\\)&"), ""),
    (re.compile(r"\\[()\[\]]|\$\$"), ""),
    (re.compile(r"\\(?:left|right|[Bb]igg?[lr]?)(?=\\?[()\[\]{}|.])\.?"), ""),
    (re.compile(r"(?<![\\$])\$(?=[^\s$])([^$\n\\]*(?:\\.[^$\n\\]*)*)(?<=[^\s\\])\$(?![\w$])"), "formula"),
)

# Markdown, line by line and within a line.
_MARKDOWN = (
    (re.compile(r"^[^\S\n]*(?:```|~~~)[^\n]*$", re.MULTILINE), ""),
    (re.compile(r"^[^\S\n]*(?:[-*_][^\S\n]?){3,}$", re.MULTILINE), ""),  # a rule
    (re.compile(r"^([^\S\n]*)(?:>[^\S\n]?)*(?:#{1,6}[^\S\n]+|[-*+•·∙][^\S\n]+)*", re.MULTILINE), r"\1"),
    (re.compile(r"(?<![0-9*])\*{2,3}|\*{2,3}(?![0-9*])"), ""),  # bold, and not the power of 2**3
    (re.compile(r"(?<!\w)__(?=\w)|(?<=\S)__(?!\w)|`"), ""),
    (re.compile(r"(?<![\w*)])\*(?=[A-Za-z(])([^*\n]*)(?<=[A-Za-z.,:!?)])\*(?![\w*])"), r"\1"),  # italics
    (re.compile(r"</?[A-Za-z]{1,8}>"), ""),
)


@lru_cache(maxsize=4096)  # many checks read the same texts and lines
def rendered_text(text: str) -> str:
    r"""The text without marks of markdown and LaTeX, in plain characters; every line stays a line.

    >>> rendered_text(r"1. **Add**: \( 12 \text{ eggs} \times \frac{4 + 2}{3} = \boxed{24} \)")
    '1. Add:  12  eggs ×  (4 + 2)/3 = 24 '
    >>> rendered_text("$18 and $20 are *ordinary* dollars, and $9 * 2 = 18$ is a formula.")
    '$18 and $20 are ordinary dollars, and 9 * 2 = 18 is a formula.'
    """
    if _MARKS.search(text):
        text = _render_latex(text)
        for pattern, replacement in _MARKDOWN:
            text = pattern.sub(replacement, text)
    return plain_text(text)


def _render_latex(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(_open_formula if replacement == "formula" else replacement, text)
    if "\\" not in text:
        return text
    for _ in range(MAX_NESTING):
        before = text
        text = _FRACTION.sub(_write_fraction, _WRAPPER.sub(r"\1", text))
        if text == before:
            break
    return text


def _open_formula(formula: re.Match[str]) -> str:
    """The inside of `$...$` where it is mathematics; words mean two amounts in dollars."""
    is_formula = "\\" in formula[1] or not re.search(r"[A-Za-z]{2}", formula[1])
    return formula[1] if is_formula else formula[0]


def _write_fraction(fraction: re.Match[str]) -> str:
    sides = (side.strip() for side in fraction.groups())
    return " " + "/".join(f"({side})" if _CALCULATED.search(side) else side for side in sides)
