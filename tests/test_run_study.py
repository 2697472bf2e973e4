"""The study's script: a whole small run with its files, and what it refuses before a model loads."""

import importlib

import pytest
from conftest import only, read_strictly, run_here
from test_docs import read, undocumented

from cot.run_study import main
from cot.utils.files import read_answers
from cot.utils.study_results import recount

simulate_students = importlib.import_module("rl.simulate_students")


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    assert run_here(simulate_students.main, "--generate", 3, "--profiles_dir", folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def study(students, tiny_long, tmp_path_factory):
    """A study of a tiny random model: two questions for two of three students, at two levels."""
    folder = tmp_path_factory.mktemp("study")
    flags = ["--model_name", tiny_long, "--device", "cpu", "--dataset", "textbook", "--subset_size", 2]
    flags += ["--profiles_dir", students, "--memory_tokens", 60, "--cot_prompt", "Solve."]
    flags += ["--max_new_tokens", 4, "--output_dir", folder / "out"]
    (folder / "out" / "study.md").mkdir(parents=True)  # no file can be written there: all else is made
    with pytest.raises(IsADirectoryError):
        run_here(main, *flags)
    (folder / "out" / "study.md").rmdir()
    code, out, stderr = run_here(main, *flags)
    assert code == 0 and ": 0 of " in out, stderr
    assert out.splitlines()[-1] == str(only(folder / "out", "summary_*.json"))
    return folder / "out"


@pytest.mark.slow
def test_a_study_writes_its_answers_its_tables_and_its_figure(study):
    document = read_strictly(only(study, "summary_*.json"))
    assert list(document["summary"]) == ["rows_done", "table", "verdicts", "timing"]
    config = document["config"]
    assert (config["memory_level"], config["students_asked"]) == (["stated", "history"], 3)
    assert list(config["models"]) == ["tiny-llama"]  # no path in what may be published
    rows = {
        (row["condition"], row["memory_level"], row["temperature"]) for row in document["summary"]["table"]
    }
    assert {("own", "stated", 0.0), ("own", "history", 0.7), ("after_20", "history", 0.0)} <= rows
    assert ("wrong", "stated", 0.7) in rows and ("none", None, 0.0) in rows
    assert len(document["summary"]["verdicts"]) == 9 + 10  # of a to g at both levels, and h at one

    report = (study / "study.md").read_text()
    assert "| own | history | 4 |" in report and "| none | – | 2 |" in report
    assert "More than 5% of the texts are cut off" in report
    assert (study / "study.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_raw_answers_give_the_same_tables_and_every_key_is_documented(study):
    answers = read_answers(study / "answers.jsonl.gz")
    summary, again = read_strictly(only(study, "summary_*.json"))["summary"], recount(answers)
    assert again["verdicts"] == summary["verdicts"]
    keys = ("condition", "memory_level", "temperature")
    tables = [{tuple(row[key] for key in keys): row for row in found["table"]} for found in (again, summary)]
    assert tables[0] == tables[1]

    for pattern in ("results_temp_0.7_*.json", "summary_*.json"):
        found = read_strictly(only(study, pattern))
        found["config"]["models"] = list(found["config"]["models"].values())  # its keys are names of models
        assert undocumented([found, answers], read("cot")) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--students", "S0000"], "--students: 1 are too few; it takes 2 or more"),
        (["--students_per_question", "4"], "--students: 3 are too few; it takes 4 or more"),
        (["--memory_level", "episodes", "--top_k", "0"], "--memory_level episodes: --top_k 0 leaves nothing"),
    ],
)
def test_what_cannot_be_asked_is_one_line(flags, message, students, tiny_folder, tmp_path):
    flags += ["--profiles_dir", students, "--model_name", tiny_folder, "--output_dir", tmp_path]
    flags += ["--dataset", "textbook", "--device", "cpu", "--max_new_tokens", 4]
    code, _, stderr = run_here(main, *flags)
    assert code == 2 and message in stderr and stderr.count("\n") == 1


def test_students_of_whom_nobody_knows_what_they_need_are_refused(students, tmp_path):
    for path in students.glob("S*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code, _, stderr = run_here(main, "--profiles_dir", tmp_path, "--model_name", "tutor")
    assert code == 2 and "--students S0000: nobody knows what it needs" in stderr
