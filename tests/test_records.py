"""From a row to its answer's record, and answers without a journal; whole runs are in test_run_baseline."""

import math
from dataclasses import replace

import pytest
from conftest import FIRST_KEYS, make_completion

from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.paths import PROFILES_DIR
from cot.utils.prompts import Prompt, build_prompt
from cot.utils.questions import Question
from cot.utils.records import Row, answer_now, expand, make_record
from cot.utils.student_files import load_profiles

QUESTION = Question(
    "q7",
    "Tom has 12 pears, eats 5 and buys 1. How many has he?",
    "12-5 = <<12-5=7>>7\n7+1 = <<7+1=8>>8\n#### 8",
    chapter="two_step",
    skill="two_changes",
    skills=("take_away", "put_together"),
    wording="usual",
)
TEXT = "1. 12 - 5 = 7\n2. 7 + 1 = 8\n#### 8"
PROMPT = Prompt("the prompt", (1, 2, 3), "chat", memory="Student S001, 2nd grade.")


def make(completion, student="S001", mastery=None, memory=None):
    moment = Moment(QUESTION, student, number=4, as_of="2026-02-01T00:00:00Z", mastery=mastery or {})
    memory = memory or StudentMemory("own", student_id=student, as_of="2026-02-01T00:00:00Z")
    row = Row("ipo", index=3, moment=moment, memory=memory, temperature=0.7, sample=1)
    profile = load_profiles(PROFILES_DIR).get(student)
    return make_record(row, PROMPT, completion, profile)


def test_a_record_begins_with_the_nine_keys_says_who_was_asked_what_and_scores_the_text():
    record = make(make_completion(TEXT, logprobs=(-0.5, -1.5)))
    assert list(record)[:9] == FIRST_KEYS
    expected = {
        **{"index": 3, "temperature": 0.7, "sample": 1, "policy": "ipo", "question_id": "q7"},
        **{"wording": "usual", "retrieved_profile": "2nd grade", "student_id": "S001", "memory_arm": "own"},
        **{"memory_student_id": "S001", "moment": 4, "as_of": "2026-02-01T00:00:00Z"},
        **{"prompt": "the prompt", "prompt_tokens": 3, "prompt_format": "chat"},
        **{"predicted_answer": "8", "correct": True, "unparsed_reason": None, "answer_mark": "hash"},
        **{"output_tokens": 2, "mean_nll": 1.0, "perplexity": round(math.e, 6)},
        **{"equations": 2, "distinct_valid_equations": 2, "gold_steps": 2, "equation_validity": 1.0},
    }
    assert {key: record[key] for key in expected} == expected

    plain = Row("bundled", 0, Moment(QUESTION), StudentMemory(None), temperature=0.0, sample=0)
    record = make_record(plain, PROMPT, make_completion(TEXT), None)
    assert list(record)[:9] == FIRST_KEYS and record["retrieved_profile"] is None
    assert "student_id" not in record and "fidelity" not in record


@pytest.mark.parametrize(
    ("mastery", "target", "fit"),
    [(0.99, "brief", 1.0), (0.4, "guided", 0.0), (0.1, "worked_out", 0.0), (None, "guided", 0.0)],
)
def test_support_is_judged_by_the_mastery_of_the_skill(mastery, target, fit):
    """Two steps and nothing else are brief; a skill that was never practised asks for a guided text."""
    known = {} if mastery is None else {"two_changes": mastery}
    record = make(make_completion(TEXT), mastery=known)
    assert (record["mastery"], record["support_target"], record["support"]) == (mastery, target, "brief")
    assert record["support_fit"] == fit


def test_fit_is_judged_against_the_student_asked_for_and_not_the_memorys():
    shuffled = StudentMemory("shuffled", student_id="S003", as_of="2026-02-01T00:00:00Z")
    record = make(make_completion(TEXT), memory=shuffled)
    own = make(make_completion(TEXT))
    assert (record["student_id"], record["memory_student_id"]) == ("S001", "S003")
    assert (record["fidelity"], record["style_met"]) == (own["fidelity"], own["style_met"])
    assert make(make_completion(TEXT), student="S003")["style_met"] is False  # guiding questions


def test_a_failed_answer_has_nulls_and_its_error():
    record = make(make_completion("", logprobs=(), error={"type": "prompt_too_long", "message": "m"}))
    nulls = ("output_tokens", "perplexity", "correct", "strict_correct", "equations", "equation_validity")
    nulls += ("fidelity", "style_met", "support", "support_fit", "copying", "names_student", "truncated")
    assert [record[key] for key in nulls] == [None] * len(nulls)
    assert record["error"]["type"] == "prompt_too_long"


def test_an_empty_text_has_no_perplexity():
    record = make(make_completion("", logprobs=(-0.2,)))  # the end token alone
    assert (record["output_tokens"], record["mean_nll"], record["perplexity"]) == (1, None, None)


def test_a_text_that_no_scorer_takes_keeps_its_text_and_says_why():
    row = replace(ROW, moment=Moment(Question("q3", "2 + 3?", "five"), "S001"))
    record = make_record(row, PROMPT, make_completion("#### 5"), load_profiles(PROFILES_DIR)["S001"])
    assert (
        record["error"]["type"] == "scoring" and "gold answer is not a number" in record["error"]["message"]
    )
    assert (record["generated_text"], record["correct"], record["fidelity"]) == ("#### 5", None, None)


# ---- rows


ASKED, OTHER = Question("q1", "2 + 3?", "#### 5"), Question("q2", "4 + 4?", "#### 8")


ROW = Row("base", 0, Moment(ASKED, "S001"), StudentMemory("own"), temperature=0.6, sample=0)


def test_every_policy_student_and_arm_meets_the_same_noise():
    for same in (
        replace(ROW, policy="ipo"),
        replace(ROW, moment=Moment(ASKED, "S002")),
        replace(ROW, memory=StudentMemory("none")),
        replace(ROW, moment=Moment(ASKED, "S001", number=7, as_of="2026-01-05T00:00:00Z")),
    ):
        assert same.noise_key(0) == ROW.noise_key(0)


def test_another_question_temperature_sample_or_seed_has_another_noise():
    others = [
        replace(ROW, moment=Moment(OTHER, "S001")),
        replace(ROW, temperature=0.9),
        replace(ROW, sample=1),
    ]
    assert len({ROW.noise_key(1), *(row.noise_key(0) for row in [ROW, *others])}) == 5


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
    records, again = (answer_now(engine, rows, prompts, profiles={}, seed=seed) for seed in (0, 1))
    assert [(r["question_id"], r["temperature"]) for r in records] == [
        *(("q1", 0.0), ("q1", 0.9), ("q2", 0.0), ("q2", 0.9))
    ]
    assert all(record["error"] is None and record["output_tokens"] for record in records)
    assert answer_now(engine, rows, prompts, profiles={}, seed=0) == records
    assert again[0] == records[0] and again[1]["generated_text"] != records[1]["generated_text"]
