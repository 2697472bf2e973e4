"""What a student needs, inferred from what happened to it as well as that can be: the Bayes choice.

It knows how simulated students answer and learn (`rl/student_model.py`), which no policy does, but of the
student only what a memory may hold: exercises, manners, and whether the answers were right. A policy's
fidelity can be compared with what the same interactions allow.
"""

import math
from collections.abc import Sequence

from cot.utils.manners import support_target
from cot.utils.mastery import update_mastery
from cot.utils.students import Interaction, Profile
from cot.utils.textbook import Chapter
from rl.student_model import Needs, combinations, draw_parameters, odds_after


def likely_needs(profile: Profile, history: Sequence[Interaction], chapters: Sequence[Chapter]) -> Needs:
    """The most likely needs, each pair of a style and a hint as likely beforehand; the first among equals.

    Args:
        history: in time order.
        chapters: those of the history's exercises.
    """
    parameters = {chapter.id: draw_parameters(profile, chapter, rng=None) for chapter in chapters}
    return max(
        [*combinations("seen"), *combinations("unseen")],
        key=lambda needs: log_likelihood(needs, history, parameters),
    )


def log_likelihood(needs: Needs, history: Sequence[Interaction], parameters: dict) -> float:
    """Log P(answers | needs, manners) in nats: forward filtering over whether each skill is known.

    Args:
        parameters: by chapter, as the profile suggests them; the student's own lie within 20 %.
    """
    known: dict[str, float] = {}  # P(known) by skill, given the answers so far
    mastery: dict[str, float] = {}
    total = 0.0
    for item in history:
        if item.manner is None:
            continue
        own = parameters[item.chapter]
        before = known.get(item.skill, own.p_init)
        is_supported = item.manner.support == support_target(mastery.get(item.skill))
        right_if_known, right_if_not, learning = odds_after(own, needs.met_by(item.manner), is_supported)

        if_known = right_if_known if item.correct else 1 - right_if_known
        if_not = right_if_not if item.correct else 1 - right_if_not
        evidence = before * if_known + (1 - before) * if_not
        total += math.log(evidence)

        after = before * if_known / evidence
        known[item.skill] = after + (1 - after) * learning
        mastery[item.skill] = update_mastery(mastery.get(item.skill, own.p_init), item.correct, own)
    return total
