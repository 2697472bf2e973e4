"""Batched decoding equals `generate`, one prompt at a time; likelihood equals one token after another."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from cot.utils.completions import Completion, Request
from cot.utils.engine import TransformersEngine, answer_nll
from cot.utils.model_names import TUTOR
from cot.utils.models import load_model
from cot.utils.questions import load_questions

PROMPTS = ["Ann has 3 apples", "How many apples has she now? 3 + 4", "Ann", "buys 4 more."]
EARLY_ENDS = [1, *range(2, 42)]  # 41 of about 300 ids end a text: rows finish at different steps


def make_requests(tokenizer, temperatures=(0.0, 0.6, 1.0), repeats=1):
    return [
        Request(tuple(tokenizer(prompt)["input_ids"]), temperature, f"0|{prompt}|{temperature}|{repeat}")
        for prompt in PROMPTS
        for temperature in temperatures
        for repeat in range(repeats)
    ]


def run(model, tokenizer, requests, batch_size=None, max_new_tokens=24, refills=False) -> list[Completion]:
    engine = TransformersEngine(model, tokenizer, max_new_tokens, batch_size)
    engine.refills = refills
    pairs = [pair for batch in engine.generate(requests) for pair in batch]
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


def with_ends(model, ends):
    """The same weights under another generation config."""
    other = copy.copy(model)
    other.generation_config = copy.deepcopy(model.generation_config)
    other.generation_config.eos_token_id = ends
    return other


def count_forwards(model, requests, tokenizer, **options):
    """Runs the engine and returns the shape (rows, tokens) of each forward pass."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        completions = run(model, tokenizer, requests, **options)
    finally:
        hook.remove()
    return completions, shapes


def slide(model, window, seed=0):
    """A model of the same shape, with random weights, whose second layer has a sliding window."""
    config = model.config.to_diff_dict() | {"layer_types": ["full_attention", "sliding_attention"]}
    config |= {"use_sliding_window": True, "sliding_window": window}
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**config)).eval()


def generate_alone(model, request, max_new_tokens=24) -> tuple[int, ...]:
    """The library's own greedy continuation of one prompt."""
    ids = torch.tensor([request.prompt_ids])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
    )
    return tuple(output[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen2"])
def test_greedy_rows_of_a_padded_batch_equal_generate_on_single_prompts(fixture, request):
    model, tokenizer = request.getfixturevalue(fixture)
    requests = make_requests(tokenizer, temperatures=(0.0,))
    completions = run(model, tokenizer, requests, batch_size=8)
    assert [completion.token_ids for completion in completions] == [
        generate_alone(model, asked) for asked in requests
    ]
    assert len({completion.token_ids for completion in completions}) > 1


def test_whoever_watches_hears_of_prompts_read_every_step_and_the_rows_that_go_on(tiny_llama, monkeypatch):
    model, tokenizer = tiny_llama
    requests, heard = make_requests(tokenizer, temperatures=(0.0,)), []
    longest = max(len(request.prompt_ids) for request in requests)
    monkeypatch.setattr("cot.utils.engine.PREFILL_TOKENS", 3 * longest)  # three prompts at a time, of four
    engine = TransformersEngine(model, tokenizer, max_new_tokens=5, batch_size=8)
    batches = list(engine.generate(requests, watch=lambda tokens, rows: heard.append((tokens, rows))))
    lengths = [len(completion.token_ids) for batch in batches for _, completion in batch]
    assert len(batches) == 1
    assert heard[:2] == [(0, 3), (0, 4)]
    assert [tokens for tokens, _ in heard[2:]] == list(range(1, max(lengths) + 1))
    assert heard[2][1] == sum(length > 1 for length in lengths)


@pytest.mark.parametrize(("window", "seed"), [(4, 5), (16, 4)])
def test_sliding_window_layers_follow_their_rows_when_rows_come_and_leave(tiny_qwen2, window, seed):
    """One plain and one sliding layer; two rows share a prompt, and texts end at different steps."""
    model = with_ends(slide(tiny_qwen2[0], window, seed), EARLY_ENDS)
    requests = make_requests(tiny_qwen2[1], temperatures=(0.0, 0.6))  # two rows a prompt
    expected = [generate_alone(model, asked) for asked in requests[::2]]
    completions, shapes = count_forwards(model, requests, tiny_qwen2[1], batch_size=8)
    assert [completion.token_ids for completion in completions[::2]] == expected
    assert len({len(ids) for ids in expected}) >= 3 and max(map(len, expected)) > window
    rows = [rows for rows, tokens in shapes if tokens == 1]
    assert rows[0] == 8 and rows[-1] < 8  # rows did leave


def test_prompts_read_and_tokens_drawn_in_parts_give_the_same_texts(tiny_llama, monkeypatch):
    model, tokenizer = tiny_llama
    requests = make_requests(tokenizer)  # 4 prompts at 3 temperatures
    expected = [completion.token_ids for completion in run(model, tokenizer, requests, batch_size=12)]
    length = max(len(asked.prompt_ids) for asked in requests)
    monkeypatch.setattr("cot.utils.engine.PREFILL_TOKENS", 3 * length)
    monkeypatch.setattr("cot.utils.engine.CACHED_LOGITS", 5 * model.config.vocab_size)
    completions, shapes = count_forwards(model, requests, tokenizer, batch_size=12)
    assert shapes[:3] == [(3, length), (1, length), (12, 1)]
    assert [completion.token_ids for completion in completions] == expected


def test_caches_that_do_not_only_grow_are_never_joined(tiny_qwen2, monkeypatch):
    model = slide(tiny_qwen2[0], window=4)
    monkeypatch.setattr("cot.utils.engine.PREFILL_TOKENS", 1)
    requests = make_requests(tiny_qwen2[1], temperatures=(0.0,))
    completions, shapes = count_forwards(model, requests, tiny_qwen2[1], batch_size=8)
    assert [rows for rows, tokens in shapes if tokens > 1] == [1, len(requests)]  # the first finds out
    assert [completion.token_ids for completion in completions] == [
        generate_alone(model, asked) for asked in requests
    ]
    _, shapes = count_forwards(model, requests, tiny_qwen2[1], batch_size=2)
    assert [rows for rows, tokens in shapes if tokens > 1] == [1, 2, 2]  # the second batch knows


@pytest.mark.slow
def test_texts_depend_on_no_batch_size_order_or_earlier_part_of_the_run(tiny_llama):
    model, tokenizer = tiny_llama
    model = with_ends(model, EARLY_ENDS)
    requests = make_requests(tokenizer, repeats=2)
    expected = [completion.token_ids for completion in run(model, tokenizer, requests, batch_size=1)]
    assert len({len(ids) for ids in expected}) > 3  # rows do leave at different steps
    for batch_size in (3, 8, None):
        got, shapes = count_forwards(model, requests, tokenizer, batch_size=batch_size)
        assert [completion.token_ids for completion in got] == expected
    rows = [rows for rows, tokens in shapes if tokens == 1]
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0]  # those that are finished leave
    backwards = run(model, tokenizer, requests[::-1], batch_size=5)
    assert [completion.token_ids for completion in backwards][::-1] == expected
    resumed = run(model, tokenizer, requests[7:], batch_size=8)
    assert [completion.token_ids for completion in resumed] == expected[7:]


def test_rows_that_have_ended_make_room_for_others_at_once(tiny_llama):
    model, tokenizer = tiny_llama
    model = with_ends(model, EARLY_ENDS)
    requests = make_requests(tokenizer, temperatures=(0.6, 1.0), repeats=6)  # 48 rows
    expected = [completion.token_ids for completion in run(model, tokenizer, requests, batch_size=8)]
    widths = []
    for refills in (False, True):
        completions, shapes = count_forwards(model, requests, tokenizer, batch_size=8, refills=refills)
        assert [completion.token_ids for completion in completions] == expected
        widths.append([rows for rows, tokens in shapes if tokens == 1])
    assert max(widths[1]) == 8 and len(widths[1]) < 0.7 * len(widths[0])

    engine = TransformersEngine(model, tokenizer, 24, batch_size=8)
    engine.refills = True
    given = list(engine.generate(requests))
    assert len(given) > 48 / 8 and sum(map(len, given)) == 48  # as they end, not batch by batch


def test_a_model_whose_caches_cannot_be_joined_is_decoded_batch_by_batch(tiny_qwen2):
    model = with_ends(slide(tiny_qwen2[0], window=4), EARLY_ENDS)
    requests = make_requests(tiny_qwen2[1], repeats=2)
    alone = count_forwards(model, requests, tiny_qwen2[1], batch_size=6)
    assert count_forwards(model, requests, tiny_qwen2[1], batch_size=6, refills=True) == alone


def test_another_seed_key_gives_another_text_except_at_temperature_0(tiny_llama):
    model, tokenizer = tiny_llama
    prompt = tuple(tokenizer(PROMPTS[0])["input_ids"])
    keys = ["a", "b", "\udc80"]
    sampled = run(model, tokenizer, [Request(prompt, 1.0, key) for key in keys])
    greedy = run(model, tokenizer, [Request(prompt, 0.0, key) for key in keys])
    assert len({completion.token_ids for completion in sampled}) == 3
    assert len({completion.token_ids for completion in greedy}) == 1


def test_sampling_follows_the_softmax_at_its_temperature(tiny_llama):
    model, tokenizer = tiny_llama
    prompt = tuple(tokenizer(PROMPTS[0])["input_ids"])
    count, temperature = 4000, 0.7
    requests = [Request(prompt, temperature, str(i)) for i in range(count)]
    completions = run(model, tokenizer, requests, batch_size=count, max_new_tokens=1)
    drawn = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=len(tokenizer))
    with torch.inference_mode():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    deviation = (drawn / count - expected).abs()
    assert (deviation <= 4.5 * (expected * (1 - expected) / count).sqrt() + 1 / count).all()
    assert (drawn > 40).sum() >= 5  # the test has several tokens to tell apart


def test_equal_requests_are_decoded_once_and_each_distinct_prompt_prefilled_once(tiny_llama):
    model, tokenizer = tiny_llama
    requests = make_requests(tokenizer, repeats=2)  # 4 prompts; greedy, 0.6 and 1.0, twice each
    asked = requests * 3  # as three students without memory
    completions, shapes = count_forwards(model, asked, tokenizer, batch_size=24)
    # of a prompt's 18 requests: 1 greedy text, 2 draws at each of two temperatures
    assert [rows for rows, _ in shapes] == [4] + [4 * 5] * (len(shapes) - 1)
    assert completions == run(model, tokenizer, requests) * 3


def test_logprobs_equal_a_separate_forward_pass(tiny_qwen2):
    model, tokenizer = tiny_qwen2
    requests = make_requests(tokenizer)
    for asked, completion in zip(requests, run(model, tokenizer, requests, batch_size=8), strict=True):
        ids = torch.tensor([asked.prompt_ids + completion.token_ids])
        start = len(asked.prompt_ids)
        with torch.inference_mode():
            logprobs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, ids[0, start:, None])[:, 0]
        assert len(completion.logprobs) == len(completion.token_ids)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_an_end_token_is_counted_but_is_not_text(tiny_llama):
    model, tokenizer = tiny_llama
    requests = make_requests(tokenizer, temperatures=(0.0,))
    whole = run(model, tokenizer, requests, max_new_tokens=12)[1]
    assert whole.truncated and len(whole.token_ids) == 12
    end = whole.token_ids[3]
    cut = run(with_ends(model, [end]), tokenizer, requests, max_new_tokens=12)[1]
    length = whole.token_ids.index(end) + 1
    assert (cut.token_ids, cut.truncated) == (whole.token_ids[:length], False)
    assert cut.logprobs == pytest.approx(whole.logprobs[:length], abs=1e-5)
    assert cut.text == tokenizer.decode(whole.token_ids[: length - 1], skip_special_tokens=True)


def test_a_stop_text_ends_the_row_and_is_not_text(tiny_llama):
    model, tokenizer = tiny_llama
    prompt = tuple(tokenizer(PROMPTS[1])["input_ids"])
    whole = run(model, tokenizer, [Request(prompt, 1.0, "key")])[0]
    stop = whole.text[4:7]
    assert stop not in whole.text[:6]
    cut = run(model, tokenizer, [Request(prompt, 1.0, "key", stop=("never written", stop))])[0]
    assert (cut.text, cut.truncated) == (whole.text[:4], False)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in tokenizer.decode(cut.token_ids) and stop not in tokenizer.decode(cut.token_ids[:-1])


class ShortLlama(LlamaForCausalLM):
    """Raises what CUDA raises as soon as a pass has more than the memory is pretended to hold."""

    rows_that_fit = tokens_that_fit = 10_000

    def forward(self, input_ids=None, **kwargs):
        if len(input_ids) > self.rows_that_fit or input_ids.shape[1] > self.tokens_that_fit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(input_ids=input_ids, **kwargs)


def limit(model, rows, tokens=10_000) -> ShortLlama:
    limited = ShortLlama(model.config).eval()
    limited.load_state_dict(model.state_dict())
    limited.rows_that_fit, limited.tokens_that_fit = rows, tokens
    return limited


def test_out_of_memory_among_rows_that_come_and_leave_loses_none(tiny_llama):
    model, tokenizer = tiny_llama
    requests = make_requests(tokenizer, repeats=3)
    expected = run(with_ends(model, EARLY_ENDS), tokenizer, requests)
    longest = max(len(asked.prompt_ids) for asked in requests)
    limited = with_ends(limit(model, rows=99, tokens=longest - 1), EARLY_ENDS)
    got = run(limited, tokenizer, requests, batch_size=8, refills=True)
    long = [len(asked.prompt_ids) == longest for asked in requests]
    assert [completion.error is not None for completion in got] == long
    assert [c.token_ids for c in got if not c.error] == [
        c.token_ids for c, is_long in zip(expected, long, strict=True) if not is_long
    ]


def test_out_of_memory_halves_the_batch_and_keeps_the_smaller_size(tiny_llama):
    model, tokenizer = tiny_llama
    requests = make_requests(tokenizer)  # 12 rows
    expected = run(model, tokenizer, requests, batch_size=12)
    engine = TransformersEngine(limit(model, 5), tokenizer, 24, batch_size=12)
    batches = list(engine.generate(requests))
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]  # 12 and 6 fail; 3 rows are one prompt
    assert engine.batch_size == 3
    got = dict(pair for batch in batches for pair in batch)
    assert [got[i].text for i in range(12)] == [completion.text for completion in expected]


def test_out_of_memory_at_one_row_is_that_rows_error(tiny_llama):
    model, tokenizer = tiny_llama
    completions = run(limit(model, 0), tokenizer, make_requests(tokenizer), batch_size=4)
    assert {completion.error["type"] for completion in completions} == {"out_of_memory"}
    assert "Tried to allocate 2.00 GiB" in completions[0].error["message"]
    assert completions[0].token_ids == ()


def test_a_row_that_fits_in_no_batch_leaves_the_others_their_batch_size(tiny_llama):
    model, tokenizer = tiny_llama
    lengths = [5, 60, 6, 7, 8, 9, 50, 10, 11, 12]
    requests = [Request(tuple(range(10, 10 + length)), 0.0, str(length)) for length in lengths]
    engine = TransformersEngine(limit(model, rows=99, tokens=40), tokenizer, 4, batch_size=4)
    batches = list(engine.generate(requests))
    assert [len(batch) for batch in batches] == [1, 1, 4, 4]  # the longest first: 4 and 2 rows fail, then 1
    assert engine.batch_size == 4
    got = dict(pair for batch in batches for pair in batch)
    assert {i: got[i].error["type"] for i in range(10) if got[i].error} == dict.fromkeys(
        (1, 6), "out_of_memory"
    )


def test_a_prompt_that_does_not_fit_is_an_error_and_the_rest_goes_on(tiny_llama):
    model, tokenizer = tiny_llama  # context 128
    requests = [Request((5,) * 105, 0.0, ""), Request((5,) * 104, 0.0, ""), Request((), 0.0, "")]
    too_long, fits, empty = run(model, tokenizer, requests, max_new_tokens=24)  # 104 + 24 = 128
    assert too_long.error["type"] == "prompt_too_long" and "105" in too_long.error["message"]
    assert fits.error is None and len(fits.token_ids) > 0
    assert empty.error["type"] == "empty_prompt"


def test_logits_that_are_uniform_or_not_finite(tiny_llama):
    model, tokenizer = copy.deepcopy(tiny_llama[0]), tiny_llama[1]
    torch.nn.init.zeros_(model.lm_head.weight)
    for completion in run(model, tokenizer, make_requests(tokenizer, temperatures=(0.6, 1.0))):
        nll = -sum(completion.logprobs) / len(completion.logprobs)
        assert math.exp(nll) == pytest.approx(model.config.vocab_size, rel=1e-5)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    assert run(model, tokenizer, make_requests(tokenizer)[:1])[0].error["type"] == "not_finite"


def test_likelihood_is_that_of_one_token_after_another(tiny_llama):
    model, _ = tiny_llama
    pairs = [((5, 9, 20), (7, 8)), ((4,), (30, 31, 32, 33)), ((6, 7, 8, 9, 10, 11), ()), ((9, 9), (1,))]
    for (prompt, answer), value in zip(pairs, answer_nll(model, pairs, batch_size=3), strict=True):
        if not answer:
            assert value is None
            continue
        total, context = 0.0, list(prompt)
        for token in answer:
            with torch.inference_mode():
                logits = model(torch.tensor([context])).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, -1)[token])
            context.append(token)
        assert value == pytest.approx(total / len(answer), abs=1e-4)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_likelihoods_in_bfloat16_are_within_a_hundredth_of_those_in_float32(temperature):
    """In nats a token, of what the small policy writes in bfloat16; 0.003 at most, 0.0001 on average."""
    model, tokenizer = load_model(str(TUTOR), "cpu", "float32")
    questions = load_questions("textbook", "test", 16, None).questions
    turns = [[{"role": "user", "content": question.question}] for question in questions]
    prompts = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    requests = [Request(tuple(ids), temperature, str(place)) for place, ids in enumerate(prompts)]

    completions = run(copy.deepcopy(model).to(torch.bfloat16), tokenizer, requests)
    pairs = [(asked.prompt_ids, done.token_ids) for asked, done in zip(requests, completions, strict=True)]
    for done, expected in zip(completions, answer_nll(model, pairs), strict=True):
        assert -sum(done.logprobs) / len(done.logprobs) == pytest.approx(expected, abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_greedy_equals_cpu_and_sampling_repeats(tiny_llama):
    model, tokenizer = tiny_llama
    on_gpu = copy.deepcopy(model).to("cuda")
    requests = make_requests(tokenizer)
    on_cpu = run(model, tokenizer, requests)
    first = run(on_gpu, tokenizer, requests)
    again = run(on_gpu, tokenizer, requests, batch_size=1)
    for asked, cpu, gpu, repeated in zip(requests, on_cpu, first, again, strict=True):
        assert gpu.text == repeated.text
        if asked.temperature == 0:
            assert gpu.text == cpu.text
