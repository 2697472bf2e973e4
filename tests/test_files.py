"""Files that survive crashes: strict JSON, whole-file writes, readers, locks, and the journal of a run."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.cli import REPO_ROOT
from cot.utils.errors import UserError
from cot.utils.files import (
    append_json_lines,
    dumps,
    lock_file,
    open_journal,
    read_headers,
    read_json,
    read_json_lines,
    read_text,
    to_jsonable,
    write_json,
    write_results,
)

TEXTS = st.text(st.characters(codec=None))  # lone surrogates included
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


# ---- strict JSON


@settings(deadline=None)
@given(VALUES)
def test_anything_becomes_strict_json(value):
    text = dumps(value)
    text.encode("utf-8")  # no lone surrogate
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_json_lacks_becomes_null_or_a_number():
    value = {
        "a": math.inf,
        "b": numpy.float32("nan"),
        "c": numpy.int64(3),
        "d": numpy.arange(2),
        "e": Path("a/b"),
        6: (True, 0.5),
    }
    assert to_jsonable(value) == {"a": None, "b": None, "c": 3, "d": [0, 1], "e": "a/b", "6": [True, 0.5]}
    with pytest.raises(TypeError, match="object is no JSON value"):
        to_jsonable(object())


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq absent")
def test_jq_reads_what_is_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"text": "tab\t \ud800 \u2028 é \x00", "nan": math.nan, "big": 10**30})
    done = subprocess.run(
        ["jq", "-e", ".text, .nan == null"], stdin=path.open(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_results_stand_a_line_each_and_are_what_strict_json_makes_of_them(tmp_path):
    dirty = {"nan": math.nan, "half": "a\ud800", "one": numpy.float32(0.5), "line": "x\n\u2028é", "a": [(1,)]}
    for results in ([], [{}], [{"text": "é"}, dirty, {"text": None}]):
        path = tmp_path / "a.json"
        write_results(path, {"status": "success", "summary": {"n": math.inf}, "results": results})
        text = path.read_text(encoding="utf-8")
        expected = {"status": "success", "summary": {"n": None}, "results": to_jsonable(results)}
        assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == expected
        assert text.split("\n")[6 : 6 + len(results)] == [
            f"    {dumps(result)}{',' * (number < len(results))}" for number, result in enumerate(results, 1)
        ]


def test_whoever_reads_sees_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}


def test_a_failed_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk: no file may grow beyond
    try:
        with pytest.raises(OSError, match="File too large"):
            write_json(path, {"a": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


# ---- readers


def test_a_text_is_read_with_or_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert read_text(tmp_path / "a") == "é"
    (tmp_path / "b").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="b: not UTF-8 at byte 2"):
        read_text(tmp_path / "b")
    with pytest.raises(UserError, match="absent: No such file"):
        read_text(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ', r"a\.json: not JSON: "),
        ("[" * 100_000, r"a\.json: not JSON: "),  # deeper than Python's recursion goes
        ("[1]", r"a\.json: expected a JSON object, got list"),
    ],
)
def test_a_broken_json_file_is_named_with_its_fault(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_json_lines_come_with_their_numbers_and_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028\x85y"}\r\n\n  \n2\n', encoding="utf-8")
    assert read_json_lines(path) == [(1, {"a": "x\u2028\x85y"}), (4, 2)]
    path.write_text("1\n\n{broken\n")
    with pytest.raises(UserError, match=r"a\.jsonl: line 3: not JSON: "):
        read_json_lines(path)


def test_appended_lines_are_read_again(tmp_path):
    path = tmp_path / "a.jsonl"
    append_json_lines(path, [{"a": math.nan}, "x\n"])
    append_json_lines(path, [])
    append_json_lines(path, [3])
    assert read_json_lines(path) == [(1, {"a": None}), (2, "x\n"), (3, 3)]


# ---- the lock


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPO_ROOT, capture_output=True, text=True
    )


def test_a_lock_is_held_against_another_process_until_it_is_released(tmp_path):
    path = tmp_path / "a.lock"
    code = "import sys; from pathlib import Path; from cot.utils.files import lock_file\n"
    code += "lock_file(Path(sys.argv[1]), busy='taken', timeout_s=0.1)"
    lock = lock_file(path, busy="taken")
    assert "UserError: taken" in run_python(code, path).stderr
    lock.release()
    assert run_python(code, path).returncode == 0


# ---- the journal


def test_an_unfinished_run_continues_and_a_finished_one_does_not(tmp_path):
    first = open_journal(tmp_path, "key", {"started": "a"})
    first.append({"records": {"x": 1}})
    first.close()
    again = open_journal(tmp_path, "key", {"started": "b"})
    assert (again.path, again.stamp) == (first.path, first.stamp)
    assert again.header == {"key": "key", "started": "a"}
    assert again.batches == [{"records": {"x": 1}}]
    again.finish()
    new = open_journal(tmp_path, "key", {"started": "c"})
    assert new.path != first.path
    assert (new.header["started"], new.batches) == ("c", [])
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


def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    code = "import resource, signal, sys; from pathlib import Path\n"
    code += "from cot.utils.files import append_json_lines, write_json\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "for write, value in ((append_json_lines, ['x' * 200]), (write_json, 'x' * 200)):\n"
    code += "    try: write(Path(sys.argv[1]), value)\n"
    code += "    except OSError as error: print(error.filename, error.strerror)"
    path = tmp_path / "a.jsonl"
    assert run_python(code, path).stdout == f"{path} File too large\n" * 2


OPEN = "import os, sys; from pathlib import Path; from cot.utils.files import open_journal\n"
OPEN += "journal = open_journal(Path(sys.argv[1]), 'key', {})\n"


def test_a_second_process_at_the_same_run_is_refused_by_name(tmp_path):
    journal = open_journal(tmp_path, "key", {})
    done = run_python(OPEN, tmp_path)
    journal.close()
    assert f"process {os.getpid()} is at this run" in done.stderr


def test_a_killed_process_leaves_its_whole_batches_and_no_lock(tmp_path):
    code = OPEN + "journal.append({'records': {'x': 1}}); os.kill(os.getpid(), 9)"
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    again = open_journal(tmp_path, "key", {})
    assert again.batches == [{"records": {"x": 1}}]
    again.close()
