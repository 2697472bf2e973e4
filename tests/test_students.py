"""Profiles are checked; the log keeps what it acknowledged, once; no student reaches another's."""

import argparse
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cot.utils.cli import PROFILES_DIR, REPO_ROOT
from cot.utils.errors import EXIT_UNEXPECTED, UserError
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.students import (
    END,
    STYLE_IN_WORDS,
    Interaction,
    MemoryLog,
    Profile,
    check_as_of,
    in_time_order,
    load_profiles,
    parse_time,
    pick_students,
    render_profile,
)

PROFILE = {
    "student_id": "S005",
    "grade_level": "5th grade",
    "strengths": ["fractions"],
    "challenges": ["careless slips"],
    "learning_preferences": ["a hint first"],
    "explanation_style": "check_at_end",
}
FIELDS = {
    "student_id": "S1",
    "time": "2026-01-05T09:00:00Z",
    "chapter": "addition",
    "skill": "add_two_numbers",
    "question": "Ana has 3 pens and buys 4. How many has she?",
    "correct": False,
    "error_type": "forgot_to_carry",
    "what_helped": None,
}
LOOKALIKES = ["", ".", "..", ".S1", "S1 ", " S1", "S1\n", "S1\x00", "S1/../S10", "../S1", "/S1", "S\\1"]
LOOKALIKES += ["\u0405" + "1", "S\uff11", "S1\u200b", "S\u0661", "é1", "S" * 65]


def interaction(n: int = 0, **changes) -> Interaction:
    minute, second = divmod(n, 60)
    hour, minute = divmod(minute, 60)
    moment = f"2026-01-05T{9 + hour:02}:{minute:02}:{second:02}Z"
    return Interaction(**{**FIELDS, "time": moment, **changes})


# --- profiles --------------------------------------------------------------------------------------------


def write_profile(folder, content, name="S005.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_bundled_students_are_varied_and_distinguishable():
    profiles = load_profiles(PROFILES_DIR)
    assert len(profiles) >= 8
    grades = {int(profile.grade_level[0]) for profile in profiles.values()}
    assert {2, 8} <= grades
    assert {profile.explanation_style for profile in profiles.values()} == set(EXPLANATION_STYLES)
    wishes = {
        (p.explanation_style, *sorted(set(p.learning_preferences) & set(CHECKABLE_PREFERENCES)))
        for p in profiles.values()
    }
    assert len(wishes) == len(profiles)  # else the best fit could not identify a student


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("strengths", "fractions", "strengths: expected a list of strings, got str"),
        ("grade_level", 5, "grade_level: expected a string, got int"),
        ("challenges", ["a", 3], "challenges.1: expected a string, got int"),
        ("explanation_style", "interpretive dance", "explanation_style: expected one of numbered_steps"),
        ("student_id", "../S005", "student_id: expected 1 to 64 of"),
        ("nickname", "Sam", "nickname: unknown field"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_expectation(tmp_path, field, value, expected):
    path = write_profile(tmp_path, PROFILE | {field: value})
    with pytest.raises(UserError) as error:
        load_profiles(tmp_path)
    assert str(error.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_missing_field_is_named(tmp_path):
    content = {key: value for key, value in PROFILE.items() if key != "strengths"}
    write_profile(tmp_path, content)
    with pytest.raises(UserError, match=r"S005\.json: strengths: missing"):
        load_profiles(tmp_path)


@pytest.mark.parametrize("content", [b"{broken", b"[1, 2]", b'"text"', b""])
def test_broken_json_is_one_line_that_names_the_file(tmp_path, content):
    write_profile(tmp_path, content)
    with pytest.raises(UserError, match=r"S005\.json: (not JSON|expected a JSON object)"):
        load_profiles(tmp_path)


def test_a_byte_order_mark_is_read(tmp_path):
    write_profile(tmp_path, b"\xef\xbb\xbf" + json.dumps(PROFILE).encode())
    assert load_profiles(tmp_path) == {"S005": Profile(**PROFILE)}


def test_text_that_is_not_utf8_is_named_by_its_byte(tmp_path):
    content = json.dumps(PROFILE).encode().replace(b"fractions", b"fra\xffctions")
    offset = content.index(b"\xff")
    write_profile(tmp_path, content)
    with pytest.raises(UserError, match=rf"not UTF-8 at byte {offset}"):
        load_profiles(tmp_path)


def test_no_profile_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no profile"):
        load_profiles(tmp_path)


def test_an_id_must_be_the_files_name_and_unlike_any_other(tmp_path):
    write_profile(tmp_path, PROFILE, "S006.json")
    with pytest.raises(UserError, match="student_id: expected 'S006'"):
        load_profiles(tmp_path)
    (tmp_path / "S006.json").unlink()
    write_profile(tmp_path, PROFILE)
    write_profile(tmp_path, PROFILE | {"student_id": "s005"}, "s005.json")
    if len(list(tmp_path.iterdir())) == 2:  # a file system that tells upper from lower case
        with pytest.raises(UserError, match="upper and lower case"):
            load_profiles(tmp_path)


def test_students_are_picked_by_name_or_all(tmp_path):
    for name in ("S1", "S2", "S3"):
        write_profile(tmp_path, PROFILE | {"student_id": name}, f"{name}.json")
    profiles = load_profiles(tmp_path)
    assert pick_students(["all"], profiles) == ["S1", "S2", "S3"]
    assert pick_students(["S3", "S1"], profiles) == ["S3", "S1"]
    with pytest.raises(UserError, match="--students s1: no such profile; there are S1, S2, S3, and all"):
        pick_students(["S3", "s1"], profiles)


def test_a_profile_reads_as_short_lines_without_an_empty_one():
    assert set(STYLE_IN_WORDS) == set(EXPLANATION_STYLES)
    lines = render_profile(Profile(**PROFILE | {"strengths": [], "notes": "Likes trains."}))
    assert lines == [
        "Student S005, 5th grade.",
        "Explanation style: a last line 'Check:' with another equation that confirms the answer.",
        "Prefers: a hint first.",
        "Challenges: careless slips.",
        "Likes trains.",
    ]


# --- one interaction -------------------------------------------------------------------------------------


def test_the_id_is_the_hash_of_the_canonical_content():
    canonical = json.dumps(FIELDS, sort_keys=True, separators=(",", ":"))
    assert interaction().id == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert interaction(question="Another?").id != interaction().id
    assert interaction(correct=True).id != interaction().id


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": 1},
        {"correct": "true"},
        {"skill": ""},
        {"question": None},
        {"mood": "good"},
        {"time": "2026-01-05 09:00:00"},
        {"time": "2026-01-05T09:00:00+01:00"},
        {"time": "2026-1-5T9:00:00Z"},
        {"time": "2026-02-30T09:00:00Z"},
        {"time": "2026-01-05T24:00:00Z"},
        {"time": "2026-01-05T09:00:00Z\n"},
        {"time": "２０２６-01-05T09:00:00Z"},
        *({"student_id": student_id} for student_id in LOOKALIKES),
    ],
)
def test_a_field_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValidationError):
        Interaction(**{**FIELDS, **changes})


def test_an_interaction_cannot_be_changed():
    with pytest.raises(ValidationError):
        interaction().correct = True


def test_lone_surrogates_are_replaced_as_no_utf8_file_can_hold_them(tmp_path):
    poisoned = interaction(question="a\ud800b", what_helped="\udfff")
    assert (poisoned.question, poisoned.what_helped) == ("a\ufffdb", "\ufffd")
    MemoryLog(tmp_path).append([poisoned])
    assert MemoryLog(tmp_path).read("S1") == [poisoned]
    (tmp_path / "S1.jsonl").write_text(json.dumps(FIELDS | {"question": "a\ud800b"}) + "\n")
    assert MemoryLog(tmp_path).read("S1")[0].question == "a\ufffdb"


def test_a_time_is_a_moment_in_utc():
    difference = parse_time("2026-03-01T00:00:00Z") - parse_time("2026-02-28T23:00:00Z")
    assert difference.total_seconds() == 3600  # 2026 has no 29 February


def test_as_of_on_a_command_line_is_a_time_or_the_end():
    assert check_as_of("2026-03-01T09:00:00Z") == "2026-03-01T09:00:00Z"
    assert check_as_of("end") == END
    for text in ("2026-03-01", "End", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected a UTC time such as .*; or end"):
            check_as_of(text)


# --- the log ---------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_in_time_order(tmp_path):
    log = MemoryLog(tmp_path / "memory")
    late, early = interaction(2), interaction(1, what_helped="drawing “bars”\nand 线")
    assert log.append([late]) == 1
    assert log.append([early]) == 1
    assert log.read("S1") == [early, late]
    lines = (tmp_path / "memory/S1.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [late.model_dump(), early.model_dump()]
    assert list(json.loads(lines[0])) == list(FIELDS)


def test_equal_times_keep_the_order_of_arrival(tmp_path):
    same_time = [interaction(0, question=question) for question in "zay"]
    MemoryLog(tmp_path).append(same_time)
    assert [item.question for item in MemoryLog(tmp_path).read("S1")] == ["z", "a", "y"]


def test_as_of_is_strictly_earlier():
    items = [interaction(n) for n in range(3)]
    assert in_time_order(items, as_of=items[2].time) == items[:2]
    assert in_time_order(items, as_of=items[0].time) == []
    assert in_time_order(items, as_of=END) == in_time_order(items) == items
    with pytest.raises(UserError, match=r"as_of: .*'2026-01-05'"):
        in_time_order(items, as_of="2026-01-05")


def test_a_duplicate_changes_no_byte(tmp_path):
    log = MemoryLog(tmp_path)
    assert log.append([interaction(0), interaction(0), interaction(1)]) == 2
    before = (tmp_path / "S1.jsonl").read_bytes()
    assert log.append([interaction(1), interaction(0)]) == 0
    assert (tmp_path / "S1.jsonl").read_bytes() == before


def test_a_duplicate_that_stands_in_the_file_is_read_once(tmp_path):
    line = json.dumps(FIELDS) + "\n"
    (tmp_path / "S1.jsonl").write_text(line * 3)
    assert MemoryLog(tmp_path).read("S1") == [Interaction(**FIELDS)]
    assert in_time_order([interaction(1), interaction(0), interaction(1)]) == [interaction(0), interaction(1)]
    same_time = [interaction(0, question=question) for question in "zaz"]
    assert [item.question for item in in_time_order(same_time)] == ["z", "a"]


def test_no_log_is_no_memory(tmp_path):
    assert MemoryLog(tmp_path / "absent").read("S1") == []
    assert MemoryLog(tmp_path / "absent").students() == []


def test_a_writer_waits_for_another_and_gives_up_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cot.utils.students.LOCK_TIMEOUT_S", 0.05)
    held = filelock.FileLock(tmp_path / ".S1.jsonl.lock")
    with held, pytest.raises(UserError, match=r"S1\.jsonl: another process has held its lock for 0\.05 s"):
        MemoryLog(tmp_path).append([interaction()])
    assert MemoryLog(tmp_path).append([interaction()]) == 1
    assert MemoryLog(tmp_path).append([interaction(1)]) == 1  # the lock was given back


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["S1", "s1", "S10"])), max_size=4)))
def test_appending_in_parts_is_appending_at_once(tmp_path_factory, parts):
    batches = [[interaction(n, student_id=student) for n, student in part] for part in parts]
    folder = tmp_path_factory.mktemp("log")
    at_once, in_parts = MemoryLog(folder / "once"), MemoryLog(folder / "parts")
    at_once.append(item for batch in batches for item in batch)
    for batch in batches:
        in_parts.append(batch)
    distinct = {item for batch in batches for item in batch}
    for student in ("S1", "s1", "S10"):
        expected = sorted((item for item in distinct if item.student_id == student), key=lambda i: i.time)
        assert in_parts.read(student) == at_once.read(student) == expected
    assert in_parts.students() == sorted({item.student_id for item in distinct})


# --- damage ----------------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_loses_at_most_its_last_line_and_is_repaired(tmp_path):
    log, path = MemoryLog(tmp_path), tmp_path / "S1.jsonl"
    items = [interaction(0), interaction(1, question="线 “é”")]
    log.append(items)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        # without its line break a complete line is still a line
        complete = (cut >= first - 1) + (cut >= len(whole) - 1)
        torn = cut not in (0, first - 1, first, len(whole) - 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert log.read("S1") == items[:complete]
            log.append(items)
        messages = [str(warning.message) for warning in caught]
        torn_bytes = cut - first * (cut > first)
        assert messages == [f"{path}: torn last line dropped ({torn_bytes} bytes)"] * 2 * torn
        # a complete line only lacks its line break, which comes with the next line
        assert path.read_bytes() == (whole[:-1] if cut == len(whole) - 1 else whole)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(FIELDS | {"correct": 1}), "line 2: correct: expected true or false, got int"),
        (json.dumps({k: v for k, v in FIELDS.items() if k != "skill"}), "line 2: skill: missing"),
        (json.dumps(FIELDS | {"time": "yesterday"}), "line 2: time: "),
        (json.dumps(FIELDS | {"mood": "good"}), "line 2: mood: unknown field"),
        (json.dumps(FIELDS | {"student_id": "S10"}), "line 2: student_id: expected 'S1'"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"student_id": "S1", "ti', "line 2: not JSON"),
        ("[]", "line 2: record: "),
    ],
)
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_written(tmp_path, line, message):
    path = tmp_path / "S1.jsonl"
    path.write_text("\n".join([json.dumps(FIELDS), line, json.dumps(FIELDS), ""]))
    before = path.read_bytes()
    for use in (lambda: MemoryLog(tmp_path).read("S1"), lambda: MemoryLog(tmp_path).append([interaction(5)])):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value).startswith(f"{path}: {message}")
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_byte_order_mark_is_read_and_other_encodings_are_named(tmp_path):
    path = tmp_path / "S1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FIELDS).encode() + b"\r\n\n")
    assert MemoryLog(tmp_path).read("S1") == [Interaction(**FIELDS)]
    path.write_bytes(b'{"question": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"S1\.jsonl: not UTF-8 at byte 17"):
        MemoryLog(tmp_path).read("S1")


def test_a_full_disk_is_one_line_and_the_log_stays_readable(tmp_path, monkeypatch):
    log = MemoryLog(tmp_path)
    log.append([interaction(0)])
    before = (tmp_path / "S1.jsonl").read_bytes()

    def no_space(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"S1\.jsonl: cannot write: No space left") as error:
        log.append([interaction(1)])
    assert error.value.exit_code == EXIT_UNEXPECTED
    assert (tmp_path / "S1.jsonl").read_bytes().startswith(before)
    assert log.read("S1")[0] == interaction(0)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as error:
        MemoryLog(tmp_path / "file" / "memory").append([interaction()])
    assert error.value.exit_code == EXIT_UNEXPECTED


# --- isolation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student_id", LOOKALIKES)
def test_an_id_that_could_look_like_another_or_leave_the_folder_is_refused(tmp_path, student_id):
    MemoryLog(tmp_path).append([interaction()])
    with pytest.raises(UserError, match="student id"):
        MemoryLog(tmp_path / "sub").read(student_id)


def test_ids_that_begin_alike_have_their_own_logs(tmp_path):
    ids = ["S", "S-1", "S1", "S1.", "S1.jsonl", "S10", "S_1", "s1"]
    log = MemoryLog(tmp_path)
    log.append(interaction(student_id=student_id) for student_id in ids)
    assert log.students() == ids
    assert all([item.student_id for item in log.read(student_id)] == [student_id] for student_id in ids)


def test_a_file_system_that_merges_cases_or_a_link_cannot_merge_students(tmp_path):
    MemoryLog(tmp_path).append([interaction()])
    (tmp_path / "s1.jsonl").symlink_to(tmp_path / "S1.jsonl")  # what such a file system would open
    for use in (MemoryLog(tmp_path).read, lambda i: MemoryLog(tmp_path).append([interaction(student_id=i)])):
        with pytest.raises(UserError, match="line 1: student_id: expected 's1' as the file's name, got 'S1'"):
            use("s1")


def test_a_log_whose_name_is_no_id_is_named(tmp_path):
    (tmp_path / "S1 (copy).jsonl").write_text("")
    with pytest.raises(UserError, match=r"S1 \(copy\)"):
        MemoryLog(tmp_path).students()


# --- processes -------------------------------------------------------------------------------------------

WRITER = """
import json, sys
import filelock
from cot.utils.students import Interaction, MemoryLog
fields, log, name, stop = json.loads(sys.argv[1]), MemoryLog(sys.argv[2]), sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
for n in range(int(sys.stdin.readline()), stop):
    questions = [f"{name} {n}", f"{name} {n} " + "long " * 10_000]
    log.append([Interaction(**fields | {"question": question}) for question in questions])
    print(n, flush=True)
"""


def written_by(name: str, n: int) -> set[str]:
    """The ids of the two interactions that a writer appends as its n-th."""
    questions = [f"{name} {n}", f"{name} {n} " + "long " * 10_000]
    return {interaction(question=question).id for question in questions}


def start_writer(folder: Path, name: str, stop: int) -> subprocess.Popen:
    """Waits for its first number, then appends and prints one number after the other once acknowledged."""
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


def whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torn last line dropped")
def test_kill_9_loses_nothing_that_was_acknowledged_and_doubles_nothing(tmp_path):
    rng = random.Random(0)
    acknowledged: set[int] = set()
    writers = [start_writer(tmp_path, "w", 10_000) for _ in range(10)]
    for writer in writers:
        go(writer, max(0, len(acknowledged) - 2))  # the last ones once more, as a resumed run would
        for _ in range(rng.randint(3, 5)):  # at least one that is new, however busy the machine is
            acknowledged.add(int(writer.stdout.readline()))
        time.sleep(rng.uniform(0.0, 0.02))
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in writer.stdout.read().split("\n")[:-1]}
        assert writer.wait() == -signal.SIGKILL
        writer.stdin.close()
        expected = set().union(*(written_by("w", n) for n in acknowledged))
        assert expected <= {item.id for item in MemoryLog(tmp_path).read("S1")}
        lines = whole_lines(tmp_path / "S1.jsonl")
        assert len(set(lines)) == len(lines)
    assert len(acknowledged) >= 10
    assert acknowledged == set(range(len(acknowledged)))


def test_two_writers_at_once_lose_and_double_nothing(tmp_path):
    writers = [start_writer(tmp_path, name, 30) for name in ("a", "b")]
    for writer in writers:
        go(writer, 0)
    for writer in writers:
        assert writer.communicate(timeout=60)[0].split() == [str(n) for n in range(30)]
    expected = set().union(*(written_by(name, n) for name in "ab" for n in range(30)))
    assert {item.id for item in MemoryLog(tmp_path).read("S1")} == expected
    assert len(whole_lines(tmp_path / "S1.jsonl")) == 120  # 2 writers x 30 appends x 2 interactions
