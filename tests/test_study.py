"""The study's design: for whom each question is asked, what each condition shows, and what is claimed."""

from collections import Counter

import pytest

from cot.utils.memory_arms import MemoryArms
from cot.utils.questions import Question
from cot.utils.study import EVIDENCE, build_rows, deal_students, list_hypotheses
from cot.utils.textbook import load_chapters
from rl.student_model import generate_student

STUDENTS = [generate_student(number, load_chapters()[:5], seed=0) for number in range(4)]
QUESTIONS = [
    Question(f"gsm8k-test-{number}", f"Ann sold {number} clips. How many?", f"It is so.\n#### {answer}")
    for number, answer in enumerate(("1,072", "18"))
]
DEALT = [["S0000", "S0001"], ["S0002", "S0003"]]


def build(temperatures=(0.0, 0.7), num_samples=1):
    truths = {student.student_id: student.truth for student in STUDENTS}
    profiles = {student.student_id: student.profile for student in STUDENTS}
    histories = {student.student_id: student.history for student in STUDENTS}
    by_level = {
        level: MemoryArms(shown, histories, None, seed=0, level=level, truths=truths)
        for level, shown in (("stated", truths), ("history", profiles))
    }
    return build_rows("qwen", QUESTIONS, DEALT, by_level, temperatures, num_samples)


@pytest.fixture(scope="module")
def rows():
    return build()


def shown(rows, arm, temperature=0.0, student="S0000"):
    (row,) = [
        row
        for row in rows
        if (row.memory.arm, row.temperature, row.moment.student_id) == (arm, temperature, student)
    ]
    return row.memory


def test_students_are_dealt_alike_and_none_twice_for_a_question():
    dealt = deal_students([f"S{number}" for number in range(10)], questions=50, each=2, seed=3)
    assert len(dealt) == 50 and all(len(set(students)) == 2 for students in dealt)
    assert set(Counter(student for students in dealt for student in students).values()) == {10}
    assert len(set(map(tuple, dealt))) > 25  # not the same pairs again and again


def test_every_condition_is_asked_at_its_temperatures_and_no_row_twice(rows):
    # 2 questions x 2 students x 2 temperatures for the arms: none and instructed once, three at each level
    counts = Counter(row.memory.arm for row in rows)
    arms = {f"{arm}@{level}" for arm in ("own", "shuffled", "random") for level in ("stated", "history")}
    assert {arm for arm, count in counts.items() if count == 8} == {"none", "instructed", *arms}
    # evidence for one student of each question, greedy; bad memories and the second answer at 0.7 alone
    evidence = [row for row in rows if row.memory.arm.startswith("after_")]
    assert {row.memory.arm for row in evidence} == {f"after_{count}@history" for count in EVIDENCE}
    assert Counter(row.moment.student_id for row in evidence) == {"S0000": 5, "S0002": 5}
    assert {row.temperature for row in evidence} == {0.0}
    further = [row for row in rows if row.sample == 1]
    bad = {f"{name}@{level}" for name in ("irrelevant", "stale", "wrong") for level in ("stated", "history")}
    assert Counter(row.memory.arm for row in further) == dict.fromkeys({"resample", *bad}, 4)
    assert {row.temperature for row in further} == {0.7}
    assert len({row.key for row in rows}) == len(rows) == 8 * 8 + 2 * 5 + 7 * 4


def test_a_study_of_greedy_answers_asks_for_no_second_answer_and_bad_memories_share_no_noise_with_an_arm():
    greedy = {row.memory.arm.partition("@")[0] for row in build(temperatures=(0.0,))}
    evidence = {f"after_{count}" for count in EVIDENCE}
    assert greedy == {"none", "instructed", "own", "shuffled", "random"} | evidence
    samples = {(row.memory.arm, row.sample) for row in build(num_samples=3)}
    for arm, numbers in {"own@history": {0, 1, 2}, "resample": {3}, "wrong@history": {3}}.items():
        assert {sample for name, sample in samples if name == arm} == numbers


def test_the_evidence_grows_with_the_interactions(rows):
    def seen(count):
        lines = " ".join(shown(rows, f"after_{count}@history").lines)
        return sum(int(word) for word in lines.replace("(", " ").split() if word.isdecimal())

    assert "What worked best" not in " ".join(shown(rows, "after_0@history").lines)
    assert 0 == seen(0) < seen(5) < seen(20)


def test_a_wrong_memory_states_another_number_than_the_gold_solution(rows):
    wrong = shown(rows, "wrong@stated", 0.7)
    assert wrong.lines[0] == 'Past exercise: "Ann sold 0 clips. How many?" The answer was 1082.'
    assert wrong.lines[1:] == shown(rows, "own@stated", 0.7).lines[:4]
    assert shown(rows, "irrelevant@stated", 0.7).lines == shown(rows, "random@stated", 0.7).lines
    assert shown(rows, "stale@history", 0.7).lines == shown(rows, "after_5@history").lines


def test_the_claims_are_about_greedy_answers_but_for_bad_memories():
    claims = list_hypotheses(["stated", "history", "episodes"], [0.7, 0.0], students=20)
    assert Counter(claim.name for claim in claims) == dict.fromkeys("abcdef", 3) | {"g": 9, "h": 2}
    assert {claim.one.temperature for claim in claims if claim.name != "g"} == {0.0}
    assert {claim.one.temperature for claim in claims if claim.name == "g"} == {0.7}
    bounds = {(claim.name, claim.one.memory_arm): (claim.above, claim.below) for claim in claims}
    assert bounds["d", "own@stated"] == (0.10, None) and bounds["d", "own@history"] == (0.0, None)
    assert bounds["c", "random@stated"] == (-0.03, None) and bounds["g", "wrong@history"] == (None, 0.05)
    assert all(claim.minus == 1 / 20 for claim in claims if claim.name == "f")
