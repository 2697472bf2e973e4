"""What is trained on, and what is held out: by the data's own split, or of a file by seed."""

import json
from types import SimpleNamespace

import pytest

import evaluate_rl
import rl.splits
from cot.utils.errors import UserError
from cot.utils.questions import ALL, load_questions
from cot.utils.textbook import load_chapters
from rl.cohorts import load_arms
from rl.settings import fill_preset
from rl.splits import held_out_questions, pick_moments
from rl.train_rl_memory import parse_args

SPLITS = {
    (chapter.id, template.id): template.split for chapter in load_chapters() for template in chapter.templates
}


def flags(*argv):
    args = parse_args(["--preset", "cpu", "--max_steps", "10", *map(str, argv)])
    fill_preset(args)
    return args


def pick(*argv, students=("--students", "generated:8")):
    args = flags(*argv, *students)
    return pick_moments(args, load_arms(args))


def splits(moments) -> set[str]:
    """The splits of the templates that the moments' exercises come from."""
    return {SPLITS[tuple(moment.question.id.split("/")[:2])] for moment in moments}


def ids(moments) -> set[str]:
    return {moment.question.id for moment in moments}


@pytest.fixture
def file(tmp_path):
    """Thirty questions; the last ten are there twice, in other letters."""
    texts = [f"What is {number} + 1?" for number in range(30)]
    texts += [text.upper().replace(" ", "  ") for text in texts[20:]]
    rows = [{"question": text, "answer": "#### 1"} for text in texts]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- data with a split ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_meets_train_templates_and_is_evaluated_on_test_templates():
    train, held_out, source = pick("--eval_size", 40, students=("--students", "generated:80"))
    assert (len(train), len(held_out)) == (80, 40)  # 10 steps x 8 prompts
    assert (source.train, source.held_out, source.held_out_ids) == ("textbook train", "textbook test", None)
    assert splits(train) == {"train"} and splits(held_out) == {"test"}
    assert {moment.student_id[0] for moment in train} == {"S"} and len({m.student_id for m in train}) == 80
    chapters = {moment.question.chapter for moment in train}
    assert chapters == {"addition", "subtraction", "multiplication", "division", "two_step"}


def test_gsm8k_trains_on_its_train_split_and_is_evaluated_on_its_test_split(monkeypatch):
    asked = []

    def load(_dataset, split, subset_size=ALL):  # what the hub would give
        asked.append((split, subset_size))
        return load_questions("textbook", split, 5)

    monkeypatch.setattr(rl.splits, "load_questions", load)
    train, held_out, source = pick("--eval_size", 20, "--dataset", "gsm8k")
    assert asked == [("train", ALL), ("test", 20)]
    assert (source.train, source.held_out, source.held_out_ids) == ("textbook train", "textbook test", None)
    assert splits(train) == {"train"} and splits(held_out) == {"test"}


def test_another_seed_asks_the_same_students_other_questions():
    args = flags("--students", "generated:8")
    arms, picked = load_arms(args), []
    for args.seed in (0, 1):
        picked.append([[moment.question for moment in side] for side in pick_moments(args, arms)[:2]])
    assert picked[0][0] != picked[1][0] and picked[0][1] != picked[1][1]


# --- a file, which has none -------------------------------------------------------------------------------


def test_of_a_file_no_question_is_both_trained_on_and_held_out(file):
    train, held_out, source = pick("--dataset", file, "--eval_size", 20)
    assert len(train) == 80 and len(held_out) == 20
    # a tenth of the 30 different questions, those that are there twice with both
    assert 3 <= len(source.held_out_ids) <= 6 and ids(held_out) <= set(source.held_out_ids)

    def texts(moments):
        return {" ".join(moment.question.question.lower().split()) for moment in moments}

    assert not texts(train) & texts(held_out)
    assert source.train == f"{file}, {40 - len(source.held_out_ids)} of 40 questions"
    assert source.held_out == f"{len(source.held_out_ids)} questions of {file}, split off by seed 0"


def test_the_split_depends_on_the_seed_alone_and_no_held_out_moment_is_asked_twice(file):
    _, held_out, source = pick("--dataset", file, "--seed", 3, "--eval_size", 1000)
    asked = [(moment.question.id, moment.student_id) for moment in held_out]
    assert len(asked) == len(set(asked)) == 8 * len(source.held_out_ids)
    assert source.held_out_ids == pick("--dataset", file, "--seed", 3, "--eval_size", 5)[2].held_out_ids
    assert source.held_out_ids != pick("--dataset", file, "--seed", 4)[2].held_out_ids


def test_a_file_of_one_question_cannot_be_split(file):
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"own\.jsonl: a single question cannot be split"):
        pick("--dataset", file)


# --- the evaluation after it ------------------------------------------------------------------------------


def test_a_policy_is_evaluated_on_what_it_was_not_trained_on(file):
    _, _, source = pick("--dataset", file)
    run = {"dataset": str(file), "held_out": source.held_out_ids}
    questions, words = held_out_questions(str(file), [run])
    assert [question.id for question in questions] == source.held_out_ids
    assert words == f"{file}, questions held out in training"
    assert len(held_out_questions(str(file), [run], subset_size=2)[0]) == 2
    # of two runs, what neither has seen
    other = run | {"held_out": source.held_out_ids[:1]}
    assert [question.id for question in held_out_questions(str(file), [run, other])[0]] == other["held_out"]


def test_the_evaluation_asks_every_student_about_the_held_out_questions(file):
    _, _, source = pick("--dataset", file)
    run = {"dataset": str(file), "held_out": source.held_out_ids}
    args = evaluate_rl.build_parser().parse_args(["--dataset", str(file), "--students", "S001", "S004"])
    policies = [SimpleNamespace(config={}), SimpleNamespace(config=run)]
    evaluate_rl.fill_from_run(args, policies)
    moments, _, _ = evaluate_rl.follow_students(args, *evaluate_rl.choose_students(args), policies)
    asked = sorted((moment.question.id, moment.student_id) for moment in moments)
    assert asked == sorted((number, name) for number in source.held_out_ids for name in ("S001", "S004"))


def test_what_a_policy_was_trained_on_entirely_is_refused(file):
    for trained in ({"dataset": str(file)}, {"dataset": str(file), "held_out": []}):
        with pytest.raises(UserError, match="the policies were trained on all of its questions"):
            held_out_questions(str(file), [trained])


def test_a_file_that_nobody_was_trained_on_is_asked_as_it_is(file):
    runs = [{"dataset": "textbook", "held_out": None}, {}]
    questions, words = held_out_questions(str(file), runs, subset_size=7)
    assert [question.id for question in questions] == [f"own-{number}" for number in range(7)]
    assert words == str(file)
