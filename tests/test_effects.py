"""The experiment's numbers on planted records: measures, pairing, hypotheses and their verdicts."""

import pytest
import scipy.stats
from conftest import planted_record

from cot.utils.students import Profile
from cot.utils.tables import Table
from rl.conditions import HeldOut
from rl.effects import (
    add_measures,
    cross,
    judge_walks,
    measure_effect,
    pair,
    render_experiment,
    summarize,
)
from rl.hypotheses import list_hypotheses
from rl.student_model import Needs, tell_needs

STUDENTS = ("S0000", "U0001")
NEEDS = {"S0000": Needs("short_sentences", False), "U0001": Needs("numbered_steps", True)}
EXERCISES = 30  # of ten templates
SEEDS = range(5)
ARMS = ("ipo", "no_memory", "shuffled_memory")
TRAINED = {"base": ("base", 0)} | {f"{arm}_{seed}": (arm, seed) for arm in ARMS for seed in SEEDS}
TEXT = "3 + 4 = 7\n#### 7"


def truth(student: str, needs: Needs) -> Profile:
    fields = {"student_id": student, "grade_level": "4th grade", "strengths": [], "challenges": []}
    return tell_needs(Profile(**fields), needs)


TRUTHS = {student: truth(student, needs) for student, needs in NEEDS.items()}
QUESTIONS = [f"addition/addition_{number // 3}/{number}" for number in range(EXERCISES)]
HELD_OUT = HeldOut(
    students=[],
    truths=TRUTHS,
    common=[],
    probing=[],
    instructed=[],
    # of S0000 the style is taken for another one: 1 of 2 needs
    bayes={
        ("S0000", 20): truth("S0000", Needs("numbered_steps", False)),
        ("U0001", 20): TRUTHS["U0001"],
    },
    other_states={(student, question): "guided" for student in STUDENTS for question in QUESTIONS},
)


def answers(policy, condition, fidelity=0.35, right=lambda number: True, temperature=0.0, sample=0, **fields):
    """Thirty questions for two students under a condition."""
    fields = {"support": "brief", "support_fit": 0.0, "generated_text": TEXT} | fields
    return [
        planted_record(
            question,
            student,
            condition,
            right(number),
            policy=policy,
            temperature=temperature,
            sample=sample,
            moment=20_000 + number,
            fidelity=fidelity,
            style_met=fidelity > 0.5,
            **fields,
        )
        for number, question in enumerate(QUESTIONS)
        for student in STUDENTS
    ]


def half(number):
    return number % 2 == 0


def follower(seed):
    """Fits its student, its state and its changes; loses nothing to a bad memory."""
    name = f"ipo_{seed}"
    found = answers(name, "own", 0.9, support_fit=1.0) + answers(name, "none") + answers(name, "own_256", 0.9)
    found += answers(name, "shuffled") + answers(name, "time_shuffled", 0.9)
    found += answers(name, "other_state", 0.9, support="guided")
    found += answers(name, "after_0", 0.36) + answers(name, "after_20", 0.8)
    found += answers(name, "forgetting_20", 0.75)
    found += [row for sample in (0, 1) for row in answers(name, "none", temperature=1.0, sample=sample)]
    for condition in ("random", "stale", "wrong"):
        found += answers(name, condition, temperature=1.0, sample=1)
    return found


def ignorer(seed):
    """One text whatever the memory shows; half of what is asked with a bad memory is wrong."""
    name = f"ipo_{seed}"
    conditions = ("own", "none", "own_256", "shuffled", "time_shuffled", "other_state", "after_20")
    found = [row for condition in conditions for row in answers(name, condition)]
    found += answers(name, "after_0", 0.9) + answers(name, "forgetting_20", 0.2)
    found += [row for sample in (0, 1) for row in answers(name, "none", temperature=1.0, sample=sample)]
    for condition in ("random", "stale", "wrong"):
        found += answers(name, condition, right=half, temperature=1.0, sample=1)
    return found


def experiment(ipo, seeds=SEEDS):
    records = answers("base", "own") + answers("base", "instructed", 1.0)
    for seed in seeds:
        records += ipo(seed)
        records += answers(f"no_memory_{seed}", "none") + answers(f"shuffled_memory_{seed}", "own")
    add_measures(records, TRAINED, HELD_OUT)
    return summarize(records)


@pytest.fixture(scope="module")
def follows():
    return experiment(follower)


@pytest.fixture(scope="module")
def ignores():
    return experiment(ignorer)


def row_of(summary, arm, condition="own", temperature=0.0, sample=0):
    (row,) = [
        row
        for row in summary["table"]
        if (row["arm"], row["memory_arm"], row["temperature"], row["sample"])
        == (arm, condition, temperature, sample)
    ]
    return row


def claimed(summary):
    return [v for v in summary["verdicts"] if v["bound"] is not None]


def test_each_measure_is_the_mean_over_seeds_and_answers(ignores):
    # of what is right without memory, a wrong memory leaves the even half
    row = row_of(ignores, "ipo", "wrong", 1.0, 1)
    assert row["accuracy"]["mean"] == row["breakage"]["mean"] == 0.5
    assert row["accuracy"]["n"] == 5 * 2 * EXERCISES  # seeds x students x questions
    assert row_of(ignores, "base", "instructed")["fidelity"] == {"n": 60, "mean": 1, "low": 1, "high": 1}
    own = row_of(ignores, "ipo")
    # the Bayes choice meets 1 of the 2 needs of S0000 and all of U0001's
    assert own["achievable"]["mean"] == 0.75 and own["regret"]["mean"] == pytest.approx(0.75 - 0.35)
    # the text has no hint: S0000 needs none, U0001 does
    assert own["hint"]["mean"] == 0.5
    assert own["by_pair"]["seen"]["n"] == own["by_pair"]["unseen"]["n"] == 5 * EXERCISES


def test_an_interval_is_over_templates_students_and_seeds():
    """Ten templates of three exercises, each 2/3 or 1/3 right in turn, the same for students and seeds."""
    records = [row for seed in SEEDS for row in answers(f"ipo_{seed}", "own", 0.9, half)]
    add_measures(records, TRAINED, HELD_OUT)
    row = row_of(summarize(records), "ipo")
    means = [2 / 3, 1 / 3] * 5
    t, worth = scipy.stats.t.ppf(0.975, 9), 0.25 / scipy.stats.sem(means) ** 2
    # Wilson's, whose centre is 1/2, too
    half_width = t * (0.25 / worth + t**2 / (4 * worth**2)) ** 0.5 / (1 + t**2 / worth)
    assert (row["accuracy"]["low"], row["accuracy"]["high"]) == pytest.approx(
        (0.5 - half_width, 0.5 + half_width)
    )
    assert (row["fidelity"]["low"], row["fidelity"]["high"]) == pytest.approx((0.9, 0.9))


def cells(values, arm="ipo") -> Table:
    """An arm's answers whose fidelity is given by (seed, question, student)."""
    keys = ("seed", "question_id", "student_id")
    return Table(
        [dict(zip(keys, cell, strict=True)) | {"arm": arm, "fidelity": v} for cell, v in values.items()]
    )


def test_seeds_that_differ_widen_the_interval_and_fewer_than_five_decide_nothing():
    same, apart = (
        cross(cells({(seed, f"a/t{t}/{t}", "S1"): gain(seed) for seed in SEEDS for t in range(10)}))
        for gain in (lambda seed: 0.5, lambda seed: 0.3 + seed / 10)
    )
    assert measure_effect(same, "fidelity")["low"] == 0.5
    found = measure_effect(apart, "fidelity")
    low, high = scipy.stats.t.interval(0.95, 4, 0.5, scipy.stats.sem([0.3, 0.4, 0.5, 0.6, 0.7]))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert (found["n"], found["clusters"], found["seeds"]) == (50, 10, 5)
    assert {v["verdict"] for v in claimed(experiment(follower, seeds=range(4)))} == {"undecided"}


def differences(one, other, arm="ipo", share=1.0):
    """What is paired of two sides, by cell of the first, and its mean as an effect."""
    sample = pair(cells(one), cells(other, arm), "fidelity")
    first, second = sample.sides
    values = first.values("fidelity") - share * second.values("fidelity")
    if len(first):
        effect = measure_effect(sample, "fidelity", signs=(1, -share))
        assert effect["mean"] == pytest.approx(values.mean())
    keys = [(record["seed"], record["question_id"], record["student_id"]) for record in first]
    return dict(zip(keys, values.tolist(), strict=True))


def test_a_difference_pairs_cells_and_else_takes_the_mean_on_the_question():
    one = {(0, "q", "S1"): 1.0, (0, "q", "S2"): 0.0}
    paired = {(0, "q", "S1"): 0.0, (0, "q", "S2"): 1.0}
    assert differences(one, paired) == {(0, "q", "S1"): 1.0, (0, "q", "S2"): -1.0}
    others = {(0, "q", "S3"): 0.0, (0, "q", "S4"): 1.0}  # 1/2 on average, of which 80 % count
    assert differences(one, others, share=0.8) == {(0, "q", "S1"): 0.6, (0, "q", "S2"): -0.4}
    # the base stands beside every seed
    seeds = {(seed, "q", "S1"): float(seed) for seed in range(3)}
    found = {(0, "q", "S1"): -1.0, (1, "q", "S1"): 0.0, (2, "q", "S1"): 1.0}
    assert differences(seeds, {(0, "q", "S1"): 1.0}, "base") == found
    assert differences(seeds, {(0, "other", "S1"): 1.0}, "base") == {}


@pytest.mark.parametrize("hypothesis", "bcdefg")
def test_a_planted_follower_is_believed_and_an_ignorer_is_not(hypothesis, follows, ignores):
    for summary, expected in ((follows, {"yes"}), (ignores, {"no"})):
        found = [v for v in claimed(summary) if v["hypothesis"] == hypothesis]
        beside_base = [v for v in found if v["claim"].endswith("above that of base")]
        by_pairs = [v for v in found if "pairs of needs" in v["claim"]]
        found = [v for v in found if v not in (*beside_base, *by_pairs)]
        assert found
        if summary is ignores and hypothesis == "f":
            expected = {"yes"}  # a memory that is ignored costs nothing
        assert {v["verdict"] for v in found} == expected, found
        assert {v["verdict"] for v in by_pairs} <= {"yes"}  # each treats them alike
        # no difference at all lies neither beyond the bound of zero nor short of it
        assert [v["verdict"] for v in beside_base] == (
            ["yes" if summary is follows else "undecided"] * (hypothesis == "b")
        )


def walked(student, gain):
    fixed = dict.fromkeys(("fit", "support_fit", "sound", "right"), 0.5)
    return {"student_id": student, "learning_gain": gain} | fixed


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "yes"), (0.1, "no")])
def test_a_tutor_with_whom_students_learn_more_is_believed(gain, verdict):
    """Of twelve students half learn .05 more and half .05 less than the others, with every tutor alike."""
    walks = {
        name: [
            walked(f"S{number:04d}", (gain if arm == "ipo" else 0.1) + 0.05 * (-1) ** number)
            for number in range(12)
        ]
        for name, (arm, _) in TRAINED.items()
    }
    found = judge_walks(walks, TRAINED)
    assert [v["verdict"] for v in found["learning"]] == [verdict] * 2
    (row,) = [row for row in found["walks"] if row["arm"] == "ipo"]
    assert row["learning_gain"]["mean"] == pytest.approx(gain) and row["fit"]["n"] == 5 * 12


def test_only_arms_that_are_there_are_asked_about():
    assert list_hypotheses(["base", "no_memory"]) == []
    bounds = {
        asked.claim: asked.above for asked in list_hypotheses(["ipo", "shuffled_memory", "random_reward"])
    }
    assert bounds["IPO's fidelity is 25 points above that of shuffled_memory"] == 0.25
    assert bounds["IPO's fidelity is above that of random_reward"] == 0.0
    assert not any("no_memory" in claim or "supervised" in claim for claim in bounds)


def test_the_report_has_its_tables_and_all_verdicts(follows):
    config = {"seeds": list(SEEDS), "max_steps": 1, "exercises": EXERCISES, "split": "confirm"}
    walks = {name: [walked(student, 0.2) for student in STUDENTS] for name in TRAINED}
    text = render_experiment(follows | judge_walks(walks, TRAINED), config)
    for title in ("Memory in the prompt: own, greedy", "IPO: evidence, by interactions", "Hypotheses"):
        assert f"## {title}\n" in text
    # all of ten templates are right: Wilson's interval of ten, with t of nine degrees
    assert "| ipo | 300 | 1.000 [0.661, 1.000] | 0.900 [0.900, 0.900]" in text
    assert "| b | IPO's fidelity is above that of base | +0.550 [+0.550, +0.550] | 0.00 | yes |" in text


def test_a_policy_that_serves_the_pairs_of_its_training_alone_is_found_out():
    records = []
    for seed in SEEDS:
        for record in answers(f"ipo_{seed}", "own", 0.9):
            served = record["student_id"].startswith("S")
            records.append(record | {"fidelity": 0.9 if served else 0.4})
    add_measures(records, TRAINED, HELD_OUT)
    summary = summarize(records)
    (verdict,) = [v for v in summary["verdicts"] if "pairs of needs" in v["claim"]]
    assert verdict["effect"]["mean"] == pytest.approx(-0.5) and verdict["verdict"] == "no"
    row = row_of(summary, "ipo")
    assert [row["by_pair"][pairs]["mean"] for pairs in ("seen", "unseen")] == pytest.approx([0.9, 0.4])
