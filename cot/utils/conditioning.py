"""What stands in a prompt about a student, in each arm of a memory experiment.

`own`: the student's profile, consolidated memory and the most relevant past exercises; `none`: nothing;
`shuffled`: the same of another student; `random`: unrelated text of the same token length. Without the last
two, a gain from memory cannot be told from a gain from a longer prompt.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cot.utils.data import Question
from cot.utils.mastery import consolidate, render_memory
from cot.utils.memory import Interaction, MemoryLog
from cot.utils.profiles import Profile, render_profile
from cot.utils.retrieval import RetrievedMemory, StudentMemories
from cot.utils.textbook import load_chapters

QUESTION_CHARACTERS = 160  # of a past exercise, in a prompt
# The order of a memory's lines, so that a budget cuts what matters least: who the student is and what it
# wishes, where it stands with the skill at hand, the rest of the profile, more consolidated memory, past
# exercises, what is left.
PROFILE_FIRST = 3
CONSOLIDATED_FIRST = 4


@dataclass(frozen=True)
class StudentMemory:
    """What is known about one student with regard to one question.

    Attributes:
        student_id: whose memory it is.
        lines: for the prompt, most relevant first.
        retrieved: the past exercises among them: `id`, `score` (cosine), `student_id`.
    """

    student_id: str
    lines: tuple[str, ...]
    retrieved: tuple[dict, ...] = ()


class Conditioner:
    """Gathers what is known about students, as of one moment.

    Args:
        profiles: by student id.
        log: the students' interactions.
        embedder: a `retrieval.Embedder`; not used where `top_k` is 0.
        top_k: past exercises per prompt.
        min_similarity: cosine below which a past exercise is left out.
        as_of: only what happened before counts; None for all.
        half_life_days: of forgetting; None for no forgetting.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        log: MemoryLog,
        embedder,
        top_k: int,
        min_similarity: float,
        as_of: str | None = None,
        half_life_days: float | None = None,
    ) -> None:
        self.profiles = profiles
        self._top_k, self._min_similarity = top_k, min_similarity
        self._memories = StudentMemories(log, embedder, as_of)
        self._consolidated = {
            student: consolidate(log.read(student, as_of), as_of, half_life_days) for student in profiles
        }

    def recall(self, student_id: str, question: Question) -> StudentMemory:
        """The student's own memory for a question: profile, consolidated memory, past exercises."""
        found = self._retrieve(student_id, question.question) if self._top_k else []
        profile = render_profile(self.profiles[student_id])
        consolidated = render_memory(self._consolidated[student_id], question.skill)
        lines = [
            *profile[:PROFILE_FIRST],
            *consolidated[:1],
            *profile[PROFILE_FIRST:],
            *consolidated[1:CONSOLIDATED_FIRST],
            *(render_interaction(memory.interaction) for memory in found),
            *consolidated[CONSOLIDATED_FIRST:],
        ]
        retrieved = tuple(
            {"id": memory.id, "score": round(memory.score, 6), "student_id": memory.interaction.student_id}
            for memory in found
        )
        return StudentMemory(student_id, tuple(lines), retrieved)

    def _retrieve(self, student_id: str, text: str) -> list[RetrievedMemory]:
        """The `top_k` most similar past exercises; the question itself, remembered earlier, is none."""
        found = self._memories.retrieve(student_id, text, self._top_k + 1, self._min_similarity)
        return [memory for memory in found if memory.interaction.question != text][: self._top_k]

    def donor(self, student_id: str, question: Question, seed: int) -> str:
        """Another student, drawn for this cell, whose memory stands in the `shuffled` arm."""
        others = sorted(set(self.profiles) - {student_id})
        return random.Random(f"donor {seed} {student_id} {question.id}").choice(others)


def render_interaction(interaction: Interaction) -> str:
    """A past exercise as one line."""
    question = interaction.question
    if len(question) > QUESTION_CHARACTERS:
        question = question[:QUESTION_CHARACTERS].rsplit(" ", 1)[0] + " …"
    outcome = "right" if interaction.correct else "wrong"
    if interaction.error_type:
        outcome += f" ({interaction.error_type.replace('_', ' ')})"
    helped = f" What helped: {interaction.what_helped}." if interaction.what_helped else ""
    return f'Past exercise: "{question}" Answered {outcome}.{helped}'


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
