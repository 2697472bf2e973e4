"""What runs say in words: verdicts and Markdown of an evaluation, and a trained model's card.

An effect is judged from its 95 % interval over students and clusters, which are questions, or templates where
exercises are drawn from them: **yes** where the whole interval is above 0 and the test, Holm-adjusted over
the metrics, has p < 0.05; **no** where the whole interval lies below 0.05 (0.1 for a difference of Fisher's
z), so that a gain worth having is excluded; **undecided** otherwise, and with fewer than 20 pairs, 10
clusters, or 5 students where Fisher's z is compared. A question that is asked of accuracy and fidelity has
the verdict yes where one of them says yes and neither interval lies below 0, no where both say no, and
undecided otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cot.utils.comparisons import (
    JUDGED,
    LEAST_CLUSTERS,
    LEAST_LEVELS,
    LEAST_PAIRS,
    UNDECIDED,
    decide,
    decide_all,
)
from cot.utils.findings import negate, render_table, show_interval, show_number, show_percent
from cot.utils.model_names import BASE

PROGRESS_MARGIN = 0.1  # of the difference of Fisher's z
RULE = " ".join(__doc__.split("\n\n", 1)[1].split())
FURTHER = (  # metrics of the second table
    "support_fit",
    "equation_validity",
    "prerequisite_coverage",
    "over_explaining",
    "semantic_similarity",
)


def answer_questions(
    tables: Mapping[str, Mapping[str, dict]],
    comparisons: Sequence[dict],
    trained_with: Mapping[str, str | None],
    adaptive: Mapping[str, Mapping[str, dict]],
) -> list[dict]:
    """The mission's questions: `question, policy, verdict, because`.

    Args:
        tables: the summary's `policies`.
        comparisons: of `comparisons.compare_all`.
        trained_with: by trained policy the memory arm of its training prompts; None where unknown.
        adaptive: the summary's `adaptivity`.
    """

    def find(kind: str, policy: str, arm: str, reference: str, reference_arm: str) -> dict | None:
        wanted = {"kind": kind, "policy": policy, "arm": arm}
        wanted |= {"reference_policy": reference, "reference_arm": reference_arm}
        return next((c for c in comparisons if wanted.items() <= c.items()), None)

    verdicts = []
    for policy in tables:
        found = find("memory", policy, "own", policy, "none")
        verdicts.append(_judge("Does memory help at inference?", policy, found))
    for policy in trained_with:
        found = find("training", policy, "own", BASE, "own")
        verdicts.append(_judge("Does training help?", policy, found))

    # whether the memory in training's prompts adds to training takes a control without it, and each is
    # prompted as it was trained: with own memory it would stand before prompts that it has never seen
    controls = [name for name, arm in trained_with.items() if arm == "none"]
    for policy in (name for name, arm in trained_with.items() if arm == "own"):
        for control in controls:
            found = find("training", policy, "own", control, "none")
            note = f" (own memory, against {control}, trained and asked without)"
            verdicts.append(_judge("Does training with memory help more?", policy, found, note))
        if not controls:
            interaction = find("interaction", policy, "own - none", BASE, "own - none")
            verdicts.append(_judge_without_control(policy, interaction))

    for policy in trained_with:
        progress = tables[policy].get("own", {}).get("progress")
        same = adaptive.get(policy, {}).get("time_shuffled", {}).get("same_prompt_share")
        verdicts.append(_judge_progress(policy, progress, same))
    return verdicts


def _judge(question: str, policy: str, comparison: Mapping | None, note: str = "") -> dict:
    asked = {"question": question, "policy": policy}
    if comparison is None or not comparison["n"]:
        return {**asked, "verdict": UNDECIDED, "because": "the arms or policies for it were not run."}
    if comparison["n"] < LEAST_PAIRS:
        because = f"{comparison['n']} pairs are too few; it takes {LEAST_PAIRS}."
        return {**asked, "verdict": UNDECIDED, "because": because}

    clusters = comparison["clusters"]
    if clusters < LEAST_CLUSTERS:
        because = f"{clusters} clusters are too few; it takes {LEAST_CLUSTERS}."
        return {**asked, "verdict": UNDECIDED, "because": because}

    because = f"{_in_words(comparison)}; {comparison['n']} pairs from {clusters} clusters{note};"
    because += f" breakage {show_percent(comparison['breakage'])},"
    because += f" repair {show_percent(comparison['repair'])}."
    verdict = decide_all(list(_judged(comparison).values()))
    return {**asked, "verdict": verdict, "because": because}


def _judge_without_control(policy: str, interaction: Mapping | None) -> dict:
    because = "it takes a second policy, trained with `--memory none`."
    if interaction:
        because += f" Memory gains more than in the base by: {_in_words(interaction)}."
    asked = {"question": "Does training with memory help more?", "policy": policy}
    return {**asked, "verdict": UNDECIDED, "because": because}


def _judge_progress(policy: str, progress: Mapping | None, same_prompt_share: float | None) -> dict:
    asked = {"question": "Does it adapt as the student learns?", "policy": policy}
    versus = (progress or {}).get("versus_time_shuffled")
    if same_prompt_share == 1.0:
        because = "at no moment does the prompt hold anything that changes while the student learns:"
        because += " the memory is cut before it. Train and evaluate with more --memory_tokens."
        return {**asked, "verdict": UNDECIDED, "because": because}
    if not versus or versus["low"] is None:
        because = "no student has enough moments with varying support, or `time_shuffled` was not run."
        return {**asked, "verdict": UNDECIDED, "because": because}

    because = f"Spearman correlation of mastery and support {show_interval(progress)}"
    because += f" over {progress['n']} students; own against time-shuffled memory, difference of Fisher's z"
    because += f" {show_interval(versus)} (n = {versus['n']}; negative is adaptive)."
    # Support is to fall as mastery grows, so the gain is the fall. Its n are students, not pairs: Student's t
    # makes the interval of few of them as wide as they deserve.
    verdict = decide(negate(versus), below=PROGRESS_MARGIN, least=LEAST_LEVELS)
    return {**asked, "verdict": verdict, "because": because}


def _judged(comparison: Mapping) -> dict[str, dict]:
    """The effects that a verdict looks at, by their names, each with the number of clusters."""
    clusters = {"clusters": comparison["clusters"]}
    return {label: comparison["metrics"][name] | clusters for name, label in JUDGED.items()}


def _in_words(comparison: Mapping) -> str:
    parts = []
    for label, metric in _judged(comparison).items():
        p = "" if metric["p_holm"] is None else f", Holm p = {metric['p_holm']:.3f}"
        parts.append(f"{label} {show_interval(metric)}{p} ({decide(metric)})")
    return "; ".join(parts)


def render_evaluation(document: Mapping, figures: Sequence[str]) -> str:
    """An evaluation as Markdown: verdicts, tables, figures; every number with its n or its interval.

    Args:
        document: the summary file of an evaluation.
        figures: file names, relative to the report.
    """
    config, summary = document["config"], document["summary"]
    about = (
        f"{config['dataset_source']}; {config['moments']} moments of {config['students_followed']} students,"
    )
    about += f" {config['questions']} questions; temperatures {config['temperatures']},"
    about += f" {config['num_samples']} sample(s), seed {config['seed']};"
    about += f" level of memory: {config['memory_level']}."
    policies = [(p["name"], f"`{p['model']}`", p["memory"] or "–") for p in config["policies"]]

    lines = [f"# Evaluation of {document['started']}", "", about, ""]
    lines += render_table(("policy", "model", "trained with memory"), policies)
    lines += ["", "## Verdicts", "", RULE]
    for verdict in summary["verdicts"]:
        because = verdict["because"][0].upper() + verdict["because"][1:]
        lines += ["", f"**{verdict['question']}** `{verdict['policy']}`: **{verdict['verdict']}**. {because}"]
    lines += ["", "One training seed shows what this run did; a claim about training takes at least five."]
    lines += ["", "## By policy and memory arm", "", *_main_table(summary["policies"])]
    lines += ["", "## Further measures", "", *_further_table(summary["policies"])]
    lines += ["", "## Paired comparisons", "", *_comparison_table(summary["comparisons"])]
    lines += ["", "## Does the text depend on the memory?", "", *_adaptivity_table(summary["adaptivity"])]
    lines += ["", "## By chapter, own memory", "", *_chapter_table(summary["policies"])]
    lines += ["", "## Figures", "", *(f"![{name}]({name})" for name in figures)]
    return "\n".join(lines) + "\n"


def _sides(tables: Mapping) -> list[tuple[str, str, dict]]:
    return [(policy, arm, table) for policy, arms in tables.items() for arm, table in arms.items()]


def _main_table(tables: Mapping) -> list[str]:
    header = ["policy", "memory", "n", "accuracy [95 %]", "strict", "flexible", "fidelity [95 %]"]
    header += [
        "specificity [95 %]",
        "top-1 (chance)",
        "tokens",
        "correct per 1,000 tokens",
        "copies",
        "names",
    ]
    rows = []
    for policy, arm, table in _sides(tables):
        accuracy, who = table["accuracy"], table["profile_identification"]
        row = [policy, arm, table["n"], show_interval(accuracy["canonical"], sign=False)]
        row += [show_number(accuracy[name]["mean"]) for name in ("strict", "flexible")]
        row += [show_interval(table["metrics"]["fidelity"], sign=False)]
        row += [show_interval(table["memory_specificity"])]
        row += [f"{show_number(who['top1'], 2)} ({show_number(who['chance'], 2)})"]
        row += [show_number(table["metrics"]["output_tokens"]["mean"], 1)]
        row += [show_number(table["correct_per_1000_tokens"], 1), show_percent(table["copies_memory_share"])]
        row += [show_percent(table["names_student_share"]) + (" **alarm**" if table["alarm"] else "")]
        rows.append(row)
    return render_table(header, rows)


def _further_table(tables: Mapping) -> list[str]:
    rows = []
    for policy, arm, table in _sides(tables):
        cells = [table["metrics"][name] for name in FURTHER]
        nll = table["metrics"]["base_nll"]
        perplexity = None if nll["mean"] is None else math.exp(min(nll["mean"], 700.0))
        row = [f"{show_number(cell['mean'])} ({cell['n']})" for cell in cells]
        rows.append([policy, arm, *row, f"{show_number(perplexity, 2)} ({nll['n']})"])
    names = [name.replace("_", " ") + " (n)" for name in FURTHER]
    return render_table(("policy", "memory", *names, "perplexity under the base (n)"), rows)


def _comparison_table(comparisons: Sequence[Mapping]) -> list[str]:
    header = ["compared", "against", "pairs", "clusters"]
    header += ["accuracy [95 %]", "Holm p", "fidelity [95 %]", "Holm p"]
    rows = []
    for c in comparisons:
        row = [f"{c['policy']}, {c['arm']}", f"{c['reference_policy']}, {c['reference_arm']}"]
        row += [c["n"], c["clusters"]]
        for name in JUDGED:
            row += [show_interval(c["metrics"][name]), show_number(c["metrics"][name]["p_holm"])]
        rows.append([*row, show_percent(c.get("breakage")), show_percent(c.get("repair"))])
    return render_table([*header, "breakage", "repair"], rows)


def _adaptivity_table(found: Mapping) -> list[str]:
    rows = []
    for policy, arm, test in _sides(found):
        numbers = [show_number(test[key], 4) for key in ("statistic", "p", "p_holm")]
        rows.append([policy, arm, test["n"], *numbers, show_percent(test["same_prompt_share"])])
    header = ("policy", "own against", "n", "T (cosine distance)", "permutation p", "Holm p", "same prompt")
    return render_table(header, rows)


def _chapter_table(tables: Mapping) -> list[str]:
    shown = ("accuracy", "fidelity", "support_fit")
    rows = [
        [policy, chapter, means["n"], *(show_number(means[key]) for key in shown)]
        for policy, arms in tables.items()
        for chapter, means in arms.get("own", {}).get("by_chapter", {}).items()
    ]
    return render_table(("policy", "chapter", "n", *(name.replace("_", " ") for name in shown)), rows)


def before_and_after(lines: Sequence[Mapping]) -> tuple[dict, dict]:
    """The held-out scores in the first and the last line of a run's metrics that has them; else empty.

    >>> before_and_after([{"step": 0, "eval/accuracy": 0.5}, {"step": 1}, {"step": 2, "eval/accuracy": 0.75}])
    ({'accuracy': 0.5}, {'accuracy': 0.75})
    """
    scores = [
        {key.removeprefix("eval/"): value for key, value in line.items() if key.startswith("eval/")}
        for line in lines
    ]
    scores = [found for found in scores if found]
    return (scores[0], scores[-1]) if scores else ({}, {})


def write_card(folder: Path, config: Mapping, lines: Sequence[Mapping]) -> None:
    """`README.md` of the final model: data, rewards, arm, settings, results."""
    before, after = before_and_after(lines)
    names = ("learning_rate", "beta", "loss_type", "scale_rewards", "num_generations", "prompts_per_step")
    settings = [(name, config[name]) for name in (*names, "max_completion_length", "seed")]
    weights = [(name, f"{value:g}") for name, value in config["weights"].items()]
    scores = [(name, before.get(name, ""), value) for name, value in after.items()]

    adapter = "LoRA adapter" if config["use_peft"] else "full model"
    base = config["model"]["name"]
    data = f"{config['dataset_source']}, {config['rows']} prompts, {config['dropped']} dropped as too long"
    text = f"""---
library_name: {"peft" if config["use_peft"] else "transformers"}
base_model: {base}
tags: [grpo, trl, student-memory]
---
# {folder.parent.name}

A {adapter}, trained from {Path(base).name} (revision {config["model"]["revision"]}) by group relative policy
optimization (GRPO, arXiv 2402.03300) on prompts that carry what is known about a student.

**Data**: {data}. **Memory arm**: {config["memory"]}, mix of own, none and shuffled {config["memory_mix"]}.
**Level of memory**: {config["memory_level"]}.

{_lines(render_table(("reward part", "weight"), weights))}

{_lines(render_table(("setting", "value"), settings))}

**Held-out exercises** ({config["eval"]}; greedy), before and after {lines[-1]["step"] if lines else 0} steps:

{_lines(render_table(("metric", "before", "after"), scores))}

One seed and a small held-out set show that training worked, not that memory helps: that takes the controls.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)
