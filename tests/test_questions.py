"""Every source yields checked questions in a fixed order; an exercise becomes a question in one way."""

import dataclasses
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cot.utils.errors import UserError
from cot.utils.paths import REPO_ROOT
from cot.utils.questions import GSM8K, Question, load_questions, question_of
from cot.utils.textbook import generate_exercises, load_chapters

FINGERPRINT = "2118fafca823487b7aa63f6b51bdc1aa4b69e2936edfdd3c027f7db00dd92f62"
ROWS = [
    {"question": "1\u2028+ 1?", "answer": "1 + 1 = 2\n#### 2"},  # a line separator ends no line
    {"question": "Broken gold?", "answer": "nobody knows"},
    {"question": "2 + 2?", "answer": "#### 4", "chapter": "addition", "skill": "add"},
    {"question": "3 + 3?", "answer": "#### 6"},
]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def test_a_jsonl_and_a_json_file_hold_the_same_questions_without_a_gold_that_does_not_parse(jsonl, tmp_path):
    whole = tmp_path / "mine.json"
    whole.write_text(json.dumps(ROWS))
    found = load_questions(str(jsonl))
    assert found.questions == (
        Question("mine-0", "1\u2028+ 1?", "1 + 1 = 2\n#### 2"),
        Question("mine-2", "2 + 2?", "#### 4", chapter="addition", skill="add"),
        Question("mine-3", "3 + 3?", "#### 6"),
    )
    assert found.excluded == ("mine-1",)
    assert dataclasses.replace(load_questions(str(whole)), source=str(jsonl)) == found


def test_a_subset_is_the_first_n_and_shuffling_is_seeded(jsonl):
    def ids(**options):
        return [question.id for question in load_questions(str(jsonl), **options).questions]

    assert ids(subset_size=2) == ["mine-0", "mine-2"]
    orders = [ids(shuffle_seed=seed) for seed in range(8)]
    assert orders == [ids(shuffle_seed=seed) for seed in range(8)]
    assert all(sorted(order) == ids() for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert ids(shuffle_seed=3, subset_size=2) == orders[3][:2]  # shuffled before


def test_an_offset_counts_usable_questions_so_that_parts_share_none(jsonl):
    """Of the file's four questions the second has no usable answer."""

    def part(**options):
        found = load_questions(str(jsonl), **options)
        return [question.id for question in found.questions], found.excluded

    assert part(subset_size=1) == (["mine-0"], ())
    assert part(subset_size=1, offset=1) == (["mine-2"], ("mine-1",))
    assert part(subset_size="all", offset=1) == (["mine-2", "mine-3"], ("mine-1",))
    assert part(offset=2) == (["mine-3"], ())
    assert part(shuffle_seed=3, offset=1)[0] == part(shuffle_seed=3)[0][1:]  # shuffled before
    with pytest.raises(UserError, match=r"--offset 3: .*mine\.jsonl has 3 usable questions"):
        part(offset=3)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"question": "a"}\n', "line 1: answer: expected a non-empty string, got nothing"),
        ("a.jsonl", '{"question": "a", "answer": 3}', "line 1: answer: expected a non-empty string, got int"),
        ("a.jsonl", '{"question": " ", "answer": "#### 1"}\n', "line 1: question: expected a non-empty"),
        ("a.jsonl", '{"question": "a", "answer": "#### 1"}\n{oops\n', "line 2: not JSON"),
        (
            "a.jsonl",
            r'{"question": "\ud800", "answer": "#### 1"}',
            "line 1: question: holds half of a character",
        ),
        ("a.jsonl", "\n\n[1]\n", "line 3: expected an object, got list"),
        ("a.json", "{}", "expected a list of objects, got dict"),
        ("a.json", "[" + "1" * 5000 + "]", "not JSON: Exceeds the limit"),
        ("a.json", '[{"question": "a", "answer": "#### 1"}, 3]', "record 1: expected an object, got int"),
        ("a.json", None, "No such file"),
    ],
)
def test_malformed_data_names_file_line_and_field(tmp_path, name, text, expected):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(str(path))
    assert str(error.value).startswith(f"{path}: {expected}")


def test_a_source_that_is_unknown_or_empty_is_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(UserError, match="expected auto, gsm8k, textbook, or"):
        load_questions("gsm9k")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: no question whose gold answer parses"):
        load_questions(str(tmp_path / "empty.jsonl"))


def test_the_textbook_is_a_fixed_data_set_that_asks_every_chapter_in_turn():
    found = load_questions("textbook")
    # recorded earlier: a change means that the results so far are of other questions
    assert found.fingerprint == FINGERPRINT
    chapters = [chapter.id for chapter in load_chapters()]
    assert [question.chapter for question in found.questions] == chapters * 20
    assert load_questions("textbook", subset_size=12).questions == found.questions[:12]
    train = load_questions("textbook", "train").questions
    assert not {question.question for question in train} & {question.question for question in found.questions}


def test_an_exercise_becomes_a_question_with_all_its_labels():
    exercise = generate_exercises(load_chapters()[4], "test", 1, seed=3, wording="novel")[0]
    question = question_of(exercise)
    assert question.wording == "novel"
    for field in dataclasses.fields(Question):
        assert getattr(question, field.name) == getattr(exercise, field.name)
    assert question.gold_steps == exercise.steps == 2
    assert Question("a", "?", "#### 4").gold_steps == 1


class Broken(BaseHTTPRequestHandler):
    """A hub whose every answer is an error of its own."""

    def do_HEAD(self):
        self.send_error(503)

    def log_message(self, *args):
        pass


@contextmanager
def listen(kind):
    """The address of a hub that refuses, that accepts and never answers, or that is broken."""
    if kind == "refuses":
        yield "http://127.0.0.1:9"
    elif kind == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["refuses", "silent", "broken"])
def test_without_a_hub_gsm8k_comes_from_the_librarys_cache_or_is_one_line_in_seconds(hub, tmp_path):
    """The real loader, in a child process with such a hub and a cache laid out as `datasets` does."""
    code = (
        "import time; began = time.monotonic()\n"
        "from cot.utils.questions import load_questions\n"
        "try: found = load_questions('gsm8k', subset_size=2)\n"
        "finally: print(time.monotonic() - began)\n"
        "print(found.source, *(question.question for question in found.questions))\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}

    def run(endpoint):
        env = environment | {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(REPO_ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        seconds, *answer = done.stdout.splitlines()
        assert float(seconds) < 30  # the probe takes 4; datasets, when it asks again, over 240
        return done, answer

    with listen(hub) as endpoint:
        cold, _ = run(endpoint)
        assert cold.returncode == 1
        assert f"{GSM8K}: hub unreachable and no copy in its cache" in cold.stderr.replace("\n", " ")
        assert "Retry" not in cold.stderr
        fill_cache(tmp_path / "hf" / "datasets")
        warm, answer = run(endpoint)
    assert warm.returncode == 0, warm.stderr
    assert answer == ["GSM8K test 0? 1?"]


def fill_cache(folder):
    """Lays three rows where `load_dataset` keeps `openai/gsm8k`."""
    import datasets

    rows = [{"question": f"{number}?", "answer": f"#### {number}"} for number in range(3)]
    home = folder / "openai___gsm8k" / "main" / "0.0.0" / "e53f048856ff4f594e959d75785d2c2d37b678ee"
    home.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows)
    arrow = str(home / "gsm8k-test.arrow")
    with datasets.arrow_writer.ArrowWriter(path=arrow, features=table.features) as out:
        for row in rows:
            out.write(row)
        out.finalize()
    datasets.DatasetInfo(
        features=table.features,
        builder_name="parquet",
        dataset_name="gsm8k",
        config_name="main",
        version="0.0.0",
        splits={"test": {"name": "test", "num_examples": len(rows), "dataset_name": "gsm8k"}},
    ).write_to_directory(str(home))
