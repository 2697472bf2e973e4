"""A row, one answer to generate, and its record: THE routine that scores a text, in every script.

A row says of whom the answer is asked, to what, and with which noise. A record says what was asked, what came
back and how it scored; README of `cot/` lists every key. Of a thinking model `generated_text` is what follows
the reasoning, and so is whatever is measured of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from cot.utils.answers import score_answer
from cot.utils.completions import Completion, Request
from cot.utils.errors import TEXT_ERRORS
from cot.utils.fidelity import checkable_wishes, copying, met_checks, names_student, share_met
from cot.utils.manners import support_fit, support_level, support_target
from cot.utils.memory_arms import Moment, StudentMemory
from cot.utils.metrics import (
    equation_counts,
    equation_validity,
    perplexity,
    prerequisite_coverage,
    unmastered_skills,
)
from cot.utils.prompts import Prompt
from cot.utils.sampling import ALL_TOKENS, Sampling
from cot.utils.students import Profile
from cot.utils.templates import encode_data
from cot.utils.thinking import Split

DECIMALS = 6  # of every real number in a record: below it lies the noise of float32 sums


def make_record(row, prompt: Prompt, completion: Completion, profile: Profile | None) -> dict:
    """An answer as a record; what `scorers.Scorers` computes over many answers stands as null.

    A text on which a scorer or a check fails keeps its text, and has the failure as its `error`.

    Args:
        row: the `rows.Row` that asked for it.
        profile: the student whom the answer is for; None in plain chain of thought.
    """
    try:
        return _make_record(row, prompt, completion, profile)
    except TEXT_ERRORS as failure:
        unscored = replace(completion, text="", error=scoring_error(failure))
        return _make_record(row, prompt, unscored, profile) | {"generated_text": completion.text}


def scoring_error(failure: Exception) -> dict:
    """The `error` of a record whose text a scorer or a check failed on."""
    return {"type": "scoring", "message": f"{type(failure).__name__}: {failure}"}


def _make_record(row, prompt: Prompt, completion: Completion, profile: Profile | None) -> dict:
    moment, question = row.moment, row.moment.question
    failed = completion.error is not None
    is_empty = not completion.text and completion.thinking_text is None  # an end token alone
    mean_nll, ppl = perplexity([] if is_empty else completion.logprobs)
    record = {
        "index": row.index,
        "temperature": row.temperature,
        "question": question.question,
        "gold_solution": question.gold_solution,
        "retrieved_profile": profile.grade_level if profile else None,
        "generated_text": completion.text,
        "output_tokens": None if failed else len(completion.token_ids),
        "perplexity": ppl,
        "semantic_similarity": None,
        "policy": row.policy,
        "question_id": question.id,
        "chapter": question.chapter,
        "skill": question.skill,
        "wording": question.wording,
        "sample": row.sample,
        **_score(completion, question.gold_solution),
        "mean_nll": mean_nll,
        "truncated": None if failed else completion.truncated,
        "thinking_text": completion.thinking_text,
        "thinking_tokens": completion.thinking_tokens,
        "reasoning_steps": None,
        **_count_equations(completion),
        "entity_overlap": None,
        "gold_steps": question.gold_steps,
    }
    if profile:
        record |= _describe_memory(moment, row.memory)
        record |= _score_fit(completion, prompt, moment, profile)
    record |= {
        "prompt": prompt.text,
        "prompt_tokens": len(prompt.ids),
        "prompt_format": prompt.format,
        "error": completion.error,
    }
    return {key: rounded(value) for key, value in record.items()}


def add_base_likelihood(records: Sequence[dict], engine, prompts: Mapping[tuple, Prompt]) -> None:
    """Mean negative log-likelihood and perplexity of every text under one fixed model, the base, in place.

    A text is encoded anew with the base's tokenizer, and ends in its end token unless it was cut off. What a
    thinking model wrote before it is taken as given, as the prompt is.

    Args:
        engine: the base's.
        prompts: as the base sees them, by student id, question id and memory arm.
    """
    from cot.utils.engine import answer_nll
    from cot.utils.models import estimate_rows

    valid = [record for record in records if record["error"] is None and record["generated_text"]]
    pairs = []
    for record in valid:
        prompt = prompts[record["student_id"], record["question_id"], record["memory_arm"]]
        end = [] if record["truncated"] else [engine.tokenizer.eos_token_id]
        given, thought, reasoning = prompt.ids, record["thinking_text"], prompt.reasoning
        if thought is not None:
            block = Split("", thought).whole(reasoning)
            given = (*given, *engine.tokenizer.encode(block, add_special_tokens=False))
        pairs.append((given, [*encode_data(engine.tokenizer, record["generated_text"]), *end]))

    # this pass holds the logits of every position at once, decoding those of one
    longest = max((len(prompt) + len(answer) for prompt, answer in pairs), default=1)
    nlls = answer_nll(engine.model, pairs, max(1, estimate_rows(engine.model, longest) // 4))

    for record in records:
        record |= {"base_nll": None, "base_perplexity": None}
    for record, nll in zip(valid, nlls, strict=True):
        value, base_perplexity = perplexity([-nll]) if nll is not None else (None, None)
        record |= {"base_nll": rounded(value), "base_perplexity": rounded(base_perplexity)}


def rounded(value: object) -> object:
    """A real number at `DECIMALS` decimals; everything else as it is.

    >>> rounded(1 / 3)
    0.333333
    """
    return round(value, DECIMALS) if isinstance(value, float) else value


def _score(completion, gold_solution: str) -> dict:
    """The three scorers' verdicts; null where no text was generated."""
    if completion.error is not None:
        names = ("predicted_answer", "correct", "strict_correct", "flexible_correct")
        return dict.fromkeys((*names, "answer_mark", "unparsed_reason"))
    score = score_answer(completion.text, gold_solution, completion.truncated, completion.thinking_cut_off)
    return {
        "predicted_answer": score.predicted,
        "correct": score.correct,
        "strict_correct": score.strict_correct,
        "flexible_correct": score.flexible_correct,
        "answer_mark": score.answer_mark,
        "unparsed_reason": score.reason,
    }


def _count_equations(completion) -> dict:
    counts = equation_counts(completion.text)
    if completion.error is not None:
        return dict.fromkeys([*counts, "equation_validity"])
    return {**counts, "equation_validity": equation_validity(counts["valid_equations"], counts["equations"])}


def _describe_memory(moment: Moment, memory: StudentMemory) -> dict:
    """Who is asked, and whose memory of which moment is shown."""
    return {
        "student_id": moment.student_id,
        "memory_arm": memory.arm,
        "memory_student_id": memory.student_id,
        "moment": moment.number,
        "as_of": moment.as_of,
        "memory_as_of": memory.as_of,
        "retrieval_score": moment.retrieval_score,
        "retrieved_memories": list(memory.retrieved),
        "mastery": moment.skill_mastery,
    }


def _score_fit(completion, prompt: Prompt, moment: Moment, profile: Profile) -> dict:
    """Does the answer fit the student: style, preferences, support, copying; null without an answer."""
    text, question = completion.text, moment.question
    target = None if question.skill is None else support_target(moment.skill_mastery)
    if completion.error is not None:
        names = (
            "support",
            "support_fit",
            "prerequisite_coverage",
            "over_explaining",
            "fidelity",
            "style_met",
            "checks_met",
        )
        return {"support_target": target, **dict.fromkeys((*names, "copying", "names_student"))}

    met, style = met_checks(text), profile.explanation_style
    lacking = unmastered_skills(question.skills, moment.mastery)
    level = support_level(text, question.gold_steps)
    return {
        "support_target": target,
        "support": level,
        "support_fit": None if target is None else support_fit(level, target),
        **prerequisite_coverage(text, question.skills, lacking),
        "fidelity": share_met(checkable_wishes(profile), met),
        "style_met": style in met if style else None,
        "checks_met": list(met),
        "copying": copying(text, prompt.memory),
        "names_student": names_student(text, profile.student_id, profile.grade_level),
    }


@dataclass(frozen=True)
class Row:
    """One answer to generate.

    Attributes:
        policy: who answers.
        index: the place of the question, or of the moment, in the run.
        memory: what the prompt shows of the student.
        temperature: 0 is greedy.
        sample: which of the answers to the same prompt.
    """

    policy: str
    index: int
    moment: Moment
    memory: StudentMemory
    temperature: float
    sample: int

    @property
    def cell(self) -> tuple[str, str, str]:
        """Student, question and arm: rows of one cell and policy share a prompt."""
        return self.moment.student_id or "", self.moment.question.id, self.memory.arm or ""

    @property
    def shown(self) -> tuple:
        """What decides the prompt. Rows of several students can share one."""
        memory = self.memory
        text = self.moment.question.question, memory.lines, memory.request
        return self.policy, *text, memory.length_of, memory.tokens

    @cached_property
    def key(self) -> str:
        """Names the row within its run."""
        return "|".join([self.policy, *self.cell, str(self.temperature), str(self.sample)])

    def noise_key(self, seed: int) -> str:
        """Names the row's sampling noise: the same for every policy, student and arm."""
        return f"{seed}|{self.moment.question.id}|{self.temperature}|{self.sample}"


def expand(
    policy: str,
    index: int,
    moment: Moment,
    memory: StudentMemory,
    temperatures: Sequence[float],
    num_samples: int,
) -> list[Row]:
    """A prompt's rows: every temperature, `num_samples` times."""
    return [
        Row(policy, index, moment, memory, temperature, sample)
        for temperature in temperatures
        for sample in range(num_samples)
    ]


def make_requests(
    rows: Sequence[Row], prompts: Sequence[Prompt], seed: int, sampling: Sampling = ALL_TOKENS
) -> list[Request]:
    """What an engine is asked, one a row."""
    return [
        Request(
            prompt_ids=prompt.ids,
            temperature=row.temperature,
            seed_key=row.noise_key(seed),
            stop=prompt.stop,
            reasoning=prompt.reasoning,
            sampling=sampling,
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def answer_now(
    engine, rows: Sequence[Row], prompts: Sequence[Prompt], profiles: Mapping[str, Profile], seed: int
) -> list[dict]:
    """The rows' records from a model that is loaded already, without journal or files."""
    records: list[dict | None] = [None] * len(rows)
    for batch in engine.generate(make_requests(rows, prompts, seed)):
        for place, completion in batch:
            profile = profiles.get(rows[place].moment.student_id)
            records[place] = make_record(rows[place], prompts[place], completion, profile)
    return records
