"""First-generation Qwen against what its original implementation answered."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cot.utils import qwen1
from cot.utils.engine import Request, TransformersEngine
from cot.utils.errors import UserError
from cot.utils.models import context_length, load_model


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


def test_control_tokens_stay_text_when_special_tokens_are_split(loaded):
    tokenizer = loaded[1]
    text = "Two's <|im_start|>user<|extra_204|><|endoftext|>"
    assert {151644, 151850, 151643} < set(tokenizer(text)["input_ids"])
    split = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert max(split) < 151643
    assert tokenizer.decode(split) == text


def test_unicode_is_composed_as_the_original_does(loaded):
    tokenizer = loaded[1]
    assert tokenizer("cafe\u0301")["input_ids"] == tokenizer("caf\u00e9")["input_ids"]


def test_context_ends_at_seq_length_and_the_end_token_is_set(loaded):
    model, tokenizer = loaded
    assert context_length(model) == 8192  # config.json: seq_length, not max_position_embeddings 32768
    engine = TransformersEngine(model, tokenizer, max_new_tokens=2)
    ((_, completion),) = next(engine.generate([Request((5,) * 8191, 0.0, "")]))
    assert completion.error["type"] == "prompt_too_long"
    assert engine.end_ids == {151643} and tokenizer.pad_token_id == 151643


@pytest.fixture
def load_weights(monkeypatch):
    """Loads a folder's model without the seconds that its tokenizer takes."""
    monkeypatch.setattr(qwen1, "load_tokenizer", lambda folder, context_length: None)
    return lambda folder, dtype: qwen1.load_qwen1(folder, dtype, torch.device("cpu"))[0]


def test_a_sharded_checkpoint_loads_the_same_weights(qwen1_tiny, weights, loaded, tmp_path, load_weights):
    names = sorted(weights)
    parts = {
        "model-00001-of-00002.safetensors": {name: weights[name] for name in names[:9]},
        "model-00002-of-00002.safetensors": {name: weights[name] for name in names[9:]},
    }
    copy_with_weights(qwen1_tiny, tmp_path, parts)
    model = load_weights(tmp_path, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    whole = loaded[0].state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), whole[name]), name  # the file holds bfloat16


def test_missing_unknown_and_misshapen_tensors_are_named(qwen1_tiny, weights, tmp_path, load_weights):
    cases = {
        "absent": ({k: v for k, v in weights.items() if k != "transformer.ln_f.weight"}, "model.norm.weight"),
        "unknown": (weights | {"transformer.h.0.extra": torch.ones(2)}, "transformer.h.0.extra"),
        "shape": (weights | {"transformer.ln_f.weight": torch.ones(7)}, "transformer.ln_f.weight"),
    }
    for case, (tensors, name) in cases.items():
        folder = tmp_path / case
        folder.mkdir()
        copy_with_weights(qwen1_tiny, folder, {"model.safetensors": tensors})
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_weights(folder, torch.float32)


def test_missing_vocabulary_and_config_field_are_named(qwen1_tiny, tmp_path):
    config = json.loads((qwen1_tiny / "config.json").read_text())
    del config["rotary_emb_base"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="rotary_emb_base"):
        qwen1.build_config(tmp_path)
    with pytest.raises(UserError, match=r"qwen\.tiktoken: missing"):
        qwen1.load_tokenizer(tmp_path, 8192)
