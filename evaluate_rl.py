#!/usr/bin/env python3
"""Does the explanation follow the student, before and after training? An evaluation on the textbook.

A base policy and policies trained from it explain test exercises to simulated students who walk through the
textbook chapter by chapter (`rl/walk.py`), each prompt with the memory as of that moment, in several memory
arms. Without flags: the newest completed training run and its base. Reads `profiles/`, `data/textbook/` and
the models. Writes in `data/evaluation/` `evaluation_<timestamp>.json` (keys of every result file; `summary`
has `policies, adaptivity, cells, comparisons, answers, timing`; records carry in addition to a sweep's
`policy, moment, as_of, memory_as_of, mastery, gold_steps, scaffold_target, scaffold_fit, equation_validity,
prerequisite_coverage, over_explaining, grade_fit, base_nll, base_perplexity`), a report of the same name in
Markdown, and `figures/`. README.md lists every key.

    python evaluate_rl.py --exercises_per_chapter 1 --students S001 S004 --num_samples 1
    python evaluate_rl.py
    python evaluate_rl.py --base Qwen/Qwen2.5-1.5B-Instruct --trained ipo=data/qwen/rl_A grpo=data/qwen/rl_B \
        --device cuda
"""

import argparse
import sys
from pathlib import Path

from cot.utils.cli import (
    COT_PROMPT,
    DATA_DIR,
    PROFILES_DIR,
    Distinct,
    OneLineParser,
    batch_size,
    number,
    run_script,
    temperature,
    writable_dir,
)
from cot.utils.errors import UserError

ARMS = ["own", "none", "shuffled", "random", "time_shuffled"]
# What a policy was trained with is what it is asked with, unless a flag says otherwise.
FROM_RUN = {"cot_prompt": "cot_prompt", "memory_tokens": "memory_tokens", "top_k": "top_k"}
FROM_RUN |= {"max_new_tokens": "max_completion_length", "chapters": "chapters"}
DEFAULTS = {"cot_prompt": COT_PROMPT, "memory_tokens": 256, "top_k": 2, "max_new_tokens": 256}


def trained(text: str) -> tuple[str | None, str]:
    """`--trained`'s validator; its module is imported when the flag is used."""
    from rl.policies import parse_trained

    return parse_trained(text)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    whole = number(int, 1)
    policies = parser.add_argument_group("policies").add_argument
    policies(
        "--base", metavar="MODEL", help="bundled, a hub name or a folder; unset: what the runs began with"
    )
    policies("--trained", type=trained, nargs="+", metavar="NAME=PATH", help="training runs or model folders")
    policies("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    policies("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of weights")
    walk = parser.add_argument_group("students and exercises").add_argument
    walk("--dataset", default="textbook", help="textbook, gsm8k, or a .jsonl or .json file")
    walk("--students", nargs="+", action=Distinct, default=["all"], metavar="ID", help="whom to follow")
    walk("--chapters", nargs="+", action=Distinct, metavar="ID", help="unset: those trained on, else all")
    walk(
        "--exercises_per_chapter", type=whole, default=4, help="evaluated for each student, of the test split"
    )
    walk("--practice", type=number(int, 0), default=3, help="train exercises before each evaluated one")
    walk("--subset_size", type=whole, default=50, help="the first N questions, outside the textbook")
    walk("--profiles_dir", type=Path, default=PROFILES_DIR, help="profiles; memories in its memory/")
    prompt = parser.add_argument_group("prompt; unset: as the first policy was trained").add_argument
    prompt("--memory", nargs="+", action=Distinct, default=ARMS, choices=ARMS, help="arms, side by side")
    prompt("--memory_tokens", type=whole, help="tokens of memory in a prompt")
    prompt("--top_k", type=number(int, 0), help="past exercises retrieved into a prompt")
    prompt("--cot_prompt", help="the instruction before the question")
    generation = parser.add_argument_group("generation").add_argument
    generation("--max_new_tokens", type=whole, help="tokens per answer; unset: as trained")
    generation(
        "--temperatures",
        type=temperature,
        nargs="+",
        action=Distinct,
        default=[0.7],
        metavar="T",
        help="0 is greedy",
    )
    generation("--num_samples", type=whole, default=2, help="answers per prompt; adaptivity needs 2")
    generation("--batch_size", type=batch_size, default=None, help="rows decoded at once, or auto")
    generation("--seed", type=number(int, 0), default=0, help="of students, exercises and sampling")
    output = parser.add_argument_group("output").add_argument
    output("--output_dir", type=Path, default=DATA_DIR, help="results lie in <output_dir>/evaluation/")
    output("--fail_on_error", type=number(float, 0.0, 1.0), default=0.05, help="exit 3 above this share")
    output("--debug", action="store_true", help="add the traceback to an error")
    return parser


def fill_from_run(args: argparse.Namespace, policies) -> None:
    """Sets what the user left open: as the first policy with a training run was trained, else as sweeps."""
    config = next((policy.config for policy in policies if policy.config), {})
    for flag, key in FROM_RUN.items():
        if getattr(args, flag) is None:
            trained_with = config.get(key)
            setattr(args, flag, trained_with if trained_with is not None else DEFAULTS.get(flag))


def chosen_profiles(args: argparse.Namespace) -> dict:
    """The profiles of those to follow.

    Raises:
        UserError: no such profile, or too few for the arm `shuffled`.
    """
    from cot.utils.profiles import load_profiles, pick_students

    profiles = load_profiles(args.profiles_dir)
    names = pick_students(args.students, profiles)
    if "shuffled" in args.memory and len(names) < 2:
        raise UserError("--memory shuffled: needs a second student whose memory can stand in")
    return {name: profiles[name] for name in names}


def follow_students(args: argparse.Namespace, profiles: dict) -> tuple[list, object, str]:
    """The moments at which students get explanations, the log of what they did, and the data's name."""
    from rl.walk import cross_moments, walk_textbook

    if args.dataset != "textbook":
        from cot.utils.data import load_questions
        from cot.utils.memory import MemoryLog

        if "time_shuffled" in args.memory:
            args.memory = [arm for arm in args.memory if arm != "time_shuffled"]
            print("memory:   without time_shuffled, which needs the textbook's walk", flush=True)
        questions = load_questions(args.dataset, "test", args.subset_size)
        log = MemoryLog(args.profiles_dir / "memory")
        return cross_moments(profiles, questions.questions), log, questions.source
    from cot.utils.textbook import pick_chapters

    picked = pick_chapters(args.chapters)
    walked = walk_textbook(profiles, picked, args.exercises_per_chapter, args.practice, args.seed)
    if not walked[0]:
        first = (args.chapters or [picked[0].id])[0]
        raise UserError(f"--chapters {first}: none of these students has come that far; add --students")
    return *walked, f"textbook test, {len(picked)} chapters"


def summarizer(args: argparse.Namespace, policies, profiles: dict, embedder):
    """From finished records to the document's summary."""
    from rl.evaluation_answers import answer_questions
    from rl.evaluation_comparisons import compare_all
    from rl.evaluation_summary import summarize_evaluation

    def summarize(records: list[dict]) -> dict:
        summary = summarize_evaluation(records, profiles, embedder)
        comparisons = compare_all(records, [policy.name for policy in policies], args.memory)
        trained_with = {policy.name: policy.config.get("memory") for policy in policies[1:]}
        judged = summary["policies"], comparisons, trained_with, summary["adaptivity"]
        answers = answer_questions(*judged)
        return {**summary, "comparisons": comparisons, "answers": answers}

    return summarize


def write_report(document: dict, path: Path, policies) -> None:
    """The figures and the Markdown report beside the result file."""
    from rl.evaluation_figures import draw_evaluation
    from rl.evaluation_report import render_report

    runs = {policy.name: policy.run for policy in policies if policy.run}
    figures = draw_evaluation(document, runs, path.parent / "figures", path.stem.removeprefix("evaluation_"))
    report = path.with_suffix(".md")
    report.write_text(
        render_report(document, [f"figures/{figure.name}" for figure in figures]), encoding="utf-8"
    )
    for answer in document["summary"]["answers"]:
        print(f"{answer['question']} {answer['policy']}: {answer['answer']}")
    print(f"report:   {report}", flush=True)


def run(args: argparse.Namespace) -> int:
    """Policies, students, prompts, answers, measures, report; returns the exit code."""
    from rl.policies import resolve_policies

    policies = resolve_policies(args.base, args.trained)
    fill_from_run(args, policies)
    profiles = chosen_profiles(args)
    folder = writable_dir(args.output_dir / "evaluation")
    moments, log, source = follow_students(args, profiles)
    from cot.utils.devices import pick_device
    from cot.utils.metrics import load_spacy
    from cot.utils.retrieval import load_embedder
    from cot.utils.runtime import keep_bars_out_of_logs
    from rl.evaluation import Evaluation
    from rl.evaluation_prompts import show_memories
    from rl.walk import MemoryArms

    device = str(pick_device(args.device))
    keep_bars_out_of_logs()
    for policy in policies:
        print(f"{policy.name + ':':9} {policy.source.name}", flush=True)
    embedder, nlp = load_embedder(), load_spacy()
    memories = MemoryArms(profiles, log, embedder, args.top_k, moments, args.seed)
    shown = show_memories(moments, args.memory, memories)
    questions = {moment.question.id for moment in moments}
    config = {
        "policies": [policy.describe() for policy in policies],
        "device": device,
        "dataset_source": source,
        "moments": len(moments),
        "questions": len(questions),
        "students_followed": len({moment.student_id for moment in moments}),
        "embedder": {"name": embedder.name, "revision": embedder.revision},
    }
    print(f"data:     {source}: {len(moments)} moments, {len(questions)} exercises, {len(profiles)} students")
    evaluation = Evaluation(args, policies, shown, memories, profiles, config, folder)
    print(f"rows:     {len(evaluation.keys)} on {device}, arms: {' '.join(args.memory)}", flush=True)
    code, document, path = evaluation.run(embedder, nlp, summarizer(args, policies, profiles, embedder))
    write_report(document, path, policies)
    print(path)
    return code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    return run_script(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
