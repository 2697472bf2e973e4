"""What a training says of itself: steps that teach nothing, numbers that are not finite, a gamed reward."""

import math

import pytest
from conftest import make_tokenizer

from rl.alarms import Alarms, correctness_falls

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
STILL = GOOD | {"grad_norm": 0.0}
AGAIN = {"loss": 0.1, "grad_norm": 1.0}  # a step on completions that were used before
TURN = 296  # the id of `<|turn|>`


@pytest.fixture(scope="module")
def make():
    """Alarms of a run with a budget of 96 tokens, whose end is `<|end|>`; `<|turn|>` is special, too."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    assert tokenizer.convert_tokens_to_ids("<|turn|>") == TURN

    return lambda masked=True: Alarms(96, masked, tokenizer, {tokenizer.eos_token_id})


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

CUT = "97% of the completions were cut at --max_completion_length 96 and are masked; "
ENDLESS = {"completions/clipped_ratio": 1.0, "completions/max_terminated_length": 0.0}
SPREAD = "100% of the groups had no spread: their completions earn the same; "


@pytest.mark.parametrize(
    ("step", "ids", "cause"),
    [
        (CLIPPED, [], f"{CUT}the longest that ended has 60 tokens: raise --max_completion_length"),
        (CLIPPED, [[5, TURN], [TURN], [8, TURN], [9]], f"{CUT}75% contain <|turn|>, which is none of the"),
        (CLIPPED | ENDLESS, [[5, 6], [7, 8]], "none wrote an end (<|end|>): raise --max_completion_length"),
        (FLAT | {"rewards/correct/mean": 0.0}, [], f"{SPREAD}none is right: take easier questions"),
        (FLAT | {"rewards/correct/mean": 1.0}, [], f"{SPREAD}all are right: nothing is left to learn"),
        (FLAT, [], f"{SPREAD}they do not differ in what --reward_weights pays"),
        (FLAT | {"reward": None, "frac_reward_zero_std": 0.0}, [], f"{SPREAD}none could be scored"),
        (STILL, [], "the gradient was 0 or not finite; what earns more or less than its group was cut off"),
    ],
)
def test_steps_that_teach_nothing_warn_with_their_cause_and_then_stop(make, step, ids, cause):
    warnings, stopped = watch(make(), [step] * 50, ids)
    assert [number for number, _ in warnings] == [5]
    assert warnings[0][1].startswith("the last 5 steps: ") and cause in warnings[0][1]
    assert stopped.startswith("20: the last 20 steps taught nothing: ") and cause in stopped


def cut(share: float) -> dict:
    return GOOD | {"completions/clipped_ratio": share}


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        (([CLIPPED] * 4 + [GOOD] * 3 + [FLAT] * 4 + [GOOD] * 3 + [STILL] * 4 + [GOOD]) * 8, None),
        # 19 steps of .97 and one of .5 are .9465, just short of .95; with one of .9 they are .9665
        (([cut(0.97)] * 19 + [cut(0.5)]) * 3, None),
        ([cut(0.97)] * 19 + [cut(0.9)], "20: "),
        # a step on the same completions is judged by what is known of them
        ([FLAT, AGAIN] * 30, "20: "),
        ([GOOD, AGAIN] * 60, None),
    ],
    ids=["some teach", "just short", "just enough", "the same flat ones", "the same good ones"],
)
def test_a_run_is_stopped_where_its_last_twenty_steps_taught_nothing_on_average(make, steps, end):
    _, stopped = watch(make(), steps)
    assert stopped is None if end is None else stopped.startswith(f"{end}the last 20 steps taught nothing")


def test_completions_that_are_cut_but_not_masked_teach(make):
    warnings, stopped = watch(make(masked=False), [cut(0.97)] * 50)
    assert [number for number, _ in warnings] == [5, 25, 45] and stopped is None
    assert "and are masked" not in warnings[0][1]


def test_a_rare_group_with_spread_is_enough_to_go_on(make):
    # one group of 16 in every other step: 97 % without spread
    warnings, stopped = watch(make(), [FLAT, FLAT | {"frac_reward_zero_std": 15 / 16}] * 60)
    assert stopped is None
    assert warnings == [(50, "97% of the groups have no spread and teach nothing"), (100, warnings[1][1])]


@pytest.mark.parametrize("step", [CLIPPED, FLAT, STILL, STILL | {"grad_norm": None}])
def test_a_run_too_short_for_the_limit_is_judged_at_its_end(make, step):
    alarms = make()
    assert alarms.verdict() is None  # no step, no word
    assert watch(alarms, [step] * 2) == ([], None)
    assert alarms.verdict().startswith("none of the 2 steps taught anything: ")
    alarms.see(GOOD)
    assert alarms.verdict() is None


# --- numbers and rewards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, None])  # null in the file of an earlier attempt
def test_three_steps_in_a_row_that_are_not_finite_stop(make, value):
    bad = GOOD | {"loss": value}
    assert watch(make(), [bad, bad, GOOD, bad, bad]) == ([], None)
    _, stopped = watch(make(), [GOOD, bad, AGAIN | {"grad_norm": value}, bad])
    assert stopped.startswith("4: the loss or its gradient was not finite 3 times in a row")


HIGH, LOW, RISING = [0.6, 0.62] * 10, [0.5, 0.52] * 10, [0.1] * 20 + [0.5] * 20


@pytest.mark.parametrize(
    ("correct", "fit", "is_gamed"),
    [
        (HIGH + LOW, RISING, True),
        (LOW + HIGH, RISING, False),
        (HIGH + LOW, RISING[::-1], False),  # fidelity falls too
        ([0.2, 1.0] * 10 + [0.1, 1.0] * 10, RISING, False),  # within the noise
        (HIGH + LOW[:19], RISING[:39], False),  # too early to say
    ],
)
def test_the_alarm_needs_a_fall_beyond_the_noise_and_rising_fidelity(correct, fit, is_gamed):
    found = correctness_falls(correct, fit, window=20)
    assert found is None if not is_gamed else "fell by 10.0 points while fidelity rose by 40.0" in found


def test_a_reward_that_is_gamed_stops(make):
    before, after = (
        GOOD | {"rewards/correct/mean": correct, "rewards/fidelity/mean": fit}
        for correct, fit in ((0.6, 0.1), (0.5, 0.5))
    )
    # needs 50 steps to compare with
    assert watch(make(), [before] * 50 + [after] * 50)[1].startswith("100: correctness fell by 10.0 points")
