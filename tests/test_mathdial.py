"""MathDial's dialogues: one reader, for the importer and for questions."""

import json

import pytest
from conftest import REPO_ROOT

from cot.utils.errors import UserError
from cot.utils.mathdial import Turn, load_dialogues, parse_dialogue
from cot.utils.questions import load_questions

DIALOGUE = {
    "qid": 6000001,
    "question": "Ann has 12 spoons left after using 3 more. She was given 5. How many did she buy?",
    "ground_truth": "There were 12+3=15 spoons.\nSo Ann bought 15-5=10.\n 10",
    "student_incorrect_solution": "She had 12 - 3 = 9 spoons. So she bought 9 - 5 = 4.\n 4",
    "student_profile": "Mia is a 7th grade student. She mixes up operations.",
    "teacher_described_confusion": " subtracting instead\nof adding ",
    "conversation": "Teacher: (generic)Hi|EOM|Student: 12 - 3 = 9.|EOM|Teacher: (focus)Were they used up? "
    "|EOM|Student: No.",
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"mathdial:{path}"


def test_a_record_is_read_without_the_name_of_the_student():
    dialogue = parse_dialogue(DIALOGUE, "here")
    assert (dialogue.grade_level, dialogue.trait) == ("7th grade", "She mixes up operations.")
    assert dialogue.confusion == "subtracting instead of adding"
    assert (dialogue.question_id, dialogue.gsm8k_split) == ("mathdial-6000001", "test")
    assert dialogue.turns[:2] == (Turn("Teacher", "Hi", "generic"), Turn("Student", "12 - 3 = 9."))
    assert dialogue.teacher_said == "Hi\nWere they used up?"
    assert dialogue.gold_solution == "There were 12+3=15 spoons.\nSo Ann bought 15-5=10.\n#### 10"


def test_its_problems_are_questions_once_each_and_say_their_split_or_are_named(tmp_path):
    other = DIALOGUE | {"qid": 5000007, "question": "And how many now?"}
    dataset = write(tmp_path / "a.jsonl", DIALOGUE, other, DIALOGUE)
    found = load_questions(dataset)
    assert found.source == dataset and len(load_dialogues(dataset)) == 3
    chapters = {question.id: question.chapter for question in found.questions}
    assert chapters == {"mathdial-6000001": "gsm8k test", "mathdial-5000007": "gsm8k train"}

    write(tmp_path / "a.jsonl", DIALOGUE, DIALOGUE | {"ground_truth": None})
    with pytest.raises(UserError, match=r"a\.jsonl: line 2: ground_truth: missing"):
        load_questions(dataset)


def test_all_real_dialogues_are_questions_whose_gold_answer_parses():
    path = REPO_ROOT.parent / "shared" / "real" / "mathdial" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} absent")
    found = load_questions(f"mathdial:{path}")
    # as counted against GSM8K's own files: 349 and 45 distinct questions
    chapters = [question.chapter for question in found.questions]
    assert (chapters.count("gsm8k train"), chapters.count("gsm8k test")) == (349, 45)
    assert found.excluded == ()
