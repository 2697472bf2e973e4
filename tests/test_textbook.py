"""The textbook's chapters are complete; every exercise drawn from them is exact, readable and repeatable."""

import ast
import hashlib
import itertools
import json
import operator
import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from cot.utils.cli import DATA_DIR, REPO_ROOT
from cot.utils.errors import UserError
from cot.utils.textbook import (
    PLACEHOLDER,
    SPLITS,
    Noun,
    evaluate,
    generate_exercise,
    generate_exercises,
    load_chapters,
    pick_chapters,
)

CHAPTERS = load_chapters()
FIRST_CHAPTER = DATA_DIR / "textbook" / "01_addition.json"
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


def test_cents_are_asked_for_where_the_answer_has_them(drawn):
    for _, template, exercise in drawn:
        has_cents = exercise.answer.denominator != 1
        assert has_cents == template.decimals
        assert has_cents == ("dollars and cents" in exercise.question)


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


def test_exercise_describes_itself():
    chapter = CHAPTERS[0]
    exercise = generate_exercises(chapter, "train", 1, seed=0)[0]
    assert re.fullmatch(rf"addition/{exercise.template}/[0-9a-f]{{12}}", exercise.id)
    template = next(t for t in chapter.templates if t.id == exercise.template)
    assert (exercise.chapter, exercise.grade, exercise.split) == ("addition", 2, "train")
    assert exercise.wording == "usual"
    assert generate_exercises(chapter, "train", 1, seed=0, wording="novel")[0].wording == "novel"
    assert exercise.skills == template.skills and exercise.skill == template.skills[0]
    assert exercise.unit and exercise.unit in exercise.question


def test_unit_is_a_word_of_the_question(drawn):
    for _, template, exercise in drawn:
        assert exercise.unit.split(" per ")[0] in exercise.question, (template.id, exercise)


def test_templates_occur_in_rotation_and_questions_are_distinct():
    for chapter in CHAPTERS:
        for split, templates in (("train", 6), ("test", 2), ("confirm", 6)):
            if split == "confirm" and chapter.id not in CONFIRMED:
                continue
            drawn = generate_exercises(chapter, split, 10 * templates, seed=3)
            assert len({exercise.question for exercise in drawn}) == 10 * templates
            assert len({exercise.id for exercise in drawn}) == 10 * templates
            names = [exercise.template for exercise in drawn]
            assert {names.count(name) for name in names} == {10} and len(set(names)) == templates


def test_the_splits_share_no_template_and_no_question():
    train = [e for c in CHAPTERS for s in (0, 1) for e in generate_exercises(c, "train", 120, seed=s)]
    test = [e for c in CHAPTERS for s in (0, 1) for e in generate_exercises(c, "test", 120, seed=s)]
    test += [e for c in CHAPTERS for e in generate_exercises(c, "test", 60, seed=0, wording="novel")]
    confirm = [
        e
        for c in pick_chapters(CONFIRMED)
        for wording in ("usual", "novel")
        for e in generate_exercises(c, "confirm", 120, seed=0, wording=wording)
    ]
    splits = {"train": train, "test": test, "confirm": confirm}
    for split, drawn in splits.items():
        assert {e.split for e in drawn} == {split}
    for one, other in itertools.combinations(splits.values(), 2):
        assert not {e.template for e in one} & {e.template for e in other}
        assert not {e.question for e in one} & {e.question for e in other}


def test_novel_phrasings_are_never_used_unasked():
    for chapter in CHAPTERS:
        for template in chapter.templates:
            assert not set(template.phrasings) & set(template.novel_phrasings)
    usual, novel = (
        {e.question for c in CHAPTERS for e in generate_exercises(c, "train", 60, 0, wording)}
        for wording in ("usual", "novel")
    )
    assert not usual & novel


def test_same_seed_same_exercises_and_a_smaller_count_is_a_prefix():
    for chapter in CHAPTERS:
        drawn = generate_exercises(chapter, "train", 30, seed=7)
        assert generate_exercises(chapter, "train", 30, seed=7) == drawn
        assert generate_exercises(chapter, "train", 11, seed=7) == drawn[:11]
        other = generate_exercises(chapter, "train", 30, seed=8)
        assert len({e.question for e in other} & {e.question for e in drawn}) < 5
    assert generate_exercises(CHAPTERS[0], "test", 0, seed=7) == []


def run_python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_exercises_do_not_depend_on_the_process():
    code = (
        "from cot.utils.textbook import *; c = load_chapters();"
        "print([e.id for x in c for e in generate_exercises(x, 'train', 8, 0)])"
    )
    first = run_python(code, PYTHONHASHSEED="1")
    assert first == run_python(code, PYTHONHASHSEED="2") and first.count("/") == 12 * 8 * 2


def test_importing_the_textbook_loads_nothing_heavy():
    slow = {"torch", "transformers", "scipy", "numpy", "pandas"}
    assert run_python(f"import sys, cot.utils.textbook; print({slow} & set(sys.modules))").strip() == "set()"


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
        test_templates = [template for template in chapter.templates if template.split == "test"]
        assert 3 * len(test_templates) >= sum(template.split == "train" for template in chapter.templates)
        trained = {t.skills[0] for t in chapter.templates if t.split == "train"}
        assert trained == {skill.id for skill in chapter.skills}
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


def test_higher_grades_have_more_steps():
    def mean_steps(chapters):
        steps = [len(template.steps) for chapter in chapters for template in chapter.templates]
        return sum(steps) / len(steps)

    assert mean_steps([chapter for chapter in CHAPTERS if chapter.grade <= 3]) == 1
    assert mean_steps([chapter for chapter in CHAPTERS if chapter.grade >= 4]) > 1.8


def names_in(expression: str, allowed: tuple[type, ...]) -> set[str]:
    """The names that an expression uses, after a check that it holds nothing but allowed nodes."""
    nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    assert all(isinstance(node, allowed) for node in nodes), expression
    assert all(type(node.value) is int for node in nodes if isinstance(node, ast.Constant)), expression
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def check_text(text: str, kinds: dict[str, str], where: str) -> None:
    forms = {"noun": {None, "one", "an"}, "person": {None, "they", "their", "them"}}
    for match in PLACEHOLDER.finditer(text):
        name, form, singular, _ = match.groups()
        kind = kinds[name]
        assert form in forms.get(kind, {None}) or (kind == "noun" and kinds[form] == "number"), where
        assert singular is None or kind == "number", where
    assert not set("{}|") & set(PLACEHOLDER.sub("", text)), where


ARITHMETIC = (ast.Expression, ast.Name, ast.Load, ast.Constant, ast.BinOp)
ARITHMETIC += (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod)
COMPARISON = (ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.BoolOp, ast.And, ast.Or)


@pytest.mark.parametrize("template", [t for c in CHAPTERS for t in c.templates], ids=lambda t: t.id)
def test_expressions_and_placeholders_use_what_stands_before_them(template):
    kinds: dict[str, str] = {}  # of each name's values: number, text, noun or person
    for name, variable in template.variables.items():
        assert name.isidentifier() and name not in ("calc", "answer")
        if variable.value:
            assert names_in(variable.value, ARITHMETIC) <= set(kinds)
            kinds[name] = "number"
        else:
            (kind,) = {type(option) for option in variable.options}  # never mixed
            kinds[name] = {"int": "number", "str": "text"}.get(kind.__name__, kind.__name__.lower())

    def numbers() -> set[str]:
        return {name for name, kind in kinds.items() if kind == "number"}

    for constraint in template.constraints:
        assert names_in(constraint, ARITHMETIC + COMPARISON) <= numbers()
    for text in (*template.phrasings, *template.novel_phrasings, template.unit):
        check_text(text, kinds, text)
    for step in template.steps:
        assert names_in(step.expression, ARITHMETIC) <= numbers()
        assert step.result.isidentifier() and step.result not in {*kinds, "calc", "answer"}
        kinds[step.result] = "number"
        check_text(step.text, kinds | {"calc": "text"}, step.text)
        assert step.text.count("{calc}") == 1
    assert names_in(template.answer, ARITHMETIC) <= numbers()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.id)
def test_a_template_practises_a_skill_of_its_chapter_and_each_split_has_some(chapter):
    own = {skill.id for skill in chapter.skills}
    assert {template.skills[0] for template in chapter.templates} <= own
    confirmed = {template.skills[0] for template in chapter.templates if template.split == "confirm"}
    assert confirmed == (own if chapter.id in CONFIRMED else set())
    assert {template.split for template in chapter.templates} | {"confirm"} == set(SPLITS)


def set_path(record, path, value):
    *parents, last = path
    for key in parents:
        record = record[key]
    if value is None:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["grade"], "two", "grade: Input should be a valid integer"),
        (["grade"], True, "grade: Input should be a valid integer"),
        (["title"], None, "title: Field required"),
        (["explanation"], "", "explanation: String should have at least 1 character"),
        (["summary"], "x", "summary: Extra inputs are not permitted"),
        (["skills", 0], "adding", "skills.0: Input should be an object"),
        (["templates", 0, "split"], "dev", "templates.0.split: Input should be 'train', 'test' or 'confirm'"),
        (["templates", 0, "skills", 0], ["x"], "templates.0.skills.0: Input should be a valid string"),
        (["templates", 0, "phrasings"], [], "templates.0.phrasings: Tuple should have at least 1 item"),
        (["templates", 2, "steps", 0, "result"], None, "templates.2.steps.0.result: Field required"),
        (["templates", 0, "variables", "a"], {"low": 9, "high": 2}, "variables.a: expected low"),
        (["templates", 0, "variables", "a"], {"low": 9}, "variables.a: expected low up to high"),
        (["templates", 0, "variables", "a"], {}, "variables.a: expected low up to high"),
        (["templates", 0, "variables", "a"], {"choices": [1, "b"]}, "templates.0.variables.a.choices"),
        (["templates", 0, "variables", "item"], {"nouns": ["egg"]}, "item.nouns.0: String should match"),
    ],
)
def test_a_malformed_chapter_is_one_line_with_file_and_field(tmp_path, path, value, message):
    record = json.loads(FIRST_CHAPTER.read_text(encoding="utf-8"))
    set_path(record, path, value)
    (tmp_path / "01_addition.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_chapters(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "01_addition.json")) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_folder_or_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no chapter files"):
        load_chapters(tmp_path / "nowhere")
    (tmp_path / "01_addition.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"01_addition\.json: file: Invalid JSON"):
        load_chapters(tmp_path)


def tiny_chapter(folder: Path, low: int, high: int, constraints: list[str]):
    record = json.loads(FIRST_CHAPTER.read_text(encoding="utf-8"))
    for template in record["templates"]:
        template["variables"] = {"a": {"low": low, "high": high}}
        template["constraints"] = constraints
        template["phrasings"] = template["novel_phrasings"] = [f"What is {{a}} + {{a}} in {template['id']}?"]
        template["steps"] = [{"text": "It is {calc}.", "expression": "a + a", "result": "total"}]
        template["unit"] = ""
    (folder / "01_addition.json").write_text(json.dumps(record), encoding="utf-8")
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


def test_division_by_zero_is_a_user_error():
    with pytest.raises(UserError, match="cannot be evaluated"):
        evaluate("a / (a - a)", {"a": Fraction(3)})
