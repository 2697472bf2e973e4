"""The parts of the reward: each against a value worked out by hand, and what no text may gain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot.utils.errors import UserError
from cot.utils.fidelity import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from cot.utils.students import Profile
from cot.utils.thinking import Reasoning
from rl.explanations import Phrasing, calculations, explain
from rl.rewards import DEFAULT_WEIGHTS, TUTOR_WEIGHTS, RewardTable, parse_weights, reward_parts

GOLD = "They have 14 + 23 = <<14+23=37>>37 pens.\n#### 37"
FITTING = explain(calculations(GOLD), Phrasing("numbered_steps"))
BUDGET = 100


def profile(student_id, style, *preferences):
    return Profile(
        student_id=student_id,
        grade_level="5th grade",
        strengths=[],
        challenges=[],
        learning_preferences=list(preferences),
        explanation_style=style,
    )


# S1 is the student; the others are whom `memory_margin` compares with.
PROFILES = {
    "S1": profile("S1", "numbered_steps"),
    "S2": profile("S2", "equations_first"),
    "S3": profile("S3", "check_at_end"),
    "S4": profile("S4", "guiding_questions", "a hint first", "a reason with because"),
}
ROW = {
    "gold_solution": GOLD,
    "fit_to": "S1",
    "other_students": ["S2", "S3"],
    "memory": "",
    "mastery": 0.3,
    "steps": 1,
}


def score(name, text, profiles=PROFILES, **changes):
    """One part's value of one text."""
    columns = {column: [value] for column, value in (ROW | changes).items()}
    ids = [text.split()]  # any ids do: the token parts only count and compare them
    part = reward_parts([name], profiles, BUDGET)[name]
    return part(prompts=[""], completions=[text], completion_ids=ids, **columns)[0]


def total(text, weights=DEFAULT_WEIGHTS, **changes):
    """The weighted sum, as TRL forms it: None adds nothing."""
    values = {name: score(name, text, **changes) for name in weights}
    return sum(weights[name] * value for name, value in values.items() if value is not None)


# --- no gain without the right answer ---------------------------------------------------------------------

# Texts that try everything a fit could be bought with, right and wrong, plus noise.
PIECES = """1. Take 14 and 23.
2. Adding gives 14+23=37.
Hint: think of adding.
because because because the numbers go together
Check: 37-23=14.
What do we know? We know 14 and 23.
14+23=37
14+23=38
So the answer is 37.
So the answer is 12.
#### 37
#### 38
#### 3
Student S1, 5th grade.
numbered steps equations first guiding questions""".splitlines()
LINES = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=30)), max_size=8)
STUDENTS = st.builds(
    profile,
    st.just("S1"),
    st.sampled_from(sorted(EXPLANATION_STYLES)),
    *[st.sampled_from(sorted(CHECKABLE_PREFERENCES))] * 2,
)


@settings(max_examples=60, deadline=None)
@given(LINES, LINES, STUDENTS, st.sampled_from([["S2"], ["S2", "S3", "S4"]]), st.sampled_from([None, 0.1]))
def test_no_wrong_answer_outscores_a_correct_one(first, second, student, others, mastery):
    texts = ["\n".join(first), "\n".join([*second, "#### 37"]).replace("####", "##", second.count("#### 38"))]
    fields = {"other_students": others, "mastery": mastery, "memory": PIECES[-2]}
    fields["profiles"] = PROFILES | {"S1": student}
    for wrong, right in (texts, texts[::-1]):
        # a text in the last fifth of the budget is no generic one
        if score("correct", wrong) == 0 and score("correct", right) == 1 and score("overlong", right) == 0:
            for weights in (DEFAULT_WEIGHTS, TUTOR_WEIGHTS):
                assert total(wrong, weights, **fields) < total(right, weights, **fields)


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("Adding gives 14+23=38.\n#### 38", 0.1),
        # correct 1 + format .1; fidelity 0; margin -(1 + 0)/2 x .2; brief, where guided is needed: 0
        ("14+23=37 pens.\n#### 37", 1 + 0.1 - 0.1),
        # correct 1, format .1, fidelity 1 x .3, margin (1 - 0) x .2, brief
        (FITTING, 1 + 0.1 + 0.3 + 0.2),
        (FITTING.replace("=37.", "=37 because both are counted."), 1 + 0.1 + 0.3 + 0.2 + 0.1),  # guided
        (FITTING.replace("Take", "S1, 5th grade, take"), 1 + 0.1 + 0.3 + 0.2),  # a name earns nothing
    ],
    ids=["wrong", "generic", "fitting", "supporting", "named"],
)
def test_a_text_earns_the_sum_of_its_parts(text, earned):
    assert total(text) == pytest.approx(earned)


def test_fit_alone_is_worth_nothing():
    wrong = explain(calculations(GOLD), Phrasing("numbered_steps"), answer="38")
    for name in ("fidelity", "memory_margin", "support_fit"):
        assert (score(name, wrong, mastery=0.97), score(name, FITTING, mastery=0.97)) == (0, 1)
    # nor does a wrong answer pay for fitting others better
    margins = [score("memory_margin", text, fit_to="S2", other_students=["S1"]) for text in (wrong, FITTING)]
    assert margins == [0, -1]


@pytest.mark.parametrize("text", ["14+23=37\n#### 37\n#### 38", "#### 37 or 38", "37", "", "####"])
def test_two_final_answers_or_none_are_no_right_answer_in_form(text):
    assert score("format", text) == 0
    assert score("correct", text) == (text == "37")


# --- no gain by tricks ------------------------------------------------------------------------------------


def test_copying_the_memory_earns_no_fit():
    memory = (
        "Explanation style: numbered steps, a line for each. Prefers drawings of everyday objects and pets"
    )
    copied = f"1. {memory}.\n2. Adding gives 14+23=37.\n#### 37"
    assert score("fidelity", FITTING, memory=memory) == 1
    for name in ("fidelity", "memory_margin"):
        assert score(name, copied, memory="another memory") == 1  # the copy alone is what is punished
        assert score(name, copied, memory=memory) == 0
    # nor does a copy save from a loss
    assert score("memory_margin", copied, memory=memory, fit_to="S2", other_students=["S1"]) == -1


def test_keyword_stuffing_earns_no_fit():
    stuffed = "Hint hint because guiding questions? because check numbered steps 14+23=37\n#### 37"
    met = explain(calculations(GOLD), Phrasing("guiding_questions", hint=True, support="guided"))
    assert [score("correct", text) for text in (stuffed, met)] == [1, 1]
    assert [score("fidelity", text, fit_to="S4") for text in (stuffed, met)] == [0, 1]


def test_repeated_equations_earn_nothing_and_cost_repetition():
    once, often = "14+23=37.\n#### 37", "14+23=37.\n" * 6 + "#### 37"
    # the same calculation again is no other one that confirms it
    assert score("support_fit", once, mastery=0.1) == score("support_fit", often, mastery=0.1) == 0
    assert score("repetition", once) == 0 > score("repetition", often)
    # a wrong equation beside a right one halves the validity
    assert score("support_fit", "14+23=37, 14+23=38\n#### 37", mastery=0.97) == 0.5


# --- the parts one by one ---------------------------------------------------------------------------------


def test_each_state_of_a_skill_is_paid_for_one_level_of_support():
    texts = [
        "14+23=37\n37-14=23\n#### 37",
        "14+23=37 because both are counted.\n#### 37",
        "14+23=37\n#### 37",
    ]
    for number, mastery in enumerate((0.1, 0.5, 0.97)):
        paid = [score("support_fit", text, mastery=mastery) for text in texts]
        assert paid == [float(place == number) for place in range(3)]
    assert score("support_fit", "So it is.\n#### 37") == 0


def test_parts_that_do_not_apply_are_none():
    text = "14+23=37\n#### 37"
    for name in ("fidelity", "memory_margin", "support_fit"):
        assert score(name, text, fit_to=None) is None
    assert score("memory_margin", text, other_students=[]) is None
    assert score("support_fit", text, mastery=None) is None
    assert score("correct", text, fit_to=None) == score("format", text, fit_to=None) == 1


def test_length_and_repetition_are_trls():
    parts = reward_parts(["overlong", "repetition"], {}, BUDGET)
    overlong = parts["overlong"](completion_ids=[[1] * n for n in (80, 90, 100, 101)])
    assert overlong == [0, -0.5, -1, -1]  # (80 - 90) / 20, (80 - 100) / 20
    assert parts["repetition"](completion_ids=[[1, 2, 3, 4], [5] * 5]) == [0, pytest.approx(-2 / 3)]


def test_the_coin_is_fair_and_blind():
    tosses = [score("coin", text) for text in ("#### 37", "#### 38") * 1000]
    assert set(tosses) == {0.0, 1.0} and 850 < sum(tosses) < 1150  # 1000 +- 6.7 standard deviations of 22.4


@pytest.mark.parametrize(
    "text",
    ["corect=1", "correct", "correct=x", "correct=-1", "correct=nan", "correct=1,correct=2", "correct=0", ""],
)
def test_malformed_weights_are_refused(text):
    with pytest.raises(UserError, match="--reward_weights"):
        parse_weights(text)


# --- the table --------------------------------------------------------------------------------------------


def test_a_part_that_raises_costs_its_row_alone():
    def fragile(completions, **_):
        if completions[0] == "b":
            raise ValueError("no")
        return [1.0]

    table = RewardTable({"fragile": fragile, "half": lambda completions, **_: [0.5]})
    logged = {}
    batch = {
        "completions": ["a", "b"],
        "memory": ["", ""],
        "student_id": ["S001"] * 2,
        "log_metric": logged.__setitem__,
    }
    assert [part.__name__ for part in table.functions()] == ["fragile", "half"]
    assert [part(**batch) for part in table.functions()] == [[1.0, None], [0.5, None]]
    assert (table.errors, table.last_error) == (1, "ValueError: no")
    assert logged == {"copying": 0.0, "names_student": 0.0}


@pytest.mark.parametrize(
    ("reasoning", "texts"),
    [
        (
            Reasoning("[THINK]", "[/THINK]"),
            [f"[THINK]#### 9[/THINK]\n{FITTING}", f"{FITTING}[THINK]{FITTING}", FITTING],
        ),
        (Reasoning(opened=True), [f"#### 9</think>{FITTING}", FITTING, f"{FITTING}</think>{FITTING}"]),
    ],
    ids=["begun", "opened"],
)
def test_every_part_reads_what_follows_the_reasoning(reasoning, texts):
    """The first and the third text have an answer behind their reasoning, the second one never ends it."""
    parts = reward_parts(["correct", "format", "fidelity", "support_fit"], PROFILES, BUDGET)
    batch = {column: [value] * 3 for column, value in ROW.items()}
    batch |= {"completions": texts, "student_id": ["S1"] * 3, "mastery": [0.97] * 3}
    columns = [part(**batch) for part in RewardTable(parts, reasoning=reasoning).functions()]
    assert columns == [[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]]
