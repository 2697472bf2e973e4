"""Find worked arithmetic in prose ("3 boxes x $4 = $12") and check it with exact fractions."""

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from simpleeval import InvalidExpression, SimpleEval

from cot.utils.rendering import rendered_text

# Bounds that keep every search and every evaluation small, whatever a model writes.
MAX_CHARS = 20_000
MAX_DIGITS = 15
MAX_TERMS = 16  # of one side
MAX_SIDES = 8  # of one chain

_ANNOTATION = re.compile(r"<<([^<>\n]{0,200})>>")
_SPELLINGS = (
    (re.compile(r"\s{1,20}(?==)|(?<==)\s{1,20}(?![0-9]{1,2}[.)]\s)"), " "),  # a chain over lines
    (re.compile(r"\*\*|[$€£¥₹_`]"), " "),  # bold, currency
    (re.compile(r"(?<=[0-9a-z%])[ \t]{0,2}\((?:[A-Za-z]{2,20}+[ -]?){1,4}\)"), " "),  # 15 cups (morning)
    (re.compile(r"[·∙∗×]|(?<![A-Za-z])[xX](?=[ \t]{0,2}\(?[ \t]?\.?[0-9])"), "*"),
    (re.compile(r"÷"), "/"),
    (re.compile(r"(?<=[0-9%])[ \t]{1,3}of[ \t]{1,3}(?=[0-9(])"), "*"),  # 50% of 36
    (re.compile(r"(?<![\w./])([0-9]{1,9})[ \t]{1,2}([0-9]{1,3}/[0-9]{1,3})(?![\w.])"), r"(\1+\2)"),  # 3 1/2
    (re.compile(r"(?<=[0-9)])(?=\()"), "*"),  # 2(3+4)
)
_TOKEN = re.compile(
    r"(?P<n>(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
    r"|(?P<v>(?<=[0-9)])[A-Za-z](?![A-Za-z])|\b(?![aAI]\b)[A-Za-z]\b)"  # the x of 2x
    r"|(?P<w>[A-Za-z]++)|(?P<u>(?<![\w)%])-(?=[0-9.(]))|(?P<o>[-+*])|(?P<d>/)|(?P<sign>[()=%^])|(?P<s>[^ \t])"
)
# Over one letter a token: n number, v unknown, w word, u minus sign, o operator, d slash, s anything else.
_UNIT = r"(?:d?w){0,3}+"
_TERM = rf"u?+\({{0,4}}+u?+n%?+{_UNIT}(?:\){{1,4}}+%?+{_UNIT})?+"
_SIDE = rf"{_TERM}(?:(?:[od]|(?<=[n%)])u){_TERM}){{0,{MAX_TERMS - 1}}}+"
_BEGIN = r"(?:(?<![nvoud)^])|(?<=so))"  # not inside a longer expression, but behind a bullet's dash
_END = r"(?!(?<=[n%)])[nvu^]|[od]u?[nv(])"
_CHAIN = re.compile(rf"{_BEGIN}(?>{_SIDE}(?:={_SIDE}){{1,{MAX_SIDES - 1}}}+){_END}")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
_CALCULATOR = SimpleEval(operators=_OPERATORS, functions={})  # one, as making it takes longer than its answer
_PERCENT, _UNIT_OF_PERCENT = Fraction(1, 100), Fraction(1)


@dataclass(frozen=True)
class Equation:
    """One "a ∘ b = c".

    Attributes:
        key: both sides without spaces, units, currency and commas, numbers in plain form ("12*2=24").
        valid: whether the left side equals the right one exactly; `%` counts as 1/100, or as a mere unit
            where that makes the equation hold. A rounded quotient (10/3 = 3.33) does not.
        leads: whether no letter and no other digit stands before it in its text.
        goes_on: whether it goes on with a chain, as 6*4=24 does in "2*3*4 = 6*4 = 24".
    """

    key: str
    valid: bool
    leads: bool = False
    goes_on: bool = False

    @property
    def numbers(self) -> list[str]:
        """The numbers on both sides, in order, plain: "12*2=24" has 12, 2 and 24."""
        return re.findall(r"[0-9.]+", self.key)


def equations(text: str) -> list[Equation]:
    """Every "a ∘ b (∘ c ...) = d" in the first 20,000 characters, in order.

    Operators are + - * / x × ÷ and "of". `$`, thousands commas, `%`, parentheses and up to three words of a
    unit behind a number are allowed; d is a number or a fraction. Markdown and LaTeX are read as a reader
    sees them (`rendering`). A chain "2*3*4 = 6*4 = 24", on one line or over several, holds one equation for
    each calculation, against the chain's next number. An expression with an unknown (2x + 3)
    is no arithmetic and is left out. A GSM8K annotation counts only where the prose does not say the same.

    >>> [equation.key for equation in equations("5 hours x $10/hour = $<<5*10=50>>50, half <<50/2=25>>25")]
    ['5*10=50', '50/2=25']
    """
    text = text[:MAX_CHARS]
    found = _find(_ANNOTATION.sub("", text))
    keys = {equation.key for equation in found}
    annotated = [equation for inside in _ANNOTATION.findall(text) for equation in _find(inside)]
    return [*found, *(equation for equation in annotated if equation.key not in keys)]


def without_annotations(text: str) -> str:
    """The text without GSM8K's `<<48/2=24>>` calculator annotations."""
    return _ANNOTATION.sub("", text)


@lru_cache(maxsize=4096)  # many checks read the same lines of a text
def _find(text: str) -> tuple[Equation, ...]:
    text = rendered_text(text)
    if "=" not in text:
        return ()
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    tokens = [("s", "")] + [(_kind(match), match[0]) for match in _TOKEN.finditer(text)]
    kinds = "".join(kind for kind, _ in tokens)
    lead = len(re.match(r"[^nvw]*", kinds)[0])
    found = []
    for chain in _CHAIN.finditer(kinds):
        sides: list[list[str]] = [[]]
        for kind, token in tokens[chain.start() : chain.end()]:
            if kind == "=":
                sides.append([])
            elif kind != "w":
                sides[-1].append(token.replace(",", ""))
        sides = [_trimmed(side) for side in sides]
        first = len(found)
        for index, left in enumerate(sides[:-1]):
            later = sorted((side for side in sides[index + 1 :] if _is_number(side)), key=len)
            if later and sum(token[-1].isdigit() for token in left) > 1:
                leads = chain.start() <= lead and index == 0
                found += _equation(tuple(left), tuple(later[0]), leads, len(found) > first)
    return tuple(found)


def _kind(match: re.Match[str]) -> str:
    if match.lastgroup == "sign":
        return match[0]
    return "s" if match.lastgroup == "n" and len(match[0]) > MAX_DIGITS else match.lastgroup


def _trimmed(side: list[str]) -> list[str]:
    """The side without the slash of a unit ($10/hour) and without parentheses that close elsewhere."""
    side = [
        token
        for token, after in zip(side, [*side[1:], "="], strict=True)
        if token != "/" or after not in "+-*/=)"
    ]
    while side.count("(") > side.count(")") and side[0] == "(":
        side = side[1:]
    while side.count(")") > side.count("(") and side[-1] == ")":
        side = side[:-1]
    return side


def _is_number(side: list[str]) -> bool:
    return (
        re.fullmatch(r"-?n%?|-?n/n|\(n\+n/n\)", "".join("n" if t[-1].isdigit() else t for t in side))
        is not None
    )


@lru_cache(maxsize=4096)
def _equation(
    left: tuple[str, ...], right: tuple[str, ...], leads: bool, goes_on: bool
) -> tuple[Equation, ...]:
    readings = (_PERCENT, _UNIT_OF_PERCENT) if "%" in left + right else (_PERCENT,)
    try:
        valid = any(_value(left, percent) == _value(right, percent) for percent in readings)
    except (InvalidExpression, SyntaxError):  # unbalanced parentheses: no equation
        return ()
    except ZeroDivisionError:
        valid = False
    sides = ("".join(plain_number(token) for token in side) for side in (left, right))
    return (Equation("=".join(sides), valid, leads, goes_on),)


def _value(side: tuple[str, ...], percent: Fraction) -> Fraction:
    """The side's value; every number goes in by name, so that simpleeval computes with fractions only."""
    if len(side) == 1:
        return Fraction(side[0])
    names = {"percent": percent}
    words = []
    for index, token in enumerate(side):
        if token[-1].isdigit():
            names[f"n{index}"] = Fraction(token)
            token = f"n{index}"
        words.append("*percent" if token == "%" else token)
    _CALCULATOR.names = names
    return _CALCULATOR.eval("".join(words))


def plain_number(token: str) -> str:
    """The number without superfluous zeros ("016.50" is "16.5"); anything else as it is."""
    if not token[-1].isdigit() or "/" in token:
        return token
    whole, _, decimals = token.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
