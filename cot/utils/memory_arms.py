"""What stands in a prompt about a student: THE place that decides who is shown what, as of when.

The arms of a memory experiment say what the prompt shows:

own            the student's profile, consolidated memory and the most relevant past exercises
none           nothing
shuffled       the same of another student, as of the same moment
random         unrelated sentences of the textbook, as many tokens as `own`
time_shuffled  the student's own memory as of another moment of its way, earlier or later
instructed     no memory; what the student wishes, or is known to need, after the question as an instruction

Without `shuffled` and `random` a gain from memory cannot be told from a gain from a longer prompt.
"""

import argparse
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cot.utils.cli import MEMORY_LEVELS, MIN_SIMILARITY
from cot.utils.errors import UserError
from cot.utils.fidelity import CHECKABLE_PREFERENCES
from cot.utils.manners import record_manners, render_manner, render_record
from cot.utils.mastery import Memory, consolidate, mastery_by_skill, render_memory
from cot.utils.mastery_model import MasteryModel, load_mastery_model
from cot.utils.prompts import Prompt, body_tokens, build_prompt, fit_lines
from cot.utils.questions import Question
from cot.utils.retrieval import OwnMemories, RetrievedMemory
from cot.utils.students import END, Interaction, Profile, render_profile, render_wishes
from cot.utils.templates import PromptFormat, read_format
from cot.utils.textbook import load_chapters

ARMS = ("own", "none", "shuffled", "random", "time_shuffled", "instructed")
QUESTION_CHARACTERS = 160  # of a past exercise, in a prompt
NEEDED_LINES = 4  # with which a memory begins: grade, wishes or record, the skill at hand
CONSOLIDATED_FIRST = 4  # lines that come before past exercises


@dataclass(frozen=True)
class Moment:
    """A student who is about to get an explanation; in plain chain of thought, a question alone.

    Attributes:
        student_id: whom the explanation is for; None in plain chain of thought.
        number: 0 for the student's first; the time axis of progress.
        as_of: only what happened strictly before is remembered; `END` for the whole log.
        mastery: P(known) by skill at that moment; skills never practised are absent.
        retrieval_score: cosine of question and profile, where the question found the student.
    """

    question: Question
    student_id: str | None = None
    number: int = 0
    as_of: str = END
    mastery: Mapping[str, float] = field(default_factory=dict)
    retrieval_score: float | None = None

    @property
    def skill_mastery(self) -> float | None:
        """P(known) of the question's skill; None where it was never practised, or no skill is named."""
        return self.mastery.get(self.question.skill)


@dataclass(frozen=True)
class StudentMemory:
    """What an arm shows.

    Attributes:
        arm: one of `ARMS`; None in plain chain of thought.
        lines: for the prompt, most relevant first.
        student_id: whose memory it is; None where it is nobody's.
        as_of: the moment of that memory.
        retrieved: the past exercises among the lines: `id`, `score` (cosine), `student_id`.
        length_of: lines whose length in tokens this memory is cut to; empty for the budget alone.
        tokens: a budget of its own; None for the run's.
        request: what stands after the question.
    """

    arm: str | None
    lines: tuple[str, ...] = ()
    student_id: str | None = None
    as_of: str | None = None
    retrieved: tuple[dict, ...] = ()
    length_of: tuple[str, ...] = ()
    tokens: int | None = None
    request: str = ""


@dataclass(frozen=True)
class PromptShape:
    """How every prompt of a run is built.

    Attributes:
        instruction: what stands before the question.
        memory_tokens: of the fenced memory, at most.
        examples: (question, solution) pairs.
    """

    instruction: str
    memory_tokens: int = 0
    examples: tuple[tuple[str, str], ...] = ()


class MemoryArms:
    """The students of a run with all that happened to them, and what each arm shows of it.

    Args:
        profiles: by student id.
        histories: each student's interactions in time order, by student id.
        embedder: a `retrieval.Embedder`; not used where `top_k` is 0.
        seed: of donors, random text and the moments that `time_shuffled` takes.
        top_k: past exercises a prompt.
        min_similarity: cosine that a past exercise must reach.
        half_life_days: of forgetting; None for no forgetting.
        level: what a memory tells of how the student is to be taught, one of `MEMORY_LEVELS`: its wishes in
            words, what worked as a record, or nothing but past exercises, each with its manner.
        truths: against which texts are judged, where that is more than the profiles say; never shown.
        mastery_model: fitted to real students; None for tracing with the default parameters.

    Raises:
        UserError: episodes without past exercises.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        histories: Mapping[str, Sequence[Interaction]],
        embedder,
        seed: int,
        top_k: int = 0,
        min_similarity: float = MIN_SIMILARITY,
        half_life_days: float | None = None,
        level: str = MEMORY_LEVELS[0],
        truths: Mapping[str, Profile] | None = None,
        mastery_model: MasteryModel | None = None,
    ) -> None:
        self.mastery_model = mastery_model
        if level == "episodes" and not top_k:
            raise UserError("--memory_level episodes: --top_k 0 leaves nothing to learn from; name a number")
        self.level, self.truths = level, dict(truths or profiles)
        self.profiles, self.histories = dict(profiles), histories
        self._seed, self._top_k, self._min_similarity = seed, top_k, min_similarity
        self._half_life_days = half_life_days
        self._memories = OwnMemories(histories, embedder)
        # computed once for each (student, moment)
        self._consolidated: dict[tuple[str, str], Memory] = {}
        self._mastery: dict[tuple[str, str], dict[str, float]] = {}
        self._elsewhere: dict[tuple[str, int], str] = {}

    def moment(
        self,
        student_id: str,
        question: Question,
        as_of: str = END,
        number: int = 0,
        retrieval_score: float | None = None,
    ) -> Moment:
        """A moment of this student, with the mastery that its log speaks for."""
        return Moment(
            question=question,
            student_id=student_id,
            number=number,
            as_of=as_of,
            mastery=self.mastery(student_id, as_of),
            retrieval_score=retrieval_score,
        )

    def mastery(self, student_id: str, as_of: str = END) -> dict[str, float]:
        """P(known) of each skill that the student has practised before a moment."""
        key = student_id, as_of
        if key not in self._mastery:
            history, model, days = (
                self.histories.get(student_id, ()),
                self.mastery_model,
                self._half_life_days,
            )
            if model is None:
                self._mastery[key] = mastery_by_skill(history, half_life_days=days, as_of=as_of)
            else:
                self._mastery[key] = model.mastery_by_skill(history, days, as_of)
        return self._mastery[key]

    def shift_times(self, moments: Iterable[Moment]) -> None:
        """Draws where `time_shuffled` looks: for each moment another one of the same student, none twice.

        A student with a single moment has no other one; `can_show` says so.
        """
        by_student: dict[str, list[Moment]] = {}
        for moment in moments:
            by_student.setdefault(moment.student_id, []).append(moment)
        for student, own in by_student.items():
            if len({moment.as_of for moment in own}) < 2:
                continue
            rng, order = random.Random(f"time {self._seed} {student}"), list(range(len(own)))
            while any(place == index for index, place in enumerate(order)):
                rng.shuffle(order)
            for moment, place in zip(own, order, strict=True):
                self._elsewhere[student, moment.number] = own[place].as_of

    def can_show(self, moment: Moment, arm: str) -> bool:
        """Whether the arm exists at this moment: `time_shuffled` needs another moment of the student."""
        return arm != "time_shuffled" or (moment.student_id, moment.number) in self._elsewhere

    def donor(self, moment: Moment) -> str:
        """The other student, drawn for this cell, whose memory stands in the arm `shuffled`."""
        others = sorted(set(self.profiles) - {moment.student_id})
        return random.Random(f"donor {self._seed} {moment.student_id} {moment.question.id}").choice(others)

    def show(self, moment: Moment, arm: str) -> StudentMemory:
        """What the arm shows of the moment's student.

        Raises:
            KeyError: `time_shuffled` at a moment that has no other one.
            ValueError: an unknown arm.
        """
        student, question = moment.student_id, moment.question
        if arm == "none":
            return StudentMemory(arm)
        if arm == "own":
            return self._recall(arm, student, question, moment.as_of)
        if arm == "shuffled":
            return self._recall(arm, self.donor(moment), question, moment.as_of)
        if arm == "time_shuffled":
            return self._recall(arm, student, question, self._elsewhere[student, moment.number])
        if arm == "instructed":
            return StudentMemory(arm, request=request_wishes(self.truths[student]))
        if arm == "random":
            own = self._recall("own", student, question, moment.as_of)
            lines = random_lines(self._seed, question, student)
            return StudentMemory(arm, lines=tuple(lines), length_of=own.lines)
        raise ValueError(f"unknown arm {arm!r}: expected one of {', '.join(ARMS)}")

    def _recall(self, arm: str, student_id: str, question: Question, as_of: str) -> StudentMemory:
        """A student's profile, consolidated memory and past exercises, with regard to a question."""
        profile, level = self.profiles[student_id], self.level
        found = self._retrieve(student_id, question.question, as_of) if self._top_k else []
        past = [render_interaction(memory.interaction, level != "stated") for memory in found]
        consolidated = render_memory(self._consolidate(student_id, as_of), question.skill)
        record = None
        if level == "history":
            history = self.histories.get(student_id, ())
            record = render_record(record_manners(history, as_of, self._half_life_days))

        # in this order, so that a budget cuts what matters least
        who, *described = render_profile(profile)
        wishes = render_wishes(profile)
        traits = described[len(wishes) :]
        lines = [
            who,
            *(wishes if level == "stated" else ()),
            *([record] if record else ()),
            *consolidated[:1],
            *(past if level == "episodes" else ()),
            *traits,
            *consolidated[1:CONSOLIDATED_FIRST],
            *(past if level != "episodes" else ()),
            *consolidated[CONSOLIDATED_FIRST:],
        ]
        retrieved = tuple(
            {"id": memory.id, "score": round(memory.score, 6), "student_id": memory.interaction.student_id}
            for memory in found
        )
        return StudentMemory(arm, tuple(lines), student_id=student_id, as_of=as_of, retrieved=retrieved)

    def _retrieve(self, student_id: str, text: str, as_of: str) -> list[RetrievedMemory]:
        """The `top_k` most similar past exercises; the question itself, met earlier, is none."""
        found = self._memories.retrieve(
            student_id, text, as_of=as_of, top_k=self._top_k + 1, min_similarity=self._min_similarity
        )
        return [memory for memory in found if memory.interaction.question != text][: self._top_k]

    def _consolidate(self, student_id: str, as_of: str) -> Memory:
        """The student's consolidated memory as of a moment."""
        key = student_id, as_of
        if key not in self._consolidated:
            history, model, days = (
                self.histories.get(student_id, ()),
                self.mastery_model,
                self._half_life_days,
            )
            estimates = None if model is None else model.estimate(history, days, as_of)
            self._consolidated[key] = consolidate(history, as_of, days, estimates=estimates)
        return self._consolidated[key]


def cross(students: Sequence[str], questions: Sequence[Question], arms: MemoryArms) -> list[Moment]:
    """Every question for every student, with all that the logs hold."""
    return [
        arms.moment(student, question, number=number)
        for student in students
        for number, question in enumerate(questions)
    ]


def make_prompt(
    tokenizer,
    moment: Moment,
    memory: StudentMemory,
    shape: PromptShape,
    max_prompt_tokens: int | None = None,
    line_order_seed: int | None = None,
    prompt_format: PromptFormat | None = None,
) -> Prompt:
    """The prompt of a moment that shows a memory.

    Args:
        max_prompt_tokens: the context's room; None for no limit.
        line_order_seed: shuffles the lines after the budget was applied, so that the most relevant ones
            stay whatever the order; None keeps the order.
        prompt_format: the model's; None reads it from the tokenizer.
    """
    prompt_format = prompt_format or read_format(tokenizer)

    def build(lines: Sequence[str], memory_tokens: int) -> Prompt:
        return build_prompt(
            tokenizer,
            question=f"{moment.question.question} {memory.request}".rstrip(),
            instruction=shape.instruction,
            memory_lines=lines,
            examples=shape.examples,
            memory_tokens=memory_tokens,
            max_prompt_tokens=max_prompt_tokens,
            prompt_format=prompt_format,
        )

    lines, budget = list(memory.lines), memory.tokens or shape.memory_tokens
    if memory.length_of:  # as long as that memory is in this very prompt
        budget = body_tokens(tokenizer, build(memory.length_of, budget).memory_lines)
    if line_order_seed is not None:
        lines = fit_lines(tokenizer, lines, budget)
        random.Random(f"lines {line_order_seed} {moment.student_id} {moment.question.id}").shuffle(lines)
    return build(lines, budget)


def render_interaction(interaction: Interaction, with_manner: bool = False) -> str:
    """A past exercise as one line.

    Args:
        with_manner: tell how its explanation was made, before what came of it.
    """
    question = interaction.question
    if len(question) > QUESTION_CHARACTERS:
        question = question[:QUESTION_CHARACTERS].rsplit(" ", 1)[0] + " …"
    outcome = "right" if interaction.correct else "wrong"
    if interaction.error_type:
        outcome += f" ({interaction.error_type.replace('_', ' ')})"
    helped = f" What helped: {interaction.what_helped}." if interaction.what_helped else ""
    explained = (
        f" Explained with {render_manner(interaction.manner)}." if with_manner and interaction.manner else ""
    )
    return f'Past exercise: "{question}"{explained} Answered {outcome}.{helped}'


def request_wishes(truth: Profile) -> str:
    """A student's wishes as sentences: of its preferences those that a program can check.

    Their words are ours. What a profile says in its own words must not act as an instruction.
    """
    checkable = [wish for wish in truth.learning_preferences if wish in CHECKABLE_PREFERENCES]
    return " ".join(render_wishes(truth.model_copy(update={"learning_preferences": checkable})))


def random_lines(seed: int, question: Question, student_id: str) -> list[str]:
    """The textbook's sentences in a random order of this cell's own: more than any memory holds."""
    sentences = [
        sentence
        for chapter in load_chapters()
        for sentence in re.split(r"(?<=[.!?])\s+", chapter.explanation)
        if chapter.id != question.chapter  # it shall not explain the question at hand
    ]
    random.Random(f"random {seed} {student_id} {question.id}").shuffle(sentences)
    return sentences


def remember(
    args: argparse.Namespace,
    profiles: Mapping[str, Profile],
    histories: Mapping[str, Sequence[Interaction]],
    truths: Mapping[str, Profile],
    embedder,
    mastery_model: MasteryModel | None = None,
    level: str | None = None,
) -> MemoryArms:
    """What each memory arm shows of these students, as the flags say.

    Args:
        mastery_model: of `--mastery_parameters`, where it is loaded already.
        level: of memory, where `--memory_level` names several.
    """
    return MemoryArms(
        profiles,
        histories,
        embedder,
        seed=args.seed,
        top_k=args.top_k,
        min_similarity=args.min_similarity,
        half_life_days=args.memory_half_life,
        level=level or args.memory_level,
        truths=truths,
        mastery_model=mastery_model or load_mastery_model(args.mastery_parameters),
    )
