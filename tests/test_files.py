"""Files that survive crashes: strict JSON, whole-file writes, readers, locks, and the journal of a run."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
from conftest import no_file_beyond
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.errors import UserError
from cot.utils.files import (
    append_json_lines,
    dumps,
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


@pytest.mark.slow
@settings(deadline=None)
@given(VALUES)
def test_anything_becomes_strict_json(value):
    text = dumps(value)
    text.encode("utf-8")  # no lone surrogate
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_json_lacks_becomes_null_or_a_number():
    values = {"b": numpy.float32("nan"), "c": numpy.int64(3), "d": numpy.arange(2), "e": Path("a/b")}
    written = {"b": None, "c": 3, "d": [0, 1], "e": "a/b", "6": [True, None]}
    assert to_jsonable(values | {6: (True, math.inf)}) == written
    with pytest.raises(TypeError, match="object is no JSON value"):
        to_jsonable(object())


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq absent")
def test_jq_reads_what_is_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"text": "tab\t \ud800 \u2028 é \x00", "nan": math.nan, "big": 10**30})
    done = subprocess.run(["jq", "-e", ".text, .nan == null", path], capture_output=True, text=True)
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


def test_a_failed_write_leaves_the_previous_file(tmp_path):
    path, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}  # whoever reads sees the old content or the new
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with no_file_beyond(1000):
        for write, target in ((write_json, path), (append_json_lines, lines)):
            with pytest.raises(OSError, match="File too large") as error:
                write(target, ["x" * 100_000])
            assert error.value.filename == str(target)
    assert json.loads(path.read_text()) == {"a": 2}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.jsonl"]


# ---- readers


def test_a_text_is_read_with_or_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert read_text(tmp_path / "a") == "é"
    (tmp_path / "b").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="b: not UTF-8 at byte 2"):
        read_text(tmp_path / "b")
    with pytest.raises(UserError, match="absent: No such file"):
        read_text(tmp_path / "absent")


def test_json_lines_come_with_their_numbers_and_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028\x85y"}\r\n\n  \n2\n', encoding="utf-8")
    append_json_lines(path, [{"a": math.nan}])
    assert read_json_lines(path) == [(1, {"a": "x\u2028\x85y"}), (4, 2), (5, {"a": None})]


LONG = "9" * 5000  # Python reads integers of up to 4,300 digits


def test_what_is_broken_is_named_with_its_fault(tmp_path):
    path = tmp_path / "a"
    for content, fault in {
        '{"a": ': "not JSON: ",
        "[" * 100_000: "not JSON: ",  # deeper than Python's recursion goes
        '{"a": ' + LONG + "}": "not JSON: Exceeds the limit",
        "[1]": "expected a JSON object, got list",
    }.items():
        path.write_text(content)
        with pytest.raises(UserError, match=f"a: {fault}"):
            read_json(path)
    for line in ("{broken", LONG):
        path.write_text(f"1\n\n{line}\n")
        with pytest.raises(UserError, match="a: line 3: not JSON: "):
            read_json_lines(path)
