"""Every source yields checked questions in a fixed order; an exercise becomes a question in one way."""

import json
import subprocess
import sys

import pytest

from cot.utils.cli import REPO_ROOT
from cot.utils.errors import UserError
from cot.utils.questions import ALL, GSM8K, Question, load_questions, question_of, worked_examples
from cot.utils.textbook import generate_exercises, load_chapters

FINGERPRINT = "2118fafca823487b7aa63f6b51bdc1aa4b69e2936edfdd3c027f7db00dd92f62"
ROWS = [
    {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    {"question": "Broken gold?", "answer": "nobody knows"},
    {"question": "2 + 2?", "answer": "#### 4", "chapter": "addition", "skill": "add"},
    {"question": "3 + 3?", "answer": "#### 6"},
]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def test_a_jsonl_and_a_json_file_hold_the_same_questions(jsonl, tmp_path):
    whole = tmp_path / "mine.json"
    whole.write_text(json.dumps(ROWS))
    a, b = load_questions(str(jsonl)), load_questions(str(whole))
    assert a.questions == b.questions
    assert a.fingerprint == b.fingerprint
    assert a.questions[0] == Question("mine-0", "1 + 1?", "1 + 1 = 2\n#### 2")
    assert (a.questions[1].chapter, a.questions[1].skill) == ("addition", "add")


def test_a_gold_that_does_not_parse_is_left_out_and_named(jsonl):
    found = load_questions(str(jsonl), subset_size=2)
    assert [question.id for question in found.questions] == ["mine-0", "mine-2"]
    assert found.excluded == ("mine-1",)


def test_a_subset_is_the_first_n_and_shuffling_is_seeded(jsonl):
    ids = [
        [q.id for q in load_questions(str(jsonl), shuffle_seed=seed).questions] for seed in (None, 1, 1, 2)
    ]
    assert ids[0] == ["mine-0", "mine-2", "mine-3"]
    assert ids[1] == ids[2]
    assert sorted(ids[1]) == ids[0]
    assert len({tuple(order) for order in ids}) > 1


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a\u2028b?", "answer": "#### 1"}\n', encoding="utf-8")
    assert load_questions(str(path)).questions[0].question == "a\u2028b?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"question": "a"}\n', "line 1: answer: expected a non-empty string, got nothing"),
        ('{"question": "a", "answer": 3}\n', "line 1: answer: expected a non-empty string, got int"),
        ('{"question": " ", "answer": "#### 1"}\n', "line 1: question: expected a non-empty string"),
        ('{"question": "a", "answer": "#### 1"}\n{oops\n', "line 2: not JSON"),
        ("[1]\n", "line 1: expected an object, got list"),
        ("\n\n[1]\n", "line 3: expected an object, got list"),
        ("", "no question whose gold answer parses"),
    ],
)
def test_malformed_data_names_file_line_and_field(tmp_path, text, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(str(path))
    assert "bad.jsonl" in str(error.value) and expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "expected a list of objects, got dict"),
        ("[{", "not JSON"),
        ('[{"question": "a", "answer": "#### 1"}, 3]', "record 1: expected an object, got int"),
    ],
)
def test_a_malformed_json_file_names_its_record(tmp_path, text, expected):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(str(path))
    assert str(error.value).startswith(f"{path}: {expected}")


def test_an_unknown_source_is_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(UserError, match="expected auto, gsm8k, textbook, or"):
        load_questions("gsm9k")
    with pytest.raises(UserError, match="No such file"):
        load_questions(str(tmp_path / "absent.jsonl"))


def test_the_textbook_asks_every_chapter_in_turn_and_never_moves():
    first = load_questions("textbook", subset_size=24)
    chapters = [question.chapter for question in first.questions]
    assert len(set(chapters[:12])) == 12
    assert chapters[:12] == chapters[12:]
    assert load_questions("textbook", subset_size=12).questions == first.questions[:12]
    train = load_questions("textbook", "train")
    assert not {q.question for q in train.questions} & {
        q.question for q in load_questions("textbook").questions
    }


def test_the_textbook_is_a_fixed_data_set():
    # recorded earlier: a change means that the results so far are of other questions
    assert load_questions("textbook").fingerprint == FINGERPRINT
    assert load_questions("textbook", subset_size=ALL) == load_questions("textbook")


def test_an_exercise_becomes_a_question_with_all_its_labels():
    chapter = load_chapters()[4]
    exercise = generate_exercises(chapter, "test", 1, seed=3, wording="novel")[0]
    question = question_of(exercise)
    assert (question.id, question.question) == (exercise.id, exercise.question)
    assert question.gold_solution == exercise.gold_solution
    assert (question.chapter, question.skill, question.wording) == ("two_step", exercise.skills[0], "novel")
    assert question.skills == exercise.skills
    assert question.gold_steps == exercise.steps == 2


def test_gold_steps_are_the_annotated_calculations_and_at_least_one():
    assert Question("a", "?", "1 + 1 = <<1+1=2>>2\n2 + 2 = <<2+2=4>>4\n#### 4").gold_steps == 2
    assert Question("a", "?", "#### 4").gold_steps == 1


def test_worked_examples_are_distinct_and_spread():
    examples = worked_examples(12)
    assert len(set(examples)) == 12
    assert all("####" in solution for _, solution in examples)
    assert worked_examples(0) == []


@pytest.mark.slow
def test_gsm8k_comes_from_the_librarys_cache_when_the_hub_is_silent(tmp_path):
    """The real loader, in a child process with a dead hub and a cache laid out as `datasets` does."""
    source = REPO_ROOT.parent / "shared" / "gsm8k" / "test.jsonl"
    if not source.exists():
        pytest.skip("../shared/gsm8k absent")
    code = (
        "from cot.utils.questions import load_questions\n"
        "found = load_questions('gsm8k', subset_size=2)\n"
        "print(found.source, len(found.questions), found.questions[0].question[:11])\n"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(REPO_ROOT),
    }

    def run():
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    cold = run()
    assert cold.returncode == 1
    assert f"{GSM8K}: hub unreachable and no copy in its cache" in cold.stderr.replace("\n", " ")
    fill_cache(source, tmp_path / "hf" / "datasets")
    warm = run()
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.strip() == "GSM8K test 2 Janet\u2019s duc"


def fill_cache(source, folder):
    """Lays the published rows where `load_dataset` keeps `openai/gsm8k`."""
    import datasets

    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    home = folder / "openai___gsm8k" / "main" / "0.0.0" / "e53f048856ff4f594e959d75785d2c2d37b678ee"
    home.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows)
    with datasets.arrow_writer.ArrowWriter(
        path=str(home / "gsm8k-test.arrow"), features=table.features
    ) as out:
        for row in rows:
            out.write(row)
        out.finalize()
    info = datasets.DatasetInfo(
        features=table.features,
        builder_name="parquet",
        dataset_name="gsm8k",
        config_name="main",
        version="0.0.0",
        splits={"test": {"name": "test", "num_examples": len(rows), "dataset_name": "gsm8k"}},
    )
    info.write_to_directory(str(home))
