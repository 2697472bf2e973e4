"""What a training says of itself: steps that teach nothing, numbers that are not finite, a gamed reward."""

import math

import pytest
from conftest import make_tokenizer

from rl.alarms import LIMIT_STEPS, WARNING_STEPS, Alarms, correctness_falls

GOOD = {
    "loss": 0.1,
    "grad_norm": 1.0,
    "reward": 0.5,
    "rewards/correct/mean": 0.5,
    "rewards/fidelity/mean": 0.5,
    "completions/clipped_ratio": 0.1,
    "completions/max_terminated_length": 60.0,
    "frac_reward_zero_std": 0.2,
}
CLIPPED = GOOD | {"completions/clipped_ratio": 0.97, "grad_norm": 0.0}
FLAT = GOOD | {"frac_reward_zero_std": 1.0}
AGAIN = {"loss": 0.1, "grad_norm": 1.0}  # a step on completions that were used before


@pytest.fixture(scope="module")
def tokenizer():
    """Its end is `<|end|>`; `<|turn|>` is special, too."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return tokenizer


@pytest.fixture
def make(tokenizer):
    """Alarms of a run with a budget of 96 tokens."""

    def alarms(masked: bool = True) -> Alarms:
        return Alarms(96, masked, tokenizer, {tokenizer.eos_token_id})

    return alarms


def watch(alarms: Alarms, steps, ids=()) -> tuple[list[tuple[int, str]], str | None]:
    """The warnings by step, and why the run was stopped, at which step it ended."""
    warnings = []
    for number, step in enumerate(steps, start=1):
        alarms.see(step, ids)
        if warning := alarms.warning():
            warnings.append((number, warning))
        if reason := alarms.stop():
            return warnings, f"{number}: {reason}"
    return warnings, None


# --- steps that teach nothing -----------------------------------------------------------------------------


def test_steps_that_are_nearly_all_clipped_warn_and_then_stop(make):
    warnings, stopped = watch(make(), [CLIPPED] * 50)
    assert [number for number, _ in warnings] == [WARNING_STEPS]
    cut = "97% of the completions were cut at --max_completion_length 96 and are masked"
    assert warnings[0][1].startswith(f"the last 5 steps: {cut}")
    assert stopped.startswith(f"{LIMIT_STEPS}: the last 20 steps taught nothing: {cut}")


def test_a_run_that_learns_is_left_alone(make):
    bad = [CLIPPED] * 4 + [GOOD] * 3 + [FLAT] * 4 + [GOOD] * 3
    alarms = make()
    assert watch(alarms, bad * 8) == ([], None) and alarms.verdict() is None


def test_a_window_is_judged_by_its_mean(make):
    # 19 steps of .97 and one of .5 are .9465, just short of .95
    once_better = GOOD | {"completions/clipped_ratio": 0.5}
    assert watch(make(), ([CLIPPED | {"grad_norm": 1.0}] * 19 + [once_better]) * 3)[1] is None
    nearly = GOOD | {"completions/clipped_ratio": 0.9}
    assert watch(make(), [CLIPPED] * 19 + [nearly])[1].startswith("20: ")  # .9665


def test_the_cause_of_clipping_is_the_budget_where_some_texts_end(make):
    warnings, _ = watch(make(), [CLIPPED] * 5)
    assert "the longest that ended has 60 tokens: raise --max_completion_length" in warnings[0][1]


def test_the_cause_of_clipping_may_be_that_no_end_is_ever_written(make):
    endless = CLIPPED | {"completions/clipped_ratio": 1.0, "completions/max_terminated_length": 0.0}
    warnings, _ = watch(make(), [endless] * 5, ids=[[5, 6], [7, 8]])
    assert "none wrote an end (<|end|>): raise --max_completion_length, or take a model" in warnings[0][1]


def test_the_cause_of_clipping_may_be_an_end_that_nobody_has_named(make, tokenizer):
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    warnings, _ = watch(make(), [CLIPPED] * 5, ids=[[5, turn, 6], [turn, 7], [8, turn], [9, 9]])
    assert "75% contain <|turn|>, which is none of the model's ends (<|end|>)" in warnings[0][1]
    assert "add it to eos_token_id" in warnings[0][1]


def test_completions_that_are_cut_but_not_masked_teach(make):
    steps = [CLIPPED | {"grad_norm": 1.0}] * 50
    alarms = make(masked=False)
    warnings, stopped = watch(alarms, steps)
    assert [number for number, _ in warnings] == [5, 25, 45] and stopped is None and alarms.verdict() is None
    assert "and are masked" not in warnings[0][1]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rewards/correct/mean": 0.0}, "none is right: take easier questions"),
        ({"rewards/correct/mean": 1.0}, "all are right: nothing is left to learn"),
        ({"rewards/correct/mean": 0.5}, "they do not differ in what --reward_weights pays"),
        ({"reward": None, "frac_reward_zero_std": 0.0}, "none could be scored"),
    ],
)
def test_groups_without_spread_warn_with_their_cause_and_then_stop(make, changes, cause):
    warnings, stopped = watch(make(), [FLAT | changes] * 30)
    assert [number for number, _ in warnings] == [5]
    assert "100% of the groups had no spread" in warnings[0][1] and cause in warnings[0][1]
    assert stopped.startswith("20: the last 20 steps taught nothing") and cause in stopped


def test_a_rare_group_with_spread_is_enough_to_go_on(make):
    # one group of 16 in every other step: 97 % without spread
    steps = [FLAT, FLAT | {"frac_reward_zero_std": 15 / 16}] * 60
    warnings, stopped = watch(make(), steps)
    assert stopped is None
    assert warnings == [(50, "97% of the groups have no spread and teach nothing"), (100, warnings[1][1])]


@pytest.mark.parametrize("norm", [0.0, math.nan, None])
def test_a_run_without_a_gradient_is_no_success(make, norm):
    alarms = make()
    watch(alarms, [GOOD | {"grad_norm": norm}] * 2)
    assert alarms.verdict().startswith(
        "none of the 2 steps taught anything: the gradient was 0 or not finite"
    )


def test_a_zero_gradient_warns_and_then_stops(make):
    warnings, stopped = watch(make(), [GOOD | {"grad_norm": 0.0}] * 30)
    assert [number for number, _ in warnings] == [5] and stopped.startswith("20: ")
    assert all(cause in stopped for cause in ("clipped_ratio", "reward_errors", "weights that are trained"))
    assert watch(make(), ([GOOD | {"grad_norm": 0.0}] * 4 + [GOOD]) * 10) == ([], None)


@pytest.mark.parametrize("step", [CLIPPED, FLAT])
def test_a_run_too_short_for_the_limit_is_judged_at_its_end(make, step):
    alarms = make()
    assert watch(alarms, [step] * 3) == ([], None)
    assert alarms.verdict().startswith("none of the 3 steps taught anything: ")
    alarms.see(GOOD)
    assert alarms.verdict() is None
    assert make().verdict() is None  # no step, no word


def test_a_step_on_the_same_completions_is_judged_by_what_is_known_of_them(make):
    assert watch(make(), [FLAT, AGAIN] * 30)[1].startswith("20: the last 20 steps taught nothing")
    assert watch(make(), [GOOD, AGAIN] * 60) == ([], None)


# --- numbers and rewards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, None])  # null in the file of an earlier attempt
def test_three_steps_in_a_row_that_are_not_finite_stop(make, value):
    bad = GOOD | {"loss": value}
    assert watch(make(), [bad, bad, GOOD, bad, bad]) == ([], None)
    _, stopped = watch(make(), [GOOD, bad, AGAIN | {"grad_norm": value}, bad])
    assert stopped.startswith("4: the loss or its gradient was not finite 3 times in a row")


def test_the_alarm_needs_a_fall_beyond_the_noise_and_rising_fidelity():
    high, low, rising = [0.6, 0.62] * 10, [0.5, 0.52] * 10, [0.1] * 20 + [0.5] * 20
    assert "fell by 10.0 points" in correctness_falls(high + low, rising, window=20)
    assert correctness_falls(low + high, rising, window=20) is None
    assert correctness_falls(high + low, rising[::-1], window=20) is None  # fidelity falls too
    assert correctness_falls([0.2, 1.0] * 10 + [0.1, 1.0] * 10, rising, window=20) is None  # within the noise
    assert correctness_falls(high + low[:19], rising[:39], window=20) is None  # too early to say


def test_a_reward_that_is_gamed_stops(make):
    def step(correct, fit):
        return GOOD | {"rewards/correct/mean": correct, "rewards/fidelity/mean": fit}

    _, stopped = watch(make(), [step(0.6, 0.1)] * 50 + [step(0.5, 0.5)] * 50)
    # needs 50 steps to compare with
    assert stopped.startswith("100: correctness fell by 10.0 points while fidelity rose by 40.0")
