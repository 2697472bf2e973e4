"""The evaluation: planted policies and their verdicts, and the script on tiny random models."""

import dataclasses
import functools
import math
import os
import re
import signal
import threading
import time
import zlib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    FIRST_KEYS,
    make_completion,
    make_run,
    make_tokenizer,
    only,
    plant_policy,
    read_strictly,
    run_here,
)

import evaluate_rl
from cot.utils.manners import support_target
from cot.utils.mastery import mastery_by_skill
from cot.utils.memory_arms import MemoryArms, PromptShape, make_prompt, remember
from cot.utils.paths import PROFILES_DIR
from cot.utils.records import make_record
from cot.utils.student_files import load_profiles
from cot.utils.textbook import load_chapters
from rl.explanations import Phrasing, calculations, explain
from rl.moments import walk_textbook

pytestmark = pytest.mark.slow

PROFILES = load_profiles(PROFILES_DIR)
CHAPTERS = load_chapters()[:5]  # of two test templates each
MOMENTS = 78  # two exercises in each; S001, in second grade, has not come to the fifth chapter


# --- planted policies, through the script's own summary -------------------------------------------------


class BagOfWords:
    """Unit vectors of word counts: equal texts at distance 0, others further the fewer words they share."""

    def encode(self, texts):
        rows = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shown():
    """Every moment of a walk in every arm, with its prompt: (arms, rows of sample 0, prompts)."""
    moments, histories = walk_textbook(PROFILES, CHAPTERS, exercises_per_chapter=2, practice=2, seed=0)
    arms = MemoryArms(PROFILES, histories, embedder=None, seed=0)
    args = Namespace(memory=list(evaluate_rl.ARMS), temperatures=[0.7], num_samples=1)
    rows = evaluate_rl.build_rows(args, [SimpleNamespace(name="base")], moments, arms)
    tokenizer, shape = make_tokenizer(), PromptShape("Solve.", 400)
    return arms, rows, [make_prompt(tokenizer, row.moment, row.memory, shape) for row in rows]


@pytest.fixture(scope="module")
def records_of(shown):
    """A planted policy's records, made once for all tests: `write(row, prompt)` is its text."""

    @functools.cache
    def make(policy: str, write) -> list[dict]:
        _, rows, prompts = shown
        records = []
        for row, prompt in zip(rows, prompts, strict=True):
            for sample in range(2):
                asked = dataclasses.replace(row, policy=policy, sample=sample)
                text = write(asked, prompt)
                completion = make_completion(text, logprobs=(-1.0,) * len(text.split()))
                records.append(make_record(asked, prompt, completion, PROFILES[row.moment.student_id]))
        return records

    return make


def summary_of(records, trained_with=None):
    """The evaluation's summary; `trained_with` by trained policy the memory arm of its training."""
    policies = [SimpleNamespace(name="base", config={})]
    for name, arm in (trained_with or {}).items():
        policies.append(SimpleNamespace(name=name, config={"memory": arm}))
    return evaluate_rl.summarize(
        records, Namespace(memory=list(evaluate_rl.ARMS)), policies, PROFILES, BagOfWords()
    )


def verdicts_of(summary):
    return {(v["question"], v["policy"]): v["verdict"] for v in summary["verdicts"]}


def ignorer(row, _prompt):
    """Its style changes from answer to answer, whatever the memory says."""
    styles = ("numbered_steps", "short_sentences", "guiding_questions", "equations_first", "check_at_end")
    pick = zlib.crc32(f"{row.moment.question.id} {row.sample}".encode())
    steps = calculations(row.moment.question.gold_solution)
    return explain(steps, Phrasing(styles[pick % 5], hint=bool(pick & 64)))


def follower(row, _prompt):
    """It meets every wish of the student whose memory stands in the prompt."""
    steps = calculations(row.moment.question.gold_solution)
    if row.memory.student_id is None:
        return explain(steps, Phrasing("equations_first", joined=True))
    student = PROFILES[row.memory.student_id]
    wishes = student.learning_preferences
    manner = Phrasing(
        student.explanation_style,
        hint="a hint first" in wishes,
        support="guided" if "a reason with because" in wishes else "brief",
        full_sentence="the answer in a full sentence" in wishes,
    )
    return explain(steps, manner)


def copier(row, prompt):
    return f"{prompt.memory}\n{row.moment.question.gold_solution}"


def test_a_planted_ignorer_shows_no_adaptation_and_no_specificity(records_of):
    summary = summary_of(records_of("base", ignorer))
    table = summary["policies"]["base"]["own"]
    assert table["memory_specificity"]["mean"] == 0.0 == table["memory_specificity"]["high"]
    who = table["profile_identification"]
    assert who["n"] == MOMENTS and who["chance"] == pytest.approx(1 / 8)
    for arm in ("none", "shuffled", "random", "time_shuffled"):
        assert summary["adaptivity"]["base"][arm]["p"] > 0.05
        assert summary["adaptivity"]["base"][arm]["statistic"] <= 0
    assert table["accuracy"]["canonical"]["mean"] == 1.0 and not table["alarm"]
    assert verdicts_of(summary) == {("Does memory help at inference?", "base"): "no"}


def test_a_planted_follower_scores_full(records_of):
    summary = summary_of(records_of("base", follower))
    tables = summary["policies"]["base"]
    assert tables["own"]["metrics"]["fidelity"]["mean"] == 1.0
    assert tables["own"]["memory_specificity"]["low"] > 0.2
    assert tables["shuffled"]["metrics"]["fidelity"]["mean"] < 0.8
    assert tables["own"]["profile_identification"]["top1"] > 0.5
    for arm in ("none", "shuffled", "random"):
        test = summary["adaptivity"]["base"][arm]
        assert test["p"] < 0.005 and test["n"] == MOMENTS and test["statistic"] > 0
        assert test["same_prompt_share"] == 0.0
    # the same student's style at another moment: a text that follows it does not change
    assert summary["adaptivity"]["base"]["time_shuffled"]["p"] == 1.0
    assert verdicts_of(summary) == {("Does memory help at inference?", "base"): "yes"}


def test_a_planted_copier_is_flagged(records_of):
    tables = summary_of(records_of("base", copier))["policies"]["base"]
    assert tables["own"]["alarm"] and tables["own"]["copies_memory_share"] == 1.0
    assert tables["own"]["names_student_share"] == 1.0  # "Student S002, 3rd grade."
    assert not tables["none"]["alarm"] and tables["none"]["copies_memory_share"] == 0.0


def test_a_planted_teacher_who_fades_support_is_seen_to_adapt(shown, records_of):
    histories = shown[0].histories

    def fading(row, _prompt):
        mastery = None
        if row.memory.student_id:  # it reads in the memory how far that student was
            by_skill = mastery_by_skill(histories[row.memory.student_id], as_of=row.memory.as_of)
            mastery = by_skill.get(row.moment.question.skill)
        steps = calculations(row.moment.question.gold_solution)
        return explain(steps, Phrasing("short_sentences", support=support_target(mastery)))

    adapts = "Does it adapt as the student learns?"
    records = records_of("base", ignorer) + records_of("ipo", fading)
    summary = summary_of(records, {"ipo": "own"})
    progress = summary["policies"]["ipo"]["own"]["progress"]
    assert progress["n"] == 8 and progress["high"] < -0.4
    assert progress["versus_time_shuffled"]["high"] < 0
    assert verdicts_of(summary)[adapts, "ipo"] == "yes"
    constant = records_of("base", ignorer) + records_of("ipo", follower)
    assert verdicts_of(summary_of(constant, {"ipo": "own"}))[adapts, "ipo"] != "yes"


def test_training_that_teaches_to_follow_is_answered_yes_unless_it_costs_accuracy(records_of):
    def wrong(row, prompt):
        return follower(row, prompt) + "\n#### 123456"

    base, ipo = records_of("base", ignorer), records_of("ipo", follower)
    found = verdicts_of(summary_of(base + ipo, {"ipo": "own"}))
    helps, trains = "Does memory help at inference?", "Does training help?"
    more = "Does training with memory help more?", "ipo"
    assert (found[helps, "base"], found[helps, "ipo"], found[trains, "ipo"]) == ("no", "yes", "yes")
    assert found[more] == "undecided"  # there is no control
    costly = verdicts_of(summary_of(base + records_of("ipo", wrong), {"ipo": "own"}))
    assert costly[trains, "ipo"] != "yes"

    # named the other way round the comparison is mirrored, the answer is not
    control = records_of("no_memory", ignorer)
    for records, trained_with in (
        (base + ipo + control, {"ipo": "own", "no_memory": "none"}),
        (base + control + ipo, {"no_memory": "none", "ipo": "own"}),
    ):
        assert verdicts_of(summary_of(records, trained_with))[more] == "yes"


# --- the script ------------------------------------------------------------------------------------------


BASE_SAYS = {"1": 0.75, "2": 0.05, "<|end|>": 0.2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base that mostly writes 1, and a run from it to a policy that mostly writes 2."""
    root = tmp_path_factory.mktemp("models")
    base = plant_policy(root / "base", {"": BASE_SAYS})
    other = plant_policy(root / "other", {"": BASE_SAYS | {"1": 0.05, "2": 0.75}})
    config = {"memory_tokens": 120, "top_k": 0, "max_completion_length": 12, "cot_prompt": "Solve."}
    return base, make_run(root / "rl_1", base, other, config=config | {"chapters": ["addition"]})


@pytest.mark.parametrize(
    ("trained", "flags", "taken"),
    [
        ({"students": ["generated:256"]}, [], {"students": ["generated:12"], "memory_level": "history"}),
        (
            {"students": ["generated:256"]},
            ["--students=S001"],
            {"students": ["S001"], "memory_level": "stated"},
        ),
        ({"students": ["all"]}, [], {"students": ["all"], "memory_level": "stated"}),
        ({}, ["--students=generated:4"], {"students": ["generated:4"], "memory_level": "history"}),
        ({"memory_level": "episodes", "top_k": 4}, [], {"memory_level": "episodes", "top_k": 4}),
        ({"mastery_parameters": "/a.json"}, [], {"mastery_parameters": "/a.json"}),
        ({"mastery_parameters": "/a.json"}, ["--mastery_parameters=/b"], {"mastery_parameters": Path("/b")}),
        ({}, [], {"max_new_tokens": None, "chapters": ["all"], "memory_tokens": 256, "top_k": 2}),
    ],
)
def test_what_no_flag_names_is_as_the_policy_was_trained(trained, flags, taken):
    args = evaluate_rl.build_parser().parse_args(flags)
    evaluate_rl.fill_from_run(args, [SimpleNamespace(config={}), SimpleNamespace(config=trained)])
    assert {name: getattr(args, name) for name in taken} == taken


def evaluate(*flags):
    """The script in this process: (exit code, stdout, stderr)."""
    return run_here(evaluate_rl.main, *flags)


SMALL = ["--students", "S002", "S004", "--exercises_per_chapter", "2", "--practice", "1", "--device", "cpu"]
SMALL += ["--batch_size", "8"]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A whole small run: 2 policies x 2 students x 2 exercises x 5 arms x 2 samples."""
    folder = tmp_path_factory.mktemp("out")
    code, out, err = evaluate(*SMALL, "--trained", models[1], "--output_dir", folder)
    assert code == 0, err
    return Path(out.splitlines()[-1]), out


def results(summary_path: Path) -> list[dict]:
    """The answers of a run at temperature 0.7."""
    name = summary_path.name.replace("summary_", "results_temp_0.7_")
    return read_strictly(summary_path.with_name(name))["results"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--students", "S999"], "--students S999: no such profile"),
        (["--chapters", "algebra"], "--chapters algebra: no such chapter"),
        (["--students", "S002"], "--memory shuffled: needs a second student"),
        (["--students", "S001", "S002", "--chapters", "equations"], "--chapters equations: none of these"),
        (["--closed_loop", "--retry_failed"], "--retry_failed: not with --closed_loop"),
    ],
)
def test_a_bad_choice_is_one_line_before_a_model_loads(models, tmp_path, flags, message):
    code, _, err = evaluate("--trained", models[1], "--output_dir", tmp_path, *flags)
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_result_files_and_the_report_keep_their_contract(finished):
    path, out = finished
    summary = read_strictly(path)
    document = read_strictly(path.with_name(path.name.replace("summary_", "results_temp_0.7_")))
    for content in (summary, document):
        keys = "schema_version status script temperature started finished config environment summary results"
        assert list(content) == keys.split()
        assert content["status"] == "success" and content["schema_version"] == 3
        parts = "rows_done policies comparisons adaptivity verdicts timing"
        assert list(content["summary"]) == parts.split()
    assert document["temperature"] == 0.7 and summary["temperature"] is None
    answers = document["results"]
    assert len(answers) == 2 * 2 * 2 * 5 * 2 == summary["summary"]["rows_done"]
    assert list(answers[0])[:9] == FIRST_KEYS
    assert {(r["policy"], r["memory_arm"]) for r in answers} == {
        (policy, arm) for policy in ("base", "ipo") for arm in evaluate_rl.ARMS
    }
    assert all(r["question"] not in r["prompt"].split("Question: ")[0] for r in answers)
    config = summary["config"]
    assert config["memory_tokens"] == 120 and config["max_new_tokens"] == 12  # as the run was trained
    assert config["top_k"] == 0 and config["chapters"] == ["addition"] and config["cot_prompt"] == "Solve."
    assert [policy["name"] for policy in config["policies"]] == ["base", "ipo"]

    report = path.with_name(path.name.replace("summary_", "report_")).with_suffix(".md").read_text()
    for verdict in summary["summary"]["verdicts"]:
        assert f"**{verdict['question']}** `{verdict['policy']}`: **{verdict['verdict']}**" in report
        assert f"{verdict['question']} {verdict['policy']}: {verdict['verdict']}\n" in out
    assert len({verdict["question"] for verdict in summary["summary"]["verdicts"]}) == 4
    figures = re.findall(r"\((figures/\S+?\.png)\)", report)
    assert len(figures) == 4
    assert all((path.parent / figure).read_bytes()[:4] == b"\x89PNG" for figure in figures)


def test_the_base_answers_before_and_the_trained_policy_after_and_every_text_is_judged_by_the_base(finished):
    answers = results(finished[0])
    for policy, digit in (("base", "1"), ("ipo", "2")):
        texts = "".join(record["generated_text"] for record in answers if record["policy"] == policy)
        assert set(texts) <= {"1", "2"} and texts.count(digit) / len(texts) > 0.8  # .75 / .8 = .94, sharpened
    for record in answers:
        if not record["generated_text"]:
            continue
        ones, twos = (record["generated_text"].count(digit) for digit in "12")
        drawn = {"1": ones, "2": twos, "<|end|>": not record["truncated"]}
        nll = -sum(count * math.log(BASE_SAYS[token]) for token, count in drawn.items()) / sum(drawn.values())
        assert record["base_nll"] == pytest.approx(nll, abs=1e-3)
        assert record["base_perplexity"] == pytest.approx(math.exp(nll), rel=1e-3)


def test_no_record_shows_another_student_or_the_future_as_own(finished):
    for record in results(finished[0]):
        if record["memory_arm"] == "own":
            assert record["memory_student_id"] == record["student_id"]
            assert record["memory_as_of"] == record["as_of"]
            others = set(PROFILES) - {record["student_id"]}
            assert not any(re.search(rf"\b{other}\b", record["prompt"]) for other in others)
        if record["memory_arm"] == "time_shuffled":
            assert record["memory_student_id"] == record["student_id"]
            assert record["memory_as_of"] != record["as_of"]


def test_sigterm_saves_a_cancelled_result_and_the_same_command_continues_to_the_same(
    finished, models, tmp_path
):
    def stop() -> None:
        while not any(path.read_text().count("\n") >= 4 for path in tmp_path.rglob("journal_*.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    flags = [*SMALL, "--trained", models[1], "--output_dir", tmp_path]
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    code, _, err = evaluate(*flags)
    thread.join()
    assert code == 143 and "continue with: python" in err
    path = only(tmp_path, "summary_*.json")
    assert read_strictly(path)["status"] == "cancelled"
    assert 0 < len(results(path)) < len(results(finished[0]))

    # as if the next attempt had been killed while it wrote
    journal = only(tmp_path, "journal_*.jsonl")
    text = journal.read_text()
    batch = text.splitlines()[2]
    journal.write_text(text + batch[: len(batch) // 2])
    (path.parent / "figures").touch()  # no folder: everything but the report is made
    with pytest.raises(FileExistsError):
        evaluate(*flags)
    (path.parent / "figures").unlink()
    code, out, err = evaluate(*flags)
    assert code == 0 and ": 0 of 80 rows left" in out, err
    assert Path(out.splitlines()[-1]) == path  # the run's own stamp
    assert results(path) == results(finished[0])
    again, before = (read_strictly(document)["summary"] for document in (path, finished[0]))
    assert again | {"timing": None} == before | {"timing": None}


def test_questions_of_a_file_are_crossed_with_students_and_have_no_other_moment(tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    data.write_text('{"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\\n#### 5"}\n')
    args = evaluate_rl.build_parser().parse_args(["--dataset", str(data), "--students", "S002", "S004"])
    policies = [SimpleNamespace(name=name, config={}) for name in ("base", "ipo")]
    evaluate_rl.fill_from_run(args, policies)
    profiles, logs, truths = evaluate_rl.choose_students(args)
    moments, histories, source = evaluate_rl.follow_students(args, profiles, logs, truths, policies)
    args.top_k = 0
    arms = remember(args, profiles, histories, truths, embedder=None)
    rows = evaluate_rl.build_rows(args, policies, moments, arms)
    assert source == str(data) and "no time_shuffled at 2 of 2 moments" in capsys.readouterr().out
    assert {row.memory.arm for row in rows} == set(evaluate_rl.ARMS) - {"time_shuffled"}
    assert {row.moment.as_of for row in rows} == {"end"} and len(rows) == 2 * 2 * 4 * 2
