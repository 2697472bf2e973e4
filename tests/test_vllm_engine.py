"""vLLM gives what transformers gives: texts, log-probabilities, ends, errors; whole sweeps. Needs vLLM."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ENVIRONMENT, REPO_ROOT, only, read_strictly, run_script, start_script

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM absent: cot/README.md says how to install it", allow_module_level=True)

from cot.utils.completions import Completion, Request
from cot.utils.engine import TransformersEngine
from cot.utils.model_names import TUTOR, resolve_model
from cot.utils.models import load_model
from cot.utils.questions import load_questions
from cot.utils.vllm_engine import VllmEngine

pytestmark = pytest.mark.slow
MAX_NEW_TOKENS = 48


@pytest.fixture(scope="module")
def engines():
    """The same policy in both engines: (transformers, vLLM), float32 on the CPU."""
    source = resolve_model(str(TUTOR))
    model, tokenizer = load_model(source, "cpu", "float32")
    ours = TransformersEngine(model, tokenizer, MAX_NEW_TOKENS)
    vllm = VllmEngine(source, tokenizer, "cpu", "float32", MAX_NEW_TOKENS, batch_size=32, max_model_len=256)
    ours.context_length = vllm.context_length
    return ours, vllm


def ask(engine, requests) -> list[Completion]:
    pairs = [pair for batch in engine.generate(requests) for pair in batch]
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


def prompts(engine, count: int = 16) -> list[tuple[int, ...]]:
    """Questions that the policy knows, through its chat template."""
    questions = load_questions("textbook", "test", count, None).questions
    turns = [[{"role": "user", "content": question.question}] for question in questions]
    encoded = engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    return [tuple(ids) for ids in encoded]


def test_greedy_texts_agree_and_perplexity_is_within_one_percent(engines):
    requests = [Request(ids, 0.0, "greedy") for ids in prompts(engines[0])]
    ours, theirs = (ask(engine, requests) for engine in engines)
    equal = sum(one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True))
    assert equal >= 15  # of 16: a near tie may be decided otherwise

    for one, other in zip(ours, theirs, strict=True):
        if one.token_ids == other.token_ids:
            assert (one.text, one.truncated) == (other.text, other.truncated)
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
    logprobs = [[value for text in texts for value in text.logprobs] for texts in (ours, theirs)]
    perplexities = [math.exp(-sum(values) / len(values)) for values in logprobs]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=0.01)


def test_log_probabilities_are_those_at_temperature_1(engines):
    ours, vllm = engines
    (ids, *_) = prompts(ours)
    (hot,) = ask(vllm, [Request(ids, 2.0, "hot")])
    model_input = ours.model(input_ids=_row([*ids, *hot.token_ids])).logits[0, len(ids) - 1 : -1]
    expected = model_input.log_softmax(dim=-1)[range(len(hot.token_ids)), list(hot.token_ids)]
    assert hot.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_every_row_of_a_batch_has_noise_of_its_own_and_the_same_seed_the_same(engines):
    ids = prompts(engines[0])[0]
    requests = [Request(ids, 2.0, f"row {number}") for number in range(8)]
    first, again = (ask(engines[1], requests) for _ in range(2))
    assert len({completion.token_ids for completion in first}) == 8
    assert [completion.token_ids[0] for completion in first] == [text.token_ids[0] for text in again]


def test_equal_requests_are_generated_once(engines):
    ids = prompts(engines[0])[0]
    requests = [
        Request(ids, 0.0, "a"),
        Request(ids, 0.0, "b"),
        Request(ids, 2.0, "a"),
        Request(ids, 2.0, "a"),
    ]
    greedy, same, drawn, drawn_again = ask(engines[1], requests)
    assert greedy is same and drawn is drawn_again


def test_a_prompt_that_is_too_long_is_an_error_and_the_rest_goes_on(engines):
    ids = prompts(engines[0])[0]
    long, short = ask(engines[1], [Request(ids * 20, 0.0, "long"), Request(ids, 0.0, "short")])
    assert long.error["type"] == "prompt_too_long" and "do not fit 256" in long.error["message"]
    assert short.error is None and short.text


def test_a_stop_text_ends_a_text_where_it_ends_it_with_transformers(engines):
    ids = prompts(engines[0])[0]
    ours, theirs = (ask(engine, [Request(ids, 0.0, "stop", stop=("=",))])[0] for engine in engines)
    assert theirs.token_ids == ours.token_ids and theirs.text == ours.text
    assert "=" not in theirs.text and not theirs.truncated


def test_an_adapter_answers_as_it_does_where_it_is_merged(engines, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, _ = load_model(str(TUTOR), "cpu", "float32")
    how = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **how))
    adapted.save_pretrained(tmp_path)
    source = resolve_model(str(tmp_path))

    merged, tokenizer = load_model(str(tmp_path), "cpu", "float32")
    ours = TransformersEngine(merged, tokenizer, MAX_NEW_TOKENS)
    vllm = VllmEngine(source, tokenizer, "cpu", "float32", MAX_NEW_TOKENS, batch_size=32, max_model_len=256)
    requests = [Request(ids, 0.0, "greedy") for ids in prompts(ours)]
    here, there, bare = (ask(engine, requests) for engine in (ours, vllm, engines[1]))
    equal = sum(one.token_ids == other.token_ids for one, other in zip(here, there, strict=True))
    assert equal >= 15  # of 16
    assert sum(one.token_ids == other.token_ids for one, other in zip(there, bare, strict=True)) < 8


def test_what_a_caller_leaves_is_not_generated_on(engines):
    requests = [Request(ids, 2.0, "left") for ids in prompts(engines[0])]
    texts = engines[1].generate(requests, watch=_give_up)
    with pytest.raises(KeyboardInterrupt):
        next(texts)
    assert ask(engines[1], requests[:1])[0].error is None


def _give_up(tokens: int, rows: int) -> None:
    if tokens > 2:
        raise KeyboardInterrupt


def _row(ids):
    import torch

    return torch.tensor([ids])


# ---- a sweep


SWEEP = ["--engine", "vllm", "--device", "cpu", "--model_name", TUTOR, "--batch_size", "2"]
SWEEP += ["--dataset", "textbook", "--subset_size", "10", "--temperatures", "0", "1.5", "--num_samples", "4"]
SWEEP += ["--max_new_tokens", "96", "--cot_prompt", ""]
ROWS = 10 * 2 * 4


def journaled(folder) -> set[str]:
    """The rows of a run's journal; none stands there twice."""
    lines = [line for path in folder.rglob("journal_*.jsonl") for line in path.read_text().splitlines()]
    keys = [key for line in lines for key in json.loads(line).get("records", {})]
    assert len(set(keys)) == len(keys)
    return set(keys)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_sweep_that_is_ended_leaves_no_process_and_the_same_command_finishes_it(signum, code, tmp_path):
    process = start_script("cot/run_baseline_cot.py", *SWEEP, "--output_dir", tmp_path)
    while not list(tmp_path.rglob("journal_*.jsonl")) or not journaled(tmp_path):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    engine = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert engine and not psutil.wait_procs(engine, timeout=30)[1]
    kept = journaled(tmp_path)
    assert 0 < len(kept) < ROWS
    if signum == signal.SIGTERM:
        found = [read_strictly(path) for path in tmp_path.rglob("results_*.json")]
        assert {document["status"] for document in found} == {"cancelled"}
        assert sum(len(document["results"]) for document in found) == len(kept)

    done = run_script("cot/run_baseline_cot.py", *SWEEP, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr_text
    assert f"{ROWS - len(kept)} of {ROWS} rows left" in done.stdout_text
    assert len(journaled(tmp_path)) == ROWS
    summary = read_strictly(only(tmp_path, "summary_*.json"))
    (model,) = summary["config"]["models"].values()
    assert (summary["status"], summary["summary"]["n"]) == ("success", ROWS)
    assert [engine["name"] for engine in model["engines"]] == ["vllm"]


def test_two_processes_share_a_sweep(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", REPO_ROOT / "cot/run_baseline_cot.py"]
    command = [sys.executable, *launcher, *SWEEP, "--output_dir", tmp_path]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(journaled(tmp_path)) == ROWS
    summary = read_strictly(only(tmp_path, "summary_*.json"))
    assert (summary["status"], summary["summary"]["n"]) == ("success", ROWS)
    assert summary["config"]["processes"] == 2
