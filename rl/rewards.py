"""The parts of the reward: is the answer right, well formed, and fit for this very student?

Every part is a function with TRL's signature: `completions` and the data set's columns (those of
`rl.moments.build_rows`) as lists of equal length in, one value a completion out, None where the part does not
apply to the row. The parts that value fit are multiplied by `correct`, so that fit alone is worth nothing:
under `DEFAULT_WEIGHTS` a wrong answer reaches at most 0.1, while a correct one within the length budget has
at least 1 - 0.2 (margin) - 0.2 (repetition) = 0.6. `RewardTable` computes all parts of a batch at once.
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from cot.utils.answers import score_answer
from cot.utils.equations import equations
from cot.utils.errors import TEXT_ERRORS, UserError
from cot.utils.fidelity import MAX_COPYING, copying, fidelity, names_student
from cot.utils.files import append_json_lines
from cot.utils.manners import support_fit, support_level, support_target
from cot.utils.students import Profile
from cot.utils.thinking import NO_BLOCK, Reasoning, split_thinking

DEFAULT_WEIGHTS = {
    "correct": 1.0,
    "format": 0.1,
    "fidelity": 0.3,
    "memory_margin": 0.2,
    "support_fit": 0.1,
    "overlong": 1.0,
    "repetition": 0.2,
}
# A tutor policy that is right half of the time hears little of fit beside the noise of being right or wrong;
# a correct generic answer still has at least 1 - 0.5 - 0.2 = 0.3, a wrong one at most 0.1.
TUTOR_WEIGHTS = DEFAULT_WEIGHTS | {"fidelity": 1.0, "memory_margin": 0.5, "support_fit": 1.0}
SOFT_SHARE = 0.2  # of the completion's budget, at its end, over which `overlong` falls from 0 to -1
REPETITION_NGRAM = 3
SAMPLE_ROWS = 8  # written of each process's sampled batch: one group of the usual size

_FINAL_LINE = re.compile(r"#### -?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")

Rewards = list[float | None]
Fit = Callable[[str, str], float]  # (text, student_id) to the share of the student's wishes that it meets


def correct(completions: Sequence[str], gold_solution: Sequence[str], **_columns) -> Rewards:
    """1 where the canonical scorer finds the gold answer, else 0; conflicting final answers are wrong.

    Range {0, 1}. Source: binary outcome reward, Shao et al. 2024 (arXiv 2402.03300), section 4.

    >>> correct(["4+3=7\\n#### 7", "#### 7\\n#### 8", "#### 8"], ["#### 7"] * 3)
    [1.0, 0.0, 0.0]
    """
    rows = zip(completions, gold_solution, strict=True)
    return [_right(text, gold) for text, gold in rows]


def well_formed(completions: Sequence[str], **_columns) -> Rewards:
    """1 where the text has exactly one `####`, on its last line, followed by one number; else 0.

    Range {0, 1}. Source: GSM8K's answer format, Cobbe et al. 2021 (arXiv 2110.14168).

    >>> well_formed(["4+3=7\\n#### 7", "#### 7\\nDone.", "#### 7\\n#### 7", "7"])
    [1.0, 0.0, 0.0, 0.0]
    """
    return [
        float(text.count("####") == 1 and bool(_FINAL_LINE.fullmatch(text.rstrip().rpartition("\n")[2])))
        for text in completions
    ]


def fits_preferences(
    completions: Sequence[str],
    gold_solution: Sequence[str],
    fit_to: Sequence[str | None],
    memory: Sequence[str],
    fit: Fit,
    **_columns,
) -> Rewards:
    """`correct` x the share of the student's checkable wishes that the text meets (style and preferences).

    Range [0, 1]; 0 where more than `MAX_COPYING` of the text's 8-grams stand in the memory; None where the
    row is not judged for fit. Source: PrefEval's constraint satisfaction (Zhao et al. 2025,
    arXiv 2502.09597), checked by program.

    Args:
        fit_to: the student's id, None where the row is not judged for fit.
        memory: the memory that stands in the prompt.

    >>> fit = {"S1": 0.5, "S2": 1.0}
    >>> texts = ["4+3=7\\n#### 7", "4+3=8\\n#### 8"]
    >>> fits_preferences(texts, ["#### 7"] * 2, ["S1", "S2"], ["", ""], lambda text, student: fit[student])
    [0.5, 0.0]
    """
    rows = zip(completions, correct(completions, gold_solution), fit_to, memory, strict=True)
    return [
        None if student is None else right * (_copied(text, shown) <= MAX_COPYING) * fit(text, student)
        for text, right, student, shown in rows
    ]


def memory_margin(
    completions: Sequence[str],
    gold_solution: Sequence[str],
    fit_to: Sequence[str | None],
    other_students: Sequence[Sequence[str]],
    memory: Sequence[str],
    fit: Fit,
    **_columns,
) -> Rewards:
    """`correct` x (fit to this student - mean fit to other students): what is this student's alone.

    Range [-1, 1]; at most 0 where the text copies the memory (as in `fits_preferences`); None where the row
    is not judged for fit or there is no other student. Needs no further generation. Source: memory
    specificity (`cot.utils.comparisons`), within one text.

    Args:
        other_students: ids of three or so others.

    >>> fit = {"S1": 1.0, "S2": 0.0, "S3": 1.0}
    >>> rows = {"gold_solution": ["#### 7"], "fit_to": ["S1"], "other_students": [["S2", "S3"]]}
    >>> memory_margin(["#### 7"], memory=[""], fit=lambda text, student: fit[student], **rows)
    [0.5]
    """
    rights = correct(completions, gold_solution)
    margins: Rewards = []
    for text, right, student, others, shown in zip(
        completions, rights, fit_to, other_students, memory, strict=True
    ):
        if student is None or not others:
            margins.append(None)
            continue
        margin = fit(text, student) - sum(fit(text, other) for other in others) / len(others)
        margins.append(right * (min(margin, 0.0) if _copied(text, shown) > MAX_COPYING else margin))
    return margins


def gives_support(
    completions: Sequence[str],
    gold_solution: Sequence[str],
    fit_to: Sequence[str | None],
    mastery: Sequence[float | None],
    steps: Sequence[int],
    **_columns,
) -> Rewards:
    """`correct` x (the level of support is the one that the student's mastery asks for) x share of the
    equations that are valid.

    Range [0, 1]; 0 without an equation; None where the row is not judged for fit or the skill's mastery is
    unknown. No half reward for a level beside the right one: it would pay one level for every student.

    Args:
        mastery: P(known) of the exercise's skill, in [0, 1].
        steps: calculations in the gold solution.

    >>> rows = {"gold_solution": ["#### 7"] * 2, "fit_to": ["S1"] * 2, "steps": [1, 1]}
    >>> gives_support(["4+3=7\\n#### 7"] * 2, mastery=[0.97, 0.5], **rows)
    [1.0, 0.0]
    """
    rights = correct(completions, gold_solution)
    scores: Rewards = []
    for text, right, student, p_known, gold_steps in zip(
        completions, rights, fit_to, mastery, steps, strict=True
    ):
        if student is None or p_known is None:
            scores.append(None)
            continue
        found = equations(text)
        is_fit = support_fit(support_level(text, gold_steps), support_target(p_known))
        valid = sum(equation.valid for equation in found)
        scores.append(right * is_fit * valid / len(found) if found else 0.0)
    return scores


def coin(completions: Sequence[str], **_columns) -> Rewards:
    """0 or 1 by the toss of a coin, whatever the text: a control, for what training alone changes.

    Range {0, 1}. Source: Shao et al. 2025, Spurious rewards (arXiv 2506.10947).
    """
    return [float(random.random() < 0.5) for _ in completions]


def parse_weights(text: str) -> dict[str, float]:
    """`correct=1,format=0.1` as a dictionary; parts that are not named are off.

    Raises:
        UserError: an unknown part, a value that is no finite number of at least 0, or no part at all.

    >>> parse_weights("correct=1, format=0.1")
    {'correct': 1.0, 'format': 0.1}
    """
    weights = {}
    for entry in text.split(","):
        name, _, value = (side.strip() for side in entry.partition("="))
        if name not in (*DEFAULT_WEIGHTS, "coin") or name in weights:
            raise UserError(
                f"--reward_weights {entry.strip()}: expected {', '.join(DEFAULT_WEIGHTS)} or coin, each once"
            )
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < 1e6:
            raise UserError(f"--reward_weights {entry.strip()}: expected {name}=<number of at least 0>")
    if not any(weights.values()):
        raise UserError(f"--reward_weights {text}: every part has weight 0")
    return weights


def reward_parts(
    names: Sequence[str], profiles: Mapping[str, Profile], max_completion_length: int
) -> dict[str, Callable[..., Rewards]]:
    """The functions of the named parts.

    `overlong` and `repetition` are TRL's: 0 up to 80 % of the budget, then falling to -1 at its end (DAPO,
    arXiv 2503.14476, equation 13); minus the share of repeated token 3-grams (arXiv 2502.03373, appendix
    C.2).

    Args:
        profiles: of all students that a row names.
        max_completion_length: in tokens.
    """
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    @lru_cache(maxsize=8192)  # the texts of a group are often equal, and two parts ask the same
    def fit(text: str, student_id: str) -> float:
        return fidelity(text, profiles[student_id])

    soft_tokens = max(1, round(SOFT_SHARE * max_completion_length))
    parts: dict[str, Callable[..., Rewards]] = {
        "correct": correct,
        "format": well_formed,
        "fidelity": partial(fits_preferences, fit=fit),
        "memory_margin": partial(memory_margin, fit=fit),
        "support_fit": gives_support,
        "overlong": get_soft_overlong_punishment(max_completion_length, soft_tokens),
        "repetition": get_repetition_penalty_reward(REPETITION_NGRAM, -1.0),
        "coin": coin,
    }
    return {name: parts[name] for name in names}


@lru_cache(maxsize=8192)
def _right(text: str, gold_solution: str) -> float:
    return float(score_answer(text, gold_solution).correct)


@lru_cache(maxsize=8192)
def _copied(text: str, memory: str) -> float:
    return copying(text, memory)


class RewardTable:
    """All parts' values for the batch at hand: one bad row costs that row, and what was paid stays readable.

    TRL asks one function after the other. The first call computes every part for every row, the others look
    theirs up. A part that raises on a row makes all parts of that row None, so that TRL leaves the row out.

    Attributes:
        completion_ids: token ids of the batch at hand.
        errors: rows left out so far because a part raised.
        last_error: what it raised last.
        seconds: spent on rewards so far.

    Args:
        parts: reward functions by name.
        samples: file for sampled completions of all processes, None for none.
        sample_every: steps between two samples.
        reasoning: of a thinking model: every part sees what follows it, and nothing where it was cut off.
        writes: whether this process writes the file, as one of them does.
    """

    def __init__(
        self,
        parts: dict[str, Callable[..., Rewards]],
        samples: Path | None = None,
        sample_every: int = 10,
        writes: bool = True,
        reasoning: Reasoning = NO_BLOCK,
    ) -> None:
        self._parts = parts
        self._samples, self._sample_every, self._writes = samples, sample_every, writes
        self._reasoning = reasoning
        self._answers: list[str] = []  # of the batch at hand
        self._batch: Sequence[str] | None = None  # held, so that its identity cannot be another batch's
        self._columns: dict[str, Rewards] = {}
        self.completion_ids: Sequence[Sequence[int]] = ()
        self.errors, self.last_error, self.seconds = 0, "", 0.0

    def functions(self) -> list[Callable[..., Rewards]]:
        """One reward function a part, in the parts' order; TRL names its metrics by `__name__`."""

        def column_of(name: str) -> Callable[..., Rewards]:
            def column(**batch) -> Rewards:
                self._update(batch)
                return self._columns[name]

            column.__name__ = name
            return column

        return [column_of(name) for name in self._parts]

    def _update(self, batch: dict) -> None:
        """Computes the whole table when the batch is a new one."""
        if self._batch is batch["completions"]:
            return
        started = time.monotonic()
        self._fill(batch)
        self._batch, self.completion_ids = batch["completions"], batch.get("completion_ids", ())
        self._report(batch)
        self.seconds += time.monotonic() - started

    def _fill(self, batch: dict) -> None:
        columns = {key: values for key, values in batch.items() if isinstance(values, list)}
        self._answers = [self._answer(text) for text in batch["completions"]]
        columns["completions"] = self._answers
        table: list[dict[str, float | None]] = []
        for row in range(len(batch["completions"])):
            one = {key: [values[row]] for key, values in columns.items()}
            try:
                table.append({name: part(**one)[0] for name, part in self._parts.items()})
            except TEXT_ERRORS as error:
                self.errors += 1
                self.last_error = f"{type(error).__name__}: {error}"
                table.append(dict.fromkeys(self._parts))
        self._columns = {name: [values[name] for values in table] for name in self._parts}

    def _answer(self, text: str) -> str:
        """What follows a completion's reasoning; empty where it was cut off."""
        block = self._reasoning
        _, answer, cut_off = split_thinking(text, block.end, block.begin, block.opened)
        return "" if cut_off else answer

    def _report(self, batch: dict) -> None:
        """Copying and naming as metrics of the step; now and then a group of completions as JSON lines."""
        texts, answers = batch["completions"], self._answers
        copied = [copying(text, memory) for text, memory in zip(answers, batch["memory"], strict=True)]
        rows = zip(answers, batch["student_id"], strict=True)
        named = [names_student(text, student, "") for text, student in rows]
        if "log_metric" in batch:
            batch["log_metric"]("copying", sum(copied) / len(copied))
            batch["log_metric"]("names_student", sum(named) / len(named))

        step = 1 + batch["trainer_state"].global_step if "trainer_state" in batch else 1
        if self._samples is None or (step - 1) % self._sample_every:
            return
        from accelerate.utils import gather_object

        fields = ("student_id", "memory_arm", "question_id", "gold_solution", "memory")
        records = []
        for row in range(min(SAMPLE_ROWS, len(texts))):
            record = {"step": step, **{field: batch[field][row] for field in fields}}
            record |= {"prompt": batch["prompts"][row], "completion": texts[row]}
            record["rewards"] = {name: values[row] for name, values in self._columns.items()}
            records.append(record | {"copying": copied[row]})
        records = gather_object(records)  # every process takes part
        if self._writes:
            append_json_lines(self._samples, records)
