"""Imports: what each format becomes, what is refused and left out, and an import that is stopped."""

import hashlib
import json
import resource
import time
from pathlib import Path

import pytest
from conftest import read_strictly, run_here, start_script

from cot.utils.memory_arms import MemoryArms
from cot.utils.questions import Question
from cot.utils.student_files import MemoryLog, load_profiles
from rl.import_students import FORMATS, main, make_id

SCRIPT = "rl/import_students.py"
PYKT = 'fold,uid,concepts,responses\n0,16894,"19,7","0,1"\n1,859,57,1\n'
TIMED = "uid,concepts,responses,timestamps\n"
REPEATED = "uid,concepts,responses,is_repeat\n"
ASSISTMENTS = (
    "order_id,user_id,problem_id,correct,skill_id,skill_name\n"
    "30,70,5,1,1,Area\n"  # the later answer of this student stands first
    "20,71,5,0,2,\n"
    "10,70,6,0,1,Area\n"
    "10,70,6,0,3,Angles\n"
)
DIALOGUE = {
    "qid": 6000025,
    "question": "Tom has 3 pears and eats 1. How many are left?",
    "student_incorrect_solution": "3 + 1 = 4",
    "student_profile": "Ana is a 7th grade student. She mixes up operations.",
    "teacher_described_confusion": "adding\ninstead of subtracting",
    "conversation": "Teacher: (focus)What does eating do?|EOM|Ana: Oh.|EOM|Teacher: (telling) It leaves 2.",
}
MOMENT = {
    "c_id": "77_105",
    "lesson_topic": "3.2B.Rounding",
    "c_h": [
        {"user": "tutor", "text": "Round 47 to tens."},
        {"user": "student", "text": "40"},
        {"user": "student", "text": "I think"},
    ],
    "c_r": [{"user": "tutor", "text": "Look at"}, {"user": "tutor", "text": "the ones."}],
    "e": "guess",
    "z_what": "provide_hint",
}


def run_import(tmp_path: Path, data_format: str, *texts: str, out: str = "out", flags=()):
    """The script on files with these texts: its exit code and both outputs, the error without the path."""
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"input_{number}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        paths.append(path)
    code, stdout, stderr = run_here(
        main, "--format", data_format, "--input", *paths, "--profiles_dir", tmp_path / out, *flags
    )
    return code, stdout, stderr.replace(f"{tmp_path}/", "")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of students, by its path; without the report and the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name not in ("import.json", ".import.lock")
    }


def answers_of(folder: Path, student: str) -> list[tuple[str, str, bool]]:
    """Time, skill and outcome of a student's interactions."""
    return [(item.time, item.skill, item.correct) for item in MemoryLog(folder / "memory").read(student)]


def report_of(folder: Path) -> dict:
    return read_strictly(folder / "memory" / "import.json")


def left_out_of(folder: Path) -> dict[str, int]:
    """Rows by the reason for which they were left out."""
    return {row["reason"]: row["rows"] for row in report_of(folder)["left_out"]}


# --- what each format becomes -----------------------------------------------------------------------------


def test_pykts_rows_become_answers_in_order_and_nothing_more(tmp_path):
    code, stdout, _ = run_import(tmp_path, "pykt", PYKT)
    assert code == 0
    assert answers_of(tmp_path / "out", "16894") == [
        ("2000-01-01T00:00:00Z", "19", False),
        ("2000-01-01T00:01:00Z", "7", True),
    ]
    (line,) = (tmp_path / "out/memory/859.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "student_id": "859",
        "time": "2000-01-01T00:00:00Z",
        "chapter": None,
        "skill": "57",
        "question": None,
        "correct": True,
        "error_type": None,
        "what_helped": None,
    }
    profile = load_profiles(tmp_path / "out")["859"]
    assert (profile.grade_level, profile.strengths, profile.challenges) == ("grade unknown", [], [])
    assert report_of(tmp_path / "out") == {
        "status": "success",
        "format": "pykt",
        "inputs": [{"file": "input_0", "sha256": hashlib.sha256(PYKT.encode()).hexdigest()}],
        "students": 2,
        "interactions": 3,
        "new": 3,
        "right": pytest.approx(2 / 3),
        "skills": 3,
        "left_out": [],
        "times": "none in the data: one minute apart from 2000-01-01T00:00:00Z, in order",
    }
    assert "times: none in the data: one minute apart" in stdout


def test_pykts_padding_is_left_out_and_an_answer_in_two_skills_stays_one(tmp_path):
    rows = 'A,"1,2,3,-1,-1","1,1,0,-1,-1","0,1,0,-1,-1"\nA,"4_5,NA","0,1","0,0"\n'
    assert run_import(tmp_path, "pykt", REPEATED + rows)[0] == 0
    # seven items are three answers, two of padding, one that repeats an answer, and one without a skill
    assert answers_of(tmp_path / "out", "A") == [
        ("2000-01-01T00:00:00Z", "1_2", True),
        ("2000-01-01T00:01:00Z", "3", False),
        ("2000-01-01T00:02:00Z", "4_5", False),  # the second row goes on where the first has ended
    ]
    left_out = left_out_of(tmp_path / "out")
    assert left_out == {
        "another skill of an answer that is there (joined)": 1,
        "no skill": 1,
        "padding (-1)": 2,
    }


def test_times_that_the_data_has_are_kept(tmp_path):
    rows = 'A,"1,1,1","1,1,1","1262304000000,1262304000900,1262390400000"\n'
    assert run_import(tmp_path, "pykt", TIMED + rows)[0] == 0
    # the second answer has the first one's second: it comes a second later, so that it is not taken for it
    times = [time for time, _, _ in answers_of(tmp_path / "out", "A")]
    assert times == ["2010-01-01T00:00:00Z", "2010-01-01T00:00:01Z", "2010-01-02T00:00:00Z"]
    assert report_of(tmp_path / "out")["times"].startswith("of the data")


def test_assistments_rows_of_one_answer_are_one_interaction_in_the_order_of_order_id(tmp_path):
    rows = ASSISTMENTS + "40,70,7,1,1,Area\n40,70,7,1,1,Area\n50,70,8,0.5,1,Area\n60,70,9,1,NA,\n"
    assert run_import(tmp_path, "assistments", rows)[0] == 0
    assert answers_of(tmp_path / "out", "70") == [
        ("2000-01-01T00:00:00Z", "Angles + Area", False),
        ("2000-01-01T00:01:00Z", "Area", True),
        ("2000-01-01T00:02:00Z", "Area", True),
    ]
    assert answers_of(tmp_path / "out", "71") == [("2000-01-01T00:00:00Z", "2", False)]  # no name but an id
    # eight rows are four answers and four that are left out
    assert report_of(tmp_path / "out")["interactions"] == 4
    assert left_out_of(tmp_path / "out") == {
        "an answer that is there already": 1,
        "another skill of an answer that is there (joined)": 1,
        "no skill": 1,
        "partly right": 1,
    }


def test_another_encoding_has_to_be_named(tmp_path):
    rows = ASSISTMENTS.replace("Angles", "Angle\u00e9").encode("latin-1")
    assert run_import(tmp_path, "assistments", rows)[0] == 2
    assert run_import(tmp_path, "assistments", rows, flags=["--encoding", "latin-1"])[0] == 0
    assert answers_of(tmp_path / "out", "70")[0][1] == "Angle\u00e9 + Area"


def test_a_dialogue_becomes_a_mistake_and_what_the_teacher_said(tmp_path):
    other = DIALOGUE | {"qid": 5000001, "teacher_described_confusion": None}
    text = "".join(json.dumps(record) + "\n" for record in (DIALOGUE, other))
    assert run_import(tmp_path, "mathdial", text)[0] == 0
    (profile,) = load_profiles(tmp_path / "out").values()
    digits = hashlib.sha256(DIALOGUE["student_profile"].encode()).hexdigest()[:10]
    assert profile.student_id == f"mathdial_{digits}"  # equal descriptions are one student, and no name
    assert (profile.grade_level, profile.challenges) == ("7th grade", ["She mixes up operations."])
    first, second = MemoryLog(tmp_path / "out" / "memory").read(profile.student_id)
    assert first.content == {
        "student_id": profile.student_id,
        "time": "2000-01-01T00:00:00Z",
        "chapter": "gsm8k test",
        "skill": "multi-step word problems",
        "question": DIALOGUE["question"],
        "correct": False,
        "error_type": "adding instead of subtracting",
        "what_helped": None,
        "student_answer": "3 + 1 = 4",
        "tutor_said": "What does eating do?\nIt leaves 2.",
        "tutor_strategy": "focus, telling",
    }
    assert (second.chapter, second.error_type) == ("gsm8k train", None)


def test_a_moment_of_a_chat_is_what_the_tutor_asked_what_the_student_said_and_the_reply(tmp_path):
    earlier = MOMENT | {"c_id": "77_9", "e": "careless", "c_h": MOMENT["c_h"][1:]}
    second_reading, no_error = MOMENT | {"e": "careless"}, MOMENT | {"c_id": "77_200", "e": "End session\n"}
    code, *_ = run_import(tmp_path, "bridge", json.dumps([MOMENT, second_reading, earlier, no_error]))
    assert code == 0
    items = MemoryLog(tmp_path / "out" / "memory").read("bridge_77")
    # by the message's number; where no tutor has asked, there is no question
    assert [(item.error_type, item.question) for item in items] == [
        ("careless", None),
        ("guess", "Round 47 to tens."),
    ]
    assert items[1].student_answer == "40 I think" and items[1].tutor_said == "Look at the ones."
    assert (items[1].tutor_strategy, items[1].skill, items[1].correct) == (
        "provide_hint",
        "3.2B.Rounding",
        False,
    )
    assert load_profiles(tmp_path / "out")["bridge_77"].grade_level == "3rd grade lesson"
    left_out = left_out_of(tmp_path / "out")
    assert left_out == {"another reading of a moment that is there": 1, "none of the six errors": 1}


def test_a_student_without_text_gets_a_memory_of_its_skills(tmp_path):
    assert run_import(tmp_path, "pykt", PYKT)[0] == 0
    profiles, log = load_profiles(tmp_path / "out"), MemoryLog(tmp_path / "out" / "memory")
    arms = MemoryArms(profiles, {student: log.read(student) for student in profiles}, embedder=None, seed=0)
    asked = Question("q", "What is 3 + 4?", "#### 7", "addition", "19")
    # .3 > wrong, .03 / .59 = .050847 > + .949153 x .1 = .145763
    told = "Skill at hand, struggling: 0.15 after 1 exercise, 0 right."
    assert told in arms.show(arms.moment("16894", asked), "own").lines


# --- what is refused --------------------------------------------------------------------------------------

LONG = {"student_profile": f"Ana is a 7th grade student. {'x' * 201}"}
BROKEN = {  # a file, and what is said of it, by format
    "pykt": [
        ("", "line 1: expected one column uid, got none"),
        ("uid,uid,concepts,responses\n", "line 1: expected one column uid, got uid, uid"),
        (PYKT + "0,5,1\n", "line 4: fewer than the header's 4 fields"),
        (PYKT + "0,,1,1\n", "line 4: uid: empty"),
        (PYKT + '0,5,"1,2",1\n', "line 4: responses: expected 2 as in concepts, got 1"),
        (PYKT + '0,5,"1,2","1,2"\n', "line 4: responses: item 2: expected 0 or 1, or -1 in both; got '2'"),
        (PYKT + '0,5,"1,-1","1,1"\n', "line 4: responses: item 2: expected 0 or 1, or -1 in both"),
        (PYKT + '0,5,"1,2\n', "line 4: not CSV: unexpected end of data"),
        (b"uid,concepts,responses\n\xff,1,1\n", "behind line 1: not utf-8-sig; name another --encoding"),
        (TIMED + "A,1,1,86400\n", "line 2: timestamps: item 1: expected mill"),
        (REPEATED + 'A,"1,2","1,0","0,1"\n', "line 2: is_repeat: item 2: it repeats"),
        ("uid,concepts,responses\nabc,1,1\nABC,1,1\n", "line 3: students 'abc' and 'ABC' would share ABC"),
    ],
    "assistments": [
        (f"{ASSISTMENTS}x,70,5,1,1,Area\n", "line 6: order_id: expected a whole number, got 'x'"),
        (f"{ASSISTMENTS}1,70,5,2,1,Area\n", "line 6: correct: expected 0 to 1, got '2'"),
        (f"{ASSISTMENTS}10,70,6,1,4,Lines\n", "line 6: correct: another row of order_id 10 and this student"),
        ("user_id,order_id,correct\n1,1,1\n", "line 2: no column skill_name or skill_id"),
    ],
    "mathdial": [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected a JSON object, got list"),
        (json.dumps(DIALOGUE | {"question": 7}), "line 1: question: expected a text, got int"),
        (json.dumps(DIALOGUE | LONG), "mathdial_b67b552bcf: challenges.0: String should have at most 200"),
    ],
    "bridge": [
        ("{}", "expected a JSON list of objects"),
        ("[", "not JSON"),
        (json.dumps([MOMENT, MOMENT | {"c_id": "77"}]), "record 2: c_id: expected CHAT_MESSAGE"),
        (json.dumps([MOMENT | {"e": None}]), "record 1: e: expected a text, got NoneType"),
        (json.dumps([MOMENT | {"c_r": [{"user": "x"}]}]), "record 1: c_r: expected messages"),
    ],
}


@pytest.mark.parametrize(
    ("data_format", "text", "message"),
    [(data_format, *row) for data_format, rows in BROKEN.items() for row in rows],
)
def test_a_row_that_does_not_fit_its_format_is_named(tmp_path, data_format, text, message):
    code, _, stderr = run_import(tmp_path, data_format, text)
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: input_0: {message}")


def test_an_absent_file_and_one_given_twice_are_named(tmp_path):
    for data_format in FORMATS:
        flags = ["--format", data_format, "--input", tmp_path / "gone", "--profiles_dir", tmp_path / "out"]
        code, _, stderr = run_here(main, *flags)
        assert (code, stderr) == (2, f"error: --input {tmp_path}/gone: No such file or directory\n")
    code, _, stderr = run_import(tmp_path, "pykt", PYKT, PYKT)
    assert (code, stderr) == (2, "error: --input input_1: it holds the same as input_0\n")


# --- ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../S1", ".hidden", "a b", "é", "x" * 65, "truth", "Truth", "S1\n"])
def test_a_name_that_is_no_id_gets_a_safe_one_of_its_own(name, tmp_path):
    made = make_id(name)
    assert made == make_id(name) != name
    assert made.endswith(f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}")
    assert MemoryLog(tmp_path).read(made) == []  # it can be a file's name there
    assert made != make_id(name + "?")


# --- an import that goes on -------------------------------------------------------------------------------


def many_students(count: int) -> str:
    """Rows of students with forty answers each."""
    concepts, responses = ",".join("123" * 13 + "4"), ",".join("1101" * 10)
    rows = "".join(f'0,S{number},"{concepts}","{responses}"\n' for number in range(count))
    return f"fold,uid,concepts,responses\n{rows}"


@pytest.mark.slow
def test_an_import_that_was_killed_goes_on_and_writes_nothing_twice(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text(many_students(150))
    flags = ["--format", "pykt", "--input", str(path), "--profiles_dir", str(tmp_path / "killed")]
    process = start_script(SCRIPT, *flags)
    logs = tmp_path / "killed" / "memory"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(logs.glob("*.jsonl"))) < 20:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    written = len(list(logs.glob("*.jsonl")))
    assert 20 <= written < 150 and report_of(tmp_path / "killed")["status"] == "running"

    code, stdout, _ = run_here(main, *flags)
    assert code == 0
    new = report_of(tmp_path / "killed")["new"]
    assert 0 < new <= (150 - written + 1) * 40
    assert f"6000 interactions of 150 students, {new} of them new" in stdout

    run_here(main, *flags[:-1], tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert run_here(main, *flags)[0] == 0 and report_of(tmp_path / "killed")["new"] == 0


def test_a_full_disk_is_one_line_and_the_import_goes_on_when_there_is_room(tmp_path):
    text, hard = many_students(3), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes that a file of this process may have
    try:
        code, _, stderr = run_import(tmp_path, "pykt", text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    message = "error: out/memory/S0.jsonl: cannot write: File too large"
    assert (code, stderr.splitlines()[-1]) == (1, message)
    assert run_import(tmp_path, "pykt", text)[0] == 0
    run_import(tmp_path, "pykt", text, out="whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_files_cut_anywhere_are_made_whole_again(tmp_path):
    run_import(tmp_path, "pykt", PYKT, out="whole")
    whole = contents(tmp_path / "whole")
    log = tmp_path / "out" / "memory" / "16894.jsonl"
    for cut in range(0, len(whole["memory/16894.jsonl"]), 31):
        run_import(tmp_path, "pykt", PYKT)
        log.write_bytes(whole["memory/16894.jsonl"][:cut])
        (tmp_path / "out" / "16894.json").write_bytes(whole["16894.json"][: cut // 4])
        assert run_import(tmp_path, "pykt", PYKT)[0] == 0
        assert contents(tmp_path / "out") == whole
        assert report_of(tmp_path / "out")["new"] == 2 - whole["memory/16894.jsonl"][:cut].count(b"\n")


@pytest.mark.parametrize("file", ["859.json", "memory/859.jsonl"])
def test_a_file_that_holds_something_else_is_not_touched(tmp_path, file):
    (tmp_path / "out" / "memory").mkdir(parents=True)
    (tmp_path / "out" / file).write_text('{"student_id": "another"}\n')
    code, _, stderr = run_import(tmp_path, "pykt", PYKT)
    assert code == 2
    assert f"out/{file}: it holds something else; name a new --profiles_dir" in stderr
    assert (tmp_path / "out" / file).read_text() == '{"student_id": "another"}\n'
