"""Times the ways to generate the same answers and to know how likely they are, side by side in one run.

a  one answer at a time: `generate`, then a second forward pass for the perplexity
b  `generate` on a padded batch for each temperature, then one forward pass a batch for the perplexities
c  the project's engine in float32
d  the project's engine in bfloat16, where the processor is not slow at it
e  vLLM by itself, in float32, where it is installed (cot/README.md says how)
f  the project's engine of vLLM on the same weights
g  llama.cpp on the same GGUF file, as many answers at once, without perplexities (`pip install xllamacpp`)
h  the project's engine in float32 under `--batch_invariant`, whose mode of MKL the other ways then have, too;
   the places of answers that have ended go to others

The prompts are those of `cot/run_baseline_faiss.py`: each question with the nearest student's memory. With
`forced` lengths no way stops at an end token, so each generates `--max_new_tokens` tokens an answer: the same
work. With `natural` lengths texts end where they end, and sampled texts differ between the ways.

For each way: seconds; tokens/s; GFLOP/s, counting 2 a parameter for each prompt token once and for each new
token, attention left out, to be compared with what a product of two matrices reaches here, which stands in
the first line. Where this process decodes also its largest memory (that of the GPU with CUDA), the share of
time outside the model's forward pass, how many answers a decoding step works on, the share of that work that
is of use, as none is for an answer that has ended, and GB/s, counting the weights once for each pass, to be
compared with what a copy moves here. Writes JSON: `setting`, `matrix_gflops`, `copy_gb_per_s`, `runs`,
`skipped`, `greedy_equal`.

    python tests/bench_engine.py --num_questions 1 --max_new_tokens 4 --ways a c --json /tmp/bench.json
    python tests/bench_engine.py --json bench.json
"""

import argparse
import copy
import importlib.util
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot.utils.errors import UserError
from cot.utils.processes import guard_children
from cot.utils.questions import load_questions

WAYS = {
    "a": "one at a time",
    "b": "batch per temperature",
    "c": "engine, float32",
    "d": "engine, bfloat16",
    "e": "vLLM",
    "f": "engine of vLLM",
    "g": "llama.cpp",
    "h": "engine, batch invariant",
}
ELSEWHERE = ("e", "f", "g")  # not decoded by this process's model
COLUMNS = {
    "wall s": 8,
    "tokens/s": 10,
    "GiB": 6,
    "outside": 9,
    "rows": 7,
    "useful": 8,
    "GB/s": 6,
    "GFLOP/s": 9,
}
SIZE = 1024  # of the matrices whose product is timed


@dataclass(frozen=True)
class Work:
    """What every way is asked for: an answer to each prompt at each temperature."""

    prompts: list[list[int]]
    temperatures: list[float]
    max_new_tokens: int
    batch_size: int
    forced: bool

    def cells(self) -> list[tuple[float, int, list[int]]]:
        """(temperature, place of the prompt, prompt) of each answer, in the order of answers."""
        return [(heat, place, ids) for heat in self.temperatures for place, ids in enumerate(self.prompts)]


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens, the end token included, and its perplexity where the way gives one."""

    text: str
    tokens: int
    perplexity: float | None


class Meter:
    """What a way costs while this is open: `wall_s, model_s, peak_gib, passes, steps` and their `rows`."""

    def __init__(self, model) -> None:
        self.model, self.model_s, self.peak_gib = model, 0.0, 0.0
        self.passes = self.steps = self.rows = 0
        self._done = threading.Event()

    def __enter__(self) -> "Meter":
        import torch

        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._hooks = [
            self.model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
            self.model.register_forward_hook(self._leave_model),
        ]
        self._watcher = threading.Thread(target=self._watch_memory)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_error) -> None:
        self.wall_s = self._now() - self._start
        self._done.set()
        self._watcher.join()
        for hook in self._hooks:
            hook.remove()

    def _now(self) -> float:
        import torch

        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _enter_model(self, _model, args, kwargs) -> None:
        rows, tokens = (args[0] if args else kwargs["input_ids"]).shape
        self.passes += 1
        if tokens == 1:
            self.steps, self.rows = self.steps + 1, self.rows + rows
        self._entered = self._now()

    def _leave_model(self, *_args) -> None:
        self.model_s += self._now() - self._entered

    def _watch_memory(self) -> None:
        import psutil
        import torch

        process = psutil.Process()
        while not self._done.wait(0.05):
            held = process.memory_info().rss
            if self.model.device.type == "cuda":
                held = torch.cuda.max_memory_allocated()
            self.peak_gib = max(self.peak_gib, held / 2**30)


def run_generate(model, tokenizer, work: Work, rows_at_once: int) -> list[Answer]:
    """Ways a (`rows_at_once` 1) and b."""
    import torch

    from cot.utils.engine import answer_nll
    from cot.utils.models import end_token_ids

    ends = set() if work.forced else end_token_ids(model, tokenizer)
    model.generation_config.eos_token_id = sorted(ends) or None
    answers = []
    for temperature in work.temperatures:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        for start in range(0, len(work.prompts), rows_at_once):
            part = work.prompts[start : start + rows_at_once]
            batch = tokenizer.pad({"input_ids": part}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                output = model.generate(
                    **batch,
                    max_new_tokens=work.max_new_tokens,
                    **(sampling if temperature else {"do_sample": False}),
                )
            new = [up_to_end(row, ends) for row in output[:, batch["input_ids"].shape[1] :].tolist()]
            nll = answer_nll(model, list(zip(part, new, strict=True)), rows_at_once)
            for ids, value in zip(new, nll, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                answers.append(Answer(text, len(ids), math.exp(value)))
    return answers


def up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    """The tokens of a padded row that were generated."""
    return ids[: next((place for place, token in enumerate(ids, start=1) if token in ends), len(ids))]


def run_engine(model, tokenizer, work: Work, batch_invariant: bool = False) -> list[Answer]:
    """Ways c, d and h."""
    from cot.utils.engine import TransformersEngine

    model.set_attn_implementation("sdpa")  # of an earlier way it may be another
    engine = TransformersEngine(
        model, tokenizer, work.max_new_tokens, work.batch_size, batch_invariant=batch_invariant
    )
    return ask_engine(engine, engine.end_ids, work)


def ask_engine(engine, ends, work: Work) -> list[Answer]:
    """The answers of one of the project's engines, which this may keep from ending."""
    from cot.utils.completions import Request

    requests = [Request(tuple(ids), heat, f"0|{place}|{heat}") for heat, place, ids in work.cells()]
    engine.end_ids = set() if work.forced else ends
    done = dict(pair for batch in engine.generate(requests) for pair in batch)
    completions = [done[place] for place in range(len(requests))]
    return [
        Answer(each.text, len(each.token_ids), math.exp(-sum(each.logprobs) / len(each.logprobs)))
        for each in completions
    ]


@contextmanager
def start_vllm(way: str, folder: Path, model, tokenizer, work: Work) -> Iterator[Callable]:
    """Way e or f, on weights in a folder; its processes, which compute while they wait, end with it."""
    from cot.utils.model_names import resolve_model
    from cot.utils.models import end_token_ids
    from cot.utils.vllm_engine import CPU_CACHE_BYTES, VllmEngine, set_environment

    set_environment()
    import vllm

    room = max(map(len, work.prompts)) + work.max_new_tokens
    device, ends = model.device.type, end_token_ids(model, tokenizer)
    if way == "f":
        source, length = resolve_model(str(folder)), work.max_new_tokens
        engine = VllmEngine(source, tokenizer, device, "float32", length, work.batch_size, max_model_len=room)
        function = partial(ask_engine, engine, ends)
    else:
        on_cpu = {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES} if device == "cpu" else {}
        engine = vllm.LLM(
            model=str(folder),
            dtype="float32",
            max_num_seqs=work.batch_size,
            max_model_len=room,
            generation_config="vllm",
            **on_cpu,
        )
        function = partial(run_vllm, engine, sorted(ends))
    guard = guard_children()
    function(replace(work, prompts=work.prompts[:1]))  # the first steps compile what the others use
    try:
        yield function
    finally:
        guard.communicate()


def run_vllm(llm, ends: list[int], work: Work) -> list[Answer]:
    """Way e."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    asked = [
        SamplingParams(
            temperature=heat,
            seed=place,
            max_tokens=work.max_new_tokens,
            ignore_eos=work.forced,
            stop_token_ids=[] if work.forced else ends,
            logprobs=0,
        )
        for heat, place, _ in work.cells()
    ]
    outputs = llm.generate([tokens_input(ids) for _, _, ids in work.cells()], asked, use_tqdm=False)
    answers = []
    for output in outputs:
        (text,) = output.outputs
        logprobs = [each[token].logprob for token, each in zip(text.token_ids, text.logprobs, strict=True)]
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        answers.append(Answer(text.text, len(text.token_ids), perplexity))
    return answers


def start_llama_cpp(path: Path, work: Work, threads: int):
    """A server in this process, with a slot for each answer that is generated at once."""
    from xllamacpp import CommonParams, Server

    parameters = CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = work.batch_size
    parameters.n_ctx = work.batch_size * (max(map(len, work.prompts)) + work.max_new_tokens + 8)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    return Server(parameters)


def run_llama_cpp(server, work: Work) -> list[Answer]:
    """Way g."""

    def ask(cell) -> Answer:
        temperature, place, ids = cell
        asked = {"prompt": ids, "n_predict": work.max_new_tokens, "temperature": temperature, "seed": place}
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "ignore_eos": work.forced}
        anew = {"cache_prompt": False}  # the other ways read every prompt again at each length
        given = server.handle_completions({**asked, **neutral, **anew})
        return Answer(given["choices"][0]["text"], given["usage"]["completion_tokens"], None)

    with ThreadPoolExecutor(work.batch_size) as pool:
        return list(pool.map(ask, work.cells()))


def make_prompts(questions, tokenizer) -> list[list[int]]:
    """Token ids of each question with the memory of the nearest student."""
    from cot.utils.cli import COT_PROMPT
    from cot.utils.memory_arms import MemoryArms, PromptShape, make_prompt
    from cot.utils.paths import PROFILES_DIR
    from cot.utils.retrieval import load_embedder, nearest_profiles
    from cot.utils.student_files import MemoryLog, load_profiles

    embedder, profiles = load_embedder(), load_profiles(PROFILES_DIR)
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


def time_matrix_product(dtype: str, device) -> float:
    """GFLOP/s of a product of two square matrices, the best of five or of those that fit into a second."""
    import torch

    left = torch.rand(SIZE, SIZE, device=device, dtype=getattr(torch, dtype))
    times: list[float] = []
    while len(times) < 5 and sum(times) < 1:
        start = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(times) / 1e9


def time_copy(device) -> float:
    """GB/s, read and written, of a copy of 512 MiB; the best of five."""
    import torch

    source = torch.zeros(2**27, device=device)
    target, best = torch.empty_like(source), math.inf
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if source.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best / 1e9


def here(function: Callable, *args, **kwargs) -> Callable:
    """Starts a way for which nothing has to be started."""
    return partial(nullcontext, partial(function, *args, **kwargs))


def prepare_ways(
    args, source, model, tokenizer, work: Work, speeds: dict[str, float], folder: Path
) -> tuple[dict[str, tuple], dict[str, str]]:
    """By way its model and what starts it, a context with a function of the work; and why others are skipped.

    Args:
        folder: for weights that another engine is to read.
    """
    import torch

    from cot.utils.model_names import BUNDLED, resolve_model

    ways: dict[str, tuple] = {
        "a": (model, here(run_generate, model, tokenizer, rows_at_once=1)),
        "b": (model, here(run_generate, model, tokenizer, rows_at_once=work.batch_size)),
        "c": (model, here(run_engine, model, tokenizer)),
        "h": (model, here(run_engine, model, tokenizer, batch_invariant=True)),
    }
    skipped = {}
    if "d" in args.ways:
        if speeds["bfloat16"] < speeds["float32"] / 2:
            skipped["d"] = "this processor is slow at it"
        else:
            half = copy.deepcopy(model).to(torch.bfloat16)
            ways["d"] = (half, here(run_engine, half, tokenizer))
    if {"e", "f"} & set(args.ways):
        if importlib.util.find_spec("vllm") is None:
            skipped |= dict.fromkeys({"e", "f"} & set(args.ways), "vLLM is not installed")
        else:
            for part in (model, tokenizer):
                part.save_pretrained(folder)
            ways |= {way: (model, partial(start_vllm, way, folder, model, tokenizer, work)) for way in "ef"}
    if "g" in args.ways:
        path = resolve_model(BUNDLED).path if source.kind == "bundled" else source.path
        if path is None or path.suffix != ".gguf":
            skipped["g"] = f"{source.name} is no GGUF file"
        else:
            try:
                server = start_llama_cpp(path, work, torch.get_num_threads())
                ways["g"] = (model, here(run_llama_cpp, server))
            except ImportError:
                skipped["g"] = "pip install xllamacpp"
    return {way: ways[way] for way in args.ways if way in ways}, skipped


def measure(way: Callable[[Work], list[Answer]], model, work: Work, is_here: bool) -> dict:
    """Runs a way once; its figures and answers."""
    with Meter(model) as meter:
        answers = way(work)
    tokens = sum(answer.tokens for answer in answers)
    weights = sum(weight.nbytes for weight in model.parameters())
    flops = 2 * model.num_parameters() * (sum(map(len, work.prompts)) + tokens)
    return {
        "wall_s": meter.wall_s,
        "tokens": tokens,
        "tokens_per_s": tokens / meter.wall_s,
        "peak_gib": meter.peak_gib if is_here else None,
        "outside_model": 1 - meter.model_s / meter.wall_s if is_here else None,
        "rows_per_step": meter.rows / meter.steps if meter.steps else None,
        "useful_share": (tokens - len(answers)) / meter.rows if meter.steps else None,
        "gb_per_s": weights * meter.passes / meter.wall_s / 1e9 if is_here else None,
        "gflops": flops / meter.wall_s / 1e9,
        "answers": [vars(answer) for answer in answers],
    }


def cells(figures: dict) -> list[str]:
    """A way's row of the table, as wide as `COLUMNS`."""
    shown = [f"{figures[name]:.1f}" for name in ("wall_s", "tokens_per_s")]
    if figures["rows_per_step"] is None:
        shown += [""] * 5
    else:
        shown += [f"{figures['peak_gib']:.1f}", f"{figures['outside_model']:.1%}"]
        shown += [f"{figures['rows_per_step']:.1f}", f"{figures['useful_share']:.1%}"]
        shown.append(f"{figures['gb_per_s']:.1f}")
    shown.append(f"{figures['gflops']:.1f}")
    return [f"{cell:>{width}}" for cell, width in zip(shown, COLUMNS.values(), strict=True)]


def build_parser() -> argparse.ArgumentParser:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model_name", default="bundled", help="bundled, a folder, a .gguf file or a hub name")
    add("--questions", default="textbook", help="textbook, gsm8k or a .jsonl file")
    add("--num_questions", type=int, default=8)
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.6, 1.0])
    add("--max_new_tokens", type=int, default=96)
    add("--batch_size", type=int, default=32, help="answers generated at once by all ways but a")
    add("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="of the list above")
    add("--lengths", nargs="+", default=["forced", "natural"], choices=["forced", "natural"])
    add("--device", default="cpu")
    add("--threads", type=int, default=None, help="of torch and llama.cpp on the CPU")
    add("--json", type=Path, default=None, help="file for all figures and answers")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs each way on the same prompts, prints a table, writes the JSON."""
    args = build_parser().parse_args(argv)
    questions = load_questions(args.questions, subset_size=args.num_questions).questions

    import torch

    from cot.utils.devices import settle_sums
    from cot.utils.model_names import resolve_model
    from cot.utils.models import describe_model, load_model

    if args.threads:
        torch.set_num_threads(args.threads)
    settle_sums(reproducible="h" in args.ways)
    torch.manual_seed(0)
    source = resolve_model(args.model_name)
    model, tokenizer = load_model(source, args.device, "float32")
    prompts = make_prompts(questions, tokenizer)
    work = Work(prompts, args.temperatures, args.max_new_tokens, args.batch_size, forced=True)
    formats = ["float32", "bfloat16"] if "d" in args.ways else ["float32"]
    speeds = {dtype: time_matrix_product(dtype, model.device) for dtype in formats}
    folder = tempfile.TemporaryDirectory(prefix="bench_engine_")
    ways, skipped = prepare_ways(args, source, model, tokenizer, work, speeds, Path(folder.name))

    lengths, threads = [len(prompt) for prompt in prompts], torch.get_num_threads()
    copied = time_copy(model.device)
    said = ", ".join(f"{dtype} {speed:.1f} GFLOP/s" for dtype, speed in speeds.items())
    said += f", copy {copied:.1f} GB/s"
    print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {threads} threads, {said}")
    for way, reason in skipped.items():
        print(f"{way}  {WAYS[way]}: skipped: {reason}")

    runs, equal = [], {}
    for kind in args.lengths:
        work = Work(prompts, args.temperatures, args.max_new_tokens, args.batch_size, kind == "forced")
        print(f"\n{kind + ' lengths':<26}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
        greedy = {}
        for way, (used, start) in ways.items():
            with start() as function:
                figures = measure(function, used, work, is_here=way not in ELSEWHERE)
            runs.append({"way": way, "name": WAYS[way], "lengths": kind, **figures})
            print(f"{way}  {WAYS[way]:<23}" + "".join(cells(figures)), flush=True)
            texts = [answer["text"] for answer in figures["answers"]]
            greedy[way] = [text for (heat, *_), text in zip(work.cells(), texts, strict=True) if heat == 0]
        for way in sorted({"a", "b", "e", "f", "h"} & set(greedy)) if "c" in greedy else ():
            same = sum(x == y for x, y in zip(greedy[way], greedy["c"], strict=True))
            equal[f"{kind}: {way} and c"] = f"{same} of {len(greedy['c'])}"
    for pair, count in equal.items():
        print(f"greedy texts equal, {pair}: {count}")

    if args.json:
        setting = {"flags": vars(args), "model": describe_model(source, model), "threads": threads}
        content = {"setting": setting, "matrix_gflops": speeds, "copy_gb_per_s": copied}
        content |= {"runs": runs, "skipped": skipped, "greedy_equal": equal}
        args.json.write_text(json.dumps(content, indent=1, default=str, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
