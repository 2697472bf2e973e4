"""Several processes at one run: what they agree on, who has which rows, and what the death of one costs."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import (
    REPO_ROOT,
    fork_here,
    long_context,
    only,
    read_strictly,
    run_here,
    wait_for_exit,
    without_times,
)

import evaluate_rl
from cot import run_baseline_cot, run_baseline_faiss
from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.processes import Processes, launcher_variables, leave_launch, share_rows
from cot.utils.questions import Question
from cot.utils.records import expand

ASKED, OTHER = Question("q1", "2 + 3?", "#### 5"), Question("q2", "4 + 4?", "#### 8")
SMALL = ["--dataset", "textbook", "--device", "cpu", "--batch_size", "2", "--cot_prompt", "Solve."]


def answers(folder) -> list[dict]:
    """All records below a folder, without their likelihoods: sums depend on which rows share a batch."""
    documents = [without_times(read_strictly(path)) for path in sorted(folder.rglob("results_*.json"))]
    records = [record for document in documents for record in document["results"]]
    return [{**record, "perplexity": None, "mean_nll": None} for record in records]


def likelihoods(folder) -> list[float]:
    """Those that `answers` leaves out."""
    documents = [read_strictly(path) for path in sorted(folder.rglob("results_*.json"))]
    return [
        record[key] for each in documents for record in each["results"] for key in ("perplexity", "mean_nll")
    ]


# ---- what they agree on


def test_the_first_proposal_is_everybodys(be_process):
    be_process(1)
    second = Processes()
    assert second.agree("dtype", "bfloat16") == "bfloat16"
    be_process(0)
    first = Processes()
    assert first.agree("dtype", "float32") == "bfloat16"
    first.tell("journal", "journal_1.jsonl")
    assert second.hear("journal") == "journal_1.jsonl"
    assert (first.is_main, second.is_main, second.count) == (True, False, 2)


def test_alone_a_process_agrees_with_itself():
    alone = Processes()
    alone.tell("journal", "a")
    assert (alone.agree("dtype", "float32"), alone.rank, alone.count) == ("float32", 0, 1)


def test_what_cannot_be_shared_is_refused_under_a_launcher(be_process, tmp_path):
    be_process(0)
    code, _, stderr = run_here(evaluate_rl.main, "--closed_loop", "--output_dir", tmp_path)
    assert code == 2
    told = "--closed_loop: it takes one process; start it without torchrun and accelerate launch"
    assert stderr == f"error: {told}\n"


def test_a_process_that_leaves_its_launch_is_alone(be_process, monkeypatch):
    be_process(1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    leave_launch()
    alone = Processes()
    assert (alone.rank, alone.count, launcher_variables()) == (0, 1, [])


# ---- its children


@pytest.mark.slow
def test_the_children_of_a_process_that_is_killed_end_with_it():
    code = "import subprocess, sys, time; from cot.utils.processes import guard_children\n"
    code += "child = subprocess.Popen(['sleep', '600']); guard = guard_children()\n"
    code += "print(child.pid, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=REPO_ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    child.wait(timeout=10)


# ---- who has which rows


def test_rows_of_one_prompt_stay_together_and_every_process_has_about_as_many_answers():
    own = {student: StudentMemory("own", lines=(f"{student} likes sums.",)) for student in ("S001", "S002")}
    rows = [
        row
        for question in (ASKED, OTHER, Question("q3", "7 + 5? " * 20, "#### 12"))
        for student in own
        for memory in (own[student], StudentMemory("none"))
        for row in expand("base", 0, Moment(question, student), memory, [0.0, 0.6], 2)
    ]
    # 9 prompts: each question with either student's memory, and without; 1 greedy answer and 2 others each
    shares = share_rows(rows, 2)
    prompts = [{row.shown for row in share} for share in shares]
    assert [len(share) for share in prompts] == [5, 4] and not prompts[0] & prompts[1]
    assert sorted(row.key for share in shares for row in share) == sorted(row.key for row in rows)
    assert all(share == [row for row in rows if row in share] for share in shares)  # in their order
    # of the three long prompts two go to the first process and one to the second
    assert [sum(len(shown[1]) > 100 for shown in share) for share in prompts] == [2, 1]
    assert share_rows(rows, 1) == [rows]
    assert share_rows([], 2) == [[], []]


# ---- a sweep


@pytest.mark.slow
def test_a_process_that_is_not_there_is_replaced_and_one_that_comes_late_has_nothing_to_do(
    be_process, tiny_folder, tmp_path
):
    model = long_context(tiny_folder, tmp_path / "tiny-llama")
    flags = [*SMALL, "--model_name", model, "--subset_size", "6", "--temperatures", "0.0"]
    flags += ["--max_new_tokens", "8", "--output_dir", tmp_path / "out"]
    be_process(0)
    code, stdout, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 0, stderr
    assert "2 processes share 6 rows: this one answers 3" in stdout
    found = read_strictly(only(tmp_path / "out", "results_*.json"))
    assert (found["status"], found["config"]["processes"], found["summary"]["n"]) == ("success", 2, 6)
    before = only(tmp_path / "out", "journal_*.jsonl").read_bytes()

    be_process(1)
    assert run_here(run_baseline_cot.main, *flags) == (0, "", "")
    late = only(tmp_path / "out", "journal_*_rank1.jsonl").read_text().splitlines()
    assert len(late) == 1 and "records" not in late[0]  # what it is a part of
    assert only(tmp_path / "out", "journal_*[0-9][0-9].jsonl").read_bytes() == before

    code, _, stderr = run_here(run_baseline_cot.main, *flags, "--seed", "1")
    assert (code, stderr) == (2, "error: process 1: decoding differ from those of process 0\n")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(be_process, tiny_folder, tmp_path):
    model = long_context(tiny_folder, tmp_path / "tiny-llama")
    flags = [*SMALL, "--model_name", model, "--subset_size", "3", "--temperatures", "0.0", "0.6"]
    flags += ["--students", "S003", "S005", "--memory", "own", "none", "--max_new_tokens", "24"]
    flags += ["--memory_tokens", "60", "--output_dir"]
    said, processes = [tmp_path / f"said_{rank}.txt" for rank in (0, 1)], []
    for rank, file in enumerate(said):
        be_process(rank)
        processes.append(fork_here(run_baseline_faiss.main, *flags, tmp_path / "two", said=file))
    be_process(None)
    code, _, stderr = run_here(run_baseline_faiss.main, *flags, tmp_path / "one")
    assert code == 0, stderr
    assert [wait_for_exit(process) for process in processes] == [0, 0], said[0].read_text()
    assert [file.read_text().count("device:") for file in said] == [1, 0]  # one of them speaks

    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    # float32 sums of a row differ in the last digit with the rows that it is batched with
    assert likelihoods(tmp_path / "two") == pytest.approx(likelihoods(tmp_path / "one"), abs=2e-6)
    summaries = {
        folder: read_strictly(only(tmp_path / folder, "summary_*.json")) for folder in ("one", "two")
    }
    assert [summaries[folder]["config"]["processes"] for folder in ("one", "two")] == [1, 2]
    assert summaries["two"]["status"] == "success" and summaries["two"]["summary"]["n"] == 24
    # 3 questions x (2 students' own memory, and no memory for both), dealt 5 and 4 of 9 prompts
    parts = sorted((tmp_path / "two").rglob("journal_*.jsonl"))
    kept = [json.loads(line).get("records", {}) for part in parts for line in part.read_text().splitlines()]
    assert len({key for records in kept for key in records}) == sum(map(len, kept)) == 24


@pytest.mark.slow
def test_one_that_is_killed_costs_its_batch_in_flight_and_the_same_command_finishes(
    be_process, tiny_folder, tmp_path
):
    model = long_context(tiny_folder, tmp_path / "tiny-llama")
    flags = [*SMALL, "--model_name", model, "--subset_size", "24", "--temperatures", "0.6"]
    flags += ["--max_new_tokens", "60", "--output_dir"]
    processes = []
    for rank in (0, 1):
        be_process(rank)
        processes.append(fork_here(run_baseline_cot.main, *flags, tmp_path / "two"))
    be_process(None)
    first, second = processes
    while not any(path.read_bytes().count(b"\n") >= 3 for path in tmp_path.rglob("journal_*_rank1.jsonl")):
        time.sleep(0.01)  # one or two batches
    os.kill(second, signal.SIGSTOP)
    code, _, stderr = run_here(run_baseline_cot.main, *flags, tmp_path / "two")
    assert code == 2 and re.search(r"process \d+ is at this run; wait for it or stop it\n$", stderr)
    os.kill(second, signal.SIGKILL)
    os.kill(first, signal.SIGTERM)  # as a launcher does when one of its processes has ended so
    assert [wait_for_exit(process) for process in processes] == [128 + signal.SIGTERM, -signal.SIGKILL]

    # both parts' answers are in the result file
    parts = sorted((tmp_path / "two").rglob("journal_*.jsonl"))
    kept = [json.loads(line).get("records", {}) for path in parts for line in path.read_text().splitlines()]
    found = read_strictly(only(tmp_path / "two", "results_*.json"))
    assert (found["status"], len(found["results"])) == ("cancelled", sum(map(len, kept)))
    assert 2 <= len(found["results"]) < 24

    code, _, stderr = run_here(run_baseline_cot.main, *flags, tmp_path / "one")
    assert code == 0, stderr
    code, stdout, stderr = run_here(run_baseline_cot.main, *flags, tmp_path / "two")
    assert code == 0 and f"{24 - len(found['results'])} of 24 rows left" in stdout, stderr
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    found = read_strictly(only(tmp_path / "two", "results_*.json"))
    assert (found["status"], found["config"]["processes"]) == ("success", 1)
