"""The study on MathDial: what a memory tells of a dialogue, the wrong step, the subsets, the export."""

import pytest
from conftest import REPO_ROOT, planted_record
from test_mathdial import DIALOGUE

from cot.utils.dialogue_study import (
    build_rows,
    describe_students,
    export_for_mathtutorbench,
    judge_wrong_step,
    name_students,
    summarize,
    wrong_numbers,
)
from cot.utils.mathdial import load_dialogues, parse_dialogue
from cot.utils.questions import Question

OTHER = DIALOGUE | {"qid": 5000007, "question": "Tom has 2 pens and buys 2. How many now?"}
OTHER |= {"ground_truth": "2+2=4\n 4", "student_incorrect_solution": "2*3=6\n 6"}
NAMED = name_students([parse_dialogue(record, "here") for record in (DIALOGUE, OTHER, DIALOGUE)])


def test_each_dialogue_is_a_student_and_a_donor_is_of_another_question():
    assert list(NAMED) == ["mathdial-6000001-0", "mathdial-5000007-0", "mathdial-6000001-1"]
    questions = [Question(d.question_id, d.question, d.gold_solution) for d in list(NAMED.values())[:2]]
    profiles = describe_students(NAMED)
    rows = build_rows("qwen", questions, NAMED, profiles, temperatures=[0.0], num_samples=1, seed=0)
    assert len(rows) == 3 * 4 and len({row.key for row in rows}) == 12
    shown = {row.cell: row.memory for row in rows}
    own = shown["mathdial-6000001-1", "mathdial-6000001", "own"]
    assert own.lines == (
        "Student mathdial-6000001-1, 7th grade.",
        f'The student has tried this exercise, and this is wrong: "{DIALOGUE["student_incorrect_solution"]}"',
        "A teacher describes the confusion: subtracting instead of adding",
        "Challenges: She mixes up operations.",
    )
    assert not any("Mia" in line for line in own.lines)
    for student in ("mathdial-6000001-0", "mathdial-6000001-1"):
        donor = shown[student, "mathdial-6000001", "shuffled"]
        assert donor.student_id == "mathdial-5000007-0" and "2*3=6" in donor.lines[1]
        assert shown[student, "mathdial-6000001", "none"].lines == ()
        assert shown[student, "mathdial-6000001", "random"].length_of == (
            shown[student, "mathdial-6000001", "own"].lines
        )


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        ("You subtracted, but 9 is not what she had. 12 + 3 = 15.\n#### 10", (True, False)),
        ("She had 9 spoons. Then 9 - 5 = 4.\n#### 4", (False, True)),
        ("The mistake is 12 - 3 = 9. So she bought 4.\n#### 10", (True, True)),
        ("12 + 3 = 15 and we take 5.\n#### 4", (False, True)),  # the answer alone
        ("There are 19 of the 1,049.\n#### 10", (False, False)),  # 9 and 4 are parts of other numbers
    ],
)
def test_a_wrong_number_is_named_as_wrong_or_stated_as_right(text, judged):
    # 12 - 3 = 9 and 9 - 5 = 4; of the other one 2 * 3 = 6, while 2, 3 and 4 stand elsewhere, too
    assert wrong_numbers(NAMED["mathdial-6000001-0"]) == {"9", "4"}
    assert wrong_numbers(NAMED["mathdial-5000007-0"]) == {"6"}
    assert judge_wrong_step(text, {"9", "4"}) == judged
    assert judge_wrong_step(text, set()) == (None, None)


def test_the_real_wrong_solutions_state_their_wrong_numbers_as_right_and_the_right_ones_none():
    path = REPO_ROOT.parent / "shared" / "real" / "mathdial" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} absent")
    found = [(dialogue, wrong_numbers(dialogue)) for dialogue in load_dialogues(f"mathdial:{path}")]
    judged = [(dialogue, wrong) for dialogue, wrong in found if wrong]
    assert (len(found), len(judged)) == (599, 549)
    assert all(judge_wrong_step(dialogue.student_solution, wrong)[1] for dialogue, wrong in judged)
    assert not any(judge_wrong_step(dialogue.gold_solution, wrong)[1] for dialogue, wrong in judged)


def plant():
    """Twenty questions, every second one a test question, with two dialogues each."""
    return [
        planted_record(
            f"q{number}",
            f"q{number}-{dialogue}",
            arm,
            arm == "own",
            prompt=f"q{number}" if arm == "none" else f"q{number} {dialogue} {arm}",
            chapter=None,
            gsm8k_split=("train", "test")[number % 2],
            teacher_similarity=0.5 if arm == "own" else 0.25,
            wrong_step_named=arm == "own",
            wrong_number_repeated=False,
        )
        for number in range(20)
        for dialogue in range(2)
        for arm in ("own", "none", "shuffled")
    ]


def test_the_test_questions_are_reported_apart_and_questions_are_the_clusters():
    summary = summarize(plant(), [0.0])
    rows = {(row["subset"], row["memory_arm"]): row for row in summary["table"]}
    assert rows["all questions", "own"]["accuracy"]["n"] == 40
    assert rows["GSM8K test questions", "own"]["accuracy"]["n"] == 20
    # without memory both dialogues of a question have one text, whose likeness to the teacher is each's own
    assert rows["all questions", "none"]["accuracy"]["n"] == 20
    assert rows["all questions", "none"]["teacher_similarity"] == {"n": 40, "mean": 0.25} | dict.fromkeys(
        ("low", "high"), 0.25
    )
    verdicts = {(v["subset"], v["hypothesis"]): v for v in summary["verdicts"]}
    assert {v["verdict"] for v in verdicts.values()} == {"yes"}
    assert verdicts["GSM8K test questions", "b"]["effect"]["clusters"] == 10
    assert verdicts["all questions", "b"]["effect"]["mean"] == 0.25
    # a with nine test questions
    fewer = [record for record in plant() if record["question_id"] != "q1"]
    verdicts = {(v["subset"], v["hypothesis"]): v["verdict"] for v in summarize(fewer, [0.0])["verdicts"]}
    assert verdicts["GSM8K test questions", "a"] == "undecided" and verdicts["all questions", "a"] == "yes"


def test_the_export_ends_with_the_students_first_turn_and_refers_to_the_teachers_next():
    silent = parse_dialogue(DIALOGUE | {"conversation": "Teacher: (generic)Hi|EOM|Student: 9."}, "here")
    named = {"S1": NAMED["mathdial-6000001-0"], "S2": silent}
    records = [planted_record("q", student, "own", generated_text="Add.") for student in named]
    (exported,) = export_for_mathtutorbench(records, named)
    assert exported == {
        "problem": DIALOGUE["question"],
        "reference_solution": DIALOGUE["ground_truth"],
        "dialog_history": [{"user": "Teacher", "text": "Hi"}, {"user": "Student", "text": "12 - 3 = 9."}],
        "dialog_formatted": "Teacher: Hi\nStudent: 12 - 3 = 9.",
        "ground_truth_response": {"user": "Teacher", "text": "Were they used up?"},
        "generated_teacher_utterance": "Add.",
    }
