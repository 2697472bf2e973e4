"""What the experiment asks: students nobody trained for, balanced states, and nothing of the future."""

import re
from collections import Counter

import pytest

from cot.utils.manners import support_target
from cot.utils.students import SUPPORT_LEVELS
from cot.utils.textbook import load_chapters
from rl.conditions import CHANGE, EVIDENCE, SINCE_CHANGE, hold_out
from rl.hypotheses import list_hypotheses
from rl.lessons import CHAPTERS
from rl.student_model import combinations, generate_student, needs_of

pytestmark = pytest.mark.slow

COURSE = load_chapters()[: len(CHAPTERS)]


@pytest.fixture(scope="module")
def held_out():
    return hold_out(COURSE, "test", exercises_per_chapter=4)


@pytest.fixture(scope="module")
def confirm():
    return hold_out(COURSE, "confirm", exercises_per_chapter=1)


@pytest.fixture(scope="module")
def trained_for():
    """How the histories begin of the students that trainings have met."""
    first = COURSE[:1]  # what comes later does not change it
    return {generate_student(number, first, seed).history[:4] for seed in range(5) for number in range(60)}


def cells_of(held_out, condition):
    return [cell for cell in held_out.common + held_out.probing if cell.memory.arm == condition]


def counted(lines) -> int:
    """Exercises that a memory's lines count, skill by skill."""
    return sum(int(number) for line in lines for number in re.findall(r"after (\d+) exercise", line))


def test_half_of_the_students_need_a_pair_that_no_training_has(held_out):
    seen, unseen = combinations("seen"), combinations("unseen")
    needs = {student: needs_of(truth) for student, truth in held_out.truths.items()}
    assert Counter(found in unseen for found in needs.values()) == {True: 60, False: 60}
    assert all(found in (seen if student[0] == "S" else unseen) for student, found in needs.items())


@pytest.mark.parametrize("split", ["test", "confirm"])
def test_every_exercise_is_of_the_split_and_every_student_one_no_training_has_met(
    held_out, confirm, trained_for, split
):
    asked = held_out if split == "test" else confirm
    split_of = {t.id: t.split for chapter in COURSE for t in chapter.templates}
    cells = asked.common + asked.probing + asked.instructed
    assert {split_of[cell.moment.question.id.split("/")[1]] for cell in cells} == {split}
    # how their histories begin tells them apart: a training and an experiment both count students from 0
    assert trained_for.isdisjoint(student.history[:4] for student in asked.students)


def test_the_splits_share_neither_exercises_nor_students(held_out, confirm):
    for said in (lambda cell: cell.moment.question.question, lambda cell: cell.memory.lines):
        asked, held = ({said(cell) for cell in cells_of(one, "own")} for one in (confirm, held_out))
        assert asked.isdisjoint(held)


def test_students_who_say_what_they_need_are_asked_what_that_levels_hypothesis_compares():
    """The sides of its comparisons, and both temperatures of what every policy is asked."""
    asked = hold_out(COURSE, "test", exercises_per_chapter=1, level="stated")
    cells = asked.common + asked.probing + asked.instructed
    where = {(cell.memory.arm, cell.temperature, cell.sample) for cell in cells}
    arms = ["ipo", "no_memory", "shuffled_memory", "correctness_only", "random_reward", "base"]
    claims = list_hypotheses(arms, "stated")
    sides = [side for claim in claims for side in (claim.one, claim.other)]
    compared = {(side.condition, side.temperature, side.sample) for side in sides}
    assert {claim.name for claim in claims} == {"a"}
    assert where == compared | {("own", 1.0, 0), ("none", 1.0, 0)}
    wishes = [line.startswith("Explanation style: ") for line in asked.common[0].memory.lines]
    assert asked.common[0].memory.arm == "own" and any(wishes[:3])


def test_every_level_of_support_is_needed_alike(held_out):
    own = [cell.moment for cell in held_out.common if cell.memory.arm == "own" and cell.temperature == 0]
    found = Counter(support_target(moment.skill_mastery) for moment in own)
    assert set(found.values()) == {20} and set(found) == set(SUPPORT_LEVELS)
    assert all(moment.skill_mastery is not None for moment in own)
    keys = [
        (c.moment.student_id, c.moment.question.id, c.memory.arm, c.temperature, c.sample)
        for c in held_out.common + held_out.probing
    ]
    assert len(set(keys)) == len(keys)


def test_a_memory_counts_what_has_happened_and_no_more(held_out):
    counts = {f"after_{count}": count for count in EVIDENCE}
    counts |= {f"{name}_{n}": CHANGE + n for name in ("changed", "forgetting") for n in SINCE_CHANGE}
    asked = {}
    for condition, interactions in counts.items():
        cells = cells_of(held_out, condition)
        assert len(cells) == 20
        assert {counted(cell.memory.lines) for cell in cells} == {interactions}, condition
        assert {cell.moment.number for cell in cells} == {1000 * interactions}
        asked[condition] = [(cell.moment.student_id, cell.moment.question.id) for cell in cells]
    # the same students and exercises at each amount of evidence
    assert len({tuple(asked[f"after_{count}"]) for count in EVIDENCE}) == 1
    assert held_out.bayes.keys() >= {(student, n) for student, _ in asked["after_0"] for n in EVIDENCE}


def test_no_need_stands_in_a_prompt_as_a_wish(held_out):
    for cell in held_out.common + held_out.probing:
        text = " ".join(cell.memory.lines)
        assert "Explanation style" not in text and "Prefers" not in text
    instructed = held_out.instructed[0]
    assert instructed.memory.lines == ()
    assert re.fullmatch(
        r"Explanation style: .*\. Prefers: (a hint first|no hint)\.", instructed.memory.request
    )


def test_another_state_changes_the_skills_line_alone(held_out):
    own = {
        (c.moment.student_id, c.moment.question.id): c.memory.lines
        for c in cells_of(held_out, "own")
        if c.temperature == 0
    }
    labels = {"worked_out": "struggling", "guided": ("in progress", "new"), "brief": "mastered"}
    for cell in cells_of(held_out, "other_state"):
        key = cell.moment.student_id, cell.moment.question.id
        level = held_out.other_states[key]
        assert level != support_target(cell.moment.skill_mastery)
        pairs = zip(own[key], cell.memory.lines, strict=True)
        (changed,) = [new for old, new in pairs if old != new]
        assert changed.removeprefix("Skill at hand, ").startswith(labels[level])
        assert cell.moment.question.skill.replace("_", " ") not in changed


def test_a_wrong_memory_states_a_wrong_answer_and_a_stale_one_is_old(held_out):
    for cell in cells_of(held_out, "wrong"):
        stated = re.search(r"The answer was (\d+)\.$", cell.memory.lines[0])[1]
        assert stated != cell.moment.question.gold_solution.rpartition("#### ")[2]
        assert cell.moment.question.question in cell.memory.lines[0]
    assert {counted(cell.memory.lines) for cell in cells_of(held_out, "stale")} == {5}
