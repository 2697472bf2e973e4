"""The bundled textbook: chapters from grade 2 to grade 8, and exercises drawn from their templates.

A chapter is one JSON file, `<two digits>_<id>.json`. An exercise's gold solution has GSM8K's form: one line a
step with `<<16-3=13>>13` in it, then `#### 13`. All arithmetic is exact.

A template's text holds placeholders: `{n}` a value, `{n|box|boxes}` a word that agrees with the number `n`,
`{item}` a noun's plural, `{item:one}` its singular, `{item:an}` the singular with its article, `{item:n}` the
form that agrees with `n`, `{name}` a person and `{name:they}`, `{name:their}`, `{name:them}` that person's
pronouns. A step's text also holds one `{calc}`, which becomes `16 - 3 = <<16-3=13>>13`.
"""

import ast
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import simpleeval
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cot.utils.errors import UserError
from cot.utils.files import read_text
from cot.utils.paths import DATA_DIR

SPLITS = ("train", "test", "confirm")  # nothing is tuned on the last; it is used where asked for by name
MAX_DRAWS = 1000  # a template's constraints must hold for more than about one draw in a hundred
MAX_REPEATS = 200  # draws in a row that only repeat earlier questions before a template counts as used up
PLACEHOLDER = re.compile(r"\{(\w+)(?::(\w+))?(?:\|([^|{}]*)\|([^|{}]*))?\}")
SENTENCE_START = re.compile(r'(?:^"?|[.!?] "?)[a-z]')
NAME_IN_EXPRESSION = re.compile(r"[A-Za-z_]\w*")
# exact, also for two whole numbers
OPERATORS = simpleeval.DEFAULT_OPERATORS | {ast.Div: lambda left, right: Fraction(left) / Fraction(right)}
_parse = lru_cache(maxsize=4096)(simpleeval.SimpleEval.parse)
_EVALUATOR = simpleeval.SimpleEval(operators=OPERATORS, functions={})  # making one takes longer than its use


class Noun(NamedTuple):
    singular: str
    plural: str


class Person(NamedTuple):
    name: str
    they: str
    their: str
    them: str


SHE = "Ana Bella Carla Dina Elsa Fiona Grace Hana Ivy Julia Kira Lena Maya Nora Olivia Priya Rosa Sara Zoe"
HE = "Adam Ben Carlos David Emil Felix George Hugo Ivan Jamal Kenji Leo Marco Noah Omar Pablo Ravi Sam Tom"
PEOPLE = (
    *(Person(name, "she", "her", "her") for name in SHE.split()),
    *(Person(name, "he", "his", "him") for name in HE.split()),
)

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class Record(BaseModel):
    """Unknown fields and loose types are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Variable(Record):
    """Drawn from `low` to `high`, `choices`, `nouns` or `people`, or a `value` computed from those before."""

    low: int = 1
    high: int = 0
    step: int = 1
    choices: tuple[int, ...] | tuple[Text, ...] = ()
    nouns: tuple[Annotated[str, Field(pattern="^[^/]+/[^/]+$")], ...] = ()  # such as "box/boxes"
    people: bool = False
    value: str = ""

    @property
    def options(self) -> Sequence[Any]:
        if self.people:
            return PEOPLE
        nouns = [Noun(*noun.split("/")) for noun in self.nouns]
        return nouns or self.choices or range(self.low, self.high + 1, self.step)

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if bool(self.value) == bool(self.options):
            raise ValueError("expected low up to high, or some choices or nouns, or people, or a value")
        return self


class Step(Record):
    text: Text
    expression: Text
    result: Text


class Template(Record):
    id: Text
    split: Literal["train", "test", "confirm"]
    skills: Texts  # the first is practised, the further ones are used
    variables: Annotated[dict[str, Variable], Field(min_length=1)]
    constraints: tuple[Text, ...] = ()
    phrasings: Texts
    novel_phrasings: Texts  # a register that the usual ones never use
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    answer: Text
    unit: str = ""
    decimals: bool = False  # values may have two decimals; otherwise every value is a whole number


class Skill(Record):
    id: Text
    name: Text


class Misconception(Record):
    id: Text
    description: Text
    what_helps: Text


class WorkedExample(Record):
    question: Text
    solution: Text


class Chapter(Record):
    id: Text
    title: Text
    grade: int
    prerequisites: tuple[Text, ...] = ()
    skills: Annotated[tuple[Skill, ...], Field(min_length=1)]
    misconceptions: Annotated[tuple[Misconception, ...], Field(min_length=1)]
    explanation: Text
    worked_examples: Annotated[tuple[WorkedExample, ...], Field(min_length=1)]
    templates: Annotated[tuple[Template, ...], Field(min_length=1)]


@lru_cache
def load_chapters(folder: Path = DATA_DIR / "textbook") -> tuple[Chapter, ...]:
    """Load all chapters in teaching order, which is the order of the file names.

    Only the shape of the files is checked; that expressions, placeholders and skills fit is a test's.

    Raises:
        UserError: naming file and field, for a missing folder or a malformed file.
    """
    paths = sorted(Path(folder).glob("[0-9][0-9]_*.json"))
    if not paths:
        raise UserError(f"{folder}: no chapter files such as 01_addition.json here")
    chapters = []
    for path in paths:
        try:
            chapters.append(Chapter.model_validate_json(read_text(path)))
        except ValidationError as error:
            finding = error.errors()[0]
            field = ".".join(str(part) for part in finding["loc"]) or "file"
            raise UserError(f"{path}: {field}: {finding['msg'].removeprefix('Value error, ')}") from error
    return tuple(chapters)


def pick_chapters(names: Sequence[str]) -> list[Chapter]:
    """The chapters that a `--chapters` flag means, in teaching order: those named, or every one for `all`.

    Raises:
        UserError: no such chapter.
    """
    chapters = list(load_chapters())
    if list(names) == ["all"]:
        return chapters
    ids = [chapter.id for chapter in chapters]
    if unknown := [name for name in names if name not in ids]:
        raise UserError(f"--chapters {unknown[0]}: no such chapter; there are {', '.join(ids)}, and all")
    return [chapter for chapter in chapters if chapter.id in names]


@dataclass(frozen=True)
class Exercise:
    id: str
    chapter: str
    grade: int
    skill: str
    skills: tuple[str, ...]
    template: str
    split: str
    wording: str
    question: str
    gold_solution: str
    answer: Fraction
    steps: int
    unit: str


def generate_exercises(
    chapter: Chapter, split: str, count: int, seed: int, wording: str = "usual"
) -> list[Exercise]:
    """Draw `count` exercises with distinct questions, the split's templates in rotation.

    The same chapter, split, seed and wording give the same list, a smaller count its beginning.

    Raises:
        UserError: on an unknown split, one of which the chapter has no template, a negative count, or more
            exercises than a template has questions.
    """
    if split not in SPLITS:
        raise UserError(f"split: {split!r}; allowed are {', '.join(SPLITS)}")
    if count < 0:
        raise UserError(f"count: {count}; must not be negative")
    rng = random.Random(f"{chapter.id}/{split}/{seed}")
    templates = [template for template in chapter.templates if template.split == split]
    if not templates:
        raise UserError(f"split: {split!r}; chapter {chapter.id} has no template of it")
    rng.shuffle(templates)
    drawn: dict[str, Exercise] = {}
    for index in range(count):
        template = templates[index % len(templates)]
        for _ in range(MAX_REPEATS):
            exercise = generate_exercise(chapter, template, rng, wording)
            if exercise.question not in drawn:
                drawn[exercise.question] = exercise
                break
        else:
            raise UserError(
                f"count: {count} {split} exercises of chapter {chapter.id}: only {index} distinct ones found "
                f"(template {template.id} repeats itself); ask for at most {index}"
            )
    return list(drawn.values())


def generate_exercise(
    chapter: Chapter, template: Template, rng: random.Random, wording: str = "usual"
) -> Exercise:
    """Draw one exercise, in a `usual` wording or in a `novel` one.

    Raises:
        UserError: when the template's constraints cannot be satisfied.
    """
    values = _draw_values(template, rng)
    phrasings = {"usual": template.phrasings, "novel": template.novel_phrasings}[wording]
    question = render(rng.choice(phrasings), values)
    lines = [_render_step(step, values) for step in template.steps]
    return Exercise(
        id=f"{chapter.id}/{template.id}/{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        chapter=chapter.id,
        grade=chapter.grade,
        skill=template.skills[0],
        skills=template.skills,
        template=template.id,
        split=template.split,
        wording=wording,
        question=question,
        gold_solution="\n".join([*lines, f"#### {format_number(values['answer'])}"]),
        answer=values["answer"],
        steps=len(template.steps),
        unit=fill(template.unit, values),
    )


def _draw_values(template: Template, rng: random.Random) -> dict[str, Any]:
    """Draw variables until all constraints hold; compute the steps' results and `answer`.

    Every number is positive and whole, or has at most two decimals in a template with `decimals`. Two people
    in one template always differ.
    """
    for _ in range(MAX_DRAWS):
        values: dict[str, Any] = {}
        for name, variable in template.variables.items():
            if variable.value:
                values[name] = evaluate(variable.value, values)
                continue
            option = rng.choice(variable.options)
            while isinstance(option, Person) and option in values.values():
                option = rng.choice(variable.options)
            values[name] = Fraction(option) if isinstance(option, int) else option
        if not all(evaluate(constraint, values) for constraint in template.constraints):
            continue
        for step in template.steps:
            values[step.result] = evaluate(step.expression, values)
        values["answer"] = evaluate(template.answer, values)
        numbers = [value for value in values.values() if isinstance(value, Fraction)]
        if all(n > 0 and (100 if template.decimals else 1) % n.denominator == 0 for n in numbers):
            return values
    raise UserError(f"template {template.id}: constraints: not satisfied in {MAX_DRAWS} draws; loosen them")


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """Evaluate arithmetic or a comparison over Fractions; `/` is exact.

    Raises:
        UserError: on a division by zero or an operation that the textbook does not use.

    >>> evaluate("n / 3 + 1", {"n": Fraction(5)})
    Fraction(8, 3)
    """
    _EVALUATOR.names = values
    try:
        value = _EVALUATOR.eval(expression, previously_parsed=_parse(expression))
    except (simpleeval.InvalidExpression, ArithmeticError) as error:
        raise UserError(f"{expression!r} cannot be evaluated: {error}") from error
    return Fraction(value) if isinstance(value, int) and not isinstance(value, bool) else value


def format_number(value: Fraction) -> str:
    """Write a whole number plainly and any other number with two decimals.

    >>> format_number(Fraction(12)), format_number(Fraction(7, 2))
    ('12', '3.50')
    """
    if value.denominator == 1:
        return str(value.numerator)
    if 100 % value.denominator:
        raise ValueError(f"{value} has more than two decimals")
    whole, hundredths = divmod(value.numerator * 100 // value.denominator, 100)
    return f"{whole}.{hundredths:02d}"


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Fill a text's placeholders.

    >>> fill("{n} {item:n}, {item:an}, {n|is|are}", {"n": Fraction(1), "item": Noun("egg", "eggs")})
    '1 egg, an egg, is'
    """

    def replacement(match: re.Match) -> str:
        name, form, singular, plural = match.groups()
        value = values[name]
        if singular is not None:
            return singular if value == 1 else plural
        if isinstance(value, Noun):
            if form == "an":
                return f"{'an' if value.singular[0] in 'aeiou' else 'a'} {value.singular}"
            one = form == "one" or (form is not None and values[form] == 1)
            return value.singular if one else value.plural
        if isinstance(value, Person):
            return getattr(value, form or "name")
        return format_number(value) if isinstance(value, Fraction) else value

    return PLACEHOLDER.sub(replacement, text)


def render(text: str, values: Mapping[str, Any]) -> str:
    """Fill a text's placeholders and start every sentence with a capital.

    >>> render("{item} cost money. how many?", {"item": Noun("egg", "eggs")})
    'Eggs cost money. How many?'
    """
    return SENTENCE_START.sub(lambda match: match.group().upper(), fill(text, values))


def _render_step(step: Step, values: Mapping[str, Any]) -> str:
    """A solution line with its calculation, `a + b = <<a+b=c>>c`, in numbers."""
    sum_text = NAME_IN_EXPRESSION.sub(lambda match: format_number(values[match.group()]), step.expression)
    result = format_number(values[step.result])
    calculation = f"{sum_text} = <<{sum_text.replace(' ', '')}={result}>>{result}"
    return render(step.text, {**values, "calc": calculation})
