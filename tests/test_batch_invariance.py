"""Likelihoods under `--batch_invariant`: the same to the last bit in any batch, process and attempt."""

import os
import signal
import time

import pytest
import torch
from conftest import fork_here, long_context, read_strictly, run_here, wait_for_exit, without_times

from cot import run_baseline_cot
from cot.utils.completions import Request
from cot.utils.engine import TransformersEngine

PROMPTS = ["Ann has 3 apples", "How many apples has she now? 3 + 4 " * 4, "Ann", "buys 4 more.", "1 2 3"]


@pytest.fixture
def exact() -> None:
    """Skips where the processor's own products do not allow it, whatever the code does."""
    generator = torch.Generator().manual_seed(0)
    rows, matrix = (torch.randn(count, 64, generator=generator) for count in (300, 96))
    product = torch.nn.functional.linear(rows, matrix)
    if not torch.equal(torch.nn.functional.linear(rows[:16], matrix), product[:16]):
        pytest.skip("16 rows times a matrix are other numbers here than among 300 rows")


def logprobs(model, tokenizer, batch_size: int, batch_invariant: bool) -> list[tuple[float, ...]]:
    """Of 30 texts, greedy and sampled."""
    engine = TransformersEngine(model, tokenizer, 20, batch_size, batch_invariant=batch_invariant)
    requests = [
        Request(tuple(tokenizer(prompt)["input_ids"]), temperature, f"{prompt}{repeat}")
        for prompt in PROMPTS
        for temperature in (0.0, 1.0)
        for repeat in range(3)
    ]
    found = dict(pair for batch in engine.generate(requests) for pair in batch)
    model.set_attn_implementation("sdpa")
    return [found[place].logprobs for place in range(len(requests))]


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen2"])
def test_they_are_equal_at_every_batch_size_and_close_to_those_without(fixture, request, exact):
    model, tokenizer = request.getfixturevalue(fixture)
    expected = logprobs(model, tokenizer, 1, batch_invariant=True)
    for batch_size in (2, 3, 7, 32):
        assert logprobs(model, tokenizer, batch_size, batch_invariant=True) == expected
    for got, value in zip(logprobs(model, tokenizer, 32, batch_invariant=False), expected, strict=True):
        assert got == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
def test_a_sliding_window_sees_what_it_saw(tiny_qwen2, exact):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = tiny_qwen2[0].config.to_diff_dict() | {"use_sliding_window": True, "sliding_window": 8}
    config["layer_types"] = ["full_attention", "sliding_attention"]
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    expected = logprobs(model, tiny_qwen2[1], 1, batch_invariant=True)
    assert logprobs(model, tiny_qwen2[1], 7, batch_invariant=True) == expected
    for got, value in zip(logprobs(model, tiny_qwen2[1], 7, batch_invariant=False), expected, strict=True):
        assert got == pytest.approx(value, abs=1e-4)


def test_heads_that_see_differently_keep_their_own_attention(tiny_llama):
    from transformers import DogeConfig, DogeForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
    torch.manual_seed(0)
    model = DogeForCausalLM(
        DogeConfig(vocab_size=len(tiny_llama[1]), eos_token_id=1, **sizes, **heads)
    ).eval()
    expected = logprobs(model, tiny_llama[1], 7, batch_invariant=False)
    for got, value in zip(logprobs(model, tiny_llama[1], 7, batch_invariant=True), expected, strict=True):
        assert got == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
def test_a_straight_run_other_batch_sizes_two_processes_and_a_killed_run_give_the_same_bytes(
    tiny_folder, tmp_path, exact, scorers, be_process, monkeypatch
):
    monkeypatch.setattr("cot.utils.scorers.load_scorers", lambda _device: scorers)
    monkeypatch.setattr("cot.utils.sweeps.draw_sweep", lambda *_: None)
    model = long_context(tiny_folder, tmp_path / "tiny-llama")
    flags = ["--batch_invariant", "--dataset", "textbook", "--device", "cpu", "--cot_prompt", "Solve."]
    flags += ["--model_name", model, "--subset_size", "8", "--temperatures", "0.0", "0.6"]
    flags += ["--max_new_tokens", "24"]

    def start(folder: str, batch_size: int) -> int:
        return fork_here(
            run_baseline_cot.main, *flags, "--batch_size", batch_size, "--output_dir", tmp_path / folder
        )

    def results(folder: str) -> list[list[dict]]:
        paths = sorted((tmp_path / folder).rglob("results_*.json"))
        return [without_times(read_strictly(path))["results"] for path in paths]

    assert wait_for_exit(start("straight", 32)) == 0
    assert wait_for_exit(start("three", 3)) == 0

    killed = start("killed", 3)
    while not any(path.read_bytes().count(b"\n") >= 3 for path in (tmp_path / "killed").rglob("journal_*")):
        time.sleep(0.005)
    os.kill(killed, signal.SIGKILL)
    assert wait_for_exit(killed) == -signal.SIGKILL
    assert wait_for_exit(start("killed", 3)) == 0

    processes = []
    for rank in (0, 1):
        be_process(rank)
        processes.append(start("two", 3))
    assert [wait_for_exit(process) for process in processes] == [0, 0]

    expected = results("straight")
    assert len(expected) == 2 and all(len(records) == 8 for records in expected)
    assert results("three") == results("killed") == results("two") == expected


def test_what_depends_on_the_batch_is_refused_in_a_line_before_anything_is_generated(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("cot.utils.batch_invariance.LEAST_ROWS", 1)
    monkeypatch.setattr("cot.utils.engine.use_attention_by_length", lambda model: None)
    flags = ["--model_name", tiny_folder, "--dataset", "textbook", "--subset_size", "1", "--device", "cpu"]
    flags += ["--batch_invariant", "--max_new_tokens", "4", "--cot_prompt", "Solve."]
    code, _, stderr = run_here(run_baseline_cot.main, *flags, "--output_dir", tmp_path)
    assert code == 2 and stderr.startswith("error: --batch_invariant: of ") and stderr.count("\n") == 1
    assert "likelihoods depend on the batch; leave it out" in stderr
    assert not any(read_strictly(path)["results"] for path in tmp_path.rglob("results_*.json"))
