"""How much support an explanation gives, and how much its student needs: three levels, checked by program.

worked_out  shows, beside the steps, another valid equation that confirms one of them
guided      the steps, and a reason ("because")
brief       the steps alone

A struggling student needs the first, one who has mastered the skill the last, whoever is between the second
(fading of worked examples: Renkl and Atkinson 2003; expertise reversal: Kalyuga et al. 2003).
"""

from cot.utils.equations import equations
from cot.utils.fidelity import check_at_end, reason_with_because
from cot.utils.mastery import DEFAULT_PARAMETERS, MASTERED_FROM
from cot.utils.students import SUPPORT_LEVELS, SupportLevel

AMOUNT = {level: amount for amount, level in enumerate(reversed(SUPPORT_LEVELS))}  # 0 for brief


def support_level(text: str, gold_steps: int) -> SupportLevel | None:
    """The level of an explanation's support; None where it shows fewer steps than the problem has.

    A check that a student's style asks for is no support: it is not counted.

    Args:
        gold_steps: calculations of the gold solution.

    >>> support_level("14+23=37 because both come together. See, 37-14=23.", 1)
    'worked_out'
    >>> support_level("14+23=37 because both come together.", 1), support_level("14+23=37 marbles.", 1)
    ('guided', 'brief')
    """
    shown = {equation.key for equation in equations(text) if equation.valid}
    beyond = len(shown) - check_at_end(text) - gold_steps
    if beyond < 0:
        return None
    if beyond > 0:
        return "worked_out"
    return "guided" if reason_with_because(text) else "brief"


def support_target(mastery: float | None) -> SupportLevel:
    """The level that a student needs who knows the skill with this probability; None for never practised.

    >>> [support_target(mastery) for mastery in (0.1, None, 0.5, 0.97)]
    ['worked_out', 'guided', 'guided', 'brief']
    """
    if mastery is None:
        return "guided"
    if mastery < DEFAULT_PARAMETERS.p_init:
        return "worked_out"
    return "brief" if mastery >= MASTERED_FROM else "guided"


def support_fit(level: SupportLevel | None, target: SupportLevel) -> float:
    """1 where the level is the one needed, else 0: one that is half right for every student shall not pay.

    >>> [support_fit(level, "worked_out") for level in ("worked_out", "guided", "brief", None)]
    [1.0, 0.0, 0.0, 0.0]
    """
    return float(level == target)
