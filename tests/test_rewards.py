import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rl.rewards
import rl.tutor_texts
from cot.utils.equations import equations
from cot.utils.errors import UserError
from cot.utils.profiles import Profile
from cot.utils.style_checks import CHECKABLE_PREFERENCES, EXPLANATION_STYLES
from rl.rewards import (
    DEFAULT_WEIGHTS,
    TUTOR_WEIGHTS,
    coin,
    correct,
    fits_preferences,
    memory_margin,
    parse_weights,
    reward_parts,
    scaffold_fit,
    well_formed,
)
from rl.tutor_texts import Manner, calculations, explain

GOLD = "They have 14 + 23 = <<14+23=37>>37 pens.\n#### 37"
BUDGET = 100


def profile(style="numbered_steps", *preferences, student_id="S001"):
    return Profile(
        student_id=student_id,
        grade_level="5th grade",
        strengths=[],
        challenges=[],
        learning_preferences=list(preferences),
        explanation_style=style,
    ).model_dump_json()


STEPS, EQUATIONS, CHECK = profile("numbered_steps"), profile("equations_first"), profile("check_at_end")
ROW = {
    "gold_solution": GOLD,
    "profile": STEPS,
    "other_profiles": [EQUATIONS, CHECK],
    "memory": "",
    "mastery": 0.3,
    "steps": 1,
}


def score(part, text, **changes):
    """One part's value of one text."""
    columns = {name: [value] for name, value in (ROW | changes).items()}
    ids = [text.split()]  # any ids do: the token parts only count and compare them
    return part(prompts=[""], completions=[text], completion_ids=ids, **columns)[0]


def total(text, weights=DEFAULT_WEIGHTS, **changes):
    """The weighted sum, as TRL forms it: None adds nothing."""
    parts = reward_parts(list(weights), BUDGET)
    values = {name: score(part, text, **changes) for name, part in parts.items()}
    return sum(weights[name] * value for name, value in values.items() if value is not None)


def test_the_worked_examples_hold():
    for module in (rl.rewards, rl.tutor_texts):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0


# Texts that try everything a fit could be bought with, right and wrong, plus noise.
PIECES = [
    "1. Take 14 and 23.",
    "2. Adding gives 14+23=37.",
    "Hint: think of adding.",
    "because because because the numbers go together",
    "Check: 37-23=14.",
    "What do we know? We know 14 and 23.",
    "14+23=37",
    "14+23=38",
    "So the answer is 37.",
    "So the answer is 12.",
    "#### 37",
    "#### 38",
    "#### 3",
    "Student S001, 5th grade.",
    "numbered steps equations first guiding questions",
]
LINES = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=30)), max_size=8)
PROFILES = st.builds(
    profile,
    st.sampled_from(sorted(EXPLANATION_STYLES)),
    *[st.sampled_from(sorted(CHECKABLE_PREFERENCES))] * 2,
)


@settings(max_examples=300, deadline=None)
@given(LINES, LINES, PROFILES, st.lists(PROFILES, min_size=1, max_size=3), st.sampled_from([None, 0.1, 0.99]))
def test_no_wrong_answer_outscores_a_correct_one(first, second, student, others, mastery):
    texts = ["\n".join(first), "\n".join([*second, "#### 37"]).replace("####", "##", second.count("#### 38"))]
    fields = {"profile": student, "other_profiles": others, "mastery": mastery, "memory": PIECES[-2]}
    right = [score(correct, text) for text in texts]
    length = [
        score(reward_parts(["overlong"], BUDGET)["overlong"], text) for text in texts
    ]  # a text in the last fifth of the budget is no generic one
    for wrong_text, right_text in (texts, texts[::-1]):
        wrong_at, right_at = texts.index(wrong_text), texts.index(right_text)
        if right[wrong_at] == 0 and right[right_at] == 1 and length[right_at] == 0:
            for weights in (DEFAULT_WEIGHTS, TUTOR_WEIGHTS):
                assert total(wrong_text, weights, **fields) < total(right_text, weights, **fields)


def test_the_least_of_a_right_text_is_above_the_most_of_a_wrong_one():
    # most of a wrong text: format .1; least of a right one: 1 - .2 (margin -1) - .2 (all 3-grams the same)
    for weights, least in ((DEFAULT_WEIGHTS, 0.6), (TUTOR_WEIGHTS, 0.3)):
        assert weights["format"] == pytest.approx(0.1)
        assert 1 - weights["memory_margin"] - weights["repetition"] == pytest.approx(least)
    assert total("Adding gives 14+23=38.\n#### 38") == pytest.approx(0.1)
    # correct 1 + format .1; fidelity 0; margin -(1 + 0)/2 x .2; scaffold 1 of target 2: .5 x .1
    assert total("14+23=37 pens.\n#### 37") == pytest.approx(1 + 0.1 - 0.1 + 0.05)


def test_a_fitting_right_text_earns_every_part():
    text = explain(calculations(GOLD), Manner("numbered_steps"))
    # correct 1, format .1, fidelity 1 x .3, margin (1 - 0) x .2, scaffold: 1 equation of target 2, .5 x .1
    assert total(text) == pytest.approx(1 + 0.1 + 0.3 + 0.2 + 0.05)


@pytest.mark.parametrize(
    "text", ["14+23=37\n#### 37\n#### 38", "#### 38\n14+23=37\n#### 37", "#### 37 or 38", "37", "", "####"]
)
def test_two_final_answers_or_none_are_no_right_answer_in_form(text):
    assert score(well_formed, text) == 0
    if "38" in text:
        assert score(correct, text) == 0
        assert score(fits_preferences, text, profile=EQUATIONS) == 0


def test_copying_the_memory_earns_no_fit():
    memory = (
        "Explanation style: numbered steps, a line for each. Prefers drawings of everyday objects and animals"
    )
    honest = explain(calculations(GOLD), Manner("numbered_steps"))
    copied = f"1. {memory}.\n2. Adding gives 14+23=37.\n#### 37"
    assert score(fits_preferences, honest, memory=memory) == 1
    assert score(fits_preferences, copied, memory="another memory") == 1  # the copy alone is what is punished
    assert score(fits_preferences, copied, memory=memory) == 0
    assert score(memory_margin, copied, memory=memory) == 0
    assert score(memory_margin, copied, memory="another memory") > 0


def test_keyword_stuffing_earns_no_fit():
    student = profile("guiding_questions", "a hint first", "a reason with because")
    stuffed = "Hint hint because guiding questions? because check numbered steps 14+23=37\n#### 37"
    assert score(correct, stuffed) == 1
    assert score(fits_preferences, stuffed, profile=student) == 0
    met = explain(calculations(GOLD), Manner("guiding_questions", hint=True, because=True))
    assert score(fits_preferences, met, profile=student) == 1


def test_repeated_equations_earn_nothing_and_cost_repetition():
    once = "14+23=37.\n#### 37"
    often = "14+23=37.\n" * 6 + "#### 37"
    # both have 1 distinct valid equation of target 2: 1 - 1/2
    assert score(scaffold_fit, once) == score(scaffold_fit, often) == 0.5
    repetition = reward_parts(["repetition"], BUDGET)["repetition"]
    assert score(repetition, once) == 0 > score(repetition, often)
    assert total(often, profile=EQUATIONS) < total(once, profile=EQUATIONS)
    # a wrong equation beside a right one halves the validity: 1/2 x (1 - 1/2)
    assert score(scaffold_fit, "14+23=37, 14+23=38\n#### 37") == 0.25


def test_naming_the_student_earns_nothing():
    text = explain(calculations(GOLD), Manner("numbered_steps"))
    named = text.replace("Take", "S001, 5th grade, take")
    assert total(named) <= total(text)


def test_scaffold_target_rises_for_the_unmastered_and_for_a_check():
    one, two = "14+23=37\n#### 37", "14+23=37\n37-23=14\n#### 37"
    assert [score(scaffold_fit, text, mastery=0.97) for text in (one, two)] == [1, 0]  # target 1
    assert [score(scaffold_fit, text, mastery=0.5) for text in (one, two)] == [0.5, 1]  # target 2
    assert score(scaffold_fit, two, mastery=0.97, profile=CHECK) == 1  # target 1 + 1
    assert score(scaffold_fit, "So it is.\n#### 37") == 0
    assert score(scaffold_fit, two, gold_solution="#### 3") == 0


def test_parts_that_do_not_apply_are_none():
    text = "14+23=37\n#### 37"
    for part in (fits_preferences, memory_margin, scaffold_fit):
        assert score(part, text, profile=None) is None
    assert score(memory_margin, text, other_profiles=[]) is None
    assert score(scaffold_fit, text, mastery=None) is None
    assert score(correct, text, profile=None) == score(well_formed, text, profile=None) == 1


def test_length_and_repetition_are_trls():
    parts = reward_parts(["overlong", "repetition"], BUDGET)
    overlong = parts["overlong"](completion_ids=[[1] * n for n in (80, 90, 100, 101)])
    assert overlong == [0, -0.5, -1, -1]  # (80 - 90) / 20, (80 - 100) / 20
    assert parts["repetition"](completion_ids=[[1, 2, 3, 4], [5] * 5]) == [0, pytest.approx(-2 / 3)]


def test_the_coin_is_fair_and_blind():
    tosses = coin(["#### 37"] * 2000)
    assert set(tosses) == {0.0, 1.0} and 850 < sum(tosses) < 1150  # 1000 +- 6.7 standard deviations of 22.4


@pytest.mark.parametrize(
    "text",
    ["corect=1", "correct", "correct=x", "correct=-1", "correct=nan", "correct=1,correct=2", "correct=0", ""],
)
def test_malformed_weights_are_refused(text):
    with pytest.raises(UserError, match="--reward_weights"):
        parse_weights(text)


@pytest.mark.parametrize("style", sorted(EXPLANATION_STYLES))
@pytest.mark.parametrize("gold", [GOLD, "<<3*9=27>>27\n<<27-7=20>>20\n#### 20", "<<8+9+1=18>>18\n#### 18"])
def test_every_manner_of_the_tutor_meets_its_style(style, gold):
    steps = calculations(gold)
    for hint, because, full, support, joined in itertools.product((False, True), repeat=5):
        text = explain(steps, Manner(style, hint, because, full, joined, support))
        assert EXPLANATION_STYLES[style](text), text
        assert CHECKABLE_PREFERENCES["a hint first"](text) == hint
        assert CHECKABLE_PREFERENCES["no hint"](text) != hint
        assert CHECKABLE_PREFERENCES["a reason with because"](text) == because
        assert CHECKABLE_PREFERENCES["the answer in a full sentence"](text) >= full
        assert CHECKABLE_PREFERENCES["at most 60 words"](text)
        assert correct([text], [gold]) == [1.0] and well_formed([text]) == [1.0]
        found = equations(text)
        assert all(equation.valid for equation in found)
        if support:
            plain = explain(steps, Manner(style, hint, because, full, joined))
            assert len({e.key for e in found}) >= len({e.key for e in equations(plain)})
