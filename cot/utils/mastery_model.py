"""Mastery fitted to real students: how likely the next answer in a skill is right, given all answers so far.

A file of `rl/fit_mastery.py` holds two predictors as plain numbers, and says which of them prompts show:

regression  logistic, over a student's counts of right and wrong answers in the skill and overall, ratings,
            last outcomes, and the steps since the skill was last practised
tracing     Bayesian knowledge tracing (`mastery.py`) with parameters of its own for each skill

The regression reads an answer through `AnswerTrace`, in fitting and in a prompt alike. It needs the order of
the answers and no times. What a tutor said is not read: only `skill` and `correct` are.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from cot.utils.errors import UserError
from cot.utils.files import dumps, read_json
from cot.utils.mastery import BKTParameters, Estimate, expect_right, mastery_by_skill
from cot.utils.students import END, Interaction, describe_error, in_time_order

NUMBERS = (
    *("wins", "fails", "wins_overall", "fails_overall", "answers_overall"),
    *("ability", "first_ability", "skill_ability"),
    *("residual", "recent_residual", "skill_residual", "first_residual"),
)
LAST, GAPS, RUNS = 4, 14, 20  # outcomes in a code; classes of steps since the skill, and of answers in a row
CODES = {"last_in_skill": 3**LAST, "last_overall": 3**LAST, "gap": GAPS, "run": RUNS}  # classes of each code
NOTHING_YET = (3**LAST - 1) // 2  # the code of `LAST` outcomes that are not there
FIRST_STEP, STEP_DECAY, LEAST_STEP = 0.8, 0.3, 0.08  # of a rating, by the answers that it rests on
SKILL_STEP = 0.35  # of a rating in one skill
FIRST_ANSWER_STEP, FIRST_ANSWER_DECAY = 0.5, 0.2  # of the rating from first answers alone
RECENT = 0.1  # weight of the newest answer in `recent_residual`


class AnswerTrace:
    """One student's answers so far, as the numbers that the regression reads before the next one.

    With r right and w wrong answers among n, and the residual of an answer being 1 or 0 minus the share of
    right answers in its skill:

    wins, fails, wins_overall, fails_overall, answers_overall   log(1 + r), log(1 + w), in the skill, overall;
                      log(1 + n)
    ability           Elo rating in logits: after an answer with error e = outcome - P it moves by
                      e max(0.08, 0.8 / (1 + 0.3 n)), where P = sigmoid(rating + the skill's log odds)
    first_ability     the same of the first answer in each skill alone, by 0.5 e / (1 + 0.2 of these)
    skill_ability     a rating within the skill, on top of `ability`, by 0.35 e
    residual          sum / (n + 5); `skill_residual` in the skill, `first_residual` of the first answers in
                      each skill, sum / (n + 3)
    recent_residual   mean with weights of 0.1 x 0.9 to the power of an answer's age

    and four classes: the last four outcomes in the skill, and overall, as digits to the base 3 (wrong, none,
    right), the newest first; 0 where the skill is new, else 1 + 2 log(1 + steps since), cut at 13; and the
    answers in a row that the skill has had by now, at most 19.

    Args:
        mean_right: share of right answers by skill.
        otherwise: the same of a skill that is not among them.

    Source: counts as in PFA (Pavlik, Cen and Koedinger 2009) and Best-LR (Gervet et al. 2020); ratings as in
    Pelánek 2016, "Applications of the Elo rating system in adaptive educational systems".
    """

    def __init__(self, mean_right: Mapping[str, float], otherwise: float) -> None:
        self._means, self._otherwise = mean_right, otherwise
        self._skills: dict[str, list] = {}  # wins, fails, code, last place, rating, residuals
        self._wins = self._fails = self._run = 0
        self._code = NOTHING_YET
        self._newest: str | None = None
        self._ability = self._first_ability = 0.0
        self._residuals = self._recent = self._first_residuals = 0.0

    def describe(self, skill: str) -> tuple[list[float], tuple[int, int, int, int]]:
        """The values of `NUMBERS` and the classes of `CODES`, before an answer in a skill."""
        log, there = math.log1p, self._skills.get(skill)
        answers = self._wins + self._fails
        wins, fails, code, place, rating, residuals = there or (0, 0, NOTHING_YET, 0, 0.0, 0.0)
        numbers = [
            *(log(wins), log(fails), log(self._wins), log(self._fails), log(answers)),
            *(self._ability, self._first_ability, rating),
            self._residuals / (answers + 5),
            self._recent,
            residuals / (wins + fails + 3),
            self._first_residuals / (len(self._skills) + 3),
        ]
        gap = 0 if there is None else 1 + min(GAPS - 2, int(2 * log(answers - place)))
        run = min(RUNS - 1, self._run) if skill == self._newest else 0
        return numbers, (code, self._code, gap, run)

    def add(self, skill: str, correct: bool) -> None:
        """Takes an answer in."""
        there, answers = self._skills.get(skill), self._wins + self._fails
        is_first = there is None
        if there is None:
            there = self._skills[skill] = [0, 0, NOTHING_YET, 0, 0.0, 0.0]
        mean = self._means.get(skill, self._otherwise)
        rated = self._ability + math.log(mean / (1 - mean))

        error = correct - _sigmoid(rated)
        there[4] += SKILL_STEP * (correct - _sigmoid(rated + there[4]))
        self._ability += error * max(LEAST_STEP, FIRST_STEP / (1 + STEP_DECAY * answers))
        residual = correct - mean
        self._residuals += residual
        self._recent += RECENT * (residual - self._recent)
        there[5] += residual
        if is_first:
            self._first_residuals += residual
            self._first_ability += error * FIRST_ANSWER_STEP / (1 + FIRST_ANSWER_DECAY * len(self._skills))

        outcome = 2 * correct * 3 ** (LAST - 1)
        there[2], self._code = outcome + there[2] // 3, outcome + self._code // 3
        there[0 if correct else 1] += 1
        there[3] = answers + 1
        self._wins, self._fails = self._wins + correct, self._fails + (not correct)
        self._run = self._run + 1 if skill == self._newest else 1
        self._newest = skill


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5)]


class SkillWeights(_Strict):
    """A skill's part of the regression, on top of what all skills share."""

    skill: str
    answers: int
    mean_right: Share
    intercept: float
    wins: float
    fails: float


class Regression(_Strict):
    """Weights: a logit is their sum over an answer's numbers and classes. `mean_right` is over all skills."""

    mean_right: Share
    intercept: float
    numbers: dict[str, float]
    last_in_skill: list[float]
    last_overall: list[float]
    gap: list[float]
    run: list[float]
    skills: list[SkillWeights]

    @model_validator(mode="after")
    def _check_lengths(self) -> "Regression":
        if set(self.numbers) != set(NUMBERS):
            raise ValueError(f"numbers: expected {', '.join(NUMBERS)}")
        for name, classes in CODES.items():
            if len(getattr(self, name)) != classes:
                raise ValueError(f"{name}: expected {classes} weights, got {len(getattr(self, name))}")
        return self


class SkillTracing(_Strict):
    """A skill's parameters of Bayesian knowledge tracing."""

    skill: str
    answers: int
    p_init: Probability
    p_transit: Probability
    p_slip: BelowHalf
    p_guess: BelowHalf

    @property
    def parameters(self) -> BKTParameters:
        return BKTParameters(self.p_init, self.p_transit, self.p_slip, self.p_guess)


class Tracing(_Strict):
    """Parameters for all skills taken as one, and for each."""

    pooled: SkillTracing
    skills: list[SkillTracing]


class MasteryModel(_Strict):
    """A file of `rl/fit_mastery.py`; what its keys mean is in rl/README.md."""

    schema_version: Literal[1] = 1
    predictor: Literal["regression", "tracing"]
    fitted_on: dict
    regression: Regression
    tracing: Tracing
    evaluation: dict | None = None
    _weights: dict[str, SkillWeights] = PrivateAttr()
    _parameters: dict[str, BKTParameters] = PrivateAttr()
    _means: dict[str, float] = PrivateAttr()

    def model_post_init(self, _context: Any) -> None:
        self._weights = {part.skill: part for part in self.regression.skills}
        self._means = {part.skill: part.mean_right for part in self.regression.skills}
        self._parameters = {part.skill: part.parameters for part in self.tracing.skills}

    @property
    def fingerprint(self) -> str:
        """20 hexadecimal digits over what decides the estimates."""
        content = self.model_dump(include={"predictor", "regression", "tracing"})
        return hashlib.sha256(dumps(content).encode()).hexdigest()[:20]

    def start(self) -> AnswerTrace:
        """A student without answers."""
        return AnswerTrace(self._means, self.regression.mean_right)

    def expect(self, trace: AnswerTrace, skill: str) -> float:
        """The regression's P(the next answer is right), if it is one in this skill."""
        fit, own = self.regression, self._weights.get(skill)
        numbers, codes = trace.describe(skill)
        logit = fit.intercept
        logit += sum(fit.numbers[name] * value for name, value in zip(NUMBERS, numbers, strict=True))
        logit += sum(getattr(fit, name)[code] for name, code in zip(CODES, codes, strict=True))
        if own is not None:
            logit += own.intercept + own.wins * numbers[0] + own.fails * numbers[1]
        return _sigmoid(logit)

    def estimate(
        self, interactions: Iterable[Interaction], half_life_days: float | None = None, as_of: str = END
    ) -> dict[str, Estimate]:
        """What to expect of the next answer in each practised skill, in the order of first practice.

        Args:
            interactions: of one student, in any order.
            half_life_days: of forgetting in tracing, as in `mastery.mastery_by_skill`. The regression has the
                steps since the last practice instead, and overlooks it.
            as_of: only what happened strictly earlier counts; `end` for all.
        """
        ordered = in_time_order(interactions, as_of)
        if self.predictor == "tracing":
            pooled, own = self.tracing.pooled.parameters, self._parameters
            known = mastery_by_skill(ordered, pooled, half_life_days, as_of, by_skill=own)
            return {
                skill: Estimate(expect_right(p, own.get(skill, pooled)), is_fitted=skill in own)
                for skill, p in known.items()
            }

        trace = self.start()
        for item in ordered:
            trace.add(item.skill, item.correct)
        practised = dict.fromkeys(item.skill for item in ordered)
        return {skill: Estimate(self.expect(trace, skill), skill in self._weights) for skill in practised}

    def mastery_by_skill(
        self, interactions: Iterable[Interaction], half_life_days: float | None = None, as_of: str = END
    ) -> dict[str, float]:
        """`Estimate.mastery` of each practised skill."""
        estimates = self.estimate(interactions, half_life_days, as_of)
        return {skill: estimate.mastery for skill, estimate in estimates.items()}


def load_mastery_model(path: Path | str | None) -> MasteryModel | None:
    """The model of a `--mastery_parameters` file; None for none.

    Raises:
        UserError: the file cannot be read, or is not one of `rl/fit_mastery.py`: the field is named.
    """
    if path is None:
        return None
    try:
        return MasteryModel.model_validate(read_json(Path(path)))
    except ValidationError as error:
        raise UserError(f"--mastery_parameters {path}: {describe_error(error)}") from error
    except UserError as error:
        raise UserError(f"--mastery_parameters {error}") from error
