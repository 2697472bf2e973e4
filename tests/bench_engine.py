"""Times three ways to generate and score the same answers, side by side in one run.

a  one sample at a time: generate, a second forward pass for the perplexity, one embedding call for each text
b  one padded batch for each temperature: generate, one batched forward pass, one embedding call
c  the project's engine: one prefill for all temperatures, perplexity from its own logits, one embedding call

The prompts are those of `cot/run_baseline_faiss.py`: each question with the nearest student's memory. Every
way gives text, token count, perplexity and similarity to the gold solution. No way stops at an end token, so
each generates exactly `--max_new_tokens` tokens an answer: the same work. Greedy texts must be equal; the
last lines say whether they are. Writes JSON: `ways`, `greedy_equal`.

    python tests/bench_engine.py --num_questions 1 --max_new_tokens 4 --output /tmp/bench.json
    python tests/bench_engine.py --output bench.json
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.errors import UserError
from cot.utils.questions import load_questions


@dataclass(frozen=True)
class Answer:
    """What each way must deliver for one question and temperature."""

    text: str
    tokens: int
    perplexity: float | None
    similarity: float


def build_parser() -> argparse.ArgumentParser:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--model_name", default="bundled", help="bundled, a folder, a .gguf file or a hub name"
    )
    parser.add_argument("--questions", default="textbook", help="textbook, gsm8k or a .jsonl file")
    parser.add_argument("--num_questions", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.6, 1.0])
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    return parser


def sampling(temperature: float) -> dict:
    """Arguments of `generate` that sample from the full distribution, or greedily at 0."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def perplexities(model, prompt_ids: list[list[int]], new_ids: list[list[int]], pad_id: int) -> list[float]:
    """Perplexity of each generation by one left-padded forward pass over prompt and generation."""
    import torch

    rows = [prompt + new for prompt, new in zip(prompt_ids, new_ids, strict=True)]
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in rows], device=model.device)  # (B, T)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    keep = max(map(len, new_ids)) + 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
        logprobs = logits[:, :-1].float().log_softmax(-1)  # (B, keep - 1, V)
    nll = -logprobs.gather(2, ids[:, 1 - keep :, None])[..., 0]  # (B, keep - 1)
    return [math.exp(row[-len(new) :].mean().item()) for row, new in zip(nll, new_ids, strict=True)]


def generate_batch(model, tokenizer, prompts: list[list[int]], temperature: float, length: int) -> list:
    """The library's own generation of `length` tokens a row."""
    import torch

    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model.generate(**batch, max_new_tokens=length, **sampling(temperature))
    return output[:, batch["input_ids"].shape[1] :].tolist()


def run_by_batch(model, tokenizer, embedder, questions, prompts, arguments, rows_at_once) -> list[Answer]:
    """Ways a (`rows_at_once` 1) and b (all questions of a temperature)."""
    answers = []
    for temperature in arguments.temperatures:
        for start in range(0, len(prompts), rows_at_once):
            part = prompts[start : start + rows_at_once]
            golds = [question.gold_solution for question in questions[start : start + rows_at_once]]
            new = generate_batch(model, tokenizer, part, temperature, arguments.max_new_tokens)
            scored = perplexities(model, part, new, tokenizer.pad_token_id)
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
            answers += package(texts, [len(ids) for ids in new], scored, golds, embedder)
    return answers


def run_engine(model, tokenizer, embedder, questions, prompts, arguments) -> list[Answer]:
    """Way c."""
    from cot.utils.engine import Request, TransformersEngine

    requests = [
        Request(tuple(prompt), temperature, f"0|{i}|{temperature}")
        for temperature in arguments.temperatures
        for i, prompt in enumerate(prompts)
    ]
    engine = TransformersEngine(model, tokenizer, arguments.max_new_tokens)
    engine.end_ids = set()
    done = dict(pair for batch in engine.generate(requests) for pair in batch)
    completions = [done[i] for i in range(len(requests))]
    scored = [math.exp(-sum(c.logprobs) / len(c.logprobs)) for c in completions]
    golds = [question.gold_solution for question in questions] * len(arguments.temperatures)
    texts = [completion.text for completion in completions]
    return package(texts, [len(c.token_ids) for c in completions], scored, golds, embedder)


def package(texts, tokens, scored, golds, embedder) -> list[Answer]:
    """Adds the cosine similarity, by one embedding call for texts and golds."""
    vectors = embedder.encode(texts + golds)
    similarities = (vectors[: len(texts)] * vectors[len(texts) :]).sum(axis=1).tolist()
    rows = zip(texts, tokens, scored, similarities, strict=True)
    return [Answer(*row) for row in rows]


WAYS = {
    "a one at a time": partial(run_by_batch, rows_at_once=1),
    "b batch per temperature": partial(run_by_batch, rows_at_once=sys.maxsize),
    "c engine": run_engine,
}


def make_prompts(questions, tokenizer, embedder) -> list[list[int]]:
    """Token ids of each question with the memory of the nearest student."""
    from cot.utils.cli import COT_PROMPT
    from cot.utils.memory_arms import MemoryArms, PromptShape, make_prompt
    from cot.utils.paths import PROFILES_DIR
    from cot.utils.retrieval import nearest_profiles
    from cot.utils.student_files import MemoryLog, load_profiles

    profiles = load_profiles(PROFILES_DIR)
    log = MemoryLog(PROFILES_DIR / "memory")
    histories = {student: log.read(student) for student in profiles}
    arms = MemoryArms(profiles, histories, embedder, seed=0, top_k=2)
    shape = PromptShape(instruction=COT_PROMPT, memory_tokens=256)
    nearest = nearest_profiles(profiles, [question.question for question in questions], embedder)
    prompts = []
    for question, [(student, _)] in zip(questions, nearest, strict=True):
        moment = arms.moment(student, question)
        prompts.append(list(make_prompt(tokenizer, moment, arms.show(moment, "own"), shape).ids))
    return prompts


def report(
    results: dict[str, dict], greedy_equal: dict[str, str], setting: dict, output: Path | None
) -> None:
    """Prints the table, the slowest way as 1, and writes the JSON."""
    base = results["a one at a time"]["wall_s"]
    print(f"{'way':<24}{'wall s':>9}{'tokens':>9}{'tokens/s':>10}{'ratio':>8}")
    for name, row in results.items():
        row["ratio"] = base / row["wall_s"]
        figures = f"{row['wall_s']:>9.1f}{row['tokens']:>9}{row['tokens_per_s']:>10.1f}{row['ratio']:>8.2f}"
        print(f"{name:<24}{figures}")
    for pair, equal in greedy_equal.items():
        print(f"greedy texts {pair}: {equal} equal")
    if output:
        content = {**setting, "ways": results, "greedy_equal": greedy_equal}
        output.write_text(json.dumps(content, indent=1, default=str, allow_nan=False) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the three ways on the same prompts, prints a table, writes the JSON."""
    arguments = build_parser().parse_args(argv)
    questions = load_questions(arguments.questions, subset_size=arguments.num_questions).questions

    import torch

    from cot.utils.model_names import resolve_model
    from cot.utils.models import describe_model, load_model
    from cot.utils.retrieval import load_embedder

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = resolve_model(arguments.model_name)
    model, tokenizer = load_model(source, arguments.device, arguments.dtype)
    model.generation_config.eos_token_id = None
    prompts = make_prompts(questions, tokenizer, load_embedder())
    lengths = [len(prompt) for prompt in prompts]
    threads = torch.get_num_threads()
    print(f"{len(prompts)} questions of {min(lengths)} to {max(lengths)} tokens, {threads} threads")
    perplexities(model, prompts[:1], [[0]], 0)  # the first pass of a process is slow
    results, greedy = {}, {}
    for name, way in WAYS.items():
        embedder = load_embedder()  # a fresh one: its cache would spare the later ways their work
        embedder.encode(["warm-up"])
        start = time.perf_counter()
        answers = way(model, tokenizer, embedder, questions, prompts, arguments)
        wall_s = time.perf_counter() - start
        tokens = sum(answer.tokens for answer in answers)
        results[name] = {"wall_s": wall_s, "tokens": tokens, "tokens_per_s": tokens / wall_s}
        results[name]["answers"] = [asdict(answer) for answer in answers]
        each = [temperature for temperature in arguments.temperatures for _ in prompts]
        greedy[name[0]] = [answer.text for answer, t in zip(answers, each, strict=True) if t == 0]
    equal = {}
    for way in "ab":
        same = sum(x == y for x, y in zip(greedy[way], greedy["c"], strict=True))
        equal[f"{way} and c"] = f"{same} of {len(greedy['c'])}"
    setting = {"flags": vars(arguments), "model": describe_model(source, model), "threads": threads}
    report(results, equal, setting, arguments.output)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
