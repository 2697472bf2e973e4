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
    Variable,
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
CHAPTERS_WITH_CENTS = {"money"}
KNOWN_CONSTANTS = {"percent": {"100"}}  # a percent is by definition out of 100
PER_TEMPLATE = 40
DRAWN = "133d3aba5f809157259158884541c6fd1849fe75945cad81e0bf6fe874034ea3"


def exact(expression: str) -> Fraction:
    """Evaluate arithmetic independently of the generator."""
    operators = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return Fraction(str(node.value))

    return walk(ast.parse(expression, mode="eval").body)


def check_gold(solution: str, chapter_id: str) -> Fraction:
    """Verify each line of a gold solution and return its last line's number."""
    *lines, last = solution.split("\n")
    assert lines
    for line in lines:
        match = CALCULATION.search(line)
        assert match and line.count("<<") == 1, line
        assert match["text"].replace(" ", "") == match["left"], line
        assert match["right"] == match["after"], line
        assert exact(match["left"]) == Fraction(match["right"]), line
        assert line[0].isupper() and line.endswith("."), line
    assert Fraction(last.removeprefix("#### ")) == Fraction(match["right"]), solution
    allowed = r"#### (\d+|\d+\.\d\d)" if chapter_id in CHAPTERS_WITH_CENTS else r"#### \d+"
    assert re.fullmatch(allowed, last), last
    return Fraction(last.removeprefix("#### "))


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
    triples = []
    for chapter in CHAPTERS:
        for template in chapter.templates:
            for wording in ("usual", "novel"):
                rng = random.Random(f"{template.id}/{wording}")
                for _ in range(PER_TEMPLATE):
                    triples.append((chapter, template, generate_exercise(chapter, template, rng, wording)))
    return triples


def test_gold_solutions_are_exact_and_end_in_the_answer(drawn):
    assert len(drawn) >= 10000  # (12 chapters * 8 templates + 30 of the split confirm) * 2 wordings * 40
    for chapter, template, exercise in drawn:
        answer = check_gold(exercise.gold_solution, chapter.id)
        assert answer == exercise.answer > 0
        assert exercise.steps == exercise.gold_solution.count("<<") == len(template.steps) <= 4
        # cents are asked for where the answer has them
        has_cents = exercise.answer.denominator != 1
        assert has_cents == template.decimals == ("dollars and cents" in exercise.question)


def test_every_operand_stands_in_the_question_or_is_an_earlier_result(drawn):
    for chapter, _, exercise in drawn:
        known = set(NUMBER.findall(exercise.question)) | KNOWN_CONSTANTS.get(chapter.id, set())
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


def test_an_exercise_describes_itself(drawn):
    for place, (chapter, template, exercise) in enumerate(drawn):
        assert re.fullmatch(rf"{chapter.id}/{template.id}/[0-9a-f]{{12}}", exercise.id)
        assert (exercise.chapter, exercise.grade) == (chapter.id, chapter.grade)
        assert (exercise.template, exercise.split) == (template.id, template.split)
        assert (exercise.skill, exercise.skills) == (template.skills[0], template.skills)
        assert exercise.wording == ("usual", "novel")[place // PER_TEMPLATE % 2]
        assert exercise.unit.split(" per ")[0] in exercise.question


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.id)
def test_templates_occur_in_rotation_and_questions_are_distinct(chapter):
    counts = {"train": 6, "test": 2} | ({"confirm": 6} if chapter.id in CONFIRMED else {})
    for split, templates in counts.items():
        drawn = generate_exercises(chapter, split, 10 * templates, seed=3)
        assert len({exercise.question for exercise in drawn}) == 10 * templates
        assert len({exercise.id for exercise in drawn}) == 10 * templates
        rotation = [exercise.template for exercise in drawn[:templates]]
        assert len(set(rotation)) == templates
        assert [exercise.template for exercise in drawn] == rotation * 10


def test_the_splits_share_no_template_and_no_question_and_neither_do_wordings():
    drawn = {
        (split, wording): [
            e
            for chapter in CHAPTERS
            if split != "confirm" or chapter.id in CONFIRMED
            for seed in (0, 1)
            for e in generate_exercises(chapter, split, 60, seed, wording)
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


def test_a_smaller_count_is_a_prefix_and_another_seed_is_another_list():
    for chapter in CHAPTERS:
        drawn = generate_exercises(chapter, "train", 30, seed=7)
        assert generate_exercises(chapter, "train", 11, seed=7) == drawn[:11]
        other = generate_exercises(chapter, "train", 30, seed=8)
        assert len({e.question for e in other} & {e.question for e in drawn}) < 5
    assert generate_exercises(CHAPTERS[0], "test", 0, seed=7) == []


def test_chapters_are_picked_by_name_in_teaching_order():
    assert pick_chapters(["all"]) == list(CHAPTERS)
    assert [chapter.id for chapter in pick_chapters(["money", "addition"])] == ["addition", "money"]
    with pytest.raises(
        UserError, match="--chapters algebra: no such chapter; there are addition, subtraction"
    ):
        pick_chapters(["addition", "algebra"])


def test_chapters_are_complete():
    assert [chapter.id for chapter in CHAPTERS] == [
        *("addition", "subtraction", "multiplication", "division", "two_step", "fractions"),
        *("money", "ratios", "averages", "percent", "speed", "equations"),
    ]
    grades = [chapter.grade for chapter in CHAPTERS]
    assert grades == sorted(grades) and set(grades) == set(range(2, 9))
    for chapter in CHAPTERS:
        assert 1 <= len(chapter.skills) <= 3
        assert len(chapter.misconceptions) >= 3 and len(chapter.worked_examples) == 2
        assert 150 <= len(chapter.explanation.split()) <= 300
        assert len(chapter.templates) >= 8
        own = {skill.id for skill in chapter.skills}
        assert {t.skills[0] for t in chapter.templates if t.split == "train"} == own
        assert {t.skills[0] for t in chapter.templates if t.split == "test"} <= own
        steps = [len(template.steps) for template in chapter.templates]
        assert set(steps) == {1} if chapter.grade <= 3 else sum(steps) > len(steps)
        for template in chapter.templates:
            assert len(set(template.phrasings)) >= 3 and len(template.novel_phrasings) >= 1
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
    position = {chapter.id: index for index, chapter in enumerate(CHAPTERS)}
    reachable: dict[str, set[str]] = {}
    for chapter in CHAPTERS:
        assert all(position[p] < position[chapter.id] for p in chapter.prerequisites)  # so there is no cycle
        reachable[chapter.id] = {chapter.id}.union(*(reachable[p] for p in chapter.prerequisites))
        assert chapter.id == "addition" or chapter.prerequisites
        skills = {s.id for c in CHAPTERS if c.id in reachable[chapter.id] for s in c.skills}
        for template in chapter.templates:
            assert set(template.skills) <= skills, (template.id, set(template.skills) - skills)


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


def with_variable(**variable) -> dict:
    return {"templates": [TEMPLATE | {"variables": {"a": variable}}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade": "two"}, "grade: Input should be a valid integer"),
        ({"grade": True}, "grade: Input should be a valid integer"),
        ({"title": None}, "title: Field required"),
        ({"explanation": ""}, "explanation: String should have at least 1 character"),
        ({"summary": "x"}, "summary: Extra inputs are not permitted"),
        ({"skills": ["adding"]}, "skills.0: Input should be an object"),
        (
            {"templates": [TEMPLATE | {"split": "dev"}]},
            "templates.0.split: Input should be 'train', 'test' or 'confirm'",
        ),
        (
            {"templates": [TEMPLATE | {"phrasings": []}]},
            "templates.0.phrasings: Tuple should have at least 1",
        ),
        (with_variable(low=9, high=2), "templates.0.variables.a: expected low up to high"),
        (with_variable(), "templates.0.variables.a: expected low up to high"),
        (with_variable(low=1, high=9, value="2 * 3"), "templates.0.variables.a: expected low up to high"),
        (with_variable(choices=[1, "b"]), "templates.0.variables.a.choices"),
        (with_variable(nouns=["egg"]), "templates.0.variables.a.nouns.0: String should match"),
    ],
)
def test_a_malformed_chapter_is_one_line_with_file_and_field(tmp_path, changes, message):
    path = save_chapter(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_chapters(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_unreadable_folder_or_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no chapter files"):
        load_chapters(tmp_path / "nowhere")
    (tmp_path / "01_addition.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"01_addition\.json: file: Invalid JSON"):
        load_chapters(tmp_path)


def tiny_chapter(folder: Path, low: int, high: int, constraints: list[str]):
    """The first chapter, whose templates ask for the double of a number from low to high."""
    changes = {
        "variables": {"a": {"low": low, "high": high}},
        "constraints": constraints,
        "steps": [{"text": "It is {calc}.", "expression": "a + a", "result": "total"}],
        "unit": "",
    }
    templates = [
        template | changes | {"phrasings": [f"What is {{a}} + {{a}} in {template['id']}?"]}
        for template in RECORD["templates"]
    ]
    save_chapter(folder, templates=templates)
    return load_chapters(folder)[0]


def test_unsatisfiable_template_ends_with_a_clear_error(tmp_path):
    chapter = tiny_chapter(tmp_path, 1, 9, ["a > 9"])
    with pytest.raises(UserError, match="template addition_01: constraints: not satisfied in 1000 draws"):
        generate_exercise(chapter, chapter.templates[0], random.Random(0))


def test_more_exercises_than_exist_are_refused(tmp_path):
    chapter = tiny_chapter(tmp_path, 2, 4, [])
    assert len(generate_exercises(chapter, "test", 6, seed=0)) == 6  # 2 test templates * 3 numbers
    with pytest.raises(UserError, match="only 6 distinct ones"):
        generate_exercises(chapter, "test", 7, seed=0)
    with pytest.raises(UserError, match="split: 'confirm'; chapter money has no template of it"):
        generate_exercises(*pick_chapters(["money"]), "confirm", 1, seed=0)
    with pytest.raises(UserError, match="split: 'dev'"):
        generate_exercises(chapter, "dev", 1, seed=0)
    with pytest.raises(UserError, match="count: -1"):
        generate_exercises(chapter, "test", -1, seed=0)


def test_division_is_exact_and_by_zero_a_user_error():
    assert evaluate("1 / 3", {}) == Fraction(1, 3)
    with pytest.raises(UserError, match="cannot be evaluated"):
        evaluate("a / (a - a)", {"a": Fraction(3)})


def test_two_people_of_one_exercise_always_differ():
    template = CHAPTERS[0].templates[0]
    people = {"one": Variable(people=True), "other": Variable(people=True)}
    changes = {"variables": template.variables | people, "phrasings": ("{one} {other}",)}
    rng = random.Random(0)
    for _ in range(200):  # of 38 people: else about five pairs would be one person
        exercise = generate_exercise(CHAPTERS[0], template.model_copy(update=changes), rng)
        assert len(set(exercise.question.split())) == 2
