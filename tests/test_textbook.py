"""The textbook's chapters are complete; every exercise drawn from them is exact, readable and repeatable."""

import ast
import hashlib
import itertools
import json
import operator
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from cot.utils.errors import UserError
from cot.utils.paths import DATA_DIR
from cot.utils.textbook import (
    SPLITS,
    Noun,
    evaluate,
    generate_exercise,
    generate_exercises,
    load_chapters,
    pick_chapters,
)

CHAPTERS = load_chapters()
NUMBER = re.compile(r"\d+(?:\.\d+)?")
CALCULATION = re.compile(
    r"(?P<text>[\d.+\-*/() ]+) = <<(?P<left>[^<>=]+)=(?P<right>[^<>=]+)>>(?P<after>\d+(?:\.\d\d)?)"
)
CONFIRMED = ["addition", "subtraction", "multiplication", "division", "two_step"]  # what a CPU trains on
PER_TEMPLATE = 20
DRAWN = "133d3aba5f809157259158884541c6fd1849fe75945cad81e0bf6fe874034ea3"


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def exact(expression: str) -> Fraction:
    """Evaluate arithmetic independently of the generator."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        return Fraction(str(node.value))

    return walk(ast.parse(expression, mode="eval").body)


def check_gold(solution: str, chapter_id: str) -> Fraction:
    """Verify each line of a gold solution and return its last line's number."""
    *lines, last = solution.split("\n")
    for line in lines:
        match = CALCULATION.search(line)
        assert match and line.count("<<") == 1, line
        assert match["text"].replace(" ", "") == match["left"] and match["right"] == match["after"], line
        assert exact(match["left"]) == Fraction(match["right"]), line
        assert line[0].isupper() and line.endswith("."), line
    allowed = r"#### (\d+|\d+\.\d\d)" if chapter_id == "money" else r"#### \d+"
    assert re.fullmatch(allowed, last), last
    assert Fraction(last.removeprefix("#### ")) == Fraction(match["right"]), solution
    return Fraction(match["right"])


def noun_pairs(template) -> set[tuple[str, str]]:
    pairs = {
        tuple(noun)
        for variable in template.variables.values()
        for noun in variable.options
        if isinstance(noun, Noun)
    }
    for text in [*template.phrasings, *template.novel_phrasings, *(step.text for step in template.steps)]:
        pairs |= set(re.findall(r"\{\w+\|([^|{}]*)\|([^|{}]*)\}", text))
    return {(one, many) for one, many in pairs if one != many}


@pytest.fixture(scope="module")
def drawn():
    """(chapter, template, exercise) for every template, in usual and novel wordings."""
    return [
        (chapter, template, generate_exercise(chapter, template, rng, wording))
        for chapter in CHAPTERS
        for template in chapter.templates
        for wording in ("usual", "novel")
        for rng in [random.Random(f"{template.id}/{wording}")]
        for _ in range(PER_TEMPLATE)
    ]


@pytest.mark.slow
def test_gold_solutions_are_exact_and_end_in_the_answer(drawn):
    assert len(drawn) >= 5000  # (12 chapters * 8 templates + 30 of the split confirm) * 2 wordings * 20
    for chapter, template, exercise in drawn:
        assert check_gold(exercise.gold_solution, chapter.id) == exercise.answer > 0
        assert exercise.steps == exercise.gold_solution.count("<<") == len(template.steps) <= 4
        # cents are asked for where the answer has them
        has_cents = exercise.answer.denominator != 1
        assert has_cents == template.decimals == ("dollars and cents" in exercise.question)

        assert re.fullmatch(rf"{chapter.id}/{template.id}/[0-9a-f]{{12}}", exercise.id)
        assert (exercise.template, exercise.split) == (template.id, template.split)
        assert (exercise.skill, exercise.skills) == (template.skills[0], template.skills)
        assert exercise.unit.split(" per ")[0] in exercise.question


def test_every_operand_stands_in_the_question_or_is_an_earlier_result(drawn):
    for chapter, _, exercise in drawn:
        # a percent is by definition out of 100
        known = set(NUMBER.findall(exercise.question)) | ({"100"} if chapter.id == "percent" else set())
        for match in CALCULATION.finditer(exercise.gold_solution):
            assert set(NUMBER.findall(match["left"])) <= known, exercise
            known.add(match["right"])


def test_text_is_clean(drawn):
    for _, _, exercise in drawn:
        text = f"{exercise.question}\n{exercise.gold_solution}"
        assert not re.search(r"[{}|]|  | [.,?]|\.\.|None|Fraction", text), text
        assert exercise.question.endswith("?") and exercise.question == exercise.question.strip()
        for sentence in re.split(r"(?<=[.!?]) |\n", text):
            assert sentence.startswith("####") or re.match(r'"?[A-Z0-9$]', sentence), sentence
        assert exercise.question.count('"') % 2 == 0


def test_numbers_agree_with_their_nouns(drawn):
    for _, template, exercise in drawn:
        text = re.sub(r"<<[^>]*>>", "", f"{exercise.question}\n{exercise.gold_solution}")
        plain_unit = [("", template.unit)] if template.unit and "{" not in template.unit else []
        for singular, plural in [*noun_pairs(template), *plain_unit]:
            assert not re.search(rf"(?<![\d.,/])1 {re.escape(plural)}\b", text), text
            if singular:
                for number in re.findall(rf"(?<![\d.,/$])(\d+(?:\.\d+)?) {re.escape(singular)}\b", text):
                    assert number == "1", text
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiou]", text), text


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.id)
def test_templates_occur_in_rotation_and_questions_are_distinct(chapter):
    counts = {"train": 6, "test": 2} | ({"confirm": 6} if chapter.id in CONFIRMED else {})
    for split, templates in counts.items():
        drawn = generate_exercises(chapter, split, 10 * templates, seed=3)
        assert len({exercise.question for exercise in drawn}) == 10 * templates
        rotation = [exercise.template for exercise in drawn[:templates]]
        assert len(set(rotation)) == templates
        assert [exercise.template for exercise in drawn] == rotation * 10
        # a smaller count is a prefix, and another seed another list
        assert generate_exercises(chapter, split, templates + 1, seed=3) == drawn[: templates + 1]
        other = generate_exercises(chapter, split, 10 * templates, seed=8)
        assert len({e.question for e in other} & {e.question for e in drawn}) < 5


def test_the_splits_share_no_template_and_no_question_and_neither_do_wordings():
    drawn = {
        (split, wording): [
            exercise
            for chapter in CHAPTERS
            if split != "confirm" or chapter.id in CONFIRMED
            for exercise in generate_exercises(chapter, split, 60, 0, wording)
        ]
        for split in SPLITS
        for wording in ("usual", "novel")
    }
    for (split, wording), exercises in drawn.items():
        assert {(e.split, e.wording) for e in exercises} == {(split, wording)}
    for one, other in itertools.combinations(drawn, 2):
        assert not {e.question for e in drawn[one]} & {e.question for e in drawn[other]}
        if one[0] != other[0]:
            assert not {e.template for e in drawn[one]} & {e.template for e in drawn[other]}


def test_chapters_are_picked_by_name_in_teaching_order():
    assert pick_chapters(["all"]) == list(CHAPTERS)
    assert [chapter.id for chapter in pick_chapters(["money", "addition"])] == ["addition", "money"]
    with pytest.raises(UserError, match="--chapters algebra: no such chapter; there are addition, sub"):
        pick_chapters(["addition", "algebra"])


def test_chapters_are_complete():
    assert [chapter.id for chapter in CHAPTERS] == [
        *("addition", "subtraction", "multiplication", "division", "two_step", "fractions"),
        *("money", "ratios", "averages", "percent", "speed", "equations"),
    ]
    grades = [chapter.grade for chapter in CHAPTERS]
    assert grades == sorted(grades) and set(grades) == set(range(2, 9))
    for chapter in CHAPTERS:
        assert len(chapter.misconceptions) >= 3 and len(chapter.worked_examples) == 2
        assert 150 <= len(chapter.explanation.split()) <= 300 and len(chapter.templates) >= 8
        own = {skill.id for skill in chapter.skills}
        assert {t.skills[0] for t in chapter.templates if t.split == "train"} == own
        assert {t.skills[0] for t in chapter.templates if t.split == "test"} <= own
        assert all(len(set(t.phrasings)) >= 3 and t.novel_phrasings for t in chapter.templates)
    for kind in ("skills", "misconceptions", "templates"):
        ids = [entry.id for chapter in CHAPTERS for entry in getattr(chapter, kind)]
        assert len(ids) == len(set(ids))


def test_the_drawn_exercises_stay_the_same():
    # recorded earlier: what a model was trained on and evaluated with
    drawn = [
        [e.question, e.gold_solution, e.id]
        for chapter in CHAPTERS
        for split in ("train", "test")
        for wording in ("usual", "novel")
        for e in generate_exercises(chapter, split, 20, 0, wording)
    ]
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest() == DRAWN


def test_prerequisites_are_earlier_chapters_that_teach_the_skills_used():
    taught: dict[str, set[str]] = {}  # by each chapter and those before it that it needs
    for chapter in CHAPTERS:
        own = {skill.id for skill in chapter.skills}
        taught[chapter.id] = own.union(*(taught[earlier] for earlier in chapter.prerequisites))
        assert chapter.id == "addition" or chapter.prerequisites
        for template in chapter.templates:
            assert set(template.skills) <= taught[chapter.id], template.id


def test_worked_examples_and_sums_in_the_explanations_are_right():
    for chapter in CHAPTERS:
        for example in chapter.worked_examples:
            check_gold(example.solution, chapter.id)
            assert example.question.endswith("?")
        term = r"\d+(?:\.\d+)?(?: [-+*/] \d+(?:\.\d+)?)*"
        sums = re.findall(rf"(?<![-+*/] )(?<!\d){term}(?: = {term})+", chapter.explanation)
        assert sums, chapter.id
        for equality in sums:
            assert len({exact(side) for side in equality.split(" = ")}) == 1, (chapter.id, equality)


RECORD = json.loads((DATA_DIR / "textbook/01_addition.json").read_text(encoding="utf-8"))
TEMPLATE = RECORD["templates"][0]


def save_chapter(folder: Path, **changes) -> Path:
    """The first chapter with other fields, or without those that are None."""
    path = folder / "01_addition.json"
    record = {key: value for key, value in (RECORD | changes).items() if value is not None}
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade": "two"}, "grade: Input should be a valid integer"),
        ({"title": None}, "title: Field required"),
        ({"summary": "x"}, "summary: Extra inputs are not permitted"),
        ({"skills": ["adding"]}, "skills.0: Input should be an object"),
        (
            {"templates": [TEMPLATE | {"split": "dev"}]},
            "templates.0.split: Input should be 'train', 'test' or 'confirm'",
        ),
        (
            {"templates": [TEMPLATE | {"variables": {"a": {"low": 9, "high": 2}}}]},
            "templates.0.variables.a: expected low up to high",
        ),
    ],
)
def test_a_malformed_chapter_is_one_line_with_file_and_field(tmp_path, changes, message):
    with pytest.raises(UserError, match="no chapter files"):
        load_chapters(tmp_path)
    path = save_chapter(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_chapters(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def tiny_chapter(folder: Path, low: int, high: int, constraints: list[str]):
    """The first chapter, whose templates ask for the double of a number from low to high."""
    changes = {"variables": {"a": {"low": low, "high": high}}, "constraints": constraints, "unit": ""}
    changes |= {"steps": [{"text": "It is {calc}.", "expression": "a + a", "result": "total"}]}
    templates = [
        template | changes | {"phrasings": [f"What is {{a}} + {{a}} in {template['id']}?"]}
        for template in RECORD["templates"]
    ]
    save_chapter(folder, templates=templates)
    return load_chapters(folder)[0]


def test_more_exercises_than_exist_are_refused(tmp_path):
    chapter = tiny_chapter(tmp_path, 2, 4, [])
    assert len(generate_exercises(chapter, "test", 6, seed=0)) == 6  # 2 test templates * 3 numbers
    with pytest.raises(UserError, match="only 6 distinct ones"):
        generate_exercises(chapter, "test", 7, seed=0)
    with pytest.raises(UserError, match="split: 'confirm'; chapter money has no template of it"):
        generate_exercises(*pick_chapters(["money"]), "confirm", 1, seed=0)
    (tmp_path / "other").mkdir()
    chapter = tiny_chapter(tmp_path / "other", 1, 9, ["a > 9"])
    with pytest.raises(UserError, match=r"template addition_\d+: constraints: not satisfied in 1000 draws"):
        generate_exercises(chapter, "test", 1, seed=0)
    with pytest.raises(UserError, match="cannot be evaluated"):
        evaluate("a / (a - a)", {"a": Fraction(3)})
