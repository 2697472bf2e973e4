"""Profiles are checked; the log keeps what it acknowledged, once; no student reaches another's."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import filelock
import pytest
from conftest import FIELDS, PROFILE
from pydantic import ValidationError

from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.paths import PROFILES_DIR, REPO_ROOT
from cot.utils.student_files import MemoryLog, load_profiles, load_truths, pick_students
from cot.utils.students import Interaction, Profile

LOOKALIKES = ["", ".", "..", ".S1", "S1 ", " S1", "S1\n", "S1\x00", "S1/../S10", "../S1", "/S1", "S\\1"]
LOOKALIKES += ["\u0405" + "1", "S\uff11", "S1\u200b", "S\u0661", "é1", "S" * 65]


def interaction(second: int = 0, **changes) -> Interaction:
    return Interaction(**FIELDS | {"time": f"2026-01-05T09:00:{second:02}Z"} | changes)


# --- profiles --------------------------------------------------------------------------------------------


def write_profile(folder: Path, content: dict, name: str = "S005.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_bundled_students_are_varied_and_distinguishable():
    profiles = load_profiles(PROFILES_DIR).values()
    assert len(profiles) >= 8
    assert {"2nd grade", "8th grade"} <= {profile.grade_level for profile in profiles}
    assert {profile.explanation_style for profile in profiles} == set(EXPLANATION_STYLES)
    wishes = {
        (p.explanation_style, *sorted(set(p.learning_preferences) & set(CHECKABLE_PREFERENCES)))
        for p in profiles
    }
    assert len(wishes) == len(profiles)  # else the best fit could not identify a student


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
    assert str(error.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_folder_needs_a_profile_and_ids_that_differ_in_more_than_case(tmp_path):
    with pytest.raises(UserError, match="no profile"):
        load_profiles(tmp_path)
    write_profile(tmp_path, PROFILE)
    assert load_profiles(tmp_path) == {"S005": Profile(**PROFILE)}
    write_profile(tmp_path, PROFILE | {"student_id": "s005"}, "s005.json")
    if len(list(tmp_path.iterdir())) == 2:  # a file system that tells upper from lower case
        with pytest.raises(UserError, match="upper and lower case"):
            load_profiles(tmp_path)


def test_students_are_picked_by_name_or_all():
    profiles = dict.fromkeys(["S1", "S2", "S3"], Profile(**PROFILE))
    assert pick_students(["all"], profiles) == ["S1", "S2", "S3"]
    assert pick_students(["S3", "S1"], profiles) == ["S3", "S1"]
    with pytest.raises(UserError, match="--students s1: no such profile; there are S1, S2, S3, and all"):
        pick_students(["S3", "s1"], profiles)


# --- one interaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("student_id", LOOKALIKES)
def test_an_id_that_could_look_like_another_or_leave_the_folder_is_refused(tmp_path, student_id):
    with pytest.raises(ValidationError):
        interaction(student_id=student_id)
    with pytest.raises(UserError, match="student id"):
        MemoryLog(tmp_path).read(student_id)


def test_lone_surrogates_are_replaced_as_no_utf8_file_can_hold_them(tmp_path):
    poisoned = interaction(question="a\ud800b", what_helped="\udfff")
    assert (poisoned.question, poisoned.what_helped) == ("a\ufffdb", "\ufffd")
    (tmp_path / "S1.jsonl").write_text(json.dumps(FIELDS | {"question": "a\ud800b"}) + "\n")
    assert MemoryLog(tmp_path).read("S1")[0].question == "a\ufffdb"


# --- the log ---------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_in_time_order(tmp_path):
    log = MemoryLog(tmp_path / "memory")
    assert (log.read("S1"), log.students()) == ([], [])  # no log is no memory
    late, early = interaction(2), interaction(1, what_helped="drawing “bars”\nand 线")
    assert log.append([late]) == 1
    assert log.append([early]) == 1
    assert log.read("S1") == [early, late]
    lines = (tmp_path / "memory/S1.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [late.content, early.content]
    assert list(json.loads(lines[0])) == list(FIELDS)


def test_a_duplicate_changes_no_byte_and_is_read_once(tmp_path):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    same_time = [interaction(question=question) for question in "zay"]
    assert log.append([*same_time, same_time[0]]) == 3
    before = path.read_bytes()
    assert log.append(reversed(same_time)) == 0
    assert path.read_bytes() == before
    path.write_bytes(before * 2)
    assert log.read("S1") == same_time


def test_a_writer_waits_for_another_and_gives_up_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cot.utils.student_files.LOCK_TIMEOUT_S", 0.05)
    held = filelock.FileLock(tmp_path / ".S1.jsonl.lock")
    with held, pytest.raises(UserError, match=r"S1\.jsonl: another process has held its lock for 0\.05 s"):
        MemoryLog(tmp_path).append([interaction()])
    assert MemoryLog(tmp_path).append([interaction()]) == 1
    assert MemoryLog(tmp_path).append([interaction(1)]) == 1  # the lock was given back


def test_ids_that_begin_alike_have_their_own_logs(tmp_path):
    ids = ["S", "S-1", "S1", "S1.", "S1.jsonl", "S10", "S_1", "s1"]
    log = MemoryLog(tmp_path)
    log.append(interaction(student_id=student_id) for student_id in ids)
    assert log.students() == ids
    assert all([item.student_id for item in log.read(student_id)] == [student_id] for student_id in ids)
    (tmp_path / "S1 (copy).jsonl").write_text("")
    with pytest.raises(UserError, match=r"S1 \(copy\)"):
        log.students()


def test_a_file_system_that_merges_cases_or_a_link_cannot_merge_students(tmp_path):
    log = MemoryLog(tmp_path)
    log.append([interaction()])
    (tmp_path / "s1.jsonl").symlink_to(tmp_path / "S1.jsonl")  # what such a file system would open
    for use in (log.read, lambda student_id: log.append([interaction(student_id=student_id)])):
        with pytest.raises(UserError, match="line 1: student_id: expected 's1' as the file's name, got 'S1'"):
            use("s1")


# --- damage ----------------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_loses_at_most_its_last_line_and_is_repaired(tmp_path):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    items = [interaction(0), interaction(1, question="线 “é”")]
    log.append(items)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1

    for cut in [*range(0, first, 20), *range(first - 2, len(whole))]:
        path.write_bytes(whole[:cut])
        # without its line break a complete line is still a line
        complete = (cut >= first - 1) + (cut >= len(whole) - 1)
        torn = cut not in (0, first - 1, first, len(whole) - 1)
        torn_bytes = cut - first * (cut > first)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert log.read("S1") == items[:complete]
            log.append(items)
        messages = [str(warning.message) for warning in caught]
        assert messages == [f"{path}: torn last line dropped ({torn_bytes} bytes)"] * 2 * torn
        # a complete line only lacks its line break, which comes with the next line
        assert path.read_bytes() == (whole[:-1] if cut == len(whole) - 1 else whole)


@pytest.mark.filterwarnings("ignore:.*torn last line dropped")
def test_nothing_of_a_long_torn_line_stays_behind_a_short_new_one(tmp_path):
    path = tmp_path / "S1.jsonl"
    path.write_text('{"question": "' + "long " * 100)
    MemoryLog(tmp_path).append([interaction()])
    assert json.loads(path.read_text()) == FIELDS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(FIELDS | {"correct": 1}), "correct: expected true or false, got int"),
        (json.dumps(FIELDS | {"student_id": "S10"}), "student_id: expected 'S1'"),
        ("[" * 100_000, "not JSON"),
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


@pytest.mark.parametrize("is_what_fails", [stat.S_ISREG, stat.S_ISDIR])  # the log, and its folder's entry
def test_a_write_that_fails_is_one_line_and_the_log_stays_readable(tmp_path, monkeypatch, is_what_fails):
    log = MemoryLog(tmp_path)
    log.append([interaction(0)])

    def no_space(descriptor):
        if is_what_fails(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"S1\.jsonl: cannot write: No space left") as error:
        log.append([interaction(1)])
    assert error.value.exit_code == EXIT_UNEXPECTED
    assert log.read("S1")[0] == interaction(0)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MemoryLog(tmp_path / "file" / "memory").append([interaction()])


# --- processes -------------------------------------------------------------------------------------------

WRITER = """
import json, sys
from cot.utils.student_files import MemoryLog
from cot.utils.students import Interaction
fields, log, name, stop = json.loads(sys.argv[1]), MemoryLog(sys.argv[2]), sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
for n in range(int(sys.stdin.readline()), stop):
    questions = [f"{name} {n}", f"{name} {n} " + "long " * 10_000]
    items = [Interaction(**fields | {"question": question}) for question in questions]
    log.append(items)
    print(*(item.id for item in items), flush=True)
"""


def start_writer(folder: Path, name: str, stop: int) -> subprocess.Popen:
    """Waits for its first number, then appends two interactions a number and prints their ids."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, json.dumps(FIELDS), str(folder), name, str(stop)],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(writer: subprocess.Popen, first: int) -> None:
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write(f"{first}\n")
    writer.stdin.flush()


def read_ids(folder: Path) -> set[str]:
    """The ids in the log, after a check that no whole line stands there twice."""
    lines = (folder / "S1.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(set(lines)) == len(lines)
    return {item.id for item in MemoryLog(folder).read("S1")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torn last line dropped")
def test_kill_9_loses_nothing_that_was_acknowledged_and_doubles_nothing(tmp_path):
    rng = random.Random(0)
    acknowledged: set[str] = set()  # lines of two ids
    for writer in [start_writer(tmp_path, "w", 10_000) for _ in range(5)]:
        go(writer, max(0, len(acknowledged) - 2))  # the last ones once more, as a resumed run would
        acknowledged |= {writer.stdout.readline() for _ in range(rng.randint(3, 5))}
        time.sleep(rng.uniform(0.0, 0.02))
        writer.kill()
        acknowledged |= set(writer.stdout.read().splitlines(keepends=True))
        assert writer.wait() == -signal.SIGKILL
        writer.stdin.close()
        assert set("".join(acknowledged).split()) <= read_ids(tmp_path)
    assert len(acknowledged) >= 7  # three of the first, and at least one new of each other


def test_two_writers_at_once_lose_and_double_nothing(tmp_path):
    writers = [start_writer(tmp_path, name, 20) for name in ("a", "b")]
    for writer in writers:
        go(writer, 0)
    ids = " ".join(writer.communicate(timeout=60)[0] for writer in writers).split()
    assert len(set(ids)) == len(ids) == 2 * 20 * 2  # writers, appends, interactions
    assert read_ids(tmp_path) == set(ids)


# ---- what texts are judged by


def write_students(folder: Path, truth: str) -> Path:
    for name in ("S1", "S2"):
        profile = PROFILE | {"student_id": name, "explanation_style": None, "learning_preferences": []}
        (folder / f"{name}.json").write_text(json.dumps(profile))
    (folder / "truth.json").write_text(truth)
    return folder


def test_a_truth_is_the_profile_with_what_the_student_needs(tmp_path):
    folder = write_students(tmp_path, '{"S1": {"style": "check_at_end", "hint": false}}')
    profiles = load_profiles(folder)
    truths = load_truths(folder, profiles)
    assert (truths["S1"].explanation_style, truths["S1"].learning_preferences) == (
        "check_at_end",
        ["no hint"],
    )
    assert truths["S2"] == profiles["S2"]
    assert load_truths(folder, {"S2": profiles["S2"]}) == {"S2": profiles["S2"]}


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ('{"S9": {"style": "check_at_end"}}', "truth.json: S9: no such profile"),
        ('{"S1": {"style": "poem"}}', "truth.json: S1: style: expected one of numbered_steps"),
        ('{"S1": {"hint": "yes"}}', "truth.json: S1: hint: expected true or false, got str"),
    ],
)
def test_a_malformed_truth_is_named(truth, message, tmp_path):
    folder = write_students(tmp_path, truth)
    with pytest.raises(UserError, match=re.escape(message)):
        load_truths(folder, load_profiles(folder))


# --- what logs of real students add ----------------------------------------------------------------------


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


def test_an_interaction_without_text_says_so_and_its_key_must_be_there(tmp_path):
    bare = Interaction(**FIELDS | {"chapter": None, "question": None, "error_type": None})
    MemoryLog(tmp_path).append([bare])
    (line,) = (tmp_path / "S1.jsonl").read_text().splitlines()
    assert json.loads(line) == {**FIELDS, "chapter": None, "question": None, "error_type": None}
    assert MemoryLog(tmp_path).read("S1") == [bare]
    with pytest.raises(ValidationError, match="question"):
        Interaction(**{key: value for key, value in FIELDS.items() if key != "question"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("student_answer", "8"),
        ("tutor_said", "Count on from 4."),
        ("tutor_strategy", "focus"),
        ("tutor_correct", False),
        ("manner", {"style": "check_at_end", "hint": True, "support": None}),
    ],
)
def test_what_a_student_wrote_and_a_tutor_said_and_how_is_kept_where_it_was_noted(tmp_path, field, value):
    plain, told = Interaction(**FIELDS), Interaction(**FIELDS | {field: value})
    assert field not in plain.content and told.content[field] == value
    assert told.id != plain.id
    MemoryLog(tmp_path).append([told])
    assert MemoryLog(tmp_path).read("S1") == [told]
