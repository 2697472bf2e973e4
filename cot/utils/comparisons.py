"""What a run's records show: arms and policies in pairs, fit to the right student, adaptation, verdicts.

A comparison pairs two sides answer by answer: the same student, question, temperature and random numbers.
Its intervals and tests are over clusters (`clusters.py`), as are all others here.
Nothing here may enter a reward, but that `memory_margin` rewards specificity within one text.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from cot.utils.clusters import OF_THE_STUDENT, Sample, effect_of, mean_of, observe
from cot.utils.fidelity import checkable_wishes, has_wishes, share_met
from cot.utils.manners import AMOUNT
from cot.utils.model_names import BASE
from cot.utils.stats import (
    Interval,
    cosine_distances,
    fisher_z,
    holm,
    mcnemar_exact,
    mean_interval,
    permutation_test,
    spearman,
)
from cot.utils.students import Profile
from cot.utils.tables import Records, Table, align, group, number_names, usable

METRICS = (
    "correct",
    "fidelity",
    "support_fit",
    "equation_validity",
    "prerequisite_coverage",
    "over_explaining",
    "semantic_similarity",
    "copying",
    "base_nll",
    "output_tokens",
)
JUDGED = {"correct": "accuracy", "fidelity": "fidelity"}  # that a verdict looks at, and their names
LEAST_PAIRS = 20  # a handful of alike answers would give an interval without width
LEAST_CLUSTERS = 10  # templates or questions: fewer cannot speak for the others
LEAST_LEVELS = 5  # students or training seeds, where Student's t is over them alone
MARGIN = 0.05  # of accuracy and fidelity: a gain below five points is none worth having
ALPHA = 0.05
YES, NO, UNDECIDED = "yes", "no", "undecided"
RESAMPLED = 1  # the sample beside sample 0 that adaptivity compares with


def compare_all(records: Records, policies: Sequence[str], arms: Sequence[str]) -> list[dict]:
    """All comparisons that a run has both sides for.

    `memory`: within a policy own memory against every other arm, and every other arm against none.
    `training`: each trained policy against the base, and against each other trained one, with own memory and
    without; and a trained one with own memory against another without, so that each can be prompted as it was
    trained. `interaction`: what own memory gains over none in a trained policy, less what it gains in the
    base.

    Returns:
        For each `kind, policy, arm, reference_policy, reference_arm, n` distinct pairs, `clusters` (questions
        or templates), `reference_right` of the pairs, `broken` and `repaired` counts, `breakage` = broken /
        reference right and `repair` = repaired / reference wrong (PERG, arXiv 2509.19358), and `metrics`: for
        each metric `n, mean, low, high` of the difference, `p` and `p_holm`, adjusted over the comparison's
        metrics.
    """
    by_side = group(records, "policy", "memory_arm")
    trained = [policy for policy in policies if policy != BASE]

    sides = [("memory", (name, "own"), (name, arm)) for name in policies for arm in arms if arm != "own"]
    sides += [
        ("memory", (name, arm), (name, "none"))
        for name in policies
        for arm in arms
        if arm not in ("own", "none")
    ]
    pairs = [(policy, BASE) for policy in trained]
    pairs += [(first, second) for place, first in enumerate(trained) for second in trained[place + 1 :]]
    sides += [("training", (first, arm), (second, arm)) for first, second in pairs for arm in ("own", "none")]
    sides += [
        ("training", (one, "own"), (other, "none")) for one in trained for other in trained if one != other
    ]

    comparisons = [
        {"kind": kind, **_named(one, other), **compare(by_side[one], by_side[other])}
        for kind, one, other in sides
        if one in by_side and other in by_side
    ]
    if {"own", "none"} <= set(arms):
        comparisons += [_interaction(by_side, policy) for policy in trained if (BASE, "own") in by_side]
    return comparisons


def compare(one: Records, other: Records) -> dict:
    """Two sides, cell by cell: counts, breakage, repair, and the metrics of `compare_all`."""
    sides = align(one, other)
    pairs = observe(*sides)
    first, second = (side.values("correct") for side in pairs.sides)
    repaired, broken = int((first > second).sum()), int((second > first).sum())
    n, right = len(pairs), int(second.sum())

    metrics = _test_metrics(pairs, observe(*sides, by_student=True), signs=(1, -1))
    if n and pairs.clusters == n:  # each question once: the exact test
        metrics["correct"]["p"] = mcnemar_exact(repaired, broken)
    return {
        "n": n,
        "clusters": pairs.clusters,
        "reference_right": right,
        "broken": broken,
        "repaired": repaired,
        "breakage": broken / right if right else None,
        "repair": repaired / (n - right) if n > right else None,
        "metrics": _adjusted(metrics),
    }


def decide(
    effect: Mapping | None, above: float = 0.0, below: float = MARGIN, least: int = LEAST_PAIRS
) -> str:
    """yes, no or undecided: THE rule of every verdict.

    Args:
        effect: `n`, the 95 % interval `low`, `high`; `clusters` where the interval is over questions or
            templates, and `p_holm` where there is a test.
        above: yes where the whole interval lies above it, and the test, if any, has p < 0.05.
        below: no where the whole interval lies below it.
        least: observations below which nothing is decided; nor is it below `LEAST_CLUSTERS`.

    >>> spans = (0.01, 0.2), (-0.2, 0.04), (-0.1, 0.2)
    >>> [decide({"n": 99, "low": low, "high": high}) for low, high in spans]
    ['yes', 'no', 'undecided']
    >>> decide({"n": 5, "low": 0.1, "high": 0.2})  # too few
    'undecided'
    >>> decide({"n": 400, "clusters": 5, "low": 0.1, "high": 0.2})  # 400 answers to five questions
    'undecided'
    """
    if effect is None or effect["low"] is None or effect["n"] < least:
        return UNDECIDED
    if effect.get("clusters") is not None and effect["clusters"] < LEAST_CLUSTERS:
        return UNDECIDED
    if effect["low"] > above:
        return YES if (effect.get("p_holm") or 0.0) < ALPHA else UNDECIDED
    return NO if effect["high"] < below else UNDECIDED


def decide_all(effects: Sequence[Mapping]) -> str:
    """One verdict from the effects on accuracy and fidelity.

    Yes where one of them says yes and no interval lies below 0, no where all say no, else undecided.
    """
    found = [decide(effect) for effect in effects]
    harmed = any(effect["high"] is not None and effect["high"] < 0 for effect in effects)
    if YES in found and not harmed:
        return YES
    return NO if set(found) == {NO} else UNDECIDED


def mark_changes(records: Records, key: str, was_right: bool) -> None:
    """Fills in, in place, whether an answer's correctness differs from that of the first one without memory.

    Only where that one, of the same policy, question, student and temperature, is right, or wrong.

    Args:
        key: of the records; `broken` is what was right and is wrong.
    """
    cells = group(usable(records), "policy", "temperature", "question_id", "student_id")
    for answers in cells.values():
        first = [r["correct"] for r in answers if r["memory_arm"] == "none" and r["sample"] == 0]
        if was_right in first:
            for record in answers:
                record[key] = record["correct"] != was_right


def judge_fits(records: Records, profiles: Mapping[str, Profile]) -> list[dict]:
    """How well each text of one policy and arm fits its student, beside the others' texts and students.

    Returns:
        For each record `specificity`: fidelity to its student minus the mean fidelity to that student of the
        texts for others on the same question and temperature, in [-1, 1], None without another text; and
        from the fidelity of the text to all students `identification`, 1 where its own student's is the
        highest, and `reciprocal_rank`. Ties share the credit: among k best-fitting students each has 1/k of a
        hit, and a tied student's rank is the mean of the ranks that the tie covers. All are None for a
        student who has no wishes.
    """
    wishes = {student: checkable_wishes(profile) for student, profile in profiles.items()}
    wishes = {student: named for student, named in wishes.items() if named}
    alike = Counter(wishes.values())  # students with the same wishes fit a text alike

    @cache
    def fit_all(met: tuple[str, ...]) -> dict[tuple[str, ...], float]:
        """Of texts that meet these checks, the fit to each of the wishes."""
        return {named: share_met(named, met) for named in alike}

    @cache
    def rank(met: tuple[str, ...], named: tuple[str, ...]) -> dict[str, float]:
        fits = fit_all(met)
        better = sum(count for judge, count in alike.items() if fits[judge] > fits[named])
        tied = sum(count for judge, count in alike.items() if fits[judge] == fits[named])  # itself included
        return {
            "identification": 0.0 if better else 1.0 / tied,
            "reciprocal_rank": 1.0 / (better + (tied + 1) / 2),
        }

    texts = [tuple(record["checks_met"]) for record in records]
    by_question: dict[tuple, list[tuple]] = defaultdict(list)
    for record, met in zip(records, texts, strict=True):
        answer = record["student_id"], fit_all(met)
        by_question[record["question_id"], record["temperature"]].append(answer)

    judged = []
    for record, met in zip(records, texts, strict=True):
        student = record["student_id"]
        if student not in wishes:
            judged.append(dict.fromkeys(("specificity", "identification", "reciprocal_rank")))
            continue
        named = wishes[student]
        answers = by_question[record["question_id"], record["temperature"]]
        others = [fits[named] for other, fits in answers if other != student]
        specificity = fit_all(met)[named] - statistics.fmean(others) if others else None
        judged.append({"specificity": specificity, **rank(met, named)})
    return judged


def fit_to_students(records: Records, profiles: Mapping[str, Profile]) -> tuple[Interval, dict]:
    """Memory specificity, the main claim, and profile identification, over sample 0 of each cell.

    Returns:
        The mean specificity with its interval over clusters, `{n, mean, low, high}`; and over the
        students that the records speak of, `{n, top1, mrr, chance}`, where a text that is the same for all
        has exactly the chance, 1 / students.
    """
    judges = {student for student, profile in profiles.items() if has_wishes(profile)}
    valid = Table.of(usable(records))
    first = valid.take(
        [place for place, r in enumerate(valid) if r["sample"] == 0 and r["student_id"] in judges]
    )
    students = sorted({record["student_id"] for record in first})
    judged = judge_fits(first, {student: profiles[student] for student in students})
    first.add("specificity", [fit["specificity"] for fit in judged])
    return mean_of(observe(first, by_student=True), "specificity"), {
        "n": len(first),
        "top1": statistics.fmean(fit["identification"] for fit in judged) if judged else None,
        "mrr": statistics.fmean(fit["reciprocal_rank"] for fit in judged) if judged else None,
        "chance": 1 / len(students) if students else None,
    }


def adaptivity(records: Records, embedder) -> dict[str, dict]:
    """How much further one policy's texts move when the memory is exchanged than when sampled again.

    T = mean distance(own, ablated) - mean distance(own, its own resample), with the resample's random
    numbers in the ablated text. Where the memory does not matter, the two are alike, and their labels are
    swapped at random, question by question: cells of one question share random numbers, and without memory
    the text itself. Only cells with a temperature above 0 and two samples count.

    Returns:
        By ablated arm `n, statistic, p, p_holm`, and `same_prompt_share`, of the moments at which its prompt
        is the own memory's.

    Source: Borchers and Shou 2025 (arXiv 2504.05570), on our distances.
    """
    cells = {
        (r["memory_arm"], r["student_id"], r["question_id"], r["temperature"], r["sample"]): r
        for r in usable(records)
    }
    own = [key[1:4] for key in cells if key[0] == "own" and key[4] == 0]
    found = {}
    for arm in dict.fromkeys(record["memory_arm"] for record in records if record["memory_arm"] != "own"):
        pairs = [(cells["own", *cell, 0], cells.get((arm, *cell, 0))) for cell in own]
        same = [one["prompt"] == other["prompt"] for one, other in pairs if other]

        # three texts a cell: own, own sampled again, ablated
        sides = ("own", 0), ("own", RESAMPLED), (arm, RESAMPLED)
        triples = [
            [cells.get((side, *cell, sample)) for side, sample in sides] for cell in own if cell[2] > 0
        ]
        triples = [triple for triple in triples if None not in triple]
        triples = [triple for triple in triples if all(r["generated_text"].strip() for r in triple)]
        first, again, ablated = (
            embedder.encode([triple[place]["generated_text"] for triple in triples]) for place in range(3)
        )

        moved = cosine_distances(first, ablated) - cosine_distances(first, again)  # (N,)
        found[arm] = permutation_test(moved, number_names([own["question_id"] for own, *_ in triples]))
        found[arm]["same_prompt_share"] = statistics.fmean(same) if same else None
    return _adjusted(found)


def progress_series(records: Records) -> dict[str, tuple[list[float], list[float]]]:
    """By student, mastery and support at each moment, in order.

    Support is the mean over samples of the level, 0 for brief to 2 for worked out. Moments of a skill never
    practised have no mastery and are left out, and so are texts that show too few steps to have a level.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}
    practised = [record for record in usable(records) if record["mastery"] is not None and record["support"]]
    for (student, _), rows in sorted(group(practised, "student_id", "moment").items()):
        mastery, support = found.setdefault(student, ([], []))
        mastery.append(rows[0]["mastery"])
        support.append(statistics.fmean(AMOUNT[row["support"]] for row in rows))
    return found


def track_progress(
    own: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    control: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> dict:
    """Spearman correlation of mastery and support over time, per student, and over students.

    A policy that adapts gives less support the better the student knows the skill: a negative correlation.
    A control that was shown the student's memory of another moment cannot know how far the student is.

    Args:
        own: by student, mastery and support at each moment, with the student's memory of that moment.
        control: the same with the memory of another moment.

    Returns:
        `n` students; `mean` correlation with `low` and `high`, through Fisher's z over students and back;
        `by_student`; `versus_time_shuffled`, `n, mean, low, high` of the paired difference of z (own -
        control), None without a control.
    """
    by_student = {student: spearman(*series) for student, series in own.items()}
    found = {student: fisher_z(rho) for student, rho in by_student.items() if rho is not None}
    interval = mean_interval(list(found.values()))

    versus = None
    if control is not None:
        others = {student: spearman(*series) for student, series in control.items()}
        versus = mean_interval(
            [z - fisher_z(others[student]) for student, z in found.items() if others.get(student) is not None]
        )
    back = {
        key: None if interval[key] is None else math.tanh(interval[key]) for key in ("mean", "low", "high")
    }
    return {"n": interval["n"], **back, "by_student": by_student, "versus_time_shuffled": versus}


def _named(one: tuple[str, str], other: tuple[str, str]) -> dict:
    return {"policy": one[0], "arm": one[1], "reference_policy": other[0], "reference_arm": other[1]}


def _interaction(by_side: Mapping[tuple, Records], policy: str) -> dict:
    """(own - none) of the trained policy minus (own - none) of the base, cell by cell."""
    sides = align(*(by_side[name, arm] for name in (policy, BASE) for arm in ("own", "none")))
    texts = observe(*sides)
    metrics = _test_metrics(texts, observe(*sides, by_student=True), signs=(1, -1, -1, 1))
    named = _named((policy, "own - none"), (BASE, "own - none"))
    counts = {"n": len(texts), "clusters": texts.clusters}
    return {"kind": "interaction", **named, **counts, "metrics": _adjusted(metrics)}


def _test_metrics(texts: Sample, by_student: Sample, signs: Sequence[int]) -> dict[str, dict]:
    return {name: effect_of(by_student if name in OF_THE_STUDENT else texts, name, signs) for name in METRICS}


def _adjusted(tests: dict[str, dict]) -> dict[str, dict]:
    """The tests with `p_holm`, None where there is no p."""
    adjusted = iter(holm([test["p"] for test in tests.values() if test["p"] is not None]))
    for test in tests.values():
        test["p_holm"] = None if test["p"] is None else next(adjusted)
    return tests
