"""The study on MathDial: does an explanation meet the confusion that a real teacher described?

Every dialogue is a student with a wrong solution to the question that is asked. Its memory is who the student
is, that solution, and how the teacher describes the confusion. The arms are those of `memory_arms.py`;
`shuffled` shows the memory of a dialogue about another question.

No judge reads the texts. They are compared with what the real teacher said to this student, and searched for
the numbers of the wrong solution that stand neither in the question nor in the right one.

The hypotheses stood here before any answer was asked for. They speak of answers at the lowest temperature, of
all questions and of GSM8K's test questions alone, which no model should have been trained on.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cot.utils.answers import final_answer
from cot.utils.equations import equations, plain_number
from cot.utils.findings import Hypothesis, render_table, render_verdicts
from cot.utils.mathdial import STUDENT, TEACHER, Dialogue
from cot.utils.memory_arms import Moment, StudentMemory, random_lines
from cot.utils.metrics import semantic_similarity
from cot.utils.outline import outline, sentences
from cot.utils.questions import Question
from cot.utils.records import Row, expand, rounded
from cot.utils.students import Profile, render_profile
from cot.utils.study import Side
from cot.utils.study_results import RULE, judge, pool, show_measure, warn_of_cuts
from cot.utils.tables import group

ARMS = ("own", "none", "shuffled", "random")
MEASURES = {  # key of a record, by name in the table
    "accuracy": "correct",
    "cut_off": "truncated",
    "output_tokens": "output_tokens",
    "teacher_similarity": "teacher_similarity",
    "wrong_step_named": "wrong_step_named",
    "wrong_number_repeated": "wrong_number_repeated",
    "copying": "copying",
}
SUBSETS = {"all questions": ("train", "test"), "GSM8K test questions": ("test",)}  # their `gsm8k_split`
REPEATED = 0.05  # of texts, in which a memory may bring a wrong number back as if it were right
_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_REFUSED = re.compile(  # the words with which a sentence refuses a number
    r"\b(?:not|wrong\w*|mistake\w*|incorrect\w*|error\w*|instead|rather than|should have|forgot\w*|confus\w+"
    r"|misread\w*|misunder\w+|overlook\w*)\b|n['’]t\b",
    re.IGNORECASE,
)


def name_students(dialogues: Sequence[Dialogue]) -> dict[str, Dialogue]:
    """The dialogues by the id of their student; equal descriptions in two dialogues are two students."""
    named: dict[str, Dialogue] = {}
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        named[f"{dialogue.question_id}-{counts[dialogue.question_id]}"] = dialogue
        counts[dialogue.question_id] += 1
    return named


def describe_students(named: Mapping[str, Dialogue]) -> dict[str, Profile]:
    """The students' profiles, by id."""
    return {
        student: Profile(
            student_id=student,
            grade_level=dialogue.grade_level,
            strengths=[],
            challenges=[dialogue.trait.removesuffix(".")],
        )
        for student, dialogue in named.items()
    }


def tell_dialogue(dialogue: Dialogue, profile: Profile) -> tuple[str, ...]:
    """What is remembered of a dialogue's student, for a prompt, most relevant first."""
    who, *traits = render_profile(profile)
    confusion = [f"A teacher describes the confusion: {dialogue.confusion}"] if dialogue.confusion else []
    solution = f'The student has tried this exercise, and this is wrong: "{dialogue.student_solution}"'
    return (who, solution, *confusion, *traits)


def draw_donor(student: str, named: Mapping[str, Dialogue], seed: int) -> str:
    """A student of a dialogue about another question, whose memory stands in the arm `shuffled`."""
    question = named[student].question_id
    others = sorted(name for name, dialogue in named.items() if dialogue.question_id != question)
    return random.Random(f"donor {seed} {student}").choice(others)


def build_rows(
    policy: str,
    questions: Sequence[Question],
    named: Mapping[str, Dialogue],
    profiles: Mapping[str, Profile],
    temperatures: Sequence[float],
    num_samples: int,
    seed: int,
) -> list[Row]:
    """Every dialogue of each question, in every arm.

    Args:
        named, profiles: dialogues and their students, by student id.
        seed: of donors and random text.
    """
    by_question: dict[str, list[str]] = {}
    for student, dialogue in named.items():
        by_question.setdefault(dialogue.question_id, []).append(student)

    rows = []
    for index, question in enumerate(questions):
        for student in by_question[question.id]:
            moment = Moment(question, student, number=index)
            own = tell_dialogue(named[student], profiles[student])
            donor = draw_donor(student, named, seed)
            unrelated = tuple(random_lines(seed, question, student))
            for memory in (
                StudentMemory("own", own, student_id=student),
                StudentMemory("none"),
                StudentMemory("shuffled", tell_dialogue(named[donor], profiles[donor]), student_id=donor),
                StudentMemory("random", unrelated, length_of=own),
            ):
                rows += expand(policy, index, moment, memory, temperatures, num_samples)
    return rows


def wrong_numbers(dialogue: Dialogue) -> set[str]:
    """Results of the student's calculations, and its answer, that stand in neither question nor solution.

    They are plain, as `equations.plain_number` writes them. Empty where the student went wrong with right
    numbers alone.
    """
    solution = dialogue.student_solution
    results = {equation.numbers[-1] for equation in equations(solution)}
    answer = final_answer(solution).text
    return (results | ({answer} if answer else set())) - _numbers(
        f"{dialogue.question} {dialogue.ground_truth}"
    )


def judge_wrong_step(text: str, wrong: set[str]) -> tuple[bool | None, bool | None]:
    """Whether a text names one of the wrong numbers as wrong, and whether it states one as if it were right.

    A sentence refuses a number by a word such as "not", "mistake" or "instead". A wrong number in any other
    sentence, or as the text's answer, is stated as right. Both None without a wrong number.

    >>> judge_wrong_step("You added 3. The 9 is a mistake: 12 + 3 = 15.", {"9", "4"})
    (True, False)
    >>> judge_wrong_step("12 - 3 = 9 spoons are left.", {"9", "4"})
    (False, True)
    """
    if not wrong:
        return None, None
    named = repeated = False
    for sentence in sentences(outline(text)):
        if _numbers(sentence) & wrong:
            refused = _REFUSED.search(sentence) is not None
            named, repeated = named or refused, repeated or not refused
    return named, repeated or final_answer(text).text in wrong


def add_measures(records: Sequence[dict], named: Mapping[str, Dialogue], embedder) -> None:
    """Fills in, in place, what a text is beside its dialogue.

    `gsm8k_split` of the question; `teacher_similarity`, cosine of the text and all that the real teacher said
    to this student, in [-1, 1]; `wrong_step_named, wrong_number_repeated` of `judge_wrong_step`.
    """
    keys = ("teacher_similarity", "wrong_step_named", "wrong_number_repeated")
    for record in records:
        record["gsm8k_split"] = named[record["student_id"]].gsm8k_split
        record |= dict.fromkeys(keys)
    valid = [record for record in records if record["error"] is None]
    said = [named[record["student_id"]].teacher_said for record in valid]
    texts = [record["generated_text"] for record in valid]
    for record, similarity in zip(valid, semantic_similarity(texts, said, embedder), strict=True):
        dialogue = named[record["student_id"]]
        judged = judge_wrong_step(record["generated_text"], wrong_numbers(dialogue))
        record |= dict(zip(keys, (rounded(similarity), *judged), strict=True))


def list_hypotheses(temperatures: Sequence[float]) -> list[Hypothesis]:
    """What the study claims, of whichever questions."""
    lowest = min(temperatures)
    own, none, shuffled = (Side(arm, lowest) for arm in ("own", "none", "shuffled"))
    claims = (
        ("a", "the memory raises accuracy over none", "accuracy", none),
        ("b", "with it a text is more like what the teacher said", "teacher_similarity", shuffled),
        ("c", "with it a text names the wrong step more often", "wrong_step_named", shuffled),
    )
    found = [Hypothesis(name, claim, key, own, other, above=0.0) for name, claim, key, other in claims]
    claim = "it brings a wrong number back in at most 5 % more of the texts than no memory does"
    return [*found, Hypothesis("d", claim, "wrong_number_repeated", own, none, below=REPEATED)]


def summarize(records: Sequence[dict], temperatures: Sequence[float]) -> dict:
    """A result file's `summary`, from records with their measures.

    Args:
        temperatures: of the whole study.

    Returns:
        table: of each subset of the questions, arm and temperature every measure; verdicts: of each
        hypothesis in each subset whose answers are there.
    """
    table, verdicts = [], []
    for subset, wanted in SUBSETS.items():
        found = [record for record in records if record["gsm8k_split"] in wanted]
        for (policy, arm, temperature), rows in group(found, "policy", "memory_arm", "temperature").items():
            side = {"subset": subset, "policy": policy, "memory_arm": arm, "temperature": temperature}
            table.append(side | pool(rows, MEASURES))
        claims = list_hypotheses(temperatures)
        verdicts += [{"subset": subset} | verdict for verdict in judge(found, claims, MEASURES)]
    return {"table": table, "verdicts": verdicts}


def render_study(summary: Mapping, config: Mapping) -> str:
    """The study as Markdown: for each subset a table for each temperature, and the hypotheses."""
    about = f"{config['dialogues']} dialogues about {config['questions']} questions of MathDial; seed"
    about += f" {config['seed']}, {config['max_new_tokens']} new tokens. n is the number of different texts."
    about += " Mean [95 % interval over questions]."
    lines = ["# Dialogues", "", about]
    shown = ("accuracy", "accuracy_finished", *list(MEASURES)[1:])
    for subset in SUBSETS:
        lines += ["", f"## {subset}"]
        for temperature in sorted({row["temperature"] for row in summary["table"]}):
            where = (subset, temperature)
            rows = [row for row in summary["table"] if (row["subset"], row["temperature"]) == where]
            cells = [
                [row["memory_arm"], row["accuracy"]["n"], *(show_measure(row, name) for name in shown)]
                for row in rows
            ]
            header = [f"temperature {temperature:g}", "n", *(name.replace("_", " ") for name in shown)]
            lines += ["", *render_table(header, cells), *warn_of_cuts(rows)]
        found = [verdict for verdict in summary["verdicts"] if verdict["subset"] == subset]
        lines += ["", *render_verdicts(found)]
    return "\n".join([*lines, "", RULE]) + "\n"


def export_for_mathtutorbench(records: Sequence[dict], named: Mapping[str, Dialogue]) -> Iterator[dict]:
    """What MathTutorBench's scorer of scaffolding reads, for each text whose teacher answers the student.

    The history ends with the student's first turn; the teacher's next one is the reference.

    Source: eth-lre/mathtutorbench, main.py and reward_model/compute_scaffolding_score.py.
    """
    for record in records:
        dialogue = named[record["student_id"]]
        turns = [{"user": turn.user, "text": turn.text} for turn in dialogue.turns]
        users = [turn["user"] for turn in turns]
        first = users.index(STUDENT) if STUDENT in users else len(users)
        if record["error"] is not None or TEACHER not in users[first:]:
            continue
        following = users.index(TEACHER, first)
        history = turns[:following]
        yield {
            "problem": dialogue.question,
            "reference_solution": dialogue.ground_truth,
            "dialog_history": history,
            "dialog_formatted": "\n".join(f"{turn['user']}: {turn['text']}" for turn in history),
            "ground_truth_response": turns[following],
            "generated_teacher_utterance": record["generated_text"],
        }


def _numbers(text: str) -> set[str]:
    return {plain_number(number.replace(",", "")) for number in _NUMBER.findall(text)}
