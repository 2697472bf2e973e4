"""What watches a training: numbers that are not finite, steps that teach nothing, a reward that is gamed.

A step teaches nothing when its completions are cut off (they are masked), when all completions of a group
earn the same (an advantage is a difference within a group), or when the gradient is zero. Some such steps are
in every run. Nothing but such steps is a fault of the settings: first a warning names the cause, then the run
ends.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

NOT_FINITE_LIMIT = 3  # steps in a row with a loss or gradient that is not finite
WARNING_STEPS = 5  # that teach nothing, before a warning
LIMIT_STEPS = 20  # that teach nothing, before the run ends
# From which mean over these steps a window counts as one that teaches nothing. Of groups a little spread is
# enough to learn from a rare right answer, so that the bound is closer to 1.
BOUNDS = {"clipped": 0.95, "flat": 0.98, "still": 1.0}
ALARM_WINDOW = 50  # steps of a mean that the alarm compares with the best earlier one
FALL = 0.03  # of correctness
FLAT_SHARE = 0.5  # of groups without spread, in the mean of a window, above which a warning is due
NONE_RIGHT, ALL_RIGHT = 0.01, 0.99  # mean correctness from which "none" and "all" are fair words


class Alarms:
    """Sees every step's metrics, and says what is wrong with them.

    Args:
        max_completion_length: the completions' budget, in tokens.
        masked: whether completions that reach it are left out of the loss, so that they teach nothing.
        tokenizer: for the names of tokens, and for the special ones that may be meant as ends.
        end_ids: the tokens that end a completion.
    """

    def __init__(self, max_completion_length: int, masked: bool, tokenizer, end_ids: set[int]) -> None:
        self._budget, self._masked = max_completion_length, masked
        self._ends = ", ".join(tokenizer.convert_ids_to_tokens(sorted(end_ids)))
        known = end_ids | {tokenizer.pad_token_id}
        added = tokenizer.added_tokens_decoder.items()
        self._marks = {token: str(mark) for token, mark in added if mark.special and token not in known}
        self._shares: dict[str, list[float]] = {"clipped": [], "flat": [], "still": []}
        self._correct: list[float] = []
        self._fit: list[float] = []
        self._not_finite = 0
        self._warned_at: dict[str, int] = {}  # the step of each fault's last warning
        self._batch: Mapping = {}  # metrics of the completions at hand
        self._completion_ids: Sequence[Sequence[int]] = ()

    def see(self, logs: Mapping, completion_ids: Sequence[Sequence[int]] = ()) -> None:
        """Takes in a step's metrics, as they stand in `metrics.jsonl`.

        A step that goes over the same completions once more logs nothing about them: what is known holds on.

        Args:
            completion_ids: token ids of the completions that the step is about.
        """
        # a value that is not finite stands in the file as null
        values = {key: logs[key] for key in ("loss", "grad_norm") if key in logs}
        finite = {key: value is not None and math.isfinite(value) for key, value in values.items()}
        self._not_finite = 0 if all(finite.values()) else self._not_finite + 1

        if "reward" in logs:
            self._batch, self._completion_ids = logs, completion_ids
            correct, fit = logs.get("rewards/correct/mean"), logs.get("rewards/fidelity/mean")
            if correct is not None and fit is not None:
                self._correct.append(correct)
                self._fit.append(fit)

        scored = self._batch.get("reward") is not None
        self._shares["clipped"].append(self._batch.get("completions/clipped_ratio") or 0.0)
        self._shares["flat"].append(self._batch.get("frac_reward_zero_std") or 0.0 if scored else 1.0)
        moves = finite.get("grad_norm", True) and values.get("grad_norm") != 0
        self._shares["still"].append(float(not moves))

    def warning(self) -> str | None:
        """What a warning is due about; None for nothing. A fault that stays is told now and then."""
        steps = len(self._shares["flat"])
        lasting = [kind for kind in BOUNDS if steps >= WARNING_STEPS and self._lasts(kind, WARNING_STEPS)]
        if lasting:
            kind = lasting[0]  # the others follow from it
            if steps - self._warned_at.get(kind, -LIMIT_STEPS) < LIMIT_STEPS:
                return None
            self._warned_at[kind] = steps
            return f"the last {WARNING_STEPS} steps: {self._explain(kind, WARNING_STEPS)}"

        flat = statistics.fmean(self._shares["flat"][-ALARM_WINDOW:])
        if steps % ALARM_WINDOW == 0 and flat > FLAT_SHARE:
            return f"{flat:.0%} of the groups have no spread and teach nothing"
        return None

    def stop(self) -> str | None:
        """Why the run must end now; None where it may go on."""
        if self._not_finite >= NOT_FINITE_LIMIT:
            times = f"{NOT_FINITE_LIMIT} times in a row"
            return f"the loss or its gradient was not finite {times}; lower --learning_rate"
        if len(self._shares["flat"]) >= LIMIT_STEPS and (reason := self._nothing_taught(LIMIT_STEPS)):
            return f"the last {LIMIT_STEPS} steps taught nothing: {reason}"
        return correctness_falls(self._correct, self._fit)

    def verdict(self) -> str | None:
        """At the end of a run: why none of its steps taught anything; None where some did.

        Runs shorter than the limit are judged here.
        """
        steps = len(self._shares["flat"])
        reason = self._nothing_taught(steps) if steps else None
        return f"none of the {steps} steps taught anything: {reason}" if reason else None

    def _nothing_taught(self, steps: int) -> str | None:
        for kind in BOUNDS:
            if self._lasts(kind, steps) and (kind != "clipped" or self._masked):
                return self._explain(kind, steps)
        return None

    def _mean(self, kind: str, steps: int) -> float:
        return statistics.fmean(self._shares[kind][-steps:])

    def _lasts(self, kind: str, steps: int) -> bool:
        return self._mean(kind, steps) >= BOUNDS[kind]

    def _explain(self, kind: str, steps: int) -> str:
        """What was seen in these steps, its likely cause, and what to change."""
        share = f"{self._mean(kind, steps):.0%}"
        if kind == "clipped":
            taught = " and are masked" if self._masked else ""
            cut = f"{share} of the completions were cut at --max_completion_length {self._budget}{taught}"
            return f"{cut}; {self._why_clipped()}"
        if kind == "flat":
            flat = f"{share} of the groups had no spread: their completions earn the same"
            return f"{flat}; {self._why_flat()}"
        return (
            "the gradient was 0 or not finite; what earns more or less than its group was cut off"
            " (completions/clipped_ratio in metrics.jsonl), could not be scored (reward_errors), or does not"
            " depend on the weights that are trained"
        )

    def _why_clipped(self) -> str:
        """The end token or the budget: read from the completions at hand."""
        rows = [set(ids) for ids in self._completion_ids]
        counts = {name: sum(token in row for row in rows) for token, name in self._marks.items()}
        name = max(counts, key=lambda name: counts[name], default=None)
        if name is not None and counts[name] > len(rows) / 2:
            return (
                f"{counts[name] / len(rows):.0%} contain {name}, which is none of the model's ends"
                f" ({self._ends}): if its turns end there, add it to eos_token_id in its"
                " generation_config.json, else raise --max_completion_length"
            )
        longest = self._batch.get("completions/max_terminated_length")
        if longest:
            return f"the longest that ended has {longest:.0f} tokens: raise --max_completion_length"
        return (
            f"none wrote an end ({self._ends}): raise --max_completion_length,"
            " or take a model that ends its turns"
        )

    def _why_flat(self) -> str:
        """The rewards: none scored, none right, all right, or not told apart."""
        if self._batch.get("reward") is None:
            return "none could be scored, see reward_errors in metrics.jsonl"
        correct = self._batch.get("rewards/correct/mean")
        if correct is not None and correct <= NONE_RIGHT:
            return "none is right: take easier questions, a better --model_name or a larger --num_generations"
        if correct is not None and correct >= ALL_RIGHT:
            return "all are right: nothing is left to learn, take harder questions or fewer --max_steps"
        return "they do not differ in what --reward_weights pays: change it, or raise --grpo temperature"


def correctness_falls(
    correct: Sequence[float], fit: Sequence[float], window: int = ALARM_WINDOW
) -> str | None:
    """Says so when correctness fell by 3 points and more than its noise while fidelity rose.

    The last `window` steps are compared with the earlier window of the highest mean correctness. The noise
    is two standard errors of the difference between the two windows' means, from their steps' spread.

    Args:
        correct, fit: a mean in [0, 1] for each step.
    """
    if len(correct) < 2 * window:
        return None
    starts = range(0, len(correct) - 2 * window + 1)
    start = max(starts, key=lambda i: statistics.fmean(correct[i : i + window]))
    before, now = correct[start : start + window], correct[-window:]
    fall = statistics.fmean(before) - statistics.fmean(now)
    noise = 2 * math.sqrt((statistics.variance(before) + statistics.variance(now)) / window)
    rise = statistics.fmean(fit[-window:]) - statistics.fmean(fit[start : start + window])
    if fall < max(FALL, noise) or rise <= 0:
        return None
    return (
        f"correctness fell by {100 * fall:.1f} points while fidelity rose by {100 * rise:.1f}:"
        " the reward is being gamed; lower the weight of the memory parts or raise --beta"
    )
