"""Read one number exactly as it is written, with all that belongs to it, or say why it cannot be read.

`read_number`       "$1,234.50", "1 234", "2 1/2", "1.8 × 10^3", "minus 5", "2 million"
`read_calculation`  with its unit and its operations: "18 eggs * $2 = $36" is 36; "2 hours 30 minutes",
                    "18 or 20" and "3-5" are more than one number, which is a reason and no value
`read_start`        the calculation that a text starts with, behind a label or a word such as "about"
`read_sentence`     the number that a sentence comes to: not the 2 of "Leo has 31 stamps in 2 weeks"
"""

import re
import unicodedata
from fractions import Fraction
from typing import Literal, NamedTuple

Reason = Literal[
    "empty",  # nothing but white space
    "cut_off",  # the text was cut off before any mark of an answer
    "thinking_cut_off",  # the text was cut off inside its reasoning block
    "no_number",
    "number_words",  # "eighteen", "half a dozen"
    "conflicting_answers",  # two final answers that differ, or "18 or 20" as one answer
    "range",  # "3-5", "3 to 5", "18+"
    "several_units",  # "2 hours 30 minutes", "3:30"; "2 dozen", which may be 2 or 24
    "expression",  # "18 - 3" where a number should stand
    "malformed_number",  # "1.23.4"; "($5)", which may be a loss
    "division_by_zero",
    "number_too_long",
]

MAX_DIGITS = 100  # longer digit strings are noise, and Python refuses to convert them from 4,300 on
MAX_COMPUTED_DIGITS = 1000
MAX_EXPONENT = 99

# One spelling: characters first, then LaTeX, powers and words of a fraction.
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_CHARACTERS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | {"⁄": "/", "٬": ",", "٫": ".", "⋅": "×"}
    | {sign: " " + unicodedata.normalize("NFKC", sign).replace("⁄", "/") for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
)
_ARGUMENT = r"\s{0,2}\{((?:[^{}]|\{[^{}]{0,60}\}){1,60}+)\}"
_SPELLINGS = (
    (re.compile(r"(?![0-9])\d"), lambda digit: str(int(digit[0]))),  # other scripts
    (re.compile(rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}"), r" \1/\2"),
    (re.compile(r"\\[dtc]?frac\s?([0-9])\s?([0-9])"), r" \1/\2"),
    (re.compile(r"\\(?:(?:text|math)(?:bf|rm|it|sf)?|mbox)\b|\\(?:left|right)(?=[()\[\]])"), ""),
    (re.compile(r"\\[!,](?=[\d\s\\])|\\(?=[$%])"), ""),
    (re.compile(r"\\[;: ]|\\q?quad\b"), " "),
    (re.compile(r"\{,\}|(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "≈"),
    (re.compile(r"\\(?:to|rightarrow|Rightarrow|implies)\b"), "→"),
    (re.compile(r"\^(?:\\circ\b|\{\\circ\})"), "°"),
    (re.compile(r"\\pounds\b"), "£"),
    (re.compile(r"(?<=[0-9])\^\{(-?[0-9]{1,3})\}"), r"^\1"),
    (re.compile(r"(?<=[0-9])[⁰¹²³⁴-⁹⁻]{1,3}"), lambda power: "^" + power[0].translate(_SUPERSCRIPTS)),
    (re.compile(r"(?<=[0-9]) and (?:a|one) half\b"), " 1/2"),
    (re.compile(r"(?<=[0-9]) and (?:a|one) quarter\b"), " 1/4"),
)
_PLAIN_SPELLINGS = tuple(pair for pair in _SPELLINGS if not pair[0].pattern.startswith("\\\\"))  # no LaTeX
_POWER_OF = re.compile(r"(?<=[0-9])\*\*(?=[0-9])")
_MARKUP = re.compile(
    r"\*\*|__|`|\\[()\[\]]|[{}]|</?[A-Za-z]{1,8}>|\\(?:boxed|underline)\b|(?<=\$)\$|(?<=[0-9])\$(?![0-9])"
    r"|(?<![A-Za-z0-9])_(?=[0-9$])"
)

# A number. Its digits stand in groups of three behind a space or an apostrophe, else with points and commas.
_RUN = (
    r"(?:[0-9]{1,3}(?:(?:[ '’_]|, (?=000))[0-9]{3})++(?:[.,][0-9]{1,2})?(?![0-9/^]|-[A-Za-z])"
    r"|\.?[0-9]++(?:[.,]++[0-9]++)*+)"
)
_CURRENCY = "[$¢£¤¥฿\u20a0-\u20cf]"
NUMBER_PATTERN = (
    r"(?:(?P<minus>-\s?|—(?=\S)|(?<![A-Za-z])(?i:minus|negative)\s{1,2})|\+\s?)?"
    rf"(?:{_CURRENCY}\s?(?P<inner_minus>-)?)?(?P<run>{_RUN})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,4})(?![0-9A-Za-z]))?(?:\^\(?(?P<power>-?[0-9]{1,3})\)?)?"
    r"(?:\s?[×x*]\s?10\^\(?(?P<ten>-?[0-9]{1,3})\)?)?"
    r"(?:[^\S\n]{1,2}(?:and\s)?(?P<part>[0-9]{1,6})/(?P<parts>[0-9]{1,6})"
    rf"|(?:[^\S\n]{{0,2}}/[^\S\n]{{0,2}}|\sover\s(?=[0-9.,]{{1,20}}+\W*+(?:\n|\Z)))(?P<divisor>{_RUN}))?"
    r"(?:[^\S\n]{0,2}(?P<scale>(?i:hundred|thousand|million|billion|trillion)|(?<=[0-9])(?:[kKMB]|bn|mn))\b)?"
)
_SCALES = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "mn": 10**6}
_SCALES |= {"billion": 10**9, "b": 10**9, "bn": 10**9, "trillion": 10**12}
_POINTED = re.compile(  # 1234.5, 1,234.5, 12,34,567.5
    r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})?(?:\.[0-9]+)?"
)
_DECIMAL_COMMA = re.compile(  # 12,5 and 0,125; 1.234,5 and 1.234.567, whose points cannot be decimal ones
    r"[0-9]+,[0-9]{1,2}|0,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3}){2,}"
)

# A calculation stands in one line. A number's unit, of up to five words, stands before what is done with it.
_GAP = r"[^\S\n]{0,3}"
_UNIT = rf"{_GAP}\)?(?:{_GAP}[-/]?(?<![A-Za-z])[A-Za-z%°][A-Za-z0-9°²³'’]{{0,30}}+){{0,5}}{_GAP}\)?{_GAP}"
_OPERATOR = (
    r"(?:[-+*/×÷·]|x(?=[\s\d$(])|(?:times|plus|minus|less|multiplied by|divided by)\b"
    r"|(?<=[0-9)])(?=\([0-9])|(?:%|percent|(?<=/[0-9])|(?<=/[0-9]{2}))\s?of\b)"
)
_OPERATION = re.compile(rf"{_UNIT}{_OPERATOR}{_GAP}\(?{_GAP}{NUMBER_PATTERN}")
_EQUATION = re.compile(rf"{_UNIT}(?:\.?\n{_GAP})?(?:=+>?|≈|→|⇒|-+>){_GAP}[(≈~]?{_GAP}{NUMBER_PATTERN}")
_RESULT = re.compile(
    rf"{_UNIT},?\s?(?:which )?(?:is|equals|makes|gives|i\.e\.|or)(?: equal to| about)?\s{NUMBER_PATTERN}"
)

# What makes a number a part of something else when it follows.
_LARGE_UNIT = (
    r"(?:h|hrs?|hours?|mins?|minutes?|days?|weeks?|months?|years?|ft|feet|foot|yards?|miles?|km|m|kg|kilograms?"
    r"|lbs?|pounds?|dollars?|euros?|gallons?|quarts?|cups?)"
)
_COUNTED = r"(?:[^\S\n]?[A-Za-z%]{1,15})?"  # the eggs of "18 eggs or 20"
_NEXT = rf"{_GAP}-?{_CURRENCY}?[0-9][0-9.,]{{0,40}}"
_NEXT_NAME = r"(?:and )?(?:[A-Z][a-z]{1,15}:?[^\S\n]|[a-z]\s?=)"  # the Ann of "Tom 18, Ann 20"
_PARTS: tuple[tuple[Reason, re.Pattern[str]], ...] = (
    ("expression", re.compile(rf"{_GAP}(?:\.?\\(?:sqrt|pi|overline|pm)(?![a-z])|[√π±]|\)?\^|!{_GAP}[=*×+])")),
    ("range", re.compile(rf"\+(?!{_GAP}[0-9(])|{_COUNTED}{_GAP}(?:~|to\b){_NEXT}")),
    ("several_units", re.compile(rf"{_GAP}{_LARGE_UNIT}(?:,|,?\sand)?[^\S\n]{_NEXT}|[:h'][0-9][0-9:]*")),
    ("conflicting_answers", re.compile(rf"{_COUNTED}{_GAP},?{_GAP}\bor\b{_NEXT}|[^\S\n]{_NEXT}")),
    ("conflicting_answers", re.compile(rf"{_COUNTED}{_GAP}[,;]{_GAP}{_NEXT_NAME}{_NEXT}")),
)
_DOZEN = re.compile(r"[^\S\n]dozen\b")
_LISTED = re.compile(rf"{_COUNTED}{_GAP}(?:,[^\S\n]|[;&]|\band\b){_GAP}(?={_NEXT})")
_RANGE = re.compile(rf"{_CURRENCY}?[0-9.,]+-{_CURRENCY}?[0-9.,]+")

# What may stand before the number of a marked text.
_WRAPPING = r"(?:[\s*_#~≈<>≤≥=:|\"'“(\[]|\$(?=[A-Za-z$(])|—\s|(?<=\n)[-•]\s){0,20}"
_ABOUT = (
    r"(?i:(?:(?:about|approx(?:imately|\.)?|around|roughly|nearly|almost|exactly|only|just|at least|at most"
    r"|up to|more than|less than|equal to|equals|is|are|was|an?|the|total|of|between|from|no\.)\s{1,2}"
    r"|(?:usd|eur|gbp|inr|rs\.?)\s?|[A-Z]{1,3}\s?(?=[$€£¥])){0,4})"
)
_START = re.compile(
    rf"{_WRAPPING}(?P<label>(?:[A-Za-z][A-Za-z' -]{{0,40}}[:=]{_WRAPPING}){{0,2}})"
    rf"{_ABOUT}{_WRAPPING}{NUMBER_PATTERN}"
)
_LOSS = re.compile(rf"\s*\(\s?{_CURRENCY}\s?[0-9.,]{{1,30}}\)\s*")  # accountants write a loss so
_NUMBER_WORDS = re.compile(
    r"\b(?:(?:six|seven|nine)(?:teen|ty)?|eight(?:een|y)?|(?:thir|four|fif)teen|(?:twen|thir|for|fif)ty"
    r"|two|three|four|five|ten|eleven|twelve|hundred|thousand|million|dozen|half|zero)\b",
    re.IGNORECASE,
)

# What a sentence says beside its number.
_ANYWHERE = re.compile(rf"(?:(?![0-9])|(?<![A-Za-z0-9_^√])){NUMBER_PATTERN}")
_PARENTHESIS = re.compile(r"\([^()]{0,200}\)|\[[^\[\]]{0,200}\]")
_BECAUSE = re.compile(r"(?<=[0-9a-z.)])[,;]?\s(?:because|since)\b.*", re.DOTALL)
_FOLLOWS = re.compile(
    r"\b(?:so|thus|therefore|hence|then|which|means?|meaning|giving|leaving|(?:up|down) to|is|are|has|have)\b"
)
_NAMED = re.compile(r"(?:\b(?:day|step|part|question|problem|example|case|equation|option)|#)\s?\Z", re.I)
_MULTIPLE = re.compile(r"\b(?:half|third|quarter|twice|double|triple)\s(?:of\s)?(?:the\s)?\Z", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_COMPARED = re.compile(
    r"\b(?:(?:out of|than|from|for|in|(?<!need )(?<!needs )(?<!has )(?<!have )to [a-z]{2,12})(?: each of)?"
    r"|(?:of|on|at|by|with|among)(?= the| all| each| his| her| their))(?: the| all| his| her| their)?"
    r"(?: other)?\s\Z",
    re.IGNORECASE,
)
_DURING = re.compile(
    r"\b(?:in|by|on|over|after|within|per|for|every|each|at|during|until|since)\s"
    r"(?:(?:the|about|only|just|next|first|last|another)\s){0,2}\Z",
    re.IGNORECASE,
)
_TIME = re.compile(r"[\s-]?(?:second|minute|hour|day|week|month|year|night|[ap]\.?m\b)")
_YEAR = re.compile(r"\s*(?:19|20)[0-9]{2}")


class Number(NamedTuple):
    """A number as read: its exact value and plain text, or the reason why it has none."""

    value: Fraction | None
    text: str | None
    reason: Reason | None


def plain_text(text: str) -> str:
    r"""The text with one spelling for minus signs, digits, simple fractions, powers and LaTeX numbers.

    >>> plain_text(r"−\frac{3}{4} of \$1{,}234")
    '- 3/4 of $1,234'
    """
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _SPELLINGS if "\\" in text else _PLAIN_SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def read_number(match: re.Match[str], *, signed: bool = True) -> Number:
    """The number in a match of `NUMBER_PATTERN`; without `signed`, a minus before it is ignored.

    The text is an integer, a decimal without trailing zeros, or a fraction in lowest terms where the match
    is one ("3/4") or where no decimal is exact.
    """
    run, divisor = match["run"], match["parts"] or match["divisor"]
    exponent, ten, power = int(match["exponent"] or 0), int(match["ten"] or 0), int(match["power"] or 1)
    written, computed = max(len(run), len(divisor or "")), (len(run) + abs(exponent)) * abs(power)
    if written > MAX_DIGITS or computed > MAX_COMPUTED_DIGITS or max(abs(exponent), abs(ten)) > MAX_EXPONENT:
        return _no("number_too_long")

    value, denominator = _read_run(run), _read_run(divisor or "1")
    if value is None or denominator is None:
        return _no("malformed_number")
    if denominator == 0 or (value == 0 and power < 0):
        return _no("division_by_zero")

    value = (value * Fraction(10) ** exponent) ** power * Fraction(10) ** ten
    value = value + int(match["part"]) / denominator if match["part"] else value / denominator
    value *= _SCALES[match["scale"].lower()] if match["scale"] else 1
    if signed and (match["minus"] or match["inner_minus"]):
        value = -value
    text = _write(value, as_fraction=bool(divisor))
    return Number(value, text, None) if len(text) <= MAX_DIGITS else _no("number_too_long")


def read_calculation(
    text: str, match: re.Match[str], *, signed: bool = True, alone: bool = True
) -> tuple[Number, int]:
    """What the calculation that begins with `match` comes to, and where it ends in the text.

    The last side of "=" that is one number counts: "9 * 2 = 18" and "18 = 9 * 2" are 18, "9 * 2" is nothing.

    Args:
        text: plain text that holds the match of `NUMBER_PATTERN`.
        signed: whether a minus before the first number is its sign.
        alone: whether "18, 20" and "18 and 20" are two answers, and not a sentence that goes on.
    """
    side: Number | None = read_number(match, signed=signed)  # None while it is an operation
    result, is_computed, end = None, False, match.end()
    while True:
        if step := _OPERATION.match(text, end):
            side, is_computed = None, True
        elif step := _EQUATION.match(text, end) or (None if side else _RESULT.match(text, end)):
            result, side, is_computed = side or result, read_number(step), True
        else:
            break
        end = step.end()

    number = side or result
    if number is None:
        return _no("range" if _RANGE.fullmatch(text, match.start("run"), end) else "expression"), end
    for reason, pattern in _PARTS:
        if part := pattern.match(text, end):
            return _no(reason), part.end()
    if _DOZEN.match(text, end) and not is_computed:
        return _no("several_units"), end
    if alone and (listed := _LISTED.match(text, end)):
        following, last = read_calculation(text, _ANYWHERE.match(text, listed.end()))
        is_step = is_computed and "=" in text[listed.end() : last]  # "16 - 7 = 9, 9 * 2 = 18"
        return (following if is_step else _no("conflicting_answers")), last
    return number, end


def read_start(text: str, *, label: re.Pattern[str] | None = None) -> Number | None:
    """The number that a plain text starts with, behind a label ("Total ="), a currency or "about".

    Args:
        label: what a label must look like; None allows any.
    """
    text = _without_markup(text)
    if _LOSS.fullmatch(text.partition("\n")[0]):
        return _no("malformed_number")
    match = _START.match(text)
    if match is None or (match["label"] and label and not label.match(text)):
        return None
    return read_calculation(text, match)[0]


def read_sentence(sentence: str, *, names: bool = False) -> Number | None:
    """The number that a plain sentence comes to: its last, or its last "=", but for what is said aside.

    Args:
        names: whether a number counts that only names something ("Day 3", "(see step 3)").

    >>> read_sentence("So 84 / 12 = 7 boxes hold all 84 eggs (see step 3).").text
    '7'
    """
    sentence = _without_markup(sentence)
    if _PARENTHESIS.fullmatch(sentence.strip()) and not names:
        return None
    for aside in (_PARENTHESIS, _BECAUSE):
        rest = aside.sub(" ", sentence)
        sentence = rest if has_digit(rest) else sentence

    number, said_aside, is_computed, end = None, None, False, 0
    while match := _ANYWHERE.search(sentence, end):
        between, before = sentence[end : match.start()], sentence[max(0, match.start() - 40) : match.start()]
        found, end = read_calculation(sentence, match, signed=_is_signed(before, match[0]), alone=False)
        is_equation = "=" in sentence[match.start() : end]
        if _NAMED.search(before) and not names:
            continue
        if is_computed and not is_equation and not _FOLLOWS.search(between):
            continue  # the second 84 of the example
        if _MULTIPLE.search(before) and not is_equation:
            found = _no("expression")
        if not is_equation and _is_aside(before, match[0], sentence[end : end + 20]):
            said_aside = found
        else:
            number, is_computed = found, is_equation
    return number or said_aside


def read_words(sentence: str) -> Number | None:
    """That a sentence tells its number in words."""
    return _no("number_words") if _NUMBER_WORDS.search(sentence) else None


def has_digit(text: str) -> bool:
    """Whether a text holds a number in digits."""
    return re.search("[0-9]", text) is not None


def _no(reason: Reason) -> Number:
    return Number(None, None, reason)


def _without_markup(text: str) -> str:
    return _MARKUP.sub("", _POWER_OF.sub("^", text))


def _read_run(run: str) -> Fraction | None:
    """The value of digits with their separators; None where these contradict each other (1.23.4)."""
    run = re.sub(r", |[ '’_]", "", run)
    if _POINTED.fullmatch(run):
        return Fraction(run.replace(",", ""))
    if _DECIMAL_COMMA.fullmatch(run):
        return Fraction(run.replace(".", "").replace(",", "."))
    return None


def _write(value: Fraction, as_fraction: bool) -> str:
    """The value as "3/4" or as an exact decimal; as a fraction, too, where it has no such decimal."""
    places = 0
    while places < MAX_DIGITS and (value * 10**places).denominator != 1:
        places += 1
    if as_fraction or places in (0, MAX_DIGITS):
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _is_signed(before: str, written: str) -> bool:
    """Whether a minus is a sign: not the dash of "eggs - 3" and "cost-18", nor the operation of "20 -3"."""
    is_spaced = written[:1] in "-—" and written[1:2].isspace()
    return not (is_spaced or before[-1:].isalnum() or before.rstrip()[-1:].isdigit())


def _is_aside(before: str, written: str, after: str) -> bool:
    """Whether a number is said aside: "in 2 hours", "on her 8th birthday", "out of 20"."""
    is_money = re.search(_CURRENCY, written) is not None
    if _ORDINAL.match(after) or (_COMPARED.search(before) and not is_money):
        return True
    is_time = _TIME.match(after) or _YEAR.fullmatch(written)
    return bool(is_time and _DURING.search(before))
