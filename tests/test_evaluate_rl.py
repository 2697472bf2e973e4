"""The evaluation: leak-free walks, planted policies, statistics, and the script on tiny random models."""

import contextlib
import doctest
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO_ROOT, make_tokenizer
from scipy import stats

import evaluate_rl
from cot.utils.cli import PROFILES_DIR
from cot.utils.errors import UserError
from cot.utils.generation import Completion
from cot.utils.mastery import mastery_by_skill
from cot.utils.profiles import load_profiles
from cot.utils.records import make_record
from cot.utils.textbook import generate_exercises, load_chapters
from rl import evaluation_answers, policies
from rl.evaluation_answers import NO, UNDECIDED, YES, answer_questions, decide, decide_both
from rl.evaluation_comparisons import compare_all, wilcoxon_p
from rl.evaluation_measures import add_measures
from rl.evaluation_prompts import build_cells, show_memories
from rl.evaluation_summary import summarize_evaluation
from rl.policies import newest_run, parse_trained, resolve_policies
from rl.tutor_texts import Manner, calculations, explain
from rl.walk import ARMS, MemoryArms, other_moments, walk_textbook

PROFILES = {name: load_profiles(PROFILES_DIR)[name] for name in ("S002", "S003", "S004", "S005", "S006")}
CHAPTERS = [c for c in load_chapters() if c.id in ("addition", "multiplication", "two_step")]


class BagOfWords:
    """Unit vectors of word counts: equal texts at distance 0, others further the fewer words they share."""

    def encode(self, texts):
        rows = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def walk():
    return walk_textbook(PROFILES, CHAPTERS, exercises_per_chapter=3, practice=2, seed=0)


@pytest.fixture(scope="module")
def shown(walk):
    moments, log = walk
    memories = MemoryArms(PROFILES, log, None, 0, moments, seed=0)
    return show_memories(moments, ARMS, memories), memories


# --- the walk --------------------------------------------------------------------------------------------


def test_students_meet_the_same_exercises_in_teaching_order(walk):
    moments, _ = walk
    by_student = {name: [m for m in moments if m.student_id == name] for name in PROFILES}
    for found in by_student.values():
        assert [m.number for m in found] == list(range(len(found)))
        assert [m.as_of for m in found] == sorted({m.as_of for m in found})
        assert (
            list(dict.fromkeys(m.question.chapter for m in found))
            == [c.id for c in CHAPTERS][: len(found) // 3]
        )
    assert {len(found) for found in by_student.values()} == {9}
    assert len({tuple(m.question.id for m in found) for found in by_student.values()}) == 1


def test_no_evaluated_exercise_is_in_any_memory(walk):
    moments, log = walk
    remembered = {item.question for history in log.histories.values() for item in history}
    evaluated = {m.question.question for m in moments}
    every_test_question = {
        e.question for chapter in load_chapters() for e in generate_exercises(chapter, "test", 20, 0)
    }
    assert evaluated and not remembered & (evaluated | every_test_question)


def test_the_memory_of_a_moment_holds_nothing_of_that_moment_or_later(walk):
    moments, log = walk
    for moment in moments:
        before = log.read(moment.student_id, moment.as_of)
        assert [item.time for item in before] == sorted(item.time for item in before)
        assert all(item.time < moment.as_of for item in before)
        # per evaluated exercise 2 of practice before it, 1 of the same skill after it
        assert len(before) == 3 * moment.number + 2
        following = log.read(moment.student_id)[len(before)]
        assert following.time == moment.as_of and following.skill == moment.question.skill
        assert moment.mastery == mastery_by_skill(before, as_of=moment.as_of)


def test_what_happens_after_a_moment_does_not_change_what_is_shown(walk, shown):
    moments, log = walk
    cut = moments[4].as_of
    from rl.walk import WalkLog

    past = WalkLog({name: log.read(name, cut) for name in PROFILES})
    short = MemoryArms(PROFILES, past, None, 0, moments, seed=0)
    for arm in ("own", "shuffled"):
        with_future, _ = shown[1].recall(moments[4], arm)
        without, _ = short.recall(moments[4], arm)
        assert with_future == without
    assert shown[1].recall(moments[5], "own") != short.recall(moments[5], "own")


def test_arms_show_whom_they_say(shown):
    for item in shown[0]:
        student, owner = item.moment.student_id, item.memory and item.memory.student_id
        assert (owner is None) == (item.arm in ("none", "random"))
        if item.arm in ("own", "time_shuffled"):
            assert owner == student
            assert (item.memory_as_of == item.moment.as_of) == (item.arm == "own")
        if item.arm == "shuffled":
            assert owner != student and item.memory_as_of == item.moment.as_of
            assert not any(line.startswith(f"Student {student},") for line in item.lines)


def test_time_shuffling_moves_every_moment_and_loses_none(walk):
    moments, _ = walk
    elsewhere = other_moments(moments, seed=1)
    for name in PROFILES:
        own = [m for m in moments if m.student_id == name]
        assert sorted(elsewhere[name, m.number] for m in own) == [m.as_of for m in own]
        assert all(elsewhere[name, m.number] != m.as_of for m in own)
    assert other_moments(moments[:1], 0) == {("S002", 0): None}


# --- planted policies through the measuring code ---------------------------------------------------------


def records_of(policy: str, shown, write) -> list[dict]:
    """A planted policy's records: `write(shown item, cell, sample)` is its text."""
    items, memories = shown
    args = Namespace(cot_prompt="Solve.", memory_tokens=400)
    cells = build_cells(policy, make_tokenizer(), None, items, memories, PROFILES, args)
    records = []
    for item, cell in zip(items, cells, strict=True):
        for sample in range(2):
            text = write(item, cell, sample)
            completion = Completion(text, tuple(range(len(text.split()))), (-1.0,) * len(text.split()))
            records.append(make_record(cell, 0.7, sample, completion))
    moments = {(item.moment.student_id, item.moment.question.id): item.moment for item in items}
    add_measures(records, moments, PROFILES)
    return records


def summary_of(records):
    return summarize_evaluation(records, PROFILES, BagOfWords())


def ignorer(item, _cell, sample):
    styles = ("numbered_steps", "short_sentences", "guiding_questions", "equations_first", "check_at_end")
    question = item.moment.question
    pick = zlib.crc32(f"{question.id} {sample}".encode())
    return explain(calculations(question.gold_solution), Manner(styles[pick % 5], hint=bool(pick & 64)))


def follower(item, _cell, _sample):
    if item.memory is None:
        return explain(
            calculations(item.moment.question.gold_solution), Manner("equations_first", joined=True)
        )
    student = PROFILES[item.memory.student_id]
    wishes = student.learning_preferences
    manner = Manner(
        student.explanation_style,
        hint="a hint first" in wishes,
        because="a reason with because" in wishes,
        full_sentence="the answer in a full sentence" in wishes,
    )
    return explain(calculations(item.moment.question.gold_solution), manner)


def copier(item, cell, _sample):
    return f"{cell.prompt.memory}\n{item.moment.question.gold_solution}"


def test_a_planted_ignorer_shows_no_adaptation_and_no_specificity(shown):
    summary = summary_of(records_of("base", shown, ignorer))
    table = summary["policies"]["base"]["own"]
    assert table["memory_specificity"]["mean"] == 0.0 == table["memory_specificity"]["high"]
    who = table["profile_identification"]
    assert who["n"] == 45 and who["chance"] == pytest.approx(0.2)
    for arm in ("none", "shuffled", "random", "time_shuffled"):
        assert summary["adaptivity"]["base"][arm]["p"] > 0.05
        assert summary["adaptivity"]["base"][arm]["statistic"] <= 0
    assert table["accuracy"]["canonical"]["value"] == 1.0 and not table["alarm"]


def test_a_planted_follower_scores_full(shown):
    summary = summary_of(records_of("base", shown, follower))
    tables = summary["policies"]["base"]
    assert tables["own"]["metrics"]["fidelity"]["mean"] == 1.0
    assert tables["own"]["memory_specificity"]["low"] > 0.2
    assert tables["shuffled"]["metrics"]["fidelity"]["mean"] < 0.8
    assert tables["own"]["profile_identification"]["top1"] > 0.5
    for arm in ("none", "shuffled", "random"):
        test = summary["adaptivity"]["base"][arm]
        assert test["p"] == pytest.approx(1 / 2001) and test["n"] == 45 and test["statistic"] > 0
        assert test["same_prompt_share"] == 0.0
    # the same student's style at another moment: a text that follows it does not change
    assert summary["adaptivity"]["base"]["time_shuffled"]["p"] == 1.0


def test_a_planted_copier_is_flagged(shown):
    tables = summary_of(records_of("base", shown, copier))["policies"]["base"]
    assert tables["own"]["alarm"] and tables["own"]["copies_memory_share"] == 1.0
    assert tables["own"]["names_student_share"] == 1.0  # "Student S002, 3rd grade."
    assert not tables["none"]["alarm"] and tables["none"]["copies_memory_share"] == 0.0


def test_a_planted_teacher_who_fades_support_is_seen_to_adapt(walk, shown):
    _, log = walk

    def fading(item, _cell, _sample):
        moment = item.moment
        history = log.read(moment.student_id, item.memory_as_of) if item.memory else []
        known = mastery_by_skill(history, as_of=item.memory_as_of).get(moment.question.skill, 0.3)
        extra = [f"{n}+{n}={2 * n}" for n in range(2, 2 + moment.gold_steps * round(9 * (1 - known)))]
        return "\n".join([*extra, moment.question.gold_solution])

    tables = summary_of(records_of("base", shown, fading))["policies"]
    progress = tables["base"]["own"]["progress"]
    assert progress["n"] == 5 and progress["high"] < -0.8
    assert progress["versus_time_shuffled"]["high"] < 0
    (answer,) = [a for a in answer_questions(tables, [], {"base": None}, {}) if "adapt" in a["question"]]
    assert answer["answer"] == YES
    assert summary_of(records_of("base", shown, follower))["policies"]["base"]["own"]["progress"]["n"] <= 5


def test_memory_that_is_cut_before_what_changes_is_told_from_a_policy_that_does_not_adapt():
    progress = {"n": 8, "correlation": 0.0, "low": -0.1, "high": 0.1, "by_student": {}}
    progress["versus_time_shuffled"] = {"n": 8, "mean": 0.0, "low": 0.0, "high": 0.0}
    tables = {"ipo": {"own": {"progress": progress}}}
    for share, expected in ((1.0, UNDECIDED), (0.5, NO)):
        adaptive = {"ipo": {"time_shuffled": {"same_prompt_share": share}}}
        answer = answer_questions(tables, [], {"ipo": "own"}, adaptive)[-1]
        assert answer["answer"] == expected
        assert ("--memory_tokens" in answer["because"]) == (share == 1.0)


def test_training_that_teaches_to_follow_is_answered_yes(shown):
    records = records_of("base", shown, ignorer) + records_of("ipo", shown, follower)
    comparisons = compare_all(records, ["base", "ipo"], list(ARMS))
    summary = summary_of(records)
    answers = {
        (a["question"], a["policy"]): a["answer"]
        for a in answer_questions(summary["policies"], comparisons, {"ipo": "own"}, {})
    }
    assert answers["Does memory help at inference?", "base"] == NO
    assert answers["Does memory help at inference?", "ipo"] == YES
    assert answers["Does training help?", "ipo"] == YES
    assert answers["Does training with memory help more?", "ipo"] == UNDECIDED  # there is no control
    records += records_of("grpo", shown, ignorer)
    comparisons = compare_all(records, ["base", "ipo", "grpo"], list(ARMS))
    tables = summary_of(records)["policies"]
    found = answer_questions(tables, comparisons, {"ipo": "own", "grpo": "none"}, {})
    (more,) = [a for a in found if "more" in a["question"]]
    assert more["answer"] == YES and more["policy"] == "ipo"
    # named the other way round the comparison is mirrored, the answer is not
    turned = compare_all(records, ["base", "grpo", "ipo"], list(ARMS))
    (again,) = [
        a
        for a in answer_questions(tables, turned, {"grpo": "none", "ipo": "own"}, {})
        if "more" in a["question"]
    ]
    assert again["answer"] == YES


# --- statistics and decisions ----------------------------------------------------------------------------


def flat(policy, arm, values, metric="fidelity"):
    """Records with the given values of a metric, students in turn."""
    empty = {name: None for name in evaluation_summary_metrics()}
    return [
        {
            **empty,
            "correct": value > 0.5,
            "policy": policy,
            "memory_arm": arm,
            "error": None,
            "student_id": f"S{n % 2}",
            "question_id": f"q{n // 2}",
            "temperature": 0.7,
            "sample": 0,
            metric: value,
        }
        for n, value in enumerate(values)
    ]


def evaluation_summary_metrics():
    from rl.evaluation_summary import METRICS

    return METRICS


def test_comparisons_against_scipy_and_by_hand():
    own, none = [1.0, 0.8, 0.6, 0.9, 1.0, 0.7], [0.4, 0.2, 0.6, 0.8, 0.3, 0.9]
    records = flat("base", "own", own) + flat("base", "none", none)
    (found,) = compare_all(records, ["base"], ["own", "none"])
    difference = np.subtract(own, none)
    assert found["n"] == 6 and found["metrics"]["fidelity"]["mean"] == pytest.approx(difference.mean())
    p = stats.wilcoxon(difference).pvalue
    assert found["metrics"]["fidelity"]["p"] == pytest.approx(p)
    # right with own: all 6; with none: 3 of 6; so 3 repaired, 0 broken: McNemar 2 * 0.5^3
    assert (found["repaired"], found["broken"], found["repair"]) == (3, 0, 1.0)
    assert found["metrics"]["correct"]["p"] == 0.25 == stats.binomtest(0, 3).pvalue
    # Holm over the two metrics that have values
    small, large = sorted([p, 0.25])
    adjusted = [found["metrics"][name]["p_holm"] for name in ("fidelity", "correct")]
    assert sorted(adjusted) == pytest.approx([min(1, 2 * small), max(2 * small, large)])
    assert found["metrics"]["grade_fit"] == {
        "n": 0, "mean": None, "low": None, "high": None, "p": None, "p_holm": None,
    }  # fmt: skip


def test_the_interaction_is_a_difference_of_differences():
    arms = {("base", "own"): 0.5, ("base", "none"): 0.4, ("ipo", "own"): 0.9, ("ipo", "none"): 0.5}
    records = [row for (policy, arm), value in arms.items() for row in flat(policy, arm, [value] * 6)]
    found = [c for c in compare_all(records, ["base", "ipo"], ["own", "none"]) if c["kind"] == "interaction"]
    assert found[0]["metrics"]["fidelity"]["mean"] == pytest.approx((0.9 - 0.5) - (0.5 - 0.4))


def test_the_signed_rank_test_survives_degenerate_data():
    assert wilcoxon_p([]) is None and wilcoxon_p([0.0, 0.0]) == 1.0
    assert wilcoxon_p([1.0, 2.0, 3.0]) == stats.wilcoxon([1.0, 2.0, 3.0]).pvalue == 0.25


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "answer"),
    [
        (0.01, 0.3, 0.01, YES),
        (0.01, 0.3, 0.2, UNDECIDED),
        (-0.01, 0.3, 0.01, UNDECIDED),
        (-0.1, 0.049, 0.5, NO),
        (-0.3, -0.1, 0.001, NO),
        (None, None, None, UNDECIDED),
    ],
)
def test_the_rule(low, high, p_holm, answer):
    assert decide({"low": low, "high": high, "p_holm": p_holm}) == answer


@pytest.mark.parametrize(("pairs", "answer"), [(19, UNDECIDED), (20, NO)])
def test_a_handful_of_alike_answers_decides_nothing(pairs, answer):
    records = flat("base", "own", [1.0] * pairs) + flat("base", "none", [1.0] * pairs)
    comparisons = compare_all(records, ["base"], ["own", "none"])
    (found,) = answer_questions({"base": {}}, comparisons, {}, {})
    assert found["question"] == "Does memory help at inference?" and found["answer"] == answer


def test_a_gain_that_costs_accuracy_is_no_yes():
    gain, harm, nothing = (
        {"low": low, "high": high} for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.01, 0.02))
    )
    assert decide_both([gain, nothing]) == YES and decide_both([nothing, nothing]) == NO
    assert decide_both([harm, gain]) == UNDECIDED
    assert doctest.testmod(evaluation_answers).failed == 0 and doctest.testmod(policies).failed == 0


# --- policies --------------------------------------------------------------------------------------------


def make_run(
    folder: Path, base: Path, model: Path, memory="own", status="success", started="20260101_000000"
):
    """A training run's folder as `rl/train_rl_memory.py` leaves it."""
    folder.mkdir(parents=True)
    config = {"model": {"name": str(base)}, "memory": memory, "weights": {"correct": 1.0}, "seed": 0}
    config |= {"memory_tokens": 300, "top_k": 0, "max_completion_length": 12, "cot_prompt": "Solve."}
    config |= {"chapters": ["addition"]}
    run = {"status": status, "started": started, "config": config, "environment": {}}
    (folder / "run.json").write_text(json.dumps(run))
    lines = [{"step": step, "reward": step / 10, "probe/accuracy": step / 20} for step in (1, 5, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(model, folder / "model")
    return folder


@pytest.fixture(scope="module")
def models(tiny_folder, tmp_path_factory):
    """Two tiny models with room for a prompt, and a run from the first to the second."""
    import torch
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("models")
    for name in ("base", "other"):
        shutil.copytree(tiny_folder, root / name)
        config = json.loads((root / name / "config.json").read_text())
        config["max_position_embeddings"] = 4096
        (root / name / "config.json").write_text(json.dumps(config))
    weights = load_file(root / "other" / "model.safetensors")
    torch.manual_seed(7)
    weights = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(weights, root / "other" / "model.safetensors", metadata={"format": "pt"})
    return root / "base", make_run(root / "data" / "tiny" / "rl_1", root / "base", root / "other")


def test_the_newest_completed_run_is_found(models, tmp_path):
    base, run = models
    for number, (started, status) in enumerate(
        [("20260101_000000", "success"), ("20260301_000000", "success"), ("20260401_000000", "running")]
    ):
        make_run(tmp_path / "qwen" / f"rl_{number}", base, run / "model", status=status, started=started)
    assert newest_run(tmp_path) == tmp_path / "qwen" / "rl_1"
    with pytest.raises(UserError, match=r"python rl/train_rl_memory\.py"):
        newest_run(tmp_path / "qwen")


def test_policies_are_named_by_what_they_were_trained_with(models, tmp_path):
    base, run = models
    found = resolve_policies(None, [(None, str(run))])
    assert [policy.name for policy in found] == ["base", "ipo"]
    assert found[0].source.name == str(base) and found[1].source.path == run / "model"
    control = make_run(tmp_path / "rl_2", base, run / "model", memory="none")
    assert [p.name for p in resolve_policies(None, [(None, str(run)), (None, str(control))])][1:] == [
        "ipo",
        "grpo",
    ]
    with pytest.raises(UserError, match="two policies are called ipo"):
        resolve_policies(None, [(None, str(run)), ("ipo", str(control))])
    with pytest.raises(UserError, match="no policy names its base"):
        resolve_policies(None, [("x", str(run / "model"))])
    unfinished = make_run(tmp_path / "rl_3", base, run / "model", status="running")
    with pytest.raises(UserError, match="not finished"):
        resolve_policies(None, [(None, str(unfinished))])
    assert parse_trained("a=b=c") == ("a", "b=c")


# --- the script ------------------------------------------------------------------------------------------


def evaluate(*flags):
    """The script in this process: (exit code, stdout, stderr)."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hook, out, err = sys.excepthook, io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = evaluate_rl.main([str(flag) for flag in flags])
    finally:
        sys.excepthook = hook
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return code, out.getvalue(), err.getvalue()


SMALL = ["--students", "S002", "S004", "--exercises_per_chapter", "2", "--practice", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A whole small run: 2 policies x 2 students x 2 exercises x 5 arms x 2 samples."""
    folder = tmp_path_factory.mktemp("out")
    code, out, err = evaluate(*SMALL, "--trained", models[1], "--output_dir", folder, "--batch_size", "8")
    assert code == 0, err
    return Path(out.splitlines()[-1]), out


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path}: {name}"))


def test_help_is_quick_and_a_wrong_flag_is_one_line():
    command = [sys.executable, str(REPO_ROOT / "evaluate_rl.py")]
    code = "import sys, evaluate_rl; evaluate_rl.build_parser(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    for slow in ("torch", "transformers", "pandas", "matplotlib", "scipy", "pydantic", "numpy"):
        assert f"'{slow}'" not in done.stdout
    done = subprocess.run([*command, "--memory", "owned"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_without_a_run_one_line_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setattr(policies, "newest_run", lambda: newest_run(tmp_path))
    code, out, err = evaluate("--device", "cpu")
    assert code == 2 and not out
    assert err.count("\n") == 1 and "python rl/train_rl_memory.py" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--students", "S999"], "--students S999: no such profile"),
        (["--chapters", "algebra"], "--chapters algebra: no such chapter"),
        (["--students", "S002"], "--memory shuffled: needs a second student"),
        (["--students", "S001", "S002", "--chapters", "equations"], "--chapters equations: none of these"),
    ],
)
def test_a_bad_choice_is_one_line_before_a_model_loads(models, tmp_path, flags, message):
    code, _, err = evaluate("--trained", models[1], "--output_dir", tmp_path, *flags)
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_result_file_keeps_its_contract(finished):
    path, out = finished
    document = read(path)
    assert list(document) == [
        "schema_version", "status", "script", "temperature", "started", "finished", "config", "environment",
        "summary", "results",
    ]  # fmt: skip
    assert document["status"] == "success" and document["temperature"] == 0.7
    results = document["results"]
    assert len(results) == 2 * 2 * 2 * 5 * 2 == document["summary"]["rows_done"]
    assert list(results[0])[:9] == [
        "index", "temperature", "question", "gold_solution", "retrieved_profile", "generated_text",
        "output_tokens", "perplexity", "semantic_similarity",
    ]  # fmt: skip
    assert {(r["policy"], r["memory_arm"]) for r in results} == {
        (p, a) for p in ("base", "ipo") for a in ARMS
    }
    assert all(r["question"] not in r["prompt"].split("Question: ")[0] for r in results)
    cells = document["summary"]["cells"]
    assert len(cells) == 2 * 5 * 1 * 2 and sum(cell["n"] for cell in cells) == len(results)
    assert document["config"]["memory_tokens"] == 300 and document["config"]["max_new_tokens"] == 12
    assert document["config"]["chapters"] == ["addition"]
    assert set(document["summary"]["timing"]) == {"generation_s", "metrics_s", "wall_s", "tokens_per_second"}
    assert out.splitlines()[-1] == str(path)


def test_every_text_is_judged_by_the_base(finished, models):
    import torch

    from cot.utils.models import load_model
    from cot.utils.prompts import encode_data

    document = read(finished[0])
    model, tokenizer = load_model(str(models[0]), "cpu", "float32")
    for record in document["results"][3::17]:
        if not record["generated_text"]:
            continue
        prompt = tokenizer.encode(record["prompt"], split_special_tokens=True)
        answer = encode_data(tokenizer, record["generated_text"])
        answer += [] if record["truncated"] else [tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        nll = -logprobs.gather(1, torch.tensor(answer)[:, None]).mean()
        assert record["base_nll"] == pytest.approx(float(nll), abs=1e-3)
        assert record["base_perplexity"] == pytest.approx(float(nll.exp()), rel=1e-2)


def test_no_record_shows_another_student_or_the_future_as_own(finished):
    for record in read(finished[0])["results"]:
        if record["memory_arm"] == "own":
            assert record["memory_student_id"] == record["student_id"]
            assert record["memory_as_of"] == record["as_of"]
            others = set(PROFILES) - {record["student_id"]}
            assert not any(re.search(rf"\b{other}\b", record["prompt"]) for other in others)


def test_the_report_answers_the_four_questions_and_shows_its_figures(finished):
    report = finished[0].with_suffix(".md").read_text()
    for question in (
        "Does memory help at inference?",
        "Does training help?",
        "Does training with memory help more?",
    ):
        assert re.search(rf"\*\*{re.escape(question)}\*\* `(base|ipo)`: \*\*(yes|no|undecided)\*\*", report)
    assert "Does it adapt as the student learns?" in report
    figures = re.findall(r"\((figures/\S+?\.png)\)", report)
    assert len(figures) == 4
    for figure in figures:
        assert (finished[0].parent / figure).read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_was_killed_continues_to_the_same_result(finished, models, tmp_path):
    folder = tmp_path / "out" / "evaluation"
    folder.mkdir(parents=True)
    (journal,) = finished[0].parent.glob("journal_*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) > 5
    (folder / journal.name).write_text("".join(lines[:4]) + lines[4][: len(lines[4]) // 2])  # a torn line
    flags = [*SMALL, "--trained", models[1], "--output_dir", tmp_path / "out", "--batch_size", "8"]
    code, out, err = evaluate(*flags)
    assert code == 0, err
    assert "torn last line dropped" in err
    again, before = read(Path(out.splitlines()[-1])), read(finished[0])
    assert Path(out.splitlines()[-1]).name == finished[0].name  # the run's own stamp
    assert again["results"] == before["results"]
    for document in (again, before):
        document["summary"].pop("timing")
    assert again["summary"] == before["summary"]


def test_sigterm_saves_a_cancelled_result_and_the_same_command_continues(finished, models, tmp_path):
    def stop() -> None:
        journals = (tmp_path / "evaluation").glob
        while not any(path.read_text().count("\n") >= 3 for path in journals("journal_*.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    flags = [*SMALL, "--trained", models[1], "--output_dir", tmp_path, "--batch_size", "8"]
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    code, _, err = evaluate(*flags)
    thread.join()
    assert code == 143 and "continue with: python" in err
    (path,) = (tmp_path / "evaluation").glob("evaluation_*.json")
    stopped = read(path)
    assert stopped["status"] == "cancelled" and 0 < len(stopped["results"]) < len(
        read(finished[0])["results"]
    )
    code, out, err = evaluate(*flags)
    assert code == 0 and Path(out.splitlines()[-1]) == path, err
    assert read(path)["results"] == read(finished[0])["results"]


def test_another_data_set_crosses_questions_with_students(models, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text('{"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\\n#### 5"}\n')
    flags = ["--students", "S002", "S004", "--trained", models[1], "--dataset", data, "--device", "cpu"]
    code, out, err = evaluate(*flags, "--output_dir", tmp_path, "--num_samples", "1", "--temperatures", "0")
    assert code == 0, err
    document = read(Path(out.splitlines()[-1]))
    assert {r["memory_arm"] for r in document["results"]} == set(ARMS) - {"time_shuffled"}
    assert {r["as_of"] for r in document["results"]} == {None} and len(document["results"]) == 2 * 2 * 4
    assert document["summary"]["adaptivity"]["base"]["none"]["n"] == 0  # a greedy text has no resample
