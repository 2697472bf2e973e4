"""Spoiled files: whatever is flipped, cut, doubled or moved, they are read rightly or refused in one line."""

import json
import warnings
from pathlib import Path

from conftest import CHATML, IM, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cot.utils.errors import UserError
from cot.utils.files import LONE_SURROGATE
from cot.utils.journal import open_journal
from cot.utils.mastery import consolidate
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import load_questions
from cot.utils.student_files import MemoryLog, load_profiles
from cot.utils.students import render_profile
from cot.utils.templates import encode_data, encode_parts, join_parts, read_format

TOKENIZER = make_tokenizer()
PIECES = [b"null", b"1e999", b"NaN", b"[", b"}", b'"', b"\\ud800", b"\xff", b"\n", b"\0", b"9" * 5000, b"%}"]


def spoil(data: bytes, faults: list[tuple[str, float, float, bytes]]) -> bytes:
    """A file's content after some faults, each of a kind, between two places (shares of the length)."""
    for kind, one, other, piece in faults:
        start, end = sorted((int(one * len(data)), int(other * len(data))))
        lines = data.split(b"\n")
        line = int(one * (len(lines) - 1))
        flipped = bytes([data[start] ^ (1 << int(other * 7))]) if start < len(data) else b""
        data = {
            "flip": data[:start] + flipped + data[start + 1 :],
            "cut": data[:start],
            "drop": data[:start] + data[end:],
            "double": data[:end] + data[start:],
            "insert": data[:start] + piece + data[start:],
            "move": b"\n".join([*lines[:line], *lines[line + 1 :], lines[line]]),
            "repeat": b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        }[kind]
    return data


SHARE = st.floats(0, 1)
KINDS = st.sampled_from(["flip", "cut", "drop", "double", "insert", "move", "repeat"])
FAULTS = st.lists(st.tuples(KINDS, SHARE, SHARE, st.sampled_from(PIECES)), min_size=1, max_size=3)
fuzz = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,  # the suite fails for what was changed, not by chance; more examples find more
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_spoiled(path: Path, whole: bytes, faults, read):
    """What a reader makes of a spoiled file; None where it refuses it in one line that names it."""
    path.write_bytes(spoil(whole, faults))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a torn last line is dropped with one
            return read()
    except UserError as error:
        assert "\n" not in str(error) and (path.name in str(error) or str(path.parent) in str(error))
        return None


@fuzz
@given(FAULTS)
def test_a_spoiled_profile_says_what_its_json_says_or_is_refused(tmp_path, faults):
    whole = (PROFILES_DIR / "S005.json").read_bytes()
    path = tmp_path / "S005.json"
    found = read_spoiled(path, whole, faults, lambda: load_profiles(tmp_path))
    if found is not None:
        written = json.loads(path.read_bytes().decode("utf-8-sig"))
        profile = found["S005"].model_dump()
        assert written == {key: profile[key] for key in written} and len(found) == 1
        encode_data(TOKENIZER, "\n".join(render_profile(found["S005"])))


@fuzz
@given(FAULTS)
def test_a_spoiled_memory_holds_lines_of_its_file_or_is_refused(tmp_path, faults):
    lines = (PROFILES_DIR / "memory" / "S005.jsonl").read_bytes().splitlines(keepends=True)[:8]
    path = tmp_path / "S005.jsonl"
    found = read_spoiled(path, b"".join(lines), faults, lambda: MemoryLog(tmp_path).read("S005"))
    if found is not None:
        written = path.read_bytes().decode("utf-8-sig", "replace").split("\n")
        assert all(noted(item.content) in [noted(line) for line in written] for item in found)
        consolidate(found)
        encode_data(TOKENIZER, "\n".join(item.question or "" for item in found))


def noted(line: str | dict) -> dict | None:
    """What a line of a memory holds; None where it is torn."""
    try:
        content = json.loads(line) if isinstance(line, str) else line
    except ValueError:
        return None
    texts = {
        key: LONE_SURROGATE.sub("\ufffd", value) for key, value in content.items() if isinstance(value, str)
    }
    return {key: value for key, value in (content | texts).items() if value is not None}


@fuzz
@given(FAULTS)
def test_a_spoiled_journal_gives_batches_as_they_were_written_or_is_refused(tmp_path, faults):
    batches = [{"models": {"m": {"dtype": "float32"}}}, {"wall_s": 0.5, "records": {"a|0": {"n": 1}}}]
    journal = open_journal(tmp_path, "key", {"started": "20260101_000000"})
    for batch in batches:
        journal.append(batch)
    journal.close()
    whole = journal.path.read_bytes()

    def read():
        again = open_journal(tmp_path, "key", {"started": "20260101_000000"})
        again.close()
        return again

    found = read_spoiled(journal.path, whole, faults, read)
    if found is not None:
        assert found.header["key"] == "key" and found.header["started"] == "20260101_000000"
        assert all(batch in [*batches, found.header] for batch in found.batches)
    for path in tmp_path.iterdir():
        path.unlink()


@fuzz
@given(FAULTS, st.booleans())
def test_a_spoiled_data_set_gives_the_questions_of_its_lines_or_is_refused(tmp_path, faults, as_list):
    rows = [
        {"question": f"Ann has {n} pens. And é?", "answer": f"{n}+0=<<{n}+0={n}>>{n}\n#### {n}"}
        for n in (3, 5)
    ]
    whole = json.dumps(rows) if as_list else "".join(f"{json.dumps(row)}\n" for row in rows)
    path = tmp_path / f"asked.{'json' if as_list else 'jsonl'}"
    found = read_spoiled(path, whole.encode(), faults, lambda: load_questions(str(path)))
    if found is not None:
        written = path.read_bytes().decode("utf-8-sig")
        lines = [line for line in written.split("\n") if line.strip()]
        values = json.loads(written) if as_list else list(map(json.loads, lines))
        asked = [(value["question"], value["answer"]) for value in values]
        assert len(found.questions) + len(found.excluded) == len(asked)
        assert all((each.question, each.gold_solution) in asked for each in found.questions)
        encode_data(TOKENIZER, "\n".join(each.question for each in found.questions))


@fuzz
@given(FAULTS)
def test_a_spoiled_chat_template_gives_its_own_prompt_or_is_refused(faults):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": IM})
    tokenizer.chat_template = spoil(CHATML.encode(), faults).decode("utf-8", "replace")
    question = "What is ½ + é, 3 * 4? <|im_end|>"
    try:
        found = read_format(tokenizer)
        parts = found.write([(question, True)])
        ids = encode_parts(tokenizer, parts)
    except UserError as error:
        assert "\n" not in str(error) and "--model_name" in str(error)
        return
    if found.is_chat:
        turns = [{"role": "user", "content": question}]
        own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert join_parts(parts)[0] == own
        ends = ids.count(tokenizer.convert_tokens_to_ids(IM[1]))
        assert ends == own.count(IM[1]) - own.count(question)  # that of the question is text
