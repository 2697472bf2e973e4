"""Rows and their noise, and answers without a journal. Whole runs are in test_run_baseline.py."""

from dataclasses import replace

import pytest

from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.prompts import build_prompt
from cot.utils.questions import Question
from cot.utils.rows import Row, answer_now, expand

ASKED, OTHER = Question("q1", "2 + 3?", "#### 5"), Question("q2", "4 + 4?", "#### 8")
ROW = Row("base", 0, Moment(ASKED, "S001"), StudentMemory("own"), temperature=0.6, sample=0)


@pytest.mark.parametrize(
    "same",
    [
        replace(ROW, policy="ipo"),
        replace(ROW, moment=Moment(ASKED, "S002")),
        replace(ROW, memory=StudentMemory("none")),
        replace(ROW, moment=Moment(ASKED, "S001", number=7, as_of="2026-01-05T00:00:00Z")),
    ],
)
def test_every_policy_student_and_arm_meets_the_same_noise(same):
    assert same.noise_key(0) == ROW.noise_key(0)
    assert same.index == ROW.index


@pytest.mark.parametrize(
    "other",
    [replace(ROW, moment=Moment(OTHER, "S001")), replace(ROW, temperature=0.9), replace(ROW, sample=1)],
)
def test_another_question_temperature_or_sample_has_another_noise(other):
    assert other.noise_key(0) != ROW.noise_key(0)
    assert ROW.noise_key(1) != ROW.noise_key(0)


def test_a_key_names_one_row_of_a_run():
    rows = [
        row
        for policy in ("base", "ipo")
        for student in ("S001", "S002")
        for question in (ASKED, OTHER)
        for arm in ("own", "none")
        for row in expand(policy, 0, Moment(question, student), StudentMemory(arm), [0.0, 0.6], 2)
    ]
    assert len(rows) == len({row.key for row in rows}) == 2 * 2 * 2 * 2 * 2 * 2
    assert [(row.temperature, row.sample) for row in rows[:4]] == [(0.0, 0), (0.0, 1), (0.6, 0), (0.6, 1)]


def test_answers_without_a_journal_are_records_in_the_order_of_the_rows(tiny_llama):
    from cot.utils.engine import TransformersEngine

    model, tokenizer = tiny_llama
    engine = TransformersEngine(model, tokenizer, max_new_tokens=6, batch_size=2)
    rows = [
        row
        for index, question in enumerate((ASKED, OTHER))
        for row in expand("base", index, Moment(question), StudentMemory(None), [0.0, 0.9], 1)
    ]
    prompts = [build_prompt(tokenizer, row.moment.question.question, "Solve.") for row in rows]
    records = answer_now(engine, rows, prompts, profiles={}, seed=0)
    assert [(r["question_id"], r["temperature"]) for r in records] == [
        ("q1", 0.0),
        ("q1", 0.9),
        ("q2", 0.0),
        ("q2", 0.9),
    ]
    assert all(record["error"] is None and record["output_tokens"] for record in records)
    assert answer_now(engine, rows, prompts, profiles={}, seed=0) == records
    again = answer_now(engine, rows, prompts, profiles={}, seed=1)
    assert again[0] == records[0] and again[1]["generated_text"] != records[1]["generated_text"]
