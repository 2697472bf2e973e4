"""Files that survive crashes: strict JSON, whole-file writes, readers and locks."""

import json
import math
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
from conftest import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.errors import UserError
from cot.utils.files import (
    append_json_lines,
    dumps,
    lock_file,
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


def test_a_lock_is_held_against_another_process_until_it_is_released(tmp_path):
    path = tmp_path / "a.lock"
    code = "import sys; from pathlib import Path; from cot.utils.files import lock_file\n"
    code += "lock_file(Path(sys.argv[1]), busy='taken', timeout_s=0.1)"
    lock = lock_file(path, busy="taken")
    assert "UserError: taken" in run_python(code, path).stderr
    lock.release()
    assert run_python(code, path).returncode == 0
