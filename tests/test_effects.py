"""The experiment's numbers on planted records: measures, pairing, verdicts."""

import pytest
import scipy.stats
from conftest import planted_record

from cot.utils.cli import PROFILES_DIR
from cot.utils.students import load_profiles
from rl.effects import (
    NO_SEED,
    add_measures,
    list_questions,
    pool_differences,
    render_experiment,
    subtract,
    summarize,
)

PROFILES = {name: load_profiles(PROFILES_DIR)[name] for name in ("S002", "S005")}
EXERCISES = 30  # of ten templates
SEEDS = range(5)
TRAINED = {"base": ("base", 0)} | {
    f"{arm}_{seed}": (arm, seed) for arm in ("ipo", "no_memory", "shuffled_memory") for seed in SEEDS
}


def answers(policy, fidelity, right=lambda number: True, text=lambda student: "3 + 4 = 7\n#### 7"):
    """Two students a question in usual wordings, one without memory and in novel ones; greedy."""
    sets = [("usual", "own", tuple(PROFILES)), ("usual", "none", ("S002",)), ("novel", "own", ("S002",))]
    return [
        planted_record(
            f"addition/{wording}_{number // 3}/{number}",
            student,
            arm,
            right(number),
            policy=policy,
            wording=wording,
            generated_text=text(student),
            fidelity=fidelity,
            style_met=fidelity > 0.5,
        )
        for wording, arm, students in sets
        for number in range(EXERCISES)
        for student in students
    ]


def half(number):
    return number % 2 == 0


def experiment(ipo_fidelity, ipo_right, shuffled_fidelity=0.4, seeds=SEEDS):
    records = answers("base", 0.4, half)
    for seed in seeds:
        records += answers(f"ipo_{seed}", ipo_fidelity, ipo_right)
        records += answers(f"no_memory_{seed}", 0.4)
        records += answers(f"shuffled_memory_{seed}", shuffled_fidelity, half)
    add_measures(records, TRAINED, PROFILES)
    return summarize(records)


SHUFFLED = "Does shuffled_memory gain less than 5 points of fidelity over the base?"
IDENTIFIED = "Is the student identified from IPO's texts more often than from those of the base?"


def row_of(summary, arm, wording="usual", memory_arm="own"):
    (row,) = [
        row
        for row in summary["table"]
        if (row["arm"], row["wording"], row["memory_arm"]) == (arm, wording, memory_arm)
    ]
    return row


def verdicts_of(summary):
    return {v["question"]: v["verdict"] for v in summary["verdicts"] if v["wording"] == "usual"}


def test_each_measure_is_the_mean_over_seeds_and_answers():
    # right from number 15 on; of the 15 even questions that the base had, 0, 2, ... 14 are broken
    summary = experiment(0.9, lambda number: number >= 15)
    row = row_of(summary, "ipo")
    assert {name: row[name]["mean"] for name in ("accuracy", "fidelity", "style", "breakage")} == {
        "accuracy": 0.5,
        "fidelity": pytest.approx(0.9),
        "style": 1.0,
        "breakage": pytest.approx(8 / 15),
    }
    assert row["accuracy"]["n"] == 5 * 2 * EXERCISES  # seeds x students x questions
    assert row["breakage"]["n"] == 5 * 2 * 15
    assert row["by_chapter"]["addition"]["accuracy"]["mean"] == 0.5
    assert row_of(summary, "base")["breakage"]["mean"] == 0.0
    assert row_of(summary, "base")["accuracy"]["n"] == 2 * EXERCISES  # the same answers for every seed
    assert row_of(summary, "ipo", memory_arm="none")["accuracy"]["n"] == 5 * EXERCISES


def test_an_interval_is_over_templates_students_and_seeds():
    """Ten templates of three exercises, each 2/3 or 1/3 right in turn, the same for students and seeds."""
    row = row_of(experiment(0.9, half), "ipo")
    means = [2 / 3, 1 / 3] * 5
    t, worth = scipy.stats.t.ppf(0.975, 9), 0.25 / scipy.stats.sem(means) ** 2
    # Wilson's, whose centre is 1/2, too
    half_width = t * (0.25 / worth + t**2 / (4 * worth**2)) ** 0.5 / (1 + t**2 / worth)
    assert (row["accuracy"]["low"], row["accuracy"]["high"]) == pytest.approx(
        (0.5 - half_width, 0.5 + half_width)
    )
    assert (row["fidelity"]["low"], row["fidelity"]["high"]) == pytest.approx((0.9, 0.9))


def test_seeds_that_differ_widen_the_interval_and_fewer_than_five_decide_nothing():
    same, apart = (
        {(seed, f"a/t{t}/{t}", "S1"): gain(seed) for seed in SEEDS for t in range(10)}
        for gain in (lambda seed: 0.5, lambda seed: 0.3 + seed / 10)
    )
    assert pool_differences(same)["low"] == 0.5
    found = pool_differences(apart)
    low, high = scipy.stats.t.interval(0.95, 4, 0.5, scipy.stats.sem([0.3, 0.4, 0.5, 0.6, 0.7]))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert (found["n"], found["clusters"], found["seeds"]) == (50, 10, 5)
    four = verdicts_of(experiment(0.95, lambda number: True, seeds=range(4)))
    assert set(four.values()) == {"undecided"}


def test_fewer_than_ten_templates_decide_nothing():
    records = [
        record | {"question_id": record["question_id"].replace("_9/", "_8/")}
        for policy, (_, _) in TRAINED.items()
        for record in answers(policy, 0.95 if policy.startswith("ipo") else 0.4)
    ]
    add_measures(records, TRAINED, PROFILES)
    assert set(verdicts_of(summarize(records)).values()) == {"undecided"}


def test_a_text_is_judged_against_every_student():
    """S002 wishes short sentences and no hint, S005 a check and a hint; S005 gets none of it."""
    texts = {"S002": "First we add.\nAdding gives 3+4=7.\n#### 7", "S005": "3+4=7.\n7-3=4 shows it.\n#### 7"}
    records = answers("base", 0.5, text=texts.get)
    add_measures(records, {"base": ("base", 0)}, PROFILES)
    own = [r for r in records if r["wording"] == "usual" and r["memory_arm"] == "own"][:2]
    # to S002 the texts' fits are 1 and 1/2, to S005 both 0
    assert [(r["student_id"], r["specificity"]) for r in own] == [("S002", 0.5), ("S005", 0.0)]
    assert [r["identification"] for r in own] == [1, 0]
    # a question that is asked for one student alone has no text for another one
    assert {r["specificity"] for r in records if r["wording"] == "novel"} == {None}


def test_one_text_for_all_is_identified_by_chance():
    summary = experiment(0.4, half)
    texts = row_of(summary, "ipo")
    assert texts["specificity"]["mean"] == 0.0
    assert texts["identification"]["mean"] == 0.5  # one of two students, or a tie


def test_a_difference_pairs_cells_and_takes_the_one_answer_without_memory():
    one = {(0, "q", "S1"): 1.0, (0, "q", "S2"): 0.0}
    paired = {(0, "q", "S1"): 0.0, (0, "q", "S2"): 1.0}
    assert subtract(one, paired) == {(0, "q", "S1"): 1.0, (0, "q", "S2"): -1.0}
    assert subtract(one, {(0, "q", "S1"): 1.0}) == {(0, "q", "S1"): 0.0, (0, "q", "S2"): -1.0}


def test_the_base_stands_beside_every_seed():
    one = {(seed, "q", "S1"): float(seed) for seed in range(3)}
    differences = subtract(one, {(NO_SEED, "q", "S1"): 1.0})
    assert differences == {(0, "q", "S1"): -1.0, (1, "q", "S1"): 0.0, (2, "q", "S1"): 1.0}
    assert subtract(one, {(NO_SEED, "other", "S1"): 1.0}) == {}


@pytest.mark.parametrize(
    ("planted", "ipo", "shuffled"),
    [
        ((0.95, lambda number: True, 0.4), "yes", "yes"),
        ((0.4, half, 0.4), "no", "yes"),
        ((0.95, lambda number: True, 0.5), "yes", "no"),
    ],
    ids=["a gain beyond every bound", "memory is ignored", "a control gains"],
)
def test_planted_policies_get_their_verdicts(planted, ipo, shuffled):
    found = verdicts_of(experiment(*planted))
    assert found.pop(SHUFFLED) == shuffled
    assert found.pop(IDENTIFIED) == "undecided"  # the planted texts are the same
    assert set(found.values()) == {ipo} and len(found) == 5


def test_only_arms_that_were_trained_are_asked_about():
    assert list_questions(["base", "no_memory"]) == []
    texts = [asked["question"] for asked in list_questions(["base", "ipo"])]
    assert not any("shuffled" in text or "no_memory" in text for text in texts) and len(texts) == 4


def test_the_report_has_a_table_for_each_set_and_all_verdicts():
    summary = experiment(0.95, lambda number: True)
    config = {"seeds": list(SEEDS), "max_steps": 1, "exercises": EXERCISES, "students_per_exercise": 2}
    text = render_experiment(summary, config)
    for title in ("usual wording, memory: own", "usual wording, memory: none", "novel wording, memory: own"):
        assert f"## {title}, greedy" in text
    assert "| base | 60 |" in text  # the same answers for all seeds
    # all of ten templates are right: Wilson's interval of ten, with t of nine degrees
    assert "| ipo | 300 | 1.000 [0.661, 1.000] | 0.950 [0.950, 0.950]" in text
    assert (
        "| Is IPO's fidelity 40 points above that of base? | usual | 0 | +0.550 [+0.550, +0.550] | yes |"
        in text
    )
