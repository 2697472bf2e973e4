"""The questions of an evaluation, answered by a stated rule.

An effect is judged from its 95 % interval over students and questions: **yes** where the whole interval is
above 0 and the test, Holm-adjusted over the metrics, has p < 0.05; **no** where the whole interval lies below
0.05 (0.1 for a difference of Fisher's z), so that a gain worth having is excluded; **undecided** otherwise,
and with fewer than 20 pairs. A question that is asked of accuracy and fidelity is answered yes where one of
them says yes and neither interval lies below 0, no where both say no, and undecided otherwise.
"""

from collections.abc import Mapping, Sequence

from rl.policies import BASE

LEAST_PAIRS = 20  # a handful of alike answers would give an interval without width
MARGIN = 0.05  # of accuracy and fidelity: five points
PROGRESS_MARGIN = 0.1  # of the difference of Fisher's z
ALPHA = 0.05
JUDGED = {"correct": "accuracy", "fidelity": "fidelity"}
YES, NO, UNDECIDED = "yes", "no", "undecided"
RULE = __doc__.split("\n\n", 1)[1]


def decide(effect: Mapping | None, margin: float = MARGIN) -> str:
    """yes, no or undecided.

    Args:
        effect: `low`, `high`, the 95 % interval of a gain, and `p_holm` where there is a test.

    >>> [decide({"low": low, "high": high}) for low, high in ((0.01, 0.2), (-0.2, 0.04), (-0.1, 0.2))]
    ['yes', 'no', 'undecided']
    """
    if effect is None or effect["low"] is None:
        return UNDECIDED
    if effect["low"] > 0:
        return YES if (effect.get("p_holm") or 0.0) < ALPHA else UNDECIDED
    return NO if effect["high"] < margin else UNDECIDED


def decide_both(effects: Sequence[Mapping]) -> str:
    """One answer from the effects on accuracy and fidelity."""
    answers = [decide(effect) for effect in effects]
    harmed = any(effect["high"] is not None and effect["high"] < 0 for effect in effects)
    if YES in answers and not harmed:
        return YES
    return NO if set(answers) == {NO} else UNDECIDED


def answer_questions(
    tables: Mapping,
    comparisons: Sequence[dict],
    trained_with: Mapping[str, str | None],
    adaptive: Mapping[str, Mapping[str, dict]],
) -> list[dict]:
    """The mission's questions: `question, policy, answer, because`.

    Args:
        tables: the summary's `policies`.
        trained_with: by trained policy the memory arm of its training prompts; None where unknown.
        adaptive: the summary's `adaptivity`.
    """

    def find(kind, policy, arm, reference, reference_arm) -> dict | None:
        wanted = {"kind": kind, "policy": policy, "arm": arm}
        wanted |= {"reference_policy": reference, "reference_arm": reference_arm}
        return next((c for c in comparisons if wanted.items() <= c.items()), None)

    answers = []
    for policy in tables:
        found = find("memory", policy, "own", policy, "none")
        answers.append(_judge("Does memory help at inference?", policy, found))
    for policy in trained_with:
        found = find("training", policy, "own", BASE, "own")
        answers.append(_judge("Does training help?", policy, found))
    with_memory = [name for name, arm in trained_with.items() if arm == "own"]
    without = [name for name, arm in trained_with.items() if arm == "none"]
    question = "Does training with memory help more?"
    for policy in with_memory:
        for control in without:
            found = find("training", policy, "own", control, "own")
            found = found or _mirrored(find("training", control, "own", policy, "own"))
            answers.append(_judge(question, policy, found, f" (against {control}, trained without memory)"))
        if not without:
            because = "it takes a second policy, trained with `--memory none`."
            found = find("interaction", policy, "own - none", BASE, "own - none")
            if found:
                because += f" Memory gains more than in the base by: {_in_words(found)}."
            answers.append({"question": question, "policy": policy, "answer": UNDECIDED, "because": because})
    for policy in trained_with:
        progress = tables[policy].get("own", {}).get("progress")
        same = adaptive.get(policy, {}).get("time_shuffled", {}).get("same_prompt_share")
        answers.append(_judge_progress("Does it adapt as the student learns?", policy, progress, same))
    return answers


def _judge(question: str, policy: str, comparison: dict | None, note: str = "") -> dict:
    base = {"question": question, "policy": policy}
    if comparison is None or not comparison["n"]:
        return {**base, "answer": UNDECIDED, "because": "the arms or policies for it were not run."}
    if comparison["n"] < LEAST_PAIRS:
        because = f"{comparison['n']} pairs are too few; it takes {LEAST_PAIRS}."
        return {**base, "answer": UNDECIDED, "because": because}
    effects = [comparison["metrics"][name] for name in JUDGED]
    pairs = f"{comparison['n']} pairs{note}"
    because = f"{_in_words(comparison)}; {pairs}; breakage {show_percent(comparison.get('breakage'))},"
    because += f" repair {show_percent(comparison.get('repair'))}."
    return {**base, "answer": decide_both(effects), "because": because}


def _judge_progress(question: str, policy: str, progress: dict | None, same: float | None) -> dict:
    versus = (progress or {}).get("versus_time_shuffled")
    base = {"question": question, "policy": policy}
    if same == 1.0:
        because = "at no moment does the prompt hold anything that changes while the student learns:"
        because += " the memory is cut before it. Train and evaluate with more --memory_tokens."
        return {**base, "answer": UNDECIDED, "because": because}
    if not versus or versus["low"] is None:
        because = "no student has enough moments with varying support, or `time_shuffled` was not run."
        return {**base, "answer": UNDECIDED, "because": because}
    gain = {"low": -versus["high"], "high": -versus["low"]}  # support is to fall as mastery grows
    because = f"Spearman correlation of mastery and support {show_interval(progress, 'correlation')}"
    because += f" over {progress['n']} students; own against time-shuffled memory, difference of Fisher's z"
    because += f" {show_interval(versus, 'mean')} (n = {versus['n']}; negative is adaptive)."
    return {**base, "answer": decide(gain, PROGRESS_MARGIN), "because": because}


def _mirrored(comparison: dict | None) -> dict | None:
    """The same comparison seen from the other side."""
    if comparison is None:
        return None
    metrics = {
        name: {**m, "mean": _minus(m["mean"]), "low": _minus(m["high"]), "high": _minus(m["low"])}
        for name, m in comparison["metrics"].items()
    }
    return {"n": comparison["n"], "metrics": metrics}


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _in_words(comparison: dict) -> str:
    parts = []
    for name, label in JUDGED.items():
        metric = comparison["metrics"][name]
        p = "" if metric["p_holm"] is None else f", Holm p = {metric['p_holm']:.3f}"
        parts.append(f"{label} {show_interval(metric, 'mean')}{p} ({decide(metric)})")
    return "; ".join(parts)


def show_number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def show_percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def show_interval(found: Mapping, key: str, sign: bool = True) -> str:
    low, high = found["low"], found["high"]
    span = "" if low is None else f" [{show_number(low, sign=sign)}, {show_number(high, sign=sign)}]"
    return show_number(found[key], sign=sign) + span
