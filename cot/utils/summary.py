"""What a run's records add up to: counts, accuracy and metrics with intervals, by memory arm and policy."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cot.utils.answers import majority_vote, pass_at_k, score_answer
from cot.utils.clusters import OF_THE_STUDENT, Sample, mean_of, observe, share_of
from cot.utils.comparisons import (
    compare_all,
    fit_to_students,
    progress_series,
    track_progress,
)
from cot.utils.fidelity import MAX_COPYING
from cot.utils.memory_arms import ARMS
from cot.utils.students import Profile
from cot.utils.tables import Records, Table, group, usable

SCORERS = {"canonical": "correct", "strict": "strict_correct", "flexible": "flexible_correct"}
METRICS = (
    "output_tokens",
    "perplexity",
    "mean_nll",
    "semantic_similarity",
    "reasoning_steps",
    "distinct_equations",
    "distinct_valid_equations",
    "equation_validity",
    "entity_overlap",
    "fidelity",
    "support_fit",
    "prerequisite_coverage",
    "over_explaining",
    "copying",
    "base_nll",
)
BRIEF = {"accuracy": "correct", "fidelity": "fidelity", "support_fit": "support_fit"}  # of a part's records
MANY_CUT = 0.2  # share of answers, above which being cut off, or unmarked, is worth a line
UNMARKED = ("last_number", None)  # marks of an answer that are none
COUNTED: dict[str, Callable[[dict], bool]] = {  # what a summary counts
    "truncated": lambda record: record["truncated"],
    "unparsed": lambda record: record["predicted_answer"] is None,
    "unmarked": lambda record: record["answer_mark"] in UNMARKED,
    "thinking_cut_off": lambda record: record.get("unparsed_reason") == "thinking_cut_off",
    "empty": lambda record: not record["generated_text"].strip(),
}
MAX_SHARE = 0.05  # of texts that copy, or name the student or grade, above which an alarm is raised


def summarize(records: Records, profiles: Mapping[str, Profile]) -> dict:
    """A sweep's `summary`; in a memory experiment also each arm's, and the arms in pairs.

    Args:
        records: of one temperature, or of all.
        profiles: by student id, what fit is judged against; empty in plain chain of thought.
    """
    records = Table.of(records)
    summary = describe(records)
    if profiles:
        arms = group(records, "memory_arm")
        present = [arm for arm in ARMS if arm in arms]
        summary["arms"] = {arm: describe_arm(arms[arm], profiles) for arm in present}
        policies = list(dict.fromkeys(record["policy"] for record in records))
        summary["comparisons"] = compare_all(records, policies, present)
        summary["leak_rate"] = leak_rate(arms.get("own", []))
    return summary


def describe_policies(records: Records, profiles: Mapping[str, Profile]) -> dict[str, dict]:
    """Each policy's arms; those of `own` with `progress`, the fit of support to mastery over time."""
    tables: dict[str, dict] = {}
    for policy, rows in group(records, "policy").items():
        arms = group(rows, "memory_arm")
        tables[policy] = {arm: describe_arm(arms[arm], profiles) for arm in ARMS if arm in arms}
        if "own" in arms:
            own = progress_series(arms["own"])
            control = progress_series(arms["time_shuffled"]) if "time_shuffled" in arms else None
            tables[policy]["own"]["progress"] = track_progress(own, control) if own else None
    return tables


def describe_arm(records: Records, profiles: Mapping[str, Profile]) -> dict:
    """One arm: the keys of `describe`, and what only answers for students have."""
    valid = Table.of(usable(records))
    tokens, right = (int(valid.values(key).sum()) for key in ("output_tokens", "correct"))
    copied = _share(valid.values("copying") > MAX_COPYING)
    named = _share(valid.values("names_student") > 0)
    specificity, identification = fit_to_students(valid, profiles)
    return {
        **describe(records),
        "correct_per_1000_tokens": 1000 * right / tokens if tokens else None,
        "memory_specificity": specificity,
        "profile_identification": identification,
        "copies_memory_share": copied,
        "names_student_share": named,
        "alarm": bool(valid) and max(copied, named) > MAX_SHARE,
        "by_chapter": {chapter: _brief(rows) for chapter, rows in group(records, "chapter").items()},
        "by_student": {student: _brief(rows) for student, rows in group(records, "student_id").items()},
    }


def describe(records: Records) -> dict:
    """Counts, the three scorers' accuracy, and each metric that the records have."""
    valid = Table.of(usable(records))
    texts = observe(valid)
    by_student = observe(valid, by_student=True) if any("student_id" in record for record in valid) else texts
    summary = {
        "n": len(valid),
        "errors": len(records) - len(valid),
        **{name: int(valid.flags(name, holds).sum()) for name, holds in COUNTED.items()},
        "accuracy": {name: share_of(texts, key) for name, key in SCORERS.items()},
        "accuracy_finished": share_of(observe(valid.take(valid.values("truncated") == 0)), "correct"),
    }
    if any(record["sample"] > 0 for record in records):
        summary["repeats"] = _describe_repeats(valid)

    present = [metric for metric in METRICS if any(metric in record for record in valid)]
    if any(record.get("thinking_tokens") is not None for record in valid):
        present.insert(1, "thinking_tokens")
    summary["metrics"] = {
        metric: _describe_metric(by_student if metric in OF_THE_STUDENT else texts, metric)
        for metric in present
    }

    mean_nll, tokens = valid.values("mean_nll"), valid.values("output_tokens")
    likely = np.isfinite(mean_nll)  # an empty text has none
    nll, counted = sum((mean_nll[likely] * tokens[likely]).tolist()), int(tokens[likely].sum())
    summary["token_weighted_nll"] = nll / counted if counted else None
    summary["output_tokens_total"] = int(tokens.sum())
    return summary


def look_at(records: Records, max_new_tokens: int) -> list[str]:
    """What the person at the terminal should look at when a run has ended, a line each.

    Args:
        max_new_tokens: at which an answer was cut off.
    """
    valid = usable(records)
    accuracy = share_of(observe(valid), "correct")
    share = "–" if accuracy["mean"] is None else f"{accuracy['mean']:.1%}"
    if accuracy["low"] is not None:
        share += f" [{accuracy['low']:.1%}, {accuracy['high']:.1%}]"
    cut = sum(record["truncated"] for record in valid)
    thinking = len(_cut_off_thinking(valid))
    unmarked = sum(record["answer_mark"] in UNMARKED for record in valid)
    failed = len(records) - len(valid)
    lines = [f"accuracy {share} of {len(valid)}; cut off {cut}, unmarked {unmarked}, failed {failed}"]

    if valid and thinking / len(valid) > MANY_CUT:
        advice = f"try --max_new_tokens {2 * max_new_tokens}, or --thinking off"
        lines.append(f"{thinking} of {len(valid)} reasonings were cut off and have no answer: {advice}")
    elif valid and cut / len(valid) > MANY_CUT:
        advice = f"try --max_new_tokens {2 * max_new_tokens}"
        lines.append(f"{cut} of {len(valid)} answers were cut off at {max_new_tokens} tokens: {advice}")
    unended = sum(bool(record["truncated"] or _cut_off_thinking([record])) for record in valid)
    if valid and unmarked - unended > MANY_CUT * len(valid):
        lines.append(f"{unmarked} answers bear no mark: try another --cot_prompt (cot/README.md)")
    return lines


def _cut_off_thinking(records: Records) -> Records:
    """Those that ended inside their reasoning."""
    return [record for record in records if COUNTED["thinking_cut_off"](record)]


def leak_rate(records: Records) -> float | None:
    """Share of memories retrieved for a student that are another student's; 0 unless something is broken."""
    return _share(
        [
            memory["student_id"] != record["student_id"]
            for record in records
            for memory in record["retrieved_memories"]
        ]
    )


def _describe_metric(sample: Sample, metric: str) -> dict:
    interval = mean_of(sample, metric)
    values = sample.sides[0].values(metric)
    values = values[np.isfinite(values)]
    return {
        "n": interval["n"],
        "mean": interval["mean"],
        "median": float(np.median(values)) if len(values) else None,
        "low": interval["low"],
        "high": interval["high"],
    }


def _brief(records: Records) -> dict:
    """n and the means of a part's records; None where no record has the metric."""
    valid = Table.of(usable(records))
    brief: dict[str, float | None] = {"n": len(valid)}
    for name, key in BRIEF.items():
        values = valid.values(key)
        values = values[np.isfinite(values)]
        brief[name] = statistics.fmean(values) if len(values) else None
    return brief


def _describe_repeats(records: Records) -> dict:
    """Means over prompts and temperatures of pass@1, pass@n and of the majority's correctness."""
    prompts = defaultdict(list)
    for r in records:
        prompts[
            r["policy"], r["question_id"], r.get("student_id"), r.get("memory_arm"), r["temperature"]
        ].append(r)
    groups = list(prompts.values())
    if not groups:
        return {"prompts": 0, "samples": 0}

    k = min(len(group) for group in groups)
    correct = [sum(record["correct"] for record in group) for group in groups]
    votes = [majority_vote([record["predicted_answer"] for record in group]) for group in groups]
    right = [
        vote is not None and score_answer(f"#### {vote}", group[0]["gold_solution"]).correct
        for vote, group in zip(votes, groups, strict=True)
    ]
    voted = [record | {"correct": outcome} for (record, *_), outcome in zip(groups, right, strict=True)]
    return {
        "prompts": len(groups),
        "samples": k,
        **{
            f"pass_at_{j}": statistics.fmean(
                pass_at_k(len(group), c, j) for group, c in zip(groups, correct, strict=True)
            )
            for j in sorted({1, k})
        },
        "majority_vote": share_of(observe(voted)),
    }


def _share(outcomes: Sequence[bool] | np.ndarray) -> float | None:
    return int(sum(outcomes)) / len(outcomes) if len(outcomes) else None
