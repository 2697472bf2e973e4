"""Filters against transformers' own, support and frequencies of drawn tokens, a checkpoint's own settings."""

import argparse
import math

import pytest
import torch
from conftest import plant_policy
from scipy.stats import chisquare, kstest
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cot.utils.completions import Completion, Request
from cot.utils.engine import TransformersEngine
from cot.utils.models import load_model
from cot.utils.sampling import (
    ALL_TOKENS,
    Sampling,
    counted_noise,
    forbid_tokens,
    ignored_settings,
    own_settings,
)

LIKELY = {"a": 0.4, "b": 0.3, "c": 0.15, "d": 0.1, "e": 0.05}  # of the planted model's next token


def allowed(logits, temperatures, samplings) -> torch.Tensor:
    """Which tokens may be drawn, (B, V)."""
    column = torch.tensor(temperatures)[:, None]
    return forbid_tokens(torch.zeros_like(logits), logits, column, samplings) > -math.inf


def allowed_by_transformers(logits, temperature, sampling) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0] > -math.inf


def test_the_tokens_of_each_row_are_those_of_transformers_warpers():
    torch.manual_seed(0)
    samplings = [
        Sampling(top_p, top_k, min_p)
        for top_p in (1.0, 0.95, 0.5, 1e-6)
        for top_k in (0, 1, 20, 10_000)
        for min_p in (0.0, 0.05, 1.0)
    ]
    logits = 3 * torch.randn(len(samplings), 500)
    logits[::3] = logits[::3].round()  # many ties
    temperatures = [0.3 + 0.1 * (i % 12) for i in range(len(samplings))]
    got = allowed(logits, temperatures, samplings)
    for row, (temperature, sampling) in enumerate(zip(temperatures, samplings, strict=True)):
        assert torch.equal(got[row], allowed_by_transformers(logits[row], temperature, sampling)), sampling
    assert len(set(got.sum(dim=1).tolist())) > 10


def test_a_row_without_filters_keeps_its_scores_beside_one_with():
    scores, logits = torch.randn(2, 9), torch.randn(2, 9)
    logits[0, 3] = -1e4  # a probability of 0 is still no filter
    column = torch.ones(2, 1)
    filtered = forbid_tokens(scores, logits, column, [ALL_TOKENS, Sampling(top_k=1)])
    assert torch.equal(filtered[0], scores[0])
    assert (filtered[1] > -math.inf).sum() == 1
    assert forbid_tokens(scores, logits, column, [ALL_TOKENS] * 2) is scores


def test_noise_of_minus_infinity_lets_no_forbidden_token_win():
    scores = torch.full((1, 4), -math.inf)
    filtered = forbid_tokens(scores, torch.arange(4.0)[None], torch.ones(1, 1), [Sampling(top_k=1)])
    assert filtered.argmax() == 3


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model whose next token is drawn from `LIKELY`, whatever came before."""
    folder = plant_policy(tmp_path_factory.mktemp("planted"), {"": LIKELY})
    return load_model(str(folder), "cpu", "float32")


def draw(model, tokenizer, sampling, temperature=1.0, count=2000) -> list[Completion]:
    """First tokens of one prompt."""
    prompt = tuple(tokenizer("Ann")["input_ids"])
    engine = TransformersEngine(model, tokenizer, max_new_tokens=1, batch_size=count)
    requests = [Request(prompt, temperature, str(i), sampling=sampling) for i in range(count)]
    return [completion for batch in engine.generate(requests) for _, completion in batch]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "temperature", "support"),
    [
        (ALL_TOKENS, 1.0, "abcde"),
        (Sampling(top_k=2), 1.0, "ab"),
        (Sampling(top_p=0.8), 1.0, "abc"),  # .4 + .3 = .7 is less than .8
        (Sampling(top_p=0.6), 1.0, "ab"),
        (Sampling(min_p=0.3), 1.0, "abc"),  # .3 of .4 is .12
        (Sampling(top_p=0.6, top_k=3, min_p=0.9), 1.0, "a"),
        (Sampling(top_p=0.8), 0.5, "ab"),  # squares .16 + .09 of a sum of .295 are .85
    ],
)
def test_tokens_are_drawn_from_those_left_in_proportion(planted, sampling, temperature, support):
    texts = [completion.text for completion in draw(*planted, sampling, temperature)]
    weights = [LIKELY[token] ** (1 / temperature) for token in support]
    expected = [len(texts) * weight / sum(weights) for weight in weights]
    assert set(texts) == set(support)
    assert len(support) == 1 or chisquare([texts.count(t) for t in support], expected).pvalue > 1e-4


def test_the_reported_log_probability_is_that_among_all_tokens(planted):
    for completion in draw(*planted, Sampling(top_k=2), temperature=0.6, count=50):
        assert math.exp(completion.logprobs[0]) == pytest.approx(LIKELY[completion.text], rel=1e-4)


def test_a_greedy_text_is_the_same_under_every_filter(planted):
    model, tokenizer = planted
    kinds = [ALL_TOKENS, Sampling(top_p=0.1), Sampling(top_k=1), Sampling(min_p=1.0)]
    engine = TransformersEngine(model, tokenizer, max_new_tokens=3, batch_size=8)
    requests = [Request((40,), 0.0, "", sampling=sampling) for sampling in kinds]
    (batch,) = engine.generate(requests)
    assert {completion.text for _, completion in batch} == {"aaa"}


def test_requests_that_differ_in_their_filter_are_not_shared(planted):
    texts = {}
    for sampling in (ALL_TOKENS, Sampling(top_k=1)):
        texts[sampling] = [completion.text for completion in draw(*planted, sampling, count=20)]
    model, tokenizer = planted
    prompt = tuple(tokenizer("Ann")["input_ids"])
    engine = TransformersEngine(model, tokenizer, max_new_tokens=1)
    requests = [Request(prompt, 1.0, str(i), sampling=sampling) for sampling in texts for i in range(20)]
    pairs = sorted(pair for batch in engine.generate(requests) for pair in [(i, c.text) for i, c in batch])
    assert [text for _, text in pairs] == [*texts[ALL_TOKENS], *texts[Sampling(top_k=1)]]
    assert set(texts[Sampling(top_k=1)]) == {"a"} != set(texts[ALL_TOKENS])


def test_a_checkpoints_own_settings_are_ignored_where_the_flags_ask_for_others():
    config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, eos_token_id=1
    )
    own = own_settings(config)
    assert own == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    flags = {"temperatures": [0.0, 0.7], "top_p": 0.8, "sampling_top_k": 0, "min_p": 0.0}
    assert ignored_settings(own, argparse.Namespace(**flags)) == {"top_k": 20, "repetition_penalty": 1.05}
    flags |= {"sampling_top_k": 20, "temperatures": [0.0]}
    ignored = ignored_settings(own, argparse.Namespace(**flags))
    assert ignored == {"temperature": 0.7, "repetition_penalty": 1.05}
    neutral = GenerationConfig(repetition_penalty=1.0, top_p=0.8, top_k=20)
    assert ignored_settings(own_settings(neutral), argparse.Namespace(**flags)) == {}


# ---- noise for a GPU


def test_counted_noise_is_uniform_and_independent_over_tokens_steps_and_rows():
    seeds = torch.tensor([1, 2, 2**62 + 7])
    steps = [counted_noise(seeds, torch.full((3,), step), 50_000) for step in (0, 1, 4096)]
    for noise in steps:
        assert noise.dtype == torch.float32 and noise.min() > 0 and noise.max() < 1
        assert all(kstest(row.numpy(), "uniform").pvalue > 0.001 for row in noise)
    rows = torch.cat(steps)  # (9, V)
    apart = torch.corrcoef(rows) - torch.eye(len(rows))
    assert apart.abs().max() < 0.025  # 5.6 standard deviations of a correlation of 50,000 pairs
    neighbours = torch.corrcoef(torch.stack([rows[:, 1:].flatten(), rows[:, :-1].flatten()]))
    assert neighbours[0, 1].abs() < 0.01


def test_counted_noise_of_a_row_depends_on_no_other_row():
    seeds, steps = torch.tensor([4, 9, 5]), torch.tensor([8, 3, 0])
    alone, among = counted_noise(seeds[1:2], steps[1:2], 100), counted_noise(seeds, steps, 100)
    assert torch.equal(alone[0], among[1])
    assert torch.equal(counted_noise(seeds[1:2], steps[1:2], 60)[0], alone[0, :60])
