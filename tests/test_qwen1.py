"""First-generation Qwen against what its original implementation answered."""

import json
import shutil

import pytest
import torch
from conftest import load_refusal
from safetensors import safe_open
from safetensors.torch import save_file

from cot.utils.completions import Request
from cot.utils.engine import TransformersEngine
from cot.utils.models import context_length, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(qwen1_tiny):
    """(model, tokenizer) in float32."""
    return load_model(str(qwen1_tiny), "cpu", "float32")


@pytest.fixture(scope="module")
def expected(qwen1_tiny):
    """What the original implementation answered."""
    return json.loads((qwen1_tiny / "expected.json").read_text(encoding="utf-8"))["texts"]


def copy_with_weights(source, folder, shards: dict[str, dict]):
    for name in ("config.json", "qwen.tiktoken"):
        shutil.copy(source / name, folder / name)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def weights(qwen1_tiny):
    with safe_open(qwen1_tiny / "model.safetensors", framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def test_token_ids_and_decoded_texts_equal_the_originals(loaded, expected):
    tokenizer = loaded[1]
    for case in expected:
        assert tokenizer(case["text"])["input_ids"] == case["input_ids"]
        assert tokenizer.decode(case["input_ids"]) == case["decoded"]


def test_logits_and_likelihood_equal_the_originals(loaded, expected):
    model = loaded[0]
    for case in expected:
        ids = torch.tensor([case["input_ids"]])
        with torch.inference_mode():
            logits = model(ids).logits[0]
        torch.testing.assert_close(
            logits[-1, :32], torch.tensor(case["last_logits_first32"]), atol=1e-4, rtol=0
        )
        values, places = logits[-1].topk(5)
        assert places.tolist() == [place for place, _ in case["last_logits_top5"]]
        assert values.tolist() == pytest.approx([value for _, value in case["last_logits_top5"]], abs=1e-4)
        nll = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).item()
        assert nll == pytest.approx(case["mean_nll"], abs=1e-4)


def test_greedy_continuations_in_one_padded_batch_equal_the_originals(loaded, expected):
    engine = TransformersEngine(*loaded, max_new_tokens=12)
    requests = [Request(tuple(case["input_ids"]), 0.0, "") for case in expected]
    got = dict(pair for batch in engine.generate(requests) for pair in batch)
    assert [list(got[i].token_ids) for i in range(len(expected))] == [case["greedy"] for case in expected]


def test_the_end_token_is_set_and_control_tokens_stay_text_when_special_tokens_are_split(loaded):
    model, tokenizer = loaded
    assert context_length(model) == 8192  # config.json: seq_length, not max_position_embeddings 32768
    assert TransformersEngine(*loaded, 2).end_ids == {151643} and tokenizer.pad_token_id == 151643
    text = "Two's <|im_start|>user<|extra_204|><|endoftext|>"
    assert {151644, 151850, 151643} < set(tokenizer(text)["input_ids"])
    split = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert max(split) < 151643 and tokenizer.decode(split) == text
    assert tokenizer("cafe\u0301")["input_ids"] == tokenizer("caf\u00e9")["input_ids"]  # composed


def test_a_sharded_checkpoint_loads_the_same_weights(qwen1_tiny, weights, loaded, tmp_path):
    names = sorted(weights)
    parts = {
        "model-00001-of-00002.safetensors": {name: weights[name] for name in names[:9]},
        "model-00002-of-00002.safetensors": {name: weights[name] for name in names[9:]},
    }
    copy_with_weights(qwen1_tiny, tmp_path, parts)
    model, _ = load_model(str(tmp_path), "cpu", "bfloat16", loaded[1])
    whole = loaded[0].state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), whole[name]), name  # the file holds bfloat16


def test_missing_unknown_and_misshapen_tensors_are_named(qwen1_tiny, weights, loaded, tmp_path):
    without = {k: v for k, v in weights.items() if k != "transformer.ln_f.weight"}
    misfits = weights | {"transformer.h.0.ln_1.weight": torch.ones(7)}
    unknown = weights | {"transformer.h.0.extra": torch.ones(2)}
    problems = (without, "model.norm.weight"), (misfits, "h.0.ln_1.weight"), (unknown, "h.0.extra")
    for tensors, problem in problems:
        copy_with_weights(qwen1_tiny, tmp_path, {"model.safetensors": tensors})
        assert problem in load_refusal(tmp_path, loaded[1])
    (tmp_path / "qwen.tiktoken").unlink()
    assert "qwen.tiktoken" in load_refusal(tmp_path)
