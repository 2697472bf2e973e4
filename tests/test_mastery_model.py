"""What a fitted model reads of a student, what it expects, and what a prompt then says."""

import dataclasses
import json
import math

import pytest
from conftest import mastery_file, past

from cot.utils.errors import UserError
from cot.utils.manners import support_target
from cot.utils.mastery import Estimate, mastery_by_skill
from cot.utils.mastery_model import CODES, NUMBERS, AnswerTrace, MasteryModel, load_mastery_model
from cot.utils.memory_arms import MemoryArms
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import Question
from cot.utils.student_files import load_profiles

NONE, RIGHT = 1, 2  # digits of the codes of last outcomes
LN2 = math.log(2)
ASKED = Question("q", "What is 3 + 4?", "#### 7", "addition", "add")


def make_model(**changes) -> MasteryModel:
    return MasteryModel.model_validate(mastery_file(**changes))


def practised(*answers, skill="add", first_day=1, **changes):
    """One interaction a day, right or wrong."""
    return [
        past("S001", f"2026-01-{day:02}", f"{skill} {day}?", skill=skill, correct=bool(correct), **changes)
        for day, correct in enumerate(answers, start=first_day)
    ]


# --- what the regression reads ----------------------------------------------------------------------------


def test_the_numbers_before_and_after_a_right_and_a_wrong_answer_are_the_hand_computed_ones():
    trace = AnswerTrace({"add": 0.5}, otherwise=0.8)
    nothing = NONE * 27 + NONE * 9 + NONE * 3 + NONE  # 40
    assert trace.describe("add") == ([0.0] * len(NUMBERS), (nothing, nothing, 0, 0))

    trace.add("add", True)
    numbers, codes = trace.describe("add")
    found = dict(zip(NUMBERS, numbers, strict=True))
    one = {name: math.log(2) for name in ("wins", "wins_overall", "answers_overall")}
    one |= {"fails": 0.0, "fails_overall": 0.0}
    # even odds, so the error is .5; the first step is .8, in the skill .35, of first answers .5 / 1.2
    one |= {"ability": 0.5 * 0.8, "skill_ability": 0.5 * 0.35, "first_ability": 0.5 * 0.5 / 1.2}
    # the residual is 1 - .5
    one |= {"residual": 0.5 / (1 + 5), "recent_residual": 0.5 * 0.1}
    one |= {"skill_residual": 0.5 / (1 + 3), "first_residual": 0.5 / (1 + 3)}
    assert found == pytest.approx(one)
    # right, none, none, none; no step between; one answer in a row
    assert codes == (RIGHT * 27 + 13, RIGHT * 27 + 13, 1, 1)

    trace.add("sub", False)  # a skill of which nothing is known has the share .8, log odds ln 4
    p = 1 / (1 + math.exp(-(math.log(4) + 0.4)))
    numbers, codes = trace.describe("sub")
    found = dict(zip(NUMBERS, numbers, strict=True))
    two = {"ability": 0.4 - p * 0.8 / (1 + 0.3 * 1), "skill_ability": -p * 0.35}
    two |= {"first_ability": 0.5 * 0.5 / 1.2 - p * 0.5 / 1.4, "residual": (0.5 - 0.8) / (2 + 5)}
    two |= {"recent_residual": 0.05 * 0.9 - 0.8 * 0.1, "skill_residual": -0.8 / (1 + 3)}
    two |= {"first_residual": (0.5 - 0.8) / (2 + 3)}
    assert {name: found[name] for name in two} == pytest.approx(two)
    # wrong (0), none, none, none in the skill; wrong, right, none, none overall
    assert codes == (13, 0 * 27 + RIGHT * 9 + 3 + 1, 1, 1)
    # of the other skill: one step has passed, 1 + int(2 ln 2) = 2; it is no longer the one in a row
    assert trace.describe("add")[1] == (RIGHT * 27 + 13, RIGHT * 9 + 4, 2, 0)

    for _ in range(1000):  # long gaps and runs end in the last class
        trace.add("sub", True)
    assert trace.describe("add")[1][2:] == (CODES["gap"] - 1, 0)
    assert trace.describe("sub")[1] == (3**4 - 1, 3**4 - 1, 1, CODES["run"] - 1)


# --- what it expects --------------------------------------------------------------------------------------


def test_an_estimate_is_the_sum_of_the_weights():
    found = make_model().estimate(practised(1, 1, 0))
    # log odds .5 + 2 ln 3 of two right answers: odds e^.5 x 9
    odds = math.exp(0.5) * 9
    assert found == {"add": Estimate(pytest.approx(odds / (1 + odds)), is_fitted=True)}
    unknown = make_model().estimate(practised(1, skill="fractions"))
    odds = math.exp(0.5) * 4
    assert unknown == {"fractions": Estimate(pytest.approx(odds / (1 + odds)), is_fitted=False)}
    assert make_model().estimate([]) == {}


def test_every_weight_counts():
    file, history = mastery_file(), practised(1, 0)
    trace = make_model().start()
    for item in history:
        trace.add("add", item.correct)
    numbers, codes = trace.describe("add")
    regression, own = file["regression"], file["regression"]["skills"][0]

    def moved() -> float:
        p = [MasteryModel.model_validate(f).estimate(history)["add"].p_right for f in (file, mastery_file())]
        return math.log(p[0] / (1 - p[0])) - math.log(p[1] / (1 - p[1]))

    places = [(regression["numbers"], *pair) for pair in zip(NUMBERS, numbers, strict=True)]
    places += [(regression[name], code, 1.0) for name, code in zip(CODES, codes, strict=True)]
    places += [(own, name, value) for name, value in (("intercept", 1.0), ("wins", LN2), ("fails", LN2))]
    for weights, place, value in places:
        weights[place] += 1.0
        assert moved() == pytest.approx(value, abs=1e-9), place
        weights[place] -= 1.0


def test_only_what_happened_strictly_before_counts_and_duplicates_change_nothing():
    history = practised(1, 0, 1) + practised(0, skill="sub", first_day=10)
    model = make_model()
    assert model.estimate(history, as_of="2026-01-03T09:00:00Z") == model.estimate(history[:2])
    assert model.estimate([*reversed(history), *history]) == model.estimate(history)
    assert list(model.estimate(history)) == ["add", "sub"]


@pytest.mark.parametrize("predictor", ["regression", "tracing"])
def test_what_a_tutor_said_never_feeds_mastery(predictor):
    model = make_model(predictor=predictor)
    plain = practised(1, 0, 0)
    told = practised(1, 0, 0, tutor_correct=True, tutor_said="It is 7.", tutor_strategy="telling")
    wrong = practised(1, 0, 0, tutor_correct=False, student_answer="8")
    assert model.estimate(plain) == model.estimate(told) == model.estimate(wrong)
    assert mastery_by_skill(plain) == mastery_by_skill(told) == mastery_by_skill(wrong)


def test_tracing_takes_each_skills_own_parameters_and_the_pooled_ones_elsewhere():
    model = make_model(predictor="tracing")
    found = model.estimate(practised(1) + practised(1, skill="sub", first_day=2))
    # add: .5 x .9 / (.45 + .5 x .25) = .45 / .575, + .125 / .575 x .2 = .475 / .575 = .826087
    # sub: .4 x .9 / (.36 + .6 x .25) = .36 / .51, + .15 / .51 x .2 = .39 / .51 = .764706
    # P(right) = .9 P(known) + .25 (1 - P(known))
    add, sub = 0.475 / 0.575, 0.39 / 0.51
    assert found["add"] == Estimate(pytest.approx(0.25 + 0.65 * add), is_fitted=True)
    assert found["sub"] == Estimate(pytest.approx(0.25 + 0.65 * sub), is_fitted=False)
    # forgotten, each falls back to its own start
    later = model.estimate(practised(1), half_life_days=1.0, as_of="2030-01-01T00:00:00Z")
    assert later["add"].p_right == pytest.approx(0.25 + 0.65 * 0.5)


# --- the file ---------------------------------------------------------------------------------------------


def damaged(path: str, value) -> dict:
    """The file with another value at a path such as `regression.gap`."""
    file = mastery_file()
    *parents, last = path.split(".")
    place = file
    for parent in parents:
        place = place[parent]
    place[last] = value
    return file


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (damaged("regression.gap", [0.0] * 3), "regression: gap: expected 14 weights, got 3"),
        (damaged("regression.numbers", {"wins": 1.0}), "regression: numbers: expected wins, fails"),
        (damaged("regression.mean_right", 1.0), "regression.mean_right: "),
        (damaged("tracing.pooled.p_slip", 0.5), "tracing.pooled.p_slip: "),
        (damaged("predictor", "oracle"), "predictor: "),
        (damaged("mood", 1), "mood: unknown field"),
        ({}, "predictor: missing"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_field(tmp_path, file, message):
    path = tmp_path / "m.json"
    if file is not None:
        path.write_text(json.dumps(file))
    with pytest.raises(UserError) as error:
        load_mastery_model(path)
    assert str(error.value).startswith(f"--mastery_parameters {path}: {message}")


def test_the_fingerprint_is_that_of_what_decides_the_estimates():
    same = make_model(fitted_on={"answers": 10}, evaluation={"answers": 3})
    assert same.fingerprint == make_model().fingerprint
    assert make_model(predictor="tracing").fingerprint != make_model().fingerprint
    other = MasteryModel.model_validate(damaged("regression.intercept", 0.25))
    assert other.fingerprint != make_model().fingerprint


# --- what a prompt says -----------------------------------------------------------------------------------


def show(history, model, skill="add") -> list[str]:
    """The lines of the student's own memory about an exercise in a skill."""
    arms = MemoryArms(
        load_profiles(PROFILES_DIR), {"S001": history}, embedder=None, seed=0, mastery_model=model
    )
    moment = arms.moment("S001", dataclasses.replace(ASKED, skill=skill))
    return list(arms.show(moment, "own").lines)


def test_a_prompt_tells_the_chance_of_the_next_answer_with_its_evidence():
    lines = show(practised(1, 1, 0), make_model())
    # .5 + 2 ln 3: odds 14.84, chance .937, above .865
    assert "Skill at hand, mastered: next answer right with 0.94 after 3 exercises, 2 right." in lines
    lines = show(practised(0), make_model(), skill="sub")
    # .5 + 0: chance .622, between .41 and .865
    assert "Skill at hand, new: no exercise yet." in lines
    assert "In progress: add (next answer right with 0.62 after 1 exercise, 0 right)." in lines
    # a skill that the fit has never seen
    guess = (
        "next answer right with 0.62 (a guess: no one's answers in it were fitted) after 1 exercise, 0 right"
    )
    assert f"Skill at hand, in progress: {guess}." in show(practised(0, skill="roots"), make_model(), "roots")


@pytest.mark.parametrize(
    ("intercept", "state", "support"),
    [(-1.0, "struggling", "worked_out"), (0.5, "in progress", "guided"), (3.0, "mastered", "brief")],
)
def test_the_word_of_the_prompt_and_the_support_that_is_asked_for_agree(intercept, state, support):
    model = MasteryModel.model_validate(damaged("regression.intercept", intercept))
    history = practised(0)
    assert any(line.startswith(f"Skill at hand, {state}: ") for line in show(history, model))
    assert support_target(model.mastery_by_skill(history)["add"]) == support
