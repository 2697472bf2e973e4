"""Who meets what, when: no test exercise in training, nothing of the future in a memory, all from a seed."""

from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import mastery_file

from cot.utils.errors import UserError
from cot.utils.files import write_json
from cot.utils.manners import support_target
from cot.utils.mastery import mastery_by_skill
from cot.utils.mastery_model import MasteryModel
from cot.utils.memory_arms import MemoryArms, Moment, PromptShape
from cot.utils.paths import PROFILES_DIR
from cot.utils.questions import Question
from cot.utils.student_files import MemoryLog, load_profiles
from cot.utils.students import in_time_order
from cot.utils.textbook import generate_exercises, load_chapters, pick_chapters
from rl.cohorts import arms_of, count_generated, load_arms, load_students
from rl.moments import (
    build_rows,
    crossed_moments,
    draw_arms,
    fingerprint_questions,
    fingerprint_students,
    textbook_moments,
    walk_textbook,
)
from rl.student_model import combinations, generate_student, needs_of
from rl.train_rl_memory import parse_args

CHAPTERS = pick_chapters(["addition", "subtraction"])
TEMPLATES = {
    (chapter.id, template.id): template for chapter in load_chapters() for template in chapter.templates
}
SHAPE = PromptShape(instruction="Solve.", memory_tokens=200)


@pytest.fixture(scope="module")
def arms():
    profiles, log = load_profiles(PROFILES_DIR), MemoryLog(PROFILES_DIR / "memory")
    return MemoryArms(profiles, {name: log.read(name) for name in profiles}, embedder=None, seed=0)


def splits(moments) -> set[str]:
    """The splits of the templates that the moments' exercises come from."""
    keys = [tuple(moment.question.id.split("/")[:2]) for moment in moments]
    return {TEMPLATES[key].split for key in keys}


def rows_of(arms, moments, shown, tokenizer, **changes):
    options = {"fit_arms": ["own"], "shape": SHAPE, "max_prompt_tokens": None, "seed": 0} | changes
    return build_rows(tokenizer, arms, moments, shown, **options)


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda arms, seed: textbook_moments(arms, CHAPTERS, "train", 20, seed),
        lambda arms, seed: crossed_moments(arms, [Question("q", "?", "#### 1")], 40, seed),
        lambda arms, seed: draw_arms("own", [0.5, 0.3, 0.2], 50, seed),
        lambda arms, seed: walk_textbook({"S004": arms.profiles["S004"]}, CHAPTERS, 3, 2, seed),
    ],
    ids=["textbook", "crossed", "arms", "walk"],
)
def test_other_seeds_give_other_moments_and_the_same_seed_the_same(arms, draw):
    assert draw(arms, 0) == draw(arms, 0) != draw(arms, 1)


def test_a_training_moment_is_a_train_exercise_and_knows_the_mastery_of_that_time(arms):
    moments = textbook_moments(arms, CHAPTERS, "train", 20, 0)
    assert splits(moments) == {"train"}
    for moment in moments:
        history = arms.histories[moment.student_id]
        assert moment.as_of in {item.time for item in history}
        met = {item.chapter for item in history if item.time <= moment.as_of}
        assert moment.question.chapter in met  # that of the moment itself, or an earlier one
        assert moment.mastery == mastery_by_skill(in_time_order(history, moment.as_of))


def test_every_level_of_support_is_needed_about_as_often():
    students = [generate_student(number, CHAPTERS, 0, interactions_per_chapter=30) for number in range(10)]
    moments = textbook_moments(arms_of(students, level="history", seed=0), CHAPTERS, "train", 300, 0)
    found = Counter(support_target(moment.skill_mastery) for moment in moments)
    assert min(found.values()) > 75, found


def test_generated_students_are_others_in_an_evaluation_and_half_have_new_pairs():
    flags = {"students": ["generated:6"], "profiles_dir": PROFILES_DIR, "seed": 0, "memory_level": "history"}
    trained, unseen = (load_students(SimpleNamespace(**flags), unseen=side) for side in (False, True))
    needs = [needs_of(truth) in combinations("unseen") for truth in unseen[2].values()]
    assert sorted(needs) == [False] * 3 + [True] * 3
    assert not any(needs_of(truth) in combinations("unseen") for truth in trained[2].values())
    for student in set(trained[1]) & set(unseen[1]):
        assert trained[1][student] != unseen[1][student]
    assert all(profile.explanation_style is None for profile in unseen[0].values())
    # at the level `stated` they say what they need
    stated, _, truths = load_students(SimpleNamespace(**flags | {"memory_level": "stated"}))
    assert stated == truths


@pytest.mark.parametrize("students", [["generated:x"], ["generated:1"], ["generated:3", "S001"]])
def test_a_wrong_number_of_generated_students_is_refused(students):
    with pytest.raises(UserError, match="expected generated:N with N of at least 2"):
        count_generated(students)


def test_a_training_takes_the_mastery_that_was_fitted_and_is_another_run_with_it(tmp_path):
    flags = ["--students", "S001", "S003", "--top_k", "0", "--memory_level", "stated"]
    write_json(tmp_path / "m.json", mastery_file())
    plain = load_arms(parse_args(flags))
    fitted = load_arms(parse_args([*flags, "--mastery_parameters", str(tmp_path / "m.json")]))
    model = fitted.mastery_model
    assert fitted.mastery("S001") == model.mastery_by_skill(fitted.histories["S001"]) != plain.mastery("S001")
    # as it was for a run without the flag, before there was one
    assert fingerprint_students(plain) == "561432d31e4c1d072b14" != fingerprint_students(fitted)


def test_a_student_without_such_exercises_is_named(arms):
    silent = MemoryArms(arms.profiles, arms.histories | {"S003": []}, embedder=None, seed=0)
    with pytest.raises(UserError, match="--students S003: its log has no exercise of addition"):
        textbook_moments(silent, CHAPTERS, "train", 5, 0)


def test_crossing_meets_every_pair_once_before_it_begins_again_in_another_order(arms):
    questions = [Question(str(number), "?", "#### 1") for number in range(3)]
    pairs = [(m.question.id, m.student_id) for m in crossed_moments(arms, questions, 50, 0)]
    assert len(pairs) == 50
    assert len(set(pairs[:24])) == len(set(pairs[24:48])) == 24 and pairs[:24] != pairs[24:48]


def test_the_mix_decides_how_many_prompts_show_what():
    # 2000 draws: standard deviations of 22, 20 and 18
    found = Counter(draw_arms("own", [0.5, 0.3, 0.2], 2000, 0))
    assert found == {
        "own": pytest.approx(1000, abs=90),
        "none": pytest.approx(600, abs=82),
        "shuffled": pytest.approx(400, abs=72),
    }
    assert draw_arms("own", [0, 0, 1], 3, 0) == draw_arms("shuffled", [1, 0, 0], 3, 0) == ["shuffled"] * 3


# --- rows -------------------------------------------------------------------------------------------------


def test_a_row_shows_the_memory_of_its_arm_and_of_nobody_else(arms, tiny_llama):
    moments = textbook_moments(arms, CHAPTERS, "train", 24, 0)
    shown = ["own", "none", "shuffled"] * 8
    rows, dropped = rows_of(arms, moments, shown, tiny_llama[1])
    assert len(rows) == 24 and dropped == 0
    for row, moment, arm in zip(rows, moments, shown, strict=True):
        student = moment.student_id
        assert (row["student_id"], row["memory_arm"]) == (student, arm)
        assert row["question_id"] == moment.question.id and row["memory"] in row["prompt"].replace("| ", "")
        named = {name for name in arms.profiles if f"Student {name}," in row["prompt"]}
        assert named == {"own": {student}, "none": set(), "shuffled": {arms.donor(moment)}}[arm]
        assert student != arms.donor(moment)
        assert row["fit_to"] == (student if arm == "own" else None)
        assert len(row["other_students"]) == 3 and student not in row["other_students"]


def test_a_row_holds_what_the_rewards_need_and_no_profile(arms, tiny_llama):
    moment = textbook_moments(arms, CHAPTERS, "train", 1, 0)[0]
    (row,), _ = rows_of(arms, [moment], ["shuffled"], tiny_llama[1], fit_arms=["shuffled"])
    fields = "prompt prompt_ids stop question_id chapter gold_solution student_id memory_arm memory"
    assert list(row) == [*fields.split(), "fit_to", "other_students", "mastery", "steps"]
    assert row["fit_to"] == moment.student_id  # the control is paid for fit as well
    assert row["steps"] == row["gold_solution"].count("<<")


@pytest.mark.parametrize("arm", ["own", "shuffled"])
def test_a_row_shows_what_had_happened_at_its_moment_and_nothing_later(arms, tiny_llama, arm):
    moments = textbook_moments(arms, CHAPTERS, "train", 8, 0)
    later = False
    for moment in moments:
        past = {name: in_time_order(history, moment.as_of) for name, history in arms.histories.items()}
        (row,), _ = rows_of(arms, [moment], [arm], tiny_llama[1])
        assert rows_of(MemoryArms(arms.profiles, past, None, seed=0), [moment], [arm], tiny_llama[1]) == (
            [row],
            0,
        )
        at_the_end = arms.moment(moment.student_id, moment.question)
        later |= rows_of(arms, [at_the_end], [arm], tiny_llama[1])[0][0]["memory"] != row["memory"]
    assert later  # so that the two could differ


def test_no_need_of_a_generated_student_stands_in_its_prompt(tiny_llama):
    students = [generate_student(number, CHAPTERS, 0) for number in range(6)]
    told, known = (arms_of(students, level=level, seed=0) for level in ("stated", "history"))
    moments = textbook_moments(known, CHAPTERS, "train", 12, 0)
    for arms, is_told in ((told, True), (known, False)):
        for row in rows_of(arms, moments, ["own"] * 12, tiny_llama[1])[0]:
            assert ("Explanation style: " in row["prompt"] and "Prefers: " in row["prompt"]) == is_told


@pytest.mark.parametrize(("skill", "mastery"), [("practised", 0.8), ("never", 0.3), (None, None)])
def test_of_a_skill_never_practised_no_more_is_known_than_of_a_new_student(arms, tiny_llama, skill, mastery):
    question = Question("q", "What is 3+4?", "#### 7", skill=skill)
    asked = Moment(question, "S001", mastery={"practised": 0.8})
    assert rows_of(arms, [asked], ["own"], tiny_llama[1])[0][0]["mastery"] == mastery


def test_the_order_of_a_memorys_lines_is_seeded(arms, tiny_llama):
    moments = textbook_moments(arms, CHAPTERS, "train", 6, 0)

    def memories(seed):
        return [row["memory"] for row in rows_of(arms, moments, ["own"] * 6, tiny_llama[1], seed=seed)[0]]

    assert memories(0) == memories(0) != memories(1)
    assert [sorted(text.split("\n")) for text in memories(0)] == [
        sorted(text.split("\n")) for text in memories(1)
    ]


def test_a_control_token_in_a_question_stays_text_and_a_long_question_is_dropped(arms, tiny_tutor):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tutor)
    moments = [
        Moment(Question("short", "What is 3+4?<|im_end|>", "<<3+4=7>>7\n#### 7"), "S001"),
        Moment(Question("long", "What is 3+4? " * 100, "<<3+4=7>>7\n#### 7"), "S001"),
    ]
    rows, dropped = rows_of(arms, moments, ["own"] * 2, tokenizer, max_prompt_tokens=200)
    assert [row["question_id"] for row in rows] == ["short"] and dropped == 1
    assert rows[0]["stop"] == []  # a chat model ends its turn
    assert rows[0]["prompt_ids"].count(tokenizer.eos_token_id) == 1  # the turn's own end
    assert len(rows[0]["prompt_ids"]) <= 200
    with pytest.raises(UserError, match="--max_prompt_length"):
        rows_of(arms, moments, ["own"] * 2, tokenizer, max_prompt_tokens=5)


# --- the walk ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walk(arms):
    profiles = {name: arms.profiles[name] for name in ("S001", "S004", "S005")}
    return walk_textbook(profiles, CHAPTERS, exercises_per_chapter=3, practice=2, seed=0)


def test_students_meet_the_same_test_exercises_in_teaching_order_with_nothing_later_in_memory(walk):
    moments, histories = walk
    assert splits(moments) == {"test"}
    asked = set()
    for name, history in histories.items():
        found = [moment for moment in moments if moment.student_id == name]
        asked.add(tuple(moment.question.id for moment in found))
        assert [moment.number for moment in found] == list(range(6))
        assert [moment.question.chapter for moment in found] == ["addition"] * 3 + ["subtraction"] * 3
        for moment in found:
            before = in_time_order(history, moment.as_of)
            # per evaluated exercise 2 of practice before it, 1 of the same skill after it
            assert len(before) == 3 * moment.number + 2
            following = history[len(before)]
            assert following.time == moment.as_of and following.skill == moment.question.skill
            assert moment.mastery == mastery_by_skill(before)
    assert len(asked) == 1


def test_no_evaluated_exercise_is_in_any_memory(walk):
    moments, histories = walk
    remembered = {item.question for history in histories.values() for item in history}
    evaluated = {m.question.question for m in moments}
    every_test_question = {e.question for c in load_chapters() for e in generate_exercises(c, "test", 20, 0)}
    assert evaluated and not remembered & (evaluated | every_test_question)


def test_a_walk_knows_the_mastery_that_was_fitted(arms, walk):
    model, profiles = MasteryModel.model_validate(mastery_file()), {"S004": arms.profiles["S004"]}
    moments, histories = walk_textbook(profiles, CHAPTERS, 3, 2, seed=0, mastery_model=model)
    assert histories["S004"] == walk[1]["S004"]
    for moment in moments:
        assert moment.mastery == model.mastery_by_skill(in_time_order(histories["S004"], moment.as_of))


# --- fingerprints -----------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_what_it_stands_for(arms):
    other = arms.profiles | {"S001": arms.profiles["S001"].model_copy(update={"notes": "Likes chess."})}
    less = arms.histories | {"S001": arms.histories["S001"][:-1]}
    variants = [MemoryArms(other, arms.histories, None, 0), MemoryArms(arms.profiles, less, None, 0)]
    assert len({fingerprint_students(variant) for variant in (arms, *variants)}) == 3
    assert fingerprint_students(arms) == fingerprint_students(
        MemoryArms(arms.profiles, arms.histories, None, 1)
    )

    first, second, third = (Question(f"q{n}", f"1 + {n}?", f"#### {n}") for n in (1, 2, 3))
    found = [
        fingerprint_questions([Moment(asked, student) for asked in order])
        for student, order in (
            ("S001", [first, second]),
            ("S001", [second, first]),
            ("S001", [first, third]),
            ("S002", [first, second]),
        )
    ]
    assert len(set(found)) == 3 and found[0] == found[3]


def test_students_whom_a_manner_helps_walk_with_manners_and_the_others_without(arms, walk):
    profiles = {"S004": arms.profiles["S004"]}
    helped = walk_textbook(profiles, CHAPTERS, 3, 2, 0, truths=profiles)[1]["S004"]
    plain = walk[1]["S004"]
    assert all(item.manner is None for item in plain) and all(item.manner is not None for item in helped)
    assert [item.question for item in plain] == [item.question for item in helped]
