"""Profiles are checked; the log keeps what it acknowledged, once; no student reaches another's."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import filelock
import pytest
from conftest import FIELDS, PROFILE, no_file_beyond

from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.paths import PROFILES_DIR, REPO_ROOT
from cot.utils.student_files import MemoryLog, load_profiles, load_truths
from cot.utils.students import Interaction, Profile


def interaction(second: int = 0, **changes) -> Interaction:
    return Interaction(**FIELDS | {"time": f"2026-01-05T09:00:{second:02}Z"} | changes)


def write_profile(folder: Path, content: dict, name: str = "S005.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PROFILE | {"strengths": "fractions"}, "strengths: expected a list of strings, got str"),
        (PROFILE | {"grade_level": 5}, "grade_level: expected a string, got int"),
        (PROFILE | {"challenges": ["a", 3]}, "challenges.1: expected a string, got int"),
        (PROFILE | {"explanation_style": "dance"}, "explanation_style: expected one of numbered_steps"),
        (PROFILE | {"student_id": "../S005"}, "student_id: expected 1 to 64 of"),
        (PROFILE | {"student_id": "S006"}, "student_id: expected 'S005' as the file's name, got 'S006'"),
        (PROFILE | {"nickname": "Sam"}, "nickname: unknown field"),
        ({key: PROFILE[key] for key in PROFILE if key != "strengths"}, "strengths: missing"),
        ([PROFILE], "expected a JSON object, got list"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_expectation_in_one_line(tmp_path, content, expected):
    path = write_profile(tmp_path, content)
    with pytest.raises(UserError) as error:
        load_profiles(tmp_path)
    assert str(error.value).startswith(f"{path}: {expected}") and "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ('{"S9": {"style": "check_at_end"}}', "S9: no such profile"),
        ('{"S005": {"style": "poem"}}', "S005: style: expected one of numbered_steps"),
        ('{"S005": {"hint": "yes"}}', "S005: hint: expected true or false, got str"),
        ('{"S005": {"style": "check_at_end", "hint": false}}', None),
    ],
)
def test_a_truth_is_the_profile_with_what_the_student_needs_or_is_named(tmp_path, truth, message):
    write_profile(tmp_path, PROFILE | {"explanation_style": None, "learning_preferences": []})
    write_profile(tmp_path, PROFILE | {"student_id": "S2"}, "S2.json")
    (tmp_path / "truth.json").write_text(truth)
    profiles = load_profiles(tmp_path)
    if message:
        with pytest.raises(UserError, match=re.escape(f"truth.json: {message}")):
            load_truths(tmp_path, profiles)
        return
    truths = load_truths(tmp_path, profiles)
    needs = {"explanation_style": "check_at_end", "learning_preferences": ["no hint"]}
    assert truths == {"S005": profiles["S005"].model_copy(update=needs), "S2": profiles["S2"]}


def test_a_folder_needs_a_profile_and_ids_that_differ_in_more_than_case(tmp_path):
    with pytest.raises(UserError, match="no profile"):
        load_profiles(tmp_path)
    write_profile(tmp_path, PROFILE)
    assert load_profiles(tmp_path) == {"S005": Profile(**PROFILE)}
    write_profile(tmp_path, PROFILE | {"student_id": "s005"}, "s005.json")
    if len(list(tmp_path.iterdir())) == 2:  # a file system that tells upper from lower case
        with pytest.raises(UserError, match="upper and lower case"):
            load_profiles(tmp_path)


def test_what_was_appended_is_read_in_time_order(tmp_path):
    log = MemoryLog(tmp_path / "memory")
    assert (log.read("S1"), log.students()) == ([], [])  # no log is no memory
    late, early = interaction(2), interaction(1, what_helped="drawing “bars”\nand 线\ud800")
    assert early.what_helped == "drawing “bars”\nand 线\ufffd"  # no UTF-8 file can hold a lone surrogate
    assert log.append([late]) == log.append([early]) == 1
    assert log.read("S1") == [early, late]
    lines = (tmp_path / "memory/S1.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [late.content, early.content]
    assert list(json.loads(lines[0])) == list(FIELDS)


def test_ids_that_begin_alike_have_their_own_logs(tmp_path):
    ids = ["S", "S-1", "S1", "S1.", "S1.jsonl", "S10", "S_1", "s1"]
    log = MemoryLog(tmp_path)
    log.append(interaction(student_id=student_id) for student_id in ids)
    assert log.students() == ids
    assert all([item.student_id for item in log.read(student_id)] == [student_id] for student_id in ids)
    (tmp_path / "S1 (copy).jsonl").write_text("")
    with pytest.raises(UserError, match=r"S1 \(copy\)"):
        log.students()


def test_a_duplicate_changes_no_byte_and_is_read_once(tmp_path):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    same_time = [interaction(question=question) for question in "zay"]
    assert log.append([*same_time, same_time[0]]) == 3
    before = path.read_bytes()
    assert log.append(reversed(same_time)) == 0
    assert path.read_bytes() == before
    path.write_bytes(before * 2)
    assert log.read("S1") == same_time


def test_a_write_that_fails_is_one_line_and_the_log_stays_readable(tmp_path):
    log = MemoryLog(tmp_path)
    log.append([interaction(0)])
    with no_file_beyond(1000), pytest.raises(UserError, match=r"S1\.jsonl: cannot write: File too") as error:
        log.append([interaction(1, question="long " * 1000)])
    assert error.value.exit_code == EXIT_UNEXPECTED
    with pytest.warns(UserWarning, match="torn last line dropped"):
        assert log.read("S1") == [interaction(0)]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MemoryLog(tmp_path / "file" / "memory").append([interaction()])


def test_a_writer_waits_for_another_and_gives_up_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cot.utils.student_files.LOCK_TIMEOUT_S", 0.05)
    held = filelock.FileLock(tmp_path / ".S1.jsonl.lock")
    with held, pytest.raises(UserError, match=r"S1\.jsonl: another process has held its lock for 0\.05 s"):
        MemoryLog(tmp_path).append([interaction()])
    assert MemoryLog(tmp_path).append([interaction()]) == 1
    assert MemoryLog(tmp_path).append([interaction(1)]) == 1  # the lock was given back


def test_a_file_system_that_merges_cases_or_a_link_cannot_merge_students(tmp_path):
    log = MemoryLog(tmp_path)
    log.append([interaction()])
    (tmp_path / "s1.jsonl").symlink_to(tmp_path / "S1.jsonl")  # what such a file system would open
    for use in (log.read, lambda student_id: log.append([interaction(student_id=student_id)])):
        with pytest.raises(UserError, match="line 1: student_id: expected 's1' as the file's name, got 'S1'"):
            use("s1")


def test_a_file_cut_at_any_byte_loses_at_most_its_last_line_and_is_repaired(tmp_path):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    items = [interaction(0), interaction(1, question="线 “é”")]
    log.append(items)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1

    for cut in [*range(0, first, 40), *range(first - 2, len(whole), 3), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        # without its line break a complete line is still a line
        complete = (cut >= first - 1) + (cut >= len(whole) - 1)
        torn = cut not in (0, first - 1, first, len(whole) - 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert log.read("S1") == items[:complete]
            log.append(items)
        dropped = f"{path}: torn last line dropped ({cut - first * (cut > first)} bytes)"
        assert [str(warning.message) for warning in caught] == [dropped] * 2 * torn
        # a complete line only lacks its line break, which comes with the next line
        assert path.read_bytes() == (whole[:-1] if cut == len(whole) - 1 else whole)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(FIELDS | {"correct": 1}), "correct: expected true or false, got int"),
        (json.dumps(FIELDS | {"student_id": "S10"}), "student_id: expected 'S1'"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON: Exceeds the limit"),
        ('{"student_id": "S1", "ti', "not JSON"),
        ("[]", "record: "),
    ],
)
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_written(tmp_path, line, message):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    path.write_text("\n".join([json.dumps(FIELDS), line, json.dumps(FIELDS), ""]))
    before = path.read_bytes()
    for use in (lambda: log.read("S1"), lambda: log.append([interaction(5)])):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value).startswith(f"{path}: line 2: {message}")
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_byte_order_mark_is_read_and_other_encodings_are_named(tmp_path):
    path = tmp_path / "S1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FIELDS).encode() + b"\r\n\n")
    assert MemoryLog(tmp_path).read("S1") == [Interaction(**FIELDS)]
    path.write_bytes(b'{"question": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"S1\.jsonl: not UTF-8 at byte 17"):
        MemoryLog(tmp_path).read("S1")


WRITER = """
import json, sys
from cot.utils.student_files import MemoryLog
from cot.utils.students import Interaction
fields, log, name, stop = json.loads(sys.argv[1]), MemoryLog(sys.argv[2]), sys.argv[3], int(sys.argv[4])
for n in range(int(sys.stdin.readline()), stop):
    questions = [f"{name} {n}", f"{name} {n} " + "long " * 10_000]
    items = [Interaction(**fields | {"question": question}) for question in questions]
    log.append(items)
    print(*(item.id for item in items), flush=True)
"""


def start_writer(folder: Path, name: str, first: int, stop: int = 10_000) -> subprocess.Popen:
    """Appends two interactions a number from the first on, and prints their ids."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, json.dumps(FIELDS), str(folder), name, str(stop)],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    writer.stdin.write(f"{first}\n")
    writer.stdin.close()
    return writer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torn last line dropped")
def test_kill_9_loses_nothing_that_was_acknowledged_and_two_writers_double_nothing(tmp_path):
    rng = random.Random(0)
    acknowledged: set[str] = set()  # lines of two ids
    for _ in range(3):
        # the last ones once more, as a resumed run would; the other writer has an end
        writer, other = (
            start_writer(tmp_path, "w", max(0, len(acknowledged) - 2)),
            start_writer(tmp_path, "o", 0, 3),
        )
        acknowledged |= {writer.stdout.readline() for _ in range(rng.randint(3, 5))}
        time.sleep(rng.uniform(0.0, 0.02))
        writer.kill()
        acknowledged |= set(writer.stdout.read().splitlines(keepends=True))
        assert writer.wait() == -signal.SIGKILL
        ids = "".join([*acknowledged, other.stdout.read()]).split()

        lines = (tmp_path / "S1.jsonl").read_bytes().split(b"\n")[:-1]
        assert len(set(lines)) == len(lines)
        assert set(ids) <= {item.id for item in MemoryLog(tmp_path).read("S1")}
        assert other.wait() == 0
    assert len(acknowledged) >= 5  # three of the first, and at least one new of each other


def test_lines_and_ids_of_logs_without_what_real_students_add_are_as_ever():
    log, ids = MemoryLog(PROFILES_DIR / "memory"), []
    for student in log.students():
        lines = (log.folder / f"{student}.jsonl").read_text(encoding="utf-8").splitlines()
        items = log.read(student)
        assert [json.dumps(item.content, ensure_ascii=False) for item in items] == lines
        ids += [item.id for item in items]
    # of the 1,050 bundled interactions, as it was before interactions could be without a text
    assert len(ids) == 1050 and ids[0] == "ce8a4511fccf7509"
    assert hashlib.sha256("".join(ids).encode()).hexdigest()[:16] == "f6f6e385a3378b03"


@pytest.mark.parametrize(
    "changes",
    [
        {"student_answer": "8", "tutor_said": "Count on from 4.", "tutor_strategy": "focus"},
        {"tutor_correct": False},
        {"manner": {"style": "check_at_end", "hint": True, "support": None}},
        {"chapter": None, "question": None, "error_type": None},  # an interaction without text says so
    ],
)
def test_what_was_noted_of_a_real_student_is_kept(tmp_path, changes):
    plain, told = Interaction(**FIELDS), Interaction(**FIELDS | changes)
    assert told.content == FIELDS | changes and list(plain.content) == list(FIELDS) and told.id != plain.id
    MemoryLog(tmp_path).append([told])
    assert MemoryLog(tmp_path).read("S1") == [told]
