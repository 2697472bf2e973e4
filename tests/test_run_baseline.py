"""The sweeps as documented: child processes, real signals, files read back strictly."""

import importlib.util
import json
import os
import random
import re
import resource
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
from conftest import (
    CANARY,
    FIRST_KEYS,
    edit_journal,
    fork_here,
    long_context,
    only,
    read_strictly,
    run_here,
    run_script,
    wait_for_exit,
    wait_for_lines,
    without_times,
)
from test_docs import blocks, needs_jq, read, run_lines, undocumented

from cot import run_baseline_cot, run_baseline_faiss
from cot.utils.fidelity import EXPLANATION_STYLES
from cot.utils.files import encode_record
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import question_of
from cot.utils.results import environment
from cot.utils.scorers import Scorers
from cot.utils.textbook import generate_exercises, load_chapters
from rl import simulate_students

pytestmark = pytest.mark.slow

SMALL = ["--dataset", "textbook", "--device", "cpu", "--max_new_tokens", "24", "--cot_prompt", "Solve."]
LONG = [
    *SMALL,
    "--temperatures",
    "0.6",
    "--max_new_tokens",
    "90",
    "--batch_size",
    "2",
    "--subset_size",
    "200",
]
ARMS = ["own", "none", "shuffled", "random"]


def sweep(main, folder, *flags) -> str:
    """Runs a sweep that succeeds; what it printed."""
    code, stdout, stderr = run_here(main, *SMALL, "--output_dir", folder, *flags)
    assert code == 0, stderr
    return stdout


# ---- contracts


@pytest.fixture(scope="module")
def factorial(tiny_long, tmp_path_factory):
    """A whole factorial run of a tiny random model: 2 students x 2 questions x 4 arms x 2 temperatures."""
    folder = tmp_path_factory.mktemp("factorial")
    flags = ["--students", "S003", "S005", "--memory", *ARMS, "--memory_tokens", "80", "--subset_size", "2"]
    flags += ["--num_samples", "2", "--temperatures", "0.0", "0.6", "--model_name", tiny_long]
    return sweep(run_baseline_faiss.main, folder, *flags), folder / "tiny"


def test_a_sweep_says_what_was_picked_and_at_last_where_its_summary_is(factorial):
    stdout, folder = factorial
    lines = stdout.splitlines()
    assert lines[0].startswith("data:") and "textbook test, 2 questions" in lines[0]
    assert any(line.startswith("model:") for line in lines) and any("cpu" in line for line in lines[:4])
    assert lines[-1] == str(only(folder, "summary_*.json"))

    summary = read_strictly(only(folder, "summary_*.json"))
    assert [entry["temperature"] for entry in summary["results"]] == [0.0, 0.6]
    assert all((folder / entry["file"]).exists() for entry in summary["results"])
    assert summary["summary"]["n"] == 64


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_result_files_keep_their_contract(factorial, temperature):
    found = read_strictly(only(factorial[1], f"results_temp_{temperature}_*.json"))
    assert list(found)[-1] == "results"
    assert (found["status"], found["temperature"]) == ("success", temperature)
    assert len(found["results"]) == 2 * 2 * 4 * 2
    for record in found["results"]:
        assert list(record)[:9] == FIRST_KEYS and record["error"] is None
        assert record["prompt"].endswith("Answer:") and record["question"] in record["prompt"]
        assert record["prompt"] not in record["generated_text"]
        assert record["retrieved_profile"] in ("4th grade", "5th grade")

    summary = found["summary"]
    assert summary["n"] == 32 and list(summary["arms"]) == ARMS
    pairs = [(comparison["arm"], comparison["reference_arm"]) for comparison in summary["comparisons"]]
    assert pairs == [*(("own", arm) for arm in ARMS[1:]), ("shuffled", "none"), ("random", "none")]
    assert summary["leak_rate"] == 0
    assert summary["arms"]["own"]["profile_identification"]["chance"] == 0.5
    (model,) = found["config"]["models"].values()
    assert (model["kind"], model["device"], model["batch_size"]) == ("folder", "cpu", 128)


def test_arms_differ_in_memory_alone(factorial):
    records = read_strictly(only(factorial[1], "results_temp_0.0_*.json"))["results"]
    lengths = {(r["student_id"], r["index"], r["memory_arm"]): r["prompt_tokens"] for r in records}
    for record in records:
        own, shown, arm = record["student_id"], record["memory_student_id"], record["memory_arm"]
        assert ("<student_memory>" in record["prompt"]) == (arm != "none")
        assert (f"Student {shown}" in record["prompt"]) == (arm in ("own", "shuffled"))
        if arm == "own":
            assert own == shown and len(record["retrieved_memories"]) == 2
            assert all(memory["student_id"] == own for memory in record["retrieved_memories"])
        if arm == "shuffled":
            assert own != shown
        if arm == "random":  # cut at a word of a byte-level tokenizer
            assert abs(record["prompt_tokens"] - lengths[own, record["index"], "own"]) <= 12


def test_every_key_of_a_sweeps_files_is_documented(factorial):
    for pattern in ("results_temp_0.6_*.json", "summary_*.json"):
        assert undocumented(read_strictly(only(factorial[1], pattern)), read("cot")) == []


@needs_jq
def test_the_jq_lines_of_the_sweeps_run(factorial):
    five, whole = (block.strip().split("\n") for block in blocks(read("cot"), "jq"))
    outputs = run_lines(five, factorial[1])
    assert len(outputs) == 5 and list(json.loads(outputs[-1])) == ARMS
    table, comparisons = run_lines(whole, factorial[1])
    assert [line.split("\t")[:2] for line in table.splitlines()] == [[arm, "8"] for arm in ARMS]
    assert len(comparisons.splitlines()) == 5


def test_texts_are_embedded_as_their_batches_come(tiny_long, tmp_path, monkeypatch):
    embedded, embed = [], Scorers.embed

    def note(self, records):
        journal = only(tmp_path, "journal_*.jsonl").read_text()
        assert all(encode_record(record).decode() in journal for record in records)  # kept already
        embedded.append(len(records))
        embed(self, records)

    monkeypatch.setattr(Scorers, "embed", note)
    flags = ["--model_name", tiny_long, "--subset_size", "3", "--temperatures", "0.0", "--batch_size", "2"]
    sweep(run_baseline_cot.main, tmp_path, *flags)
    assert embedded == [2, 1]
    (record, *_) = read_strictly(only(tmp_path, "results_*.json"))["results"]
    assert isinstance(record["semantic_similarity"], float)


def test_memory_as_of_a_moment_shows_nothing_later(tiny_long, tmp_path):
    """S001's log begins on 5 January 2026: before it nothing is retrieved, and no skill has a mastery."""
    flags = ["--model_name", tiny_long, "--students", "S001", "--subset_size", "1", "--temperatures", "0.0"]
    flags += ["--memory_tokens", "1200", "--min_similarity", "-1", "--as_of", "2026-01-05T00:00:00Z"]
    sweep(run_baseline_faiss.main, tmp_path, *flags)
    (record,) = read_strictly(only(tmp_path, "results_*.json"))["results"]
    assert "Student S001" in record["prompt"] and "Past exercise" not in record["prompt"]
    assert (record["retrieved_memories"], record["mastery"]) == ([], None)
    assert record["as_of"] == record["memory_as_of"] == "2026-01-05T00:00:00Z"


# ---- mistakes


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--temperatures", "-1"], "'-1': expected float of at least 0"),
        (["--model_name", "./no/such/folder"], "--model_name ./no/such/folder: no such folder"),
        (["--students", "S999"], "--students S999: no such profile"),
        (["--profiles_dir", "BROKEN"], "S005.json: strengths: expected a list of strings, got str"),
        (["--profiles_dir", "FORGETFUL"], "FORGETFUL/memory/S005.jsonl: line 1: not JSON"),
        (["--mastery_parameters", "BROKEN/S005.json"], "BROKEN/S005.json: predictor: missing"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2_at_once(flags, expected, tmp_path):
    profile = json.loads((PROFILES_DIR / "S005.json").read_text())
    for folder, changes in {"BROKEN": {"strengths": "fractions"}, "FORGETFUL": {}}.items():
        (tmp_path / folder / "memory").mkdir(parents=True)
        (tmp_path / folder / "S005.json").write_text(json.dumps(profile | changes))
    (tmp_path / "FORGETFUL" / "memory" / "S005.jsonl").write_text("{broken\n{}\n")
    if "--model_name" not in flags:
        flags = [*flags, "--model_name", "bundled"]
    done = run_script("cot/run_baseline_faiss.py", *flags, "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 2 and expected in done.stderr_text
    assert done.stderr_text.count("\n") == 1
    assert done.stdout_text == ""  # nothing was picked yet, let alone loaded


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, stderr = run_here(run_baseline_cot.main, *SMALL, "--device", "cuda", "--output_dir", tmp_path)
    assert code == 2 and stderr.startswith("error: --device cuda") and stderr.count("\n") == 1


# ---- crashes


def read_to_its_end(process: int, folder: Path) -> int:
    """A forked script's exit code, below 0 for a signal; until then each result file is strict JSON."""
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        for path in folder.rglob("results_*.json"):
            read_strictly(path)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def test_a_sweep_killed_at_random_moments_continues_to_what_an_uninterrupted_one_gives(tiny_long, tmp_path):
    flags = [*SMALL, "--model_name", tiny_long, "--subset_size", "30", "--temperatures", "0.0", "0.6"]
    flags += ["--batch_size", "2", "--max_new_tokens", "60"]
    code, _, stderr = run_here(run_baseline_cot.main, *flags, "--output_dir", tmp_path / "whole")
    assert code == 0, stderr
    broken, folder = [*flags, "--output_dir", tmp_path / "broken"], tmp_path / "broken" / "tiny"

    rng = random.Random(0)
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    ended, lines = [], 2  # of the journal: its header and the model
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = fork_here(run_baseline_cot.main, *broken)
        lines += rng.randint(1, 3)
        wait_for_lines(folder, lines)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process, signum)
        ended.append((read_to_its_end(process, folder), codes[signum]))
        lines = only(folder, "journal_*.jsonl").read_bytes().count(b"\n")
    assert all(code == expected for code, expected in ended), ended

    journal = only(folder, "journal_*.jsonl")
    kept = [key for line in journal.read_text().splitlines() for key in json.loads(line).get("records", {})]
    code, stdout, stderr = run_here(run_baseline_cot.main, *broken)
    assert code == 0, stderr
    assert f"continuing {journal}: {60 - len(kept)} of 60 rows left" in stdout
    for name in ("results_temp_0.0_*.json", "results_temp_0.6_*.json", "summary_*.json"):
        expected = without_times(read_strictly(only(tmp_path / "whole", name)))
        assert without_times(read_strictly(only(tmp_path / "broken", name))) == expected
    keys = [key for line in journal.read_text().splitlines() for key in json.loads(line).get("records", {})]
    assert len(keys) == len(set(keys)) == 60


def test_what_an_engine_that_dies_or_ends_early_has_answered_is_kept(tiny_long, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    from cot.utils.engine import TransformersEngine

    flags = [*SMALL, "--model_name", tiny_long, "--subset_size", "12", "--temperatures", "0.6"]
    flags += ["--batch_size", "2", "--max_new_tokens", "12"]
    assert run_here(run_baseline_cot.main, *flags, "--output_dir", tmp_path / "whole")[0] == 0
    flags += ["--output_dir", tmp_path / "out"]

    # 30 calls of the model: two batches of 12 tokens, and a part of the third
    forward, calls = LlamaForCausalLM.forward, iter(range(30))

    def forward_for_a_while(self, *args, **options):
        if next(calls, None) is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(self, *args, **options)

    with monkeypatch.context() as dying:
        dying.setattr(LlamaForCausalLM, "forward", forward_for_a_while)
        died = fork_here(run_baseline_cot.main, *flags, said=tmp_path / "said.txt")
        assert wait_for_exit(died) == 1
    said = r"error: unexpected RuntimeError: CUDA error: an .*; continue with: python \S+cot\.py .*\n\Z"
    assert re.search(said, (tmp_path / "said.txt").read_text())
    found = read_strictly(only(tmp_path / "out", "results_*.json"))
    assert (found["status"], found["summary"]["rows_done"], len(found["results"])) == ("error", 4, 4)

    generate = TransformersEngine.generate
    with monkeypatch.context() as short:
        short.setattr(TransformersEngine, "generate", lambda *args, **kw: islice(generate(*args, **kw), 3))
        code, _, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 1  # three batches of two, of the eight rows that were left
    assert "error: the engine answered 6 of 8 rows; continue with: python" in stderr

    code, stdout, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 0 and "2 of 12 rows left" in stdout, stderr
    expected = without_times(read_strictly(only(tmp_path / "whole", "results_*.json")))
    assert without_times(read_strictly(only(tmp_path / "out", "results_*.json"))) == expected


def test_a_fault_while_figures_are_drawn_costs_no_answer(tiny_long, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    flags = [*SMALL, "--model_name", tiny_long]
    flags += ["--subset_size", "2", "--temperatures", "0.6", "--output_dir", tmp_path / "out"]
    folder = tmp_path / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "figures").write_text("where the figures' folder has to be")
    with pytest.raises(FileExistsError):  # of a script: one line, and exit code 1
        run_here(run_baseline_cot.main, *flags)
    assert read_strictly(only(folder, "summary_*.json"))["status"] == "error"
    (folder / "figures").unlink()

    save = Figure.savefig

    def save_and_ask_to_end(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        signal.raise_signal(signal.SIGTERM)

    encoded = []

    def count_and_encode(record):
        encoded.append(record)
        return encode_record(record)

    with monkeypatch.context() as ending:
        ending.setattr(Figure, "savefig", save_and_ask_to_end)
        ending.setattr("cot.utils.files.encode_record", count_and_encode)
        code, stdout, _ = run_here(run_baseline_cot.main, *flags)
    assert code == 143 and "0 of 2 rows left" in stdout
    assert len(encoded) == 2  # as it finished: a signal has no time for it, and leaves what was there before
    assert read_strictly(only(folder, "summary_*.json"))["status"] == "cancelled"
    assert len(list((folder / "figures").iterdir())) == 1

    code, stdout, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 0 and "0 of 2 rows left" in stdout, stderr
    assert read_strictly(only(folder, "summary_*.json"))["status"] == "success"
    assert len(list((folder / "figures").iterdir())) == 3
    lines = map(json.loads, only(folder, "journal_*.jsonl").read_text().splitlines())
    assert sum(len(line.get("records", {})) for line in lines) == 2


def read_cancelled(folder) -> None:
    found = read_strictly(only(folder, "results_*.json"))
    assert found["status"] == "cancelled"
    assert found["summary"]["rows_done"] == len(found["results"]) >= 2
    assert set(found["summary"]) == {"rows_done", "timing"}  # at 100,000 rows there is no time for more


def test_signals_flush_and_leave_with_their_exit_code(tiny_long, tmp_path):
    for signum in (signal.SIGTERM, signal.SIGINT):
        folder, said = tmp_path / signum.name, tmp_path / f"{signum.name}.txt"
        flags = [*LONG, "--model_name", tiny_long, "--output_dir", folder]
        process = fork_here(run_baseline_cot.main, *flags, said=said)
        wait_for_lines(folder, 3)
        asked = time.monotonic()
        os.kill(process, signum)
        assert wait_for_exit(process) == 128 + signum and time.monotonic() - asked < 10
        printed = said.read_text()
        assert "Traceback" not in printed
        assert "continue with: python" in printed and "run_baseline_cot.py" in printed
        read_cancelled(folder)


def test_a_closed_terminal_leaves_the_results(tiny_long, tmp_path):
    master, slave = os.openpty()

    def take_terminal():
        os.close(master)
        os.login_tty(slave)

    flags = [*LONG, "--model_name", tiny_long, "--output_dir", tmp_path]
    terminal = Path(os.ttyname(slave))
    process = fork_here(run_baseline_cot.main, *flags, said=terminal, before=take_terminal)
    os.close(slave)
    printed = b""
    while not any(path.read_bytes().count(b"\n") > 3 for path in tmp_path.rglob("journal_*.jsonl")):
        printed += os.read(master, 4096)
    assert b"row/s" in printed  # the bar, on a terminal that does not know its width
    os.close(master)  # as SSH does that drops: a signal, and every print fails from now on
    assert wait_for_exit(process) == 128 + signal.SIGHUP
    read_cancelled(tmp_path)


def test_a_signal_while_a_batch_is_saved_loses_no_row_of_it(tiny_long, tmp_path, monkeypatch):
    sync = os.fsync

    def sync_and_ask_to_end(handle):
        sync(handle)
        for journal in tmp_path.rglob("journal_*.jsonl"):
            if journal.read_bytes().count(b"\n") == 3:  # the header, the model, a batch
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", sync_and_ask_to_end)
    flags = [*SMALL, "--model_name", tiny_long, "--subset_size", "4", "--temperatures", "0.6"]
    flags += ["--batch_size", "2", "--max_new_tokens", "8", "--output_dir", tmp_path]
    code, _, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 143, stderr
    read_cancelled(tmp_path)


def test_a_full_disk_leaves_readable_files_and_the_same_command_finishes(tiny_long, tmp_path, monkeypatch):
    flags = [*SMALL, "--model_name", tiny_long, "--subset_size", "12", "--temperatures", "0.0"]
    flags += ["--batch_size", "2", "--output_dir", tmp_path]

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails as it does on a full disk

    monkeypatch.setenv("HF_TOKEN", CANARY)
    full = fork_here(run_baseline_cot.main, *flags, said=tmp_path / "said.txt", before=small_files)
    assert wait_for_exit(full) == 1
    printed = (tmp_path / "said.txt").read_text()
    said = r"error: \S+/tiny/\w\S+\.jsonl?: File too large; continue with: python .*\n\Z"
    assert re.search(said, printed), printed
    for path in tmp_path.rglob("results_*.json"):
        read_strictly(path)
    stdout = sweep(run_baseline_cot.main, tmp_path, *flags)
    assert "continuing" in stdout
    assert read_strictly(only(tmp_path, "results_*.json"))["summary"]["n"] == 12

    # a token in the environment of both runs is in nothing that they said or wrote
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 7 and not any(CANARY.encode() in text for text in [stdout.encode(), *written])


# ---- failed answers


def test_a_failed_sample_is_a_record_and_too_many_are_an_exit_code(tiny_folder, tmp_path):
    """The tiny model's context is 128 tokens: the long question cannot be asked."""
    questions = [("2 + 3?", "#### 5"), ("How many? " * 40, "#### 5"), ("4 + 4?", "#### 8")]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in questions))
    flags = [*SMALL, "--model_name", tiny_folder, "--dataset", data, "--max_new_tokens", "20"]
    flags += ["--temperatures", "0.0", "--output_dir", tmp_path]
    code, _, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 3 and "1 of 3 answers failed" in stderr
    found = read_strictly(only(tmp_path, "results_*.json"))
    assert (found["status"], found["summary"]["n"], found["summary"]["errors"]) == ("error", 2, 1)
    assert [record["error"] is None for record in found["results"]] == [True, False, True]
    failed = found["results"][1]
    assert failed["error"]["type"] == "prompt_too_long"
    assert {failed[key] for key in ("output_tokens", "perplexity", "correct", "semantic_similarity")} == {
        None
    }
    assert run_here(run_baseline_cot.main, *flags, "--fail_on_error", "0.5")[0] == 0


def test_failed_answers_are_generated_again_and_the_others_kept(tiny_long, tmp_path, monkeypatch):
    import torch
    from transformers import LlamaForCausalLM

    flags = ["--model_name", tiny_long, "--subset_size", "4", "--temperatures", "0.0", "0.6"]
    flags += ["--batch_size", "2", "--max_new_tokens", "8", "--fail_on_error", "1"]
    sweep(run_baseline_cot.main, tmp_path / "whole", *flags)
    whole = read_strictly(only(tmp_path / "whole", "results_temp_0.0_*.json"))["results"]
    longest, forward = max(record["prompt_tokens"] for record in whole), LlamaForCausalLM.forward

    def too_small_for_the_longest(self, input_ids=None, **options):
        if input_ids.shape[1] == longest:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, input_ids=input_ids, **options)

    mended = tmp_path / "mended"
    retry = [*SMALL, *flags, "--output_dir", mended, "--retry_failed"]
    code, _, stderr = run_here(run_baseline_cot.main, *retry)
    assert code == 2 and "--retry_failed: no run of these flags" in stderr
    with monkeypatch.context() as small:
        small.setattr(LlamaForCausalLM, "forward", too_small_for_the_longest)
        sweep(run_baseline_cot.main, mended, *flags)
    failed = read_strictly(only(mended, "results_temp_0.6_*.json"))
    assert (failed["summary"]["n"], failed["summary"]["errors"]) == (3, 1)
    kept = only(mended, "journal_*.jsonl").read_text()

    for left in (2, 0):  # the second time nothing has failed
        assert f"{left} of 8 rows left" in sweep(run_baseline_cot.main, mended, *flags, "--retry_failed")
        for name in ("results_temp_0.0_*.json", "results_temp_0.6_*.json", "summary_*.json"):
            expected = without_times(read_strictly(only(tmp_path / "whole", name)))
            assert without_times(read_strictly(only(mended, name))) == expected
    journal = only(mended, "journal_*.jsonl").read_text()
    assert journal.startswith(kept)
    added = map(json.loads, journal[len(kept) :].splitlines())
    assert [len(line["records"]) for line in added if "records" in line] == [2]


# ---- what a run is continued with


@pytest.fixture(scope="module")
def interrupted(tiny_long, tmp_path_factory):
    """A run of students who say no wish: its flags, folder, journal (cut before its end) and records."""
    folder = tmp_path_factory.mktemp("interrupted")
    profiles = folder / "profiles"
    assert run_here(simulate_students.main, "--generate", 4, "--profiles_dir", profiles)[0] == 0
    questions = [question_of(each) for each in generate_exercises(load_chapters()[0], "test", 2, seed=0)]
    rows = [{"question": q.question, "answer": q.gold_solution, "chapter": q.chapter} for q in questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--dataset",
        folder / "questions.jsonl",
        "--model_name",
        tiny_long,
        "--subset_size",
        "2",
        "--temperatures",
        "0.6",
        "--memory",
        "own",
        "none",
    ]
    flags += ["--memory_tokens", "200", "--memory_level", "history", "--profiles_dir", profiles]
    sweep(run_baseline_faiss.main, folder, *flags)
    records = read_strictly(only(folder, "results_*.json"))["results"]
    journal = only(folder, "journal_*.jsonl")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))  # header and model
    return flags, folder, journal, records


def test_students_who_say_no_wish_are_shown_by_their_history_and_judged_by_their_needs(interrupted):
    _, folder, _, records = interrupted
    truth = read_strictly(folder / "profiles" / "truth.json")
    for record in records:
        assert ("What worked best: " in record["prompt"]) == (record["memory_arm"] == "own")
        assert "Explanation style" not in record["prompt"]
        style = EXPLANATION_STYLES[truth[record["student_id"]]["style"]]
        assert record["style_met"] is style(record["generated_text"])
        assert record["fidelity"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("changed", ["profile", "memory", "questions", "models", "code", "libraries"])
def test_what_decides_a_record_decides_whether_a_run_continues(changed, interrupted, monkeypatch):
    flags, folder, journal, records = interrupted
    asked = {record["student_id"] for record in records}
    profiles = folder / "profiles"
    nobody = next(path for path in profiles.glob("S*.json") if path.stem not in asked)
    edits = {
        "profile": (nobody, lambda text: json.dumps(json.loads(text) | {"notes": "New here."})),
        "memory": (
            profiles / "memory" / f"{min(asked)}.jsonl",
            lambda text: "".join(text.splitlines(keepends=True)[:-20]),
        ),
        "questions": (  # neither their texts nor what is shown
            folder / "questions.jsonl",
            lambda text: text.replace('"chapter": "addition"', '"chapter": "sums"'),
        ),
        "models": (flags[flags.index("--model_name") + 1] / "config.json", lambda text: f"{text}\n"),
    }
    newer = environment("cpu") | {"versions": {"torch": "another"}}
    if changed == "code":
        monkeypatch.setattr("cot.utils.runner.code_version", lambda: "another")
    if changed == "libraries":
        monkeypatch.setattr("cot.utils.runner.environment", lambda device: newer)

    path, edit = edits.get(changed, (nobody, str))
    before = path.read_text()
    path.write_text(edit(before))
    known = set(journal.parent.glob("journal_*.jsonl"))
    try:
        stdout = sweep(run_baseline_faiss.main, folder, *flags)
    finally:
        path.write_text(before)
    assert f"continuing {journal}" not in stdout
    assert len(set(journal.parent.glob("journal_*.jsonl")) - known) == 1
    assert re.search(rf"not continuing {journal.name}: .*{changed}.* changed", stdout)


@pytest.mark.parametrize(
    "further", [["--min_p", "0.9"], ["--attn_implementation", "eager"], ["--thinking", "off"]]
)
def test_another_filter_attention_or_template_is_another_run(interrupted, further):
    flags, folder, _, _ = interrupted
    assert "continuing" not in sweep(run_baseline_faiss.main, folder, *flags, *further)


def test_a_run_that_continues_decodes_in_batches_of_the_size_it_began_with(interrupted):
    flags, folder, journal, _ = interrupted
    smaller = '"batch_size": 128', '"batch_size": 3'
    edit_journal(journal, lambda line: json.loads(json.dumps(line).replace(*smaller)))
    assert f"continuing {journal}" in sweep(run_baseline_faiss.main, folder, *flags)
    batches = [json.loads(line).get("records", {}) for line in journal.read_text().splitlines()]
    assert [len(batch) for batch in batches if batch] == [3, 1]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: it would go on")
def test_a_run_continues_where_the_engine_that_began_it_is_not_installed(interrupted):
    flags, folder, journal, _ = interrupted
    began = {"name": "vllm", "version": "0.32.0"}

    def with_vllm(line: dict) -> dict:
        for model in line.get("models", {}).values():
            model |= {"engines": [began], "batch_size": 256}
        return line

    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))  # header and model
    edit_journal(journal, with_vllm)
    assert f"continuing {journal}" in sweep(run_baseline_faiss.main, folder, *flags)
    config = read_strictly(journal.with_name(journal.stem.replace("journal", "summary") + ".json"))["config"]
    (model,) = config["models"].values()
    assert model["engines"][0] == began and model["engines"][1]["name"] == "transformers"
    assert (config["engine"], len(model["engines"])) == ("transformers", 2)


def test_what_narrows_a_draw_is_recorded_and_a_checkpoints_own_settings_are_not_used(tiny_folder, tmp_path):
    """The checkpoint asks for its most probable token alone, which the flags do not."""
    model = long_context(tiny_folder, tmp_path / "tiny-llama")
    own = {"do_sample": True, "temperature": 0.7, "top_k": 1, "eos_token_id": 1}
    (model / "generation_config.json").write_text(json.dumps(own))
    flags = [*SMALL, "--model_name", model, "--subset_size", "2", "--temperatures", "0.0", "0.9"]

    def sweep(name, *further):
        code, stdout, stderr = run_here(
            run_baseline_cot.main, *flags, *further, "--output_dir", tmp_path / name
        )
        assert code == 0, stderr
        found = read_strictly(only(tmp_path / name, "results_temp_0.9_*.json"))
        return stdout, found["config"], [record["generated_text"] for record in found["results"]]

    stdout, config, texts = sweep("plain")
    note = f"note:    {model}: its generation_config's temperature 0.7, top_k 1 is ignored"
    assert note in stdout.splitlines()
    (described,) = config["models"].values()
    assert described["generation_defaults"] == {"temperature": 0.7, "top_k": 1}
    assert (described["attn_implementation"], described["load_in_4bit"]) == ("sdpa_grouped", False)
    greedy = read_strictly(only(tmp_path / "plain", "results_temp_0.0_*.json"))["results"]
    assert texts != [record["generated_text"] for record in greedy]

    stdout, config, narrow = sweep("narrow", "--sampling_top_k", "1", "--attn_implementation", "eager")
    assert narrow == [record["generated_text"] for record in greedy]
    assert "temperature 0.7 is ignored" in stdout
    (described,) = config["models"].values()
    assert (config["sampling_top_k"], described["attn_implementation"]) == (1, "eager")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_4bit"], "--load_in_4bit: needs a CUDA GPU"),
        (["--attn_implementation", "flash_attention_2"], "flash_attention_2: needs a CUDA GPU"),
        (["--revision", "v1"], "--revision v1: only a hub model has revisions"),
        (["--offset", "240"], "--offset 240: textbook test has 240 usable questions"),
        (
            ["--system_prompt", "Be brief."],
            "has no chat template, so no system turn; --cot_prompt can say it",
        ),
    ],
)
def test_what_this_machine_or_model_cannot_do_is_one_line_before_a_model_loads(
    tiny_folder, tmp_path, flags, message
):
    flags = [*SMALL, "--model_name", tiny_folder, *flags, "--output_dir", tmp_path]
    code, _, stderr = run_here(run_baseline_cot.main, *flags)
    assert code == 2 and stderr.count("\n") == 1 and message in stderr
