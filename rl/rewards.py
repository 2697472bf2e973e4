"""The parts of the reward: is the answer right, well formed, and fit for this very student?

Every part is a function with TRL's signature: `completions` and the data set's columns as lists of equal
length in, one value a completion out, None where the part does not apply to the row. The columns are those
of `rl.prompts_dataset`. The parts that value fit are multiplied by `correct`, so that fit alone is worth
nothing: under `DEFAULT_WEIGHTS` a wrong answer reaches at most 0.1, while a correct one within the length
budget has at least 1 - 0.2 (margin) - 0.2 (repetition) = 0.6.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from cot.utils import scaffolding
from cot.utils.answers import score_answer
from cot.utils.equations import equations
from cot.utils.errors import UserError
from cot.utils.fidelity import copying, fidelity
from cot.utils.profiles import Profile

DEFAULT_WEIGHTS = {
    "correct": 1.0,
    "format": 0.1,
    "fidelity": 0.3,
    "memory_margin": 0.2,
    "scaffold_fit": 0.1,
    "overlong": 1.0,
    "repetition": 0.2,
}
# A tutor policy that is right half of the time hears little of fit beside the noise of being right or wrong;
# a correct generic answer still has at least 1 - 0.5 - 0.2 = 0.3, a wrong one at most 0.1.
TUTOR_WEIGHTS = DEFAULT_WEIGHTS | {"fidelity": 1.0, "memory_margin": 0.5}
MAX_COPYING = 0.2  # share of 8-grams from the memory above which fit counts nothing
SOFT_SHARE = 0.2  # of the completion's budget, at its end, over which `overlong` falls from 0 to -1
REPETITION_NGRAM = 3

_FINAL_LINE = re.compile(r"#### -?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")

Rewards = list[float | None]


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
    profile: Sequence[str | None],
    memory: Sequence[str],
    **_columns,
) -> Rewards:
    """`correct` x the share of the student's checkable wishes that the text meets (style and preferences).

    Range [0, 1]; 0 where more than `MAX_COPYING` of the text's 8-grams stand in the memory; None where the
    row has no profile to fit. Source: PrefEval's constraint satisfaction (Zhao et al. 2025,
    arXiv 2502.09597), checked by program.

    Args:
        profile: the student's profile as JSON.
        memory: the memory that stands in the prompt.

    >>> p = '{"student_id": "S", "grade_level": "2nd grade", "strengths": [], "challenges": [],'
    >>> p += ' "learning_preferences": [], "explanation_style": "equations_first"}'
    >>> fits_preferences(["4+3=7\\n#### 7", "So 4+3=7\\n#### 7"], ["#### 7"] * 2, [p, p], ["", ""])
    [1.0, 0.0]
    """
    rows = zip(completions, correct(completions, gold_solution), profile, memory, strict=True)
    return [
        None if student is None else right * (_copied(text, known) <= MAX_COPYING) * _fit(text, student)
        for text, right, student, known in rows
    ]


def memory_margin(
    completions: Sequence[str],
    gold_solution: Sequence[str],
    profile: Sequence[str | None],
    other_profiles: Sequence[Sequence[str]],
    memory: Sequence[str],
    **_columns,
) -> Rewards:
    """`correct` x (fit to this student - mean fit to other students): what is this student's alone.

    Range [-1, 1]; at most 0 where the text copies the memory (as in `fits_preferences`); None where the row
    has no profile or no other student. Needs no further generation. Source: memory specificity, as
    in `cot.utils.fidelity`, within one text.

    Args:
        other_profiles: profiles of three or four other students, as JSON.

    >>> p = '{"student_id": "S", "grade_level": "2nd grade", "strengths": [], "challenges": [],'
    >>> p += ' "learning_preferences": [], "explanation_style": "equations_first"}'
    >>> q = p.replace("equations_first", "guiding_questions")
    >>> memory_margin(["4+3=7\\n#### 7"], ["#### 7"], [p], [[q, p]], [""])  # 1 - (0 + 1) / 2
    [0.5]
    """
    rows = zip(completions, correct(completions, gold_solution), profile, other_profiles, memory, strict=True)
    margins: Rewards = []
    for text, right, student, others, known in rows:
        if student is None or not others:
            margins.append(None)
            continue
        margin = _fit(text, student) - sum(_fit(text, other) for other in others) / len(others)
        margins.append(right * (min(margin, 0.0) if _copied(text, known) > MAX_COPYING else margin))
    return margins


def scaffold_fit(
    completions: Sequence[str],
    gold_solution: Sequence[str],
    profile: Sequence[str | None],
    mastery: Sequence[float | None],
    steps: Sequence[int],
    **_columns,
) -> Rewards:
    """`correct` x (1 - min(1, |n - target| / target)) x share of the equations that are valid.

    n counts distinct valid equations; the target is the gold solution's steps, one more where the student
    has not mastered the skill, and one more where the style asks for a check. Range [0, 1]; 0 without an
    equation; None where the row has no profile or the skill's mastery is unknown.

    Args:
        mastery: P(known) of the exercise's skill, in [0, 1].
        steps: calculations in the gold solution.

    >>> p = '{"student_id": "S", "grade_level": "2nd grade", "strengths": [], "challenges": [],'
    >>> p += ' "learning_preferences": [], "explanation_style": "equations_first"}'
    >>> texts = ["4+3=7\\n#### 7", "4+3=7\\n7-3=4\\n#### 7"]
    >>> scaffold_fit(texts, ["#### 7"] * 2, [p, p], [0.3, 0.3], [1, 1])  # target 2: 1 - 1/2, and 1
    [0.5, 1.0]
    """
    rows = zip(completions, correct(completions, gold_solution), profile, mastery, steps, strict=True)
    scores: Rewards = []
    for text, right, student, known, gold_steps in rows:
        if student is None or known is None:
            scores.append(None)
            continue
        found = equations(text)
        valid = [equation.key for equation in found if equation.valid]
        target = scaffolding.scaffold_target(gold_steps, known, _parse(student).explanation_style)
        fit = scaffolding.scaffold_fit(len(set(valid)), target)
        scores.append(right * fit * len(valid) / len(found) if found else 0.0)
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


def reward_parts(names: Sequence[str], max_completion_length: int) -> dict[str, Callable[..., Rewards]]:
    """The functions of the named parts.

    `overlong` and `repetition` are TRL's: 0 up to 80 % of the budget, then falling to -1 at its end (DAPO,
    arXiv 2503.14476, equation 13); minus the share of repeated token 3-grams (arXiv 2502.03373, appendix
    C.2).
    """
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    soft_tokens = max(1, round(SOFT_SHARE * max_completion_length))
    parts = {
        "correct": correct,
        "format": well_formed,
        "fidelity": fits_preferences,
        "memory_margin": memory_margin,
        "scaffold_fit": scaffold_fit,
        "overlong": get_soft_overlong_punishment(max_completion_length, soft_tokens),
        "repetition": get_repetition_penalty_reward(REPETITION_NGRAM, -1.0),
        "coin": coin,
    }
    return {name: parts[name] for name in names}


# Several parts ask the same of a text, and the texts of a group are often equal: each is computed once.
@lru_cache(maxsize=8192)
def _right(text: str, gold_solution: str) -> float:
    return float(score_answer(text, gold_solution).correct)


@lru_cache(maxsize=8192)
def _fit(text: str, profile: str) -> float:
    return fidelity(text, _parse(profile))


@lru_cache(maxsize=8192)
def _copied(text: str, memory: str) -> float:
    return copying(text, memory)


@lru_cache(maxsize=1024)
def _parse(profile: str) -> Profile:
    return Profile.model_validate_json(profile)
