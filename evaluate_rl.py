#!/usr/bin/env python3
"""Does the explanation follow the student, before and after training? An evaluation on the textbook.

A base policy and policies trained from it explain test exercises to simulated students who walk through the
textbook chapter by chapter (`rl/moments.py`), each prompt with the memory as of that moment, in several
memory arms. Without flags: the newest completed training run and its base. Reads `profiles/`,
`data/textbook/` and the models. Writes in `data/evaluation/` the files of every run
(`results_temp_<T>_<stamp>.json`, `summary_<stamp>.json`), a report `report_<stamp>.md` and `figures/`. Its
`summary` has `rows_done, policies, comparisons, adaptivity, verdicts, timing`; its records carry in addition
to a sweep's `base_nll, base_perplexity`. With `--closed_loop` students learn from what the policies write,
and the `summary` has `tutors, gains` instead. rl/README.md lists every key.

    python evaluate_rl.py --exercises_per_chapter 1 --students S001 S004 --num_samples 1
    python evaluate_rl.py
    python evaluate_rl.py --closed_loop --students generated:20
    python evaluate_rl.py --base Qwen/Qwen2.5-1.5B-Instruct --device cuda \
        --trained ipo=data/qwen/rl_A no_memory=data/qwen/rl_B
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from cot.utils.cli import (
    COT_PROMPT,
    MIN_SIMILARITY,
    Distinct,
    OneLineParser,
    add_memory_flags,
    add_template_flags,
    number,
)
from cot.utils.errors import UserError, script_frame
from cot.utils.model_names import BASE
from cot.utils.paths import DATA_DIR, PROFILES_DIR, writable_dir
from cot.utils.processes import refuse_launcher
from cot.utils.run_flags import (
    add_engine_flags,
    add_generation_flags,
    add_loading_flags,
    add_retry_flag,
    add_subset_flags,
)

ARMS = ["own", "none", "shuffled", "random", "time_shuffled"]  # side by side unless told

# Settings that are those of the first policy's training unless a flag names them, and their values where no
# policy has a training run.
AS_TRAINED = {"cot_prompt": COT_PROMPT, "chapters": ["all"], "max_new_tokens": None, "memory_tokens": 256}
AS_TRAINED |= {"system_prompt": None, "thinking": "auto", "chat_template_kwargs": None, "think_end": None}
AS_TRAINED |= {"top_k": 2, "min_similarity": MIN_SIMILARITY, "memory_half_life": None}
AS_TRAINED |= {"memory_level": None, "mastery_parameters": None}
GENERATED = ["generated:12"]  # the students of a policy that was trained for generated ones


def trained(text: str) -> tuple[str | None, str]:
    """`--trained`'s validator; its module is imported when the flag is used."""
    from rl.policies import parse_trained

    return parse_trained(text)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = OneLineParser(
        description=__doc__.split("\n", 1)[0],
        epilog="Chapters, instruction, memory and tokens of an answer: what no flag names is as the first"
        " policy was trained.",
    )
    whole = number(int, 1)

    add = parser.add_argument_group("policies").add_argument
    add("--base", metavar="MODEL", help="bundled, a hub name or a folder; unset: what the runs began with")
    add("--trained", type=trained, nargs="+", metavar="NAME=PATH", help="training runs or model folders")
    add("--device", default="auto", help="cpu, cuda, cuda:N or mps; auto is the first of CUDA, MPS and CPU")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of the weights")
    add_loading_flags(add, of="--base")

    add_engine_flags(parser)

    add = parser.add_argument_group("exercises and prompt").add_argument
    add("--dataset", default="textbook", help="textbook, gsm8k, or a .jsonl or .json file")
    add("--chapters", nargs="+", action=Distinct, metavar="ID", help="of the textbook, or all")
    add("--exercises_per_chapter", type=whole, default=4, help="evaluated for each student, test split")
    add("--practice", type=number(int, 0), default=3, help="train exercises before each evaluated one")
    add_subset_flags(add, note=", outside the textbook")
    add("--cot_prompt", help="the instruction before the question")

    add(
        "--closed_loop",
        action="store_true",
        help="let the students learn from what the policies write: no memory arms, learning gains instead",
    )

    shows = "what the prompt shows of the student, side by side"
    add("--memory", nargs="+", action=Distinct, default=ARMS, choices=[*ARMS, "instructed"], help=shows)

    add_memory_flags(parser)
    add_template_flags(parser)
    add_generation_flags(parser)
    parser.set_defaults(students=None, temperatures=[0.7], num_samples=2, **dict.fromkeys(AS_TRAINED))

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=DATA_DIR, help="results lie in <output_dir>/evaluation/")
    add("--fail_on_error", type=number(float, 0.0, 1.0), default=0.05, help="exit 3 above this share")
    add_retry_flag(add)
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def fill_from_run(args: argparse.Namespace, policies) -> None:
    """Sets what the user left open."""
    from rl.cohorts import count_generated

    config = next((policy.config for policy in policies if policy.config), {})
    for flag, default in AS_TRAINED.items():
        if getattr(args, flag) is None:
            value = config.get("max_completion_length" if flag == "max_new_tokens" else flag)
            setattr(args, flag, default if value is None else value)
    if args.students is None:
        trained_for = config.get("students") or ["all"]
        were_generated = count_generated(trained_for) and args.profiles_dir == PROFILES_DIR
        args.students = GENERATED if were_generated else ["all"]
    if args.memory_level is None:  # what a generated student needs is stated nowhere
        args.memory_level = "history" if count_generated(args.students) else "stated"


def choose_students(args: argparse.Namespace) -> tuple[dict, dict, dict]:
    """Profiles of those to follow, what their logs hold, and the profiles against which texts are judged.

    Who walks through the textbook begins anew: its log is not read.

    Raises:
        UserError: no such profile, or too few for the arm `shuffled`.
    """
    from rl.cohorts import load_students

    profiles, histories, truths = load_students(args, unseen=True, with_logs=args.dataset != "textbook")
    if "shuffled" in args.memory and len(profiles) < 2:
        raise UserError("--memory shuffled: needs a second student whose memory can stand in")
    return profiles, histories, truths


def follow_students(
    args: argparse.Namespace, profiles: dict, logs: dict, truths: dict, policies
) -> tuple[list, dict, str]:
    """The moments at which students get explanations, what each of them did, and the data's name.

    Raises:
        UserError: no student has come as far as the chapters.
    """
    if args.dataset == "textbook":
        from cot.utils.mastery_model import load_mastery_model
        from cot.utils.textbook import pick_chapters
        from rl.moments import walk_textbook

        chapters = pick_chapters(args.chapters)
        moments, histories = walk_textbook(
            profiles,
            chapters,
            exercises_per_chapter=args.exercises_per_chapter,
            practice=args.practice,
            seed=args.seed,
            half_life_days=args.memory_half_life,
            truths=None if args.memory_level == "stated" else truths,
            mastery_model=load_mastery_model(args.mastery_parameters),
        )
        if not moments:
            raise UserError(
                f"--chapters {chapters[0].id}: none of these students has come that far; add --students"
            )
        return moments, histories, f"textbook test, {len(chapters)} chapters"

    from cot.utils.memory_arms import cross, remember
    from rl.splits import held_out_questions

    runs = [policy.config for policy in policies if policy.config]
    questions, source = held_out_questions(args.dataset, runs, args.subset_size, args.offset)
    arms = remember(args, profiles, logs, truths, embedder=None)  # mastery needs no embedder
    return cross(list(profiles), questions, arms), logs, source


def build_rows(args: argparse.Namespace, policies, moments: list, arms) -> list:
    """Every policy at every moment in every arm; says where an arm does not exist."""
    from cot.utils.records import expand

    arms.shift_times(moments)
    shown, absent = [], 0
    for index, moment in enumerate(moments):
        for arm in args.memory:
            if arms.can_show(moment, arm):
                shown.append((index, moment, arms.show(moment, arm)))
            else:
                absent += 1
    if absent:
        why = "their student has no other moment"
        print(f"memory:   no time_shuffled at {absent} of {len(moments)} moments: {why}", flush=True)
    return [
        row
        for policy in policies
        for index, moment, memory in shown
        for row in expand(policy.name, index, moment, memory, args.temperatures, args.num_samples)
    ]


def add_likelihood(records: list[dict], evaluation) -> None:
    """Adds every text's likelihood under the base."""
    from cot.utils.records import add_base_likelihood

    engine = evaluation.load(BASE, engine="transformers")  # the engine that tells a given text's likelihood
    prompts = evaluation.make_prompts(BASE, engine, [row for row in evaluation.rows if row.policy == BASE])
    add_base_likelihood(records, engine, prompts)


def summarize(records: list[dict], args: argparse.Namespace, policies, profiles: dict, embedder) -> dict:
    """A result file's summary: tables by policy and arm, comparisons, and the verdicts that they allow."""
    from cot.utils.comparisons import adaptivity, compare_all
    from cot.utils.summary import describe_policies
    from cot.utils.tables import Table, group
    from rl.report import answer_questions

    answers = Table(records)
    tables = describe_policies(answers, profiles)
    comparisons = compare_all(answers, list(tables), args.memory)
    adaptive = {name: adaptivity(rows, embedder) for name, rows in group(answers, "policy").items()}
    trained_with = {policy.name: policy.config.get("memory") for policy in policies[1:]}
    return {
        "policies": tables,
        "comparisons": comparisons,
        "adaptivity": adaptive,
        "verdicts": answer_questions(tables, comparisons, trained_with, adaptive),
    }


def write_report(evaluation, document: dict, policies) -> None:
    """The figures and the Markdown report beside the result files."""
    from cot.utils.figures import draw_evaluation
    from rl.report import render_evaluation

    figures = draw_evaluation(
        document["summary"],
        records=evaluation.in_order(),
        runs={policy.name: policy.run for policy in policies if policy.run},
        folder=evaluation.folder / "figures",
        stamp=evaluation.stamp,
    )
    report = evaluation.folder / f"report_{evaluation.stamp}.md"
    text = render_evaluation(document, [f"figures/{figure.name}" for figure in figures])
    report.write_text(text, encoding="utf-8")

    for verdict in document["summary"]["verdicts"]:
        print(f"{verdict['question']} {verdict['policy']}: {verdict['verdict']}")
    print(f"report:   {report}", flush=True)


def open_run(
    args: argparse.Namespace,
    policies,
    truths: dict,
    rows: list,
    config: dict,
    folder: Path,
    scorers,
    identity=None,
):
    """The run of these rows: templates are checked before any weights load."""
    from cot.utils.formats import prepare_models
    from cot.utils.memory_arms import PromptShape
    from cot.utils.runner import Run

    sources = {policy.name: policy.source for policy in policies}
    tokenizers, args.max_new_tokens = prepare_models(args, sources, args.max_new_tokens)
    return Run(
        script=Path(__file__).name,
        args=args,
        rows=rows,
        sources=sources,
        shape=PromptShape(args.cot_prompt, args.memory_tokens),
        profiles=truths,
        config={"policies": [policy.describe() for policy in policies], **config},
        folder=folder,
        scorers=scorers,
        tokenizers=tokenizers,
        identity=identity,
    )


def run_closed_loop(
    args: argparse.Namespace, policies, engine: str, profiles: dict, truths: dict, folder: Path
) -> int:
    """Students, course, every tutor's walk, learning gains; returns the exit code."""
    from cot.utils.devices import pick_device
    from cot.utils.mastery_model import load_mastery_model
    from cot.utils.memory_arms import remember
    from cot.utils.scorers import load_scorers
    from cot.utils.textbook import pick_chapters
    from rl.closed_loop import draw_course, start_walk, summarize_walks, walk_with_tutors

    # who learns what
    chapters = pick_chapters(args.chapters)
    course = draw_course(chapters, args.exercises_per_chapter, args.seed)
    practice = args.practice * args.exercises_per_chapter
    start = partial(start_walk, truths, chapters, args.seed, practice)
    start()  # students without needs end here
    model = load_mastery_model(args.mastery_parameters)
    device = str(pick_device(args.device))
    scorers = load_scorers(device)
    count = len(policies) * len(course) * len(profiles)
    print(f"data:     textbook test, {len(course)} exercises for {len(profiles)} students")
    print(f"rows:     {count} on {device}, memory: {args.memory_level}", flush=True)

    config = {"device": device, "engine": engine, "exercises": len(course)}
    config["students_followed"] = len(profiles)
    loop, path, document = walk_with_tutors(
        partial(open_run, args, policies, truths, config=config, folder=folder, scorers=scorers),
        policies,
        start=start,
        course=course,
        remember=lambda histories: remember(args, profiles, histories, truths, scorers.embedder, model),
        summarize=lambda walks: summarize_walks(walks, against=BASE),
        practice=practice,
        level=[args.memory_level, args.top_k, args.min_similarity, args.memory_half_life],
        mastery=model.fingerprint if model else None,
    )
    for gain in document["summary"]["gains"]:
        print(f"Do students learn more with {gain['tutor']} than with {gain['against']}? {gain['verdict']}")
    print(path)
    return loop.exit_code


def run(args: argparse.Namespace) -> int:
    """Policies, moments, memories, answers, measures, report; returns the exit code."""
    from cot.utils.engine_choice import settle_engine
    from cot.utils.loading import check_loading, loading_of
    from rl.policies import resolve_policies

    # who is asked what: a wrong flag ends here, before anything heavy loads
    if args.closed_loop and args.retry_failed:
        raise UserError("--retry_failed: not with --closed_loop, where later prompts follow from each answer")
    if args.closed_loop:
        refuse_launcher("--closed_loop")
    policies = resolve_policies(args.base, args.trained, args.revision)
    for policy in policies:
        check_loading(loading_of(args), policy.source, args.device, args.dtype)
    engine = settle_engine(args, [policy.source for policy in policies])
    fill_from_run(args, policies)
    profiles, logs, truths = choose_students(args)
    folder = writable_dir(args.output_dir / "evaluation")
    if args.closed_loop:
        return run_closed_loop(args, policies, engine, profiles, truths, folder)
    moments, histories, source = follow_students(args, profiles, logs, truths, policies)

    from cot.utils.devices import pick_device
    from cot.utils.memory_arms import remember
    from cot.utils.scorers import load_scorers

    # what each arm shows at each moment
    device = str(pick_device(args.device))
    scorers = load_scorers(device)
    arms = remember(args, profiles, histories, truths, scorers.embedder)
    rows = build_rows(args, policies, moments, arms)
    questions = len({moment.question.id for moment in moments})
    for policy in policies:
        print(f"{policy.name + ':':9} {policy.source.name}")
    print(f"data:     {source}: {len(moments)} moments, {questions} exercises, {len(profiles)} students")
    print(f"rows:     {len(rows)} on {device}, arms: {' '.join(args.memory)}", flush=True)

    config = {"device": device, "engine": engine, "dataset_source": source, "moments": len(moments)}
    config |= {"questions": questions, "students_followed": len(profiles)}
    evaluation = open_run(args, policies, truths, rows, config, folder, scorers)
    with evaluation:
        evaluation.generate()
        if not evaluation.is_main:  # process 0 puts the answers of all together
            return evaluation.exit_code
        path, document = evaluation.finish(
            measure=lambda records: add_likelihood(records, evaluation),
            summarize=lambda records: summarize(records, args, policies, truths, scorers.embedder),
        )
        write_report(evaluation, document, policies)
    print(path)
    return evaluation.exit_code


def main(argv: list[str] | None = None) -> int:
    """Checks the flags, then runs."""
    args = build_parser().parse_args(argv)
    with script_frame(args.debug) as outcome:
        outcome.exit_code = run(args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
