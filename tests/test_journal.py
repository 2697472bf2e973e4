"""The journal of a run: what continues, what is dropped, and who may write."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPO_ROOT, run_python

from cot.utils.errors import UserError
from cot.utils.files import read_json_lines
from cot.utils.journal import join_journal, open_journal, read_headers


def test_an_unfinished_run_continues_and_a_finished_one_does_not(tmp_path):
    first = open_journal(tmp_path, "key", {"started": "a"})
    first.append({"records": {"x": 1}})
    first.close()
    again = open_journal(tmp_path, "key", {"started": "b"})
    assert (again.path, again.stamp, again.batches) == (first.path, first.stamp, [{"records": {"x": 1}}])
    assert again.header == {"key": "key", "started": "a"}
    again.finish()
    new = open_journal(tmp_path, "key", {"started": "c"})
    assert new.path != first.path and (new.header["started"], new.batches) == ("c", [])
    new.close()
    assert read_headers(tmp_path) == {new.path.name: {"key": "key", "started": "c"}}
    assert list(read_headers(tmp_path, finished=True)) == [first.path.name, new.path.name]


def test_a_growing_run_goes_on_in_its_newest_journal_finished_or_not(tmp_path):
    for name in "ab":
        journal = open_journal(tmp_path, "key", {"started": name})
        journal.append({"records": {name: 1}})
        journal.finish()
    open_journal(tmp_path, "another key", {}).close()
    for rows in ([1], [1, 2]):
        again = open_journal(tmp_path, "key", {}, reopen_finished=True)
        assert again.header["started"] == "b"
        assert [batch["records"] for batch in again.batches] == [{"b": row} for row in rows]
        again.append({"records": {"b": rows[-1] + 1}})
        again.finish()
    new = open_journal(tmp_path, "new key", {}, reopen_finished=True)
    assert new.batches == []
    new.close()


def test_another_key_is_another_run_even_in_the_same_second(tmp_path):
    journals = [open_journal(tmp_path, f"key {number}", {}) for number in range(3)]
    assert len({journal.stamp for journal in journals}) == 3
    for journal in journals:
        journal.close()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl"] * 3


def test_a_torn_last_line_is_dropped_with_a_warning_and_a_broken_one_before_it_named(tmp_path, capsys):
    journal = open_journal(tmp_path, "key", {})
    journal.append({"records": {"x": 1}})
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"records": {"y": 2')
    again = open_journal(tmp_path, "key", {})
    assert again.batches == [{"records": {"x": 1}}]
    assert "torn last line dropped (19 bytes)" in capsys.readouterr().err
    again.append({"records": {"z": 3}})
    again.close()
    batches = [value for _, value in read_json_lines(journal.path)][1:]
    assert [batch["records"] for batch in batches] == [{"x": 1}, {"z": 3}]


@pytest.mark.parametrize("line", [b"{broken", b"3", b'{"records": {"z": 4}, "crc32": 1}', b""])
def test_a_line_that_is_not_as_it_was_written_is_named(line, tmp_path):
    journal = open_journal(tmp_path, "key", {})
    for record in (1, 2, 3):
        journal.append({"records": {"z": record}})
    journal.close()
    lines = journal.path.read_bytes().splitlines()
    lines[2] = line
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=r"journal_.*\.jsonl: line 3: not as it was written"):
        open_journal(tmp_path, "key", {})


def test_a_run_whose_header_was_edited_is_not_continued_and_named(tmp_path, capsys):
    journal = open_journal(tmp_path, "key", {"started": "a"})
    journal.close()
    journal.path.write_text(journal.path.read_text().replace('"a"', '"b"'))
    assert read_headers(tmp_path) == {journal.path.name: {}}
    assert f"not continuing {journal.path}: its first line is broken, edited" in capsys.readouterr().err
    assert open_journal(tmp_path, "key", {}).path != journal.path


OPEN = "import os, sys; from pathlib import Path; from cot.utils.journal import open_journal\n"
OPEN += "journal = open_journal(Path(sys.argv[1]), 'key', {})\n"


def test_a_second_process_at_the_same_run_is_refused_by_name(tmp_path):
    journal = open_journal(tmp_path, "key", {})
    done = run_python(OPEN, tmp_path)
    assert f"process {os.getpid()} is at this run" in done.stderr
    journal.close()
    assert run_python(OPEN, tmp_path).returncode == 0


def test_a_killed_process_leaves_its_whole_batches_and_no_lock(tmp_path):
    code = OPEN + "journal.append({'records': {'x': 1}}); os.kill(os.getpid(), 9)"
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    again = open_journal(tmp_path, "key", {})
    assert again.batches == [{"records": {"x": 1}}]
    again.close()


# ---- several processes


def test_each_process_writes_a_part_of_its_own_and_whoever_opens_the_run_again_reads_all(tmp_path):
    first = open_journal(tmp_path, "key", {"started": "a"})
    second = join_journal(first.path, rank=1)
    assert (second.stamp, second.header, second.batches) == (first.stamp, first.header, [])
    first.append({"records": {"x": 1}})
    second.append({"records": {"y": 2}})
    assert first.read_others() == [{"records": {"y": 2}}]
    second.close()
    again = join_journal(first.path, rank=1)
    assert again.batches == [{"records": {"x": 1}}, {"records": {"y": 2}}]
    again.close()
    first.close()
    assert list(read_headers(tmp_path)) == [first.path.name]  # parts are no runs

    alone = open_journal(tmp_path, "key", {})
    assert alone.batches == [{"records": {"x": 1}}, {"records": {"y": 2}}]
    alone.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"journal_{alone.stamp}.jsonl",
        f"journal_{alone.stamp}_rank1.jsonl",
    ]


def test_a_line_that_another_process_is_writing_is_left_alone_and_a_torn_one_of_a_dead_one_cut(
    tmp_path, capsys
):
    first = open_journal(tmp_path, "key", {})
    second = join_journal(first.path, rank=1)
    second.append({"records": {"y": 2}})
    part = tmp_path / f"journal_{first.stamp}_rank1.jsonl"
    with part.open("a") as file:
        file.write('{"records": {"z"')
    assert first.read_others() == [{"records": {"y": 2}}]
    assert part.read_text().endswith('{"z"') and capsys.readouterr().err == ""
    second.close()
    with first.take_over(1) as batches:
        assert batches == [{"records": {"y": 2}}]
    assert part.read_text().endswith("}\n") and "torn last line dropped (16 bytes)" in capsys.readouterr().err
    first.close()


JOIN = "import os, sys; from pathlib import Path; from cot.utils.journal import join_journal\n"
JOIN += "journal = join_journal(Path(sys.argv[1]), rank=1); journal.append({'records': {'y': 2}})\n"


def test_process_0_waits_for_another_to_end_however_it_ends(tmp_path):
    first = open_journal(tmp_path, "key", {})
    command = [sys.executable, "-c", JOIN + "sys.stdin.read(1); os.kill(os.getpid(), 9)", str(first.path)]
    other = subprocess.Popen(command, cwd=REPO_ROOT, stdin=subprocess.PIPE)
    while not first.read_others():
        time.sleep(0.02)
    threading.Timer(0.5, other.stdin.close).start()  # it then ends itself
    waited = time.monotonic()
    with first.take_over(1) as batches:
        assert batches == [{"records": {"y": 2}}]
        assert time.monotonic() - waited > 0.4
    assert other.wait() == -signal.SIGKILL
    first.close()


def test_a_process_that_outlives_process_0_keeps_the_run_to_itself(tmp_path):
    first = open_journal(tmp_path, "key", {})
    second = join_journal(first.path, rank=1)
    first.close()
    assert f"process {os.getpid()} is at this run" in run_python(OPEN, tmp_path).stderr
    second.close()
    assert run_python(OPEN, tmp_path).returncode == 0


def test_a_run_that_another_machine_does_not_see_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"journal_1\.jsonl: process 1 does not find it; all machines must share"
    ):
        join_journal(tmp_path / "journal_1.jsonl", rank=1)
