"""The study's numbers on planted answers: what counts as one observation, measures, verdicts, the recount."""

import json

import pytest
from conftest import REPO_ROOT, planted_record

from cot.utils.files import write_answers
from cot.utils.findings import render_verdicts
from cot.utils.students import Profile
from cot.utils.study_results import (
    ANSWER_KEYS,
    SHOWN,
    add_measures,
    prepare_answers,
    read_parts,
    recount,
    show_measure,
    summarize,
)

STEPS = "1. We add 2 + 3 = 5.\n2. We add 5 + 1 = 6.\n#### {}"
ASKING = "What is 2 plus 3? It is 5.\nWhat is 5 plus 1? It is 6.\n#### {}"
STYLES = {"S1": "numbered_steps", "S2": "guiding_questions"}
WRITTEN = {"S1": STEPS, "S2": ASKING}
TRUTHS = {
    student: Profile(
        student_id=student, grade_level="4th grade", strengths=[], challenges=[], explanation_style=style
    )
    for student, style in STYLES.items()
}
TEMPERATURES = [0.0, 0.7]


OWN, OTHER, FIRST = (
    {"S1": first, "S2": second} for first, second in (("S1", "S2"), ("S2", "S1"), ("S1", "S1"))
)


def answers(condition, texts, right=(0,), questions=24, temperature=0.0, sample=0, shared=False):
    """A question each for both students.

    Args:
        texts: whose text a student gets.
        right: what numbers of questions leave when divided by two, of those that are right.
    """
    return [
        planted_record(
            f"q{number}",
            student,
            condition,
            number % 2 in right,
            index=number,
            chapter=None,
            temperature=temperature,
            sample=sample,
            prompt=f"q{number}" if shared else f"q{number} {student} {condition}",
            generated_text=WRITTEN[texts[student]].format(6 if number % 2 in right else 7),
            truncated=number % 2 not in right,
            fidelity=float(texts[student] == student),
            retrieved_profile="4th grade",
            unparsed_reason=None,
        )
        for number in range(questions)
        for student in STYLES
    ]


def plant(questions=24):
    """A follower: fits its student, right with its memory, spoiled by a wrong one alone."""
    found = answers("none", FIRST, questions=questions, shared=True)
    found += answers("instructed", OWN, questions=questions)
    found += answers("own@stated", OWN, (0, 1), questions)
    found += answers("shuffled@stated", OTHER, questions=questions)
    found += answers("random@stated", FIRST, questions=questions)
    found += answers("none", FIRST, (0,), questions, 0.7, shared=True)
    for condition, right in (("irrelevant", (0,)), ("stale", (0,)), ("wrong", ())):
        found += answers(f"{condition}@stated", FIRST, right, questions, 0.7, sample=1)
    found += answers("resample", FIRST, (0,), questions, 0.7, sample=1, shared=True)
    add_measures(found, TRUTHS)
    return found


def row_of(summary, condition, temperature=0.0):
    (row,) = [
        row for row in summary["table"] if (row["condition"], row["temperature"]) == (condition, temperature)
    ]
    return row


def verdicts_of(summary):
    return {(v["hypothesis"], v["measure"], v["claim"].split(" turns")[0]): v for v in summary["verdicts"]}


@pytest.mark.parametrize(
    ("records", "verdicts"),
    [
        (plant(questions=9), {"undecided"}),  # nothing is decided from nine questions
        ([record for record in plant() if record["temperature"] == 0], set("abcdef")),
    ],
)
def test_a_claim_needs_questions_and_the_conditions_that_it_is_about(records, verdicts):
    key = "verdict" if "undecided" in verdicts else "hypothesis"
    assert {verdict[key] for verdict in summarize(records, TEMPERATURES)["verdicts"]} == verdicts


@pytest.fixture(scope="module")
def summary():
    return summarize(plant(), TEMPERATURES)


def test_a_text_that_both_students_share_is_one_observation_of_accuracy_and_two_of_fit(summary):
    none = row_of(summary, "none")
    assert none["n"] == 48 and none["accuracy"]["n"] == 24 and none["accuracy"]["mean"] == 0.5
    # the text of numbered steps fits S1 and not S2, and so identifies S1 alone
    assert none["fidelity"]["n"] == 48 and none["fidelity"]["mean"] == 0.5
    assert none["identification"]["mean"] == 0.5 == none["chance"]
    assert none["specificity"]["mean"] == 0.0 and none["memory_level"] is None


def test_each_measure_of_a_condition(summary):
    row = row_of(summary, "own")
    assert (row["memory_level"], row["accuracy"]["n"], row["accuracy"]["mean"]) == ("stated", 48, 1.0)
    assert row["fidelity"]["mean"] == row["identification"]["mean"] == row["specificity"]["mean"] == 1.0
    # without memory every second answer is right: those stay right, the others are repaired
    assert (row["breakage"]["n"], row["breakage"]["mean"]) == (24, 0.0)
    assert (row["repair"]["n"], row["repair"]["mean"]) == (24, 1.0)
    assert row_of(summary, "wrong", 0.7)["breakage"]["mean"] == 1.0
    assert row_of(summary, "resample", 0.7)["breakage"] == {"n": 12, "mean": 0.0, "low": 0.0, "high": 0.0}
    # what is wrong was cut off: among the finished texts all are right
    row = row_of(summary, "shuffled")
    assert row["accuracy"]["mean"] == row["cut_off"]["mean"] == 0.5
    assert (row["accuracy_finished"]["mean"], row["accuracy_finished"]["n"]) == (1.0, 24)


def test_the_verdicts_of_a_model_that_follows_its_memory_and_believes_a_wrong_one(summary):
    found = verdicts_of(summary)
    assert {(key[0], key[2]): v["verdict"] for key, v in found.items() if key[0] == "g"} == {
        ("g", "a memory at level stated that is irrelevant"): "yes",
        ("g", "a memory at level stated that is stale"): "yes",
        ("g", "a memory at level stated that is wrong"): "no",
    }
    by_name = {name: v for (name, *_), v in found.items() if name != "g"}
    # own - none and own - shuffled: right in all 48 cells against every second one
    assert {name: v["verdict"] for name, v in by_name.items()} == {
        **dict.fromkeys(("a", "b", "c", "d", "f"), "yes"),
        "e": "undecided",  # an instruction fits as well: the difference is 0, and so is the bound
    }
    assert by_name["a"]["effect"]["mean"] == by_name["b"]["effect"]["mean"] == 0.5
    assert by_name["a"]["effect"]["clusters"] == 24 and by_name["a"]["effect"]["n"] == 48
    assert by_name["d"]["effect"]["mean"] == 1.0 and by_name["f"]["effect"]["mean"] == 0.5  # 1 - 1/2


def test_the_tables_are_counted_again_from_the_texts_of_the_raw_answers(tmp_path, summary):
    records = plant()
    for number in (1, 2):  # the study was asked in two parts
        part = [record for record in records if (record["index"] < 8) == (number == 1)]
        write_answers(prepare_answers(part, TRUTHS), ANSWER_KEYS, tmp_path / f"answers_{number}.jsonl.gz")
    lines = read_parts(tmp_path)
    assert len(lines) == len(records)
    assert [line["question_id"] for line in lines[:20]] == ["q0"] * 20  # texts alike stand together
    assert all(list(line) == list(ANSWER_KEYS) for line in lines)

    # what the file says of a text is not believed: it is scored and judged again
    again = recount([line | {"correct": None, "fidelity": None} for line in lines])
    assert verdicts_of(again) == verdicts_of(summary)
    keys = [(row["condition"], row["temperature"]) for row in summary["table"]]
    assert {key: row_of(again, *key) for key in keys} == {key: row_of(summary, *key) for key in keys}
    changed = [line | {"generated_text": "#### 9"} for line in lines]
    assert {row["accuracy"]["mean"] for row in recount(changed)["table"]} == {0.0}
    assert json.loads(json.dumps(again)) == again


def test_no_interval_depends_on_the_order_in_which_students_were_asked():
    """Of a text that several share one counts, and its student is a cluster: it must be the same one."""
    records = plant()
    for record in records:
        if record["condition"] == "instructed" and record["index"] % 4 < 2:
            record["prompt"] = record["question_id"]

    def turn(record):  # the second student comes first at every other question
        return record["index"], (record["student_id"] == "S1") == (record["index"] % 4 == 0)

    found, turned = (summarize(asked, TEMPERATURES) for asked in (records, sorted(records, key=turn)))
    assert row_of(turned, "instructed") == row_of(found, "instructed")
    assert row_of(found, "instructed")["accuracy"]["n"] == 36
    assert verdicts_of(turned) == verdicts_of(found)


@pytest.mark.slow
def test_the_committed_tables_are_what_their_raw_answers_give():
    folders = {path.parent for path in (REPO_ROOT / "data" / "study").rglob("answers*.jsonl.gz")}
    assert folders
    for folder in folders:
        found, report = recount(read_parts(folder)), (folder / "study.md").read_text()
        assert len(found["table"]) == (10 if "history" in folder.name else 5)
        for row in found["table"]:
            assert " | ".join(show_measure(row, name) for name in SHOWN) in report
        for line in render_verdicts(found["verdicts"]):
            assert line in report
