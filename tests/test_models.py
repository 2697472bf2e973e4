"""Loading, checking and describing models; device, dtype, memory and end tokens."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import no_file_beyond, write_gguf

from cot.utils import models
from cot.utils.errors import UserError
from cot.utils.model_names import ModelSource, resolve_model
from cot.utils.models import (
    context_length,
    describe_model,
    end_token_ids,
    load_model,
)
from cot.utils.paths import REPO_ROOT


def logits_of(model, ids=(40, 50, 60)):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits


def test_a_local_folder_is_loaded_as_it_was_saved(tiny_folder, tiny_llama):
    source = resolve_model(str(tiny_folder))
    model, tokenizer = load_model(source, "cpu")
    assert torch.equal(logits_of(model), logits_of(tiny_llama[0]))
    assert not model.training and tokenizer.padding_side == "left"
    assert model.name_or_path == str(tiny_folder)
    assert describe_model(source, model) == {
        "name": str(tiny_folder),
        "kind": "folder",
        "revision": source.revision,
        "base": None,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "load_in_4bit": False,
        "attn_implementation": "sdpa",
        "generation_defaults": {},
        "device": "cpu",
        # embeddings 2·296·32; a layer: q, o 2·32·32, k, v 2·32·16, MLP 3·32·64, norms 2·32; a last norm 32
        "parameters": 2 * 296 * 32 + 2 * (2048 + 1024 + 6144 + 64) + 32,
        "context_length": 128,
        "trust_remote_code": False,
    }
    assert load_model(source, "cpu", "bfloat16")[0].dtype == torch.bfloat16


CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0garbage!", r"model: cannot be loaded: .*header"),
        ("config.json", b'{"model_type": ', r"config\.json: not JSON"),
        ("config.json", json.dumps(CODE).encode(), "cannot be loaded"),
    ],
    ids=["weights", "config", "remote code"],
)
def test_a_folder_that_is_broken_or_needs_remote_code_ends_in_one_line(spoilable, file, content, message):
    (spoilable / "code.py").write_text("raise SystemExit('remote code ran')")
    (spoilable / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(str(spoilable), "cpu")


# ---- the bundled model and GGUF


@pytest.mark.slow
def test_two_processes_unpack_the_bundled_model_at_once_past_a_broken_attempt(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    cache = tmp_path / "cache" / "mcot"
    (cache / ".pinned.partial").mkdir(parents=True)
    (cache / ".pinned.partial" / "config.json").write_text("{")  # what a killed process left
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    code = (
        "import sys; from pathlib import Path; from cot.utils.models import *\n"
        "source = ModelSource('bundled', 'bundled', Path(sys.argv[1]), 'pinned')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(unpack_bundled(source).path)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, path],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    source = ModelSource("bundled", "bundled", path, "pinned")
    model, tokenizer = load_model(source, "cpu")
    # tied embeddings 259·32; attention 4·32·32, MLP 3·32·64, three norms 3·32
    assert model.num_parameters() == 259 * 32 + 4096 + 6144 + 96
    assert tokenizer.decode(tokenizer("a b")["input_ids"]) == "a b"
    stdout, log = other.communicate(timeout=120)
    assert stdout == f"{cache / 'pinned'}\n" and "%" not in log  # bars are for a terminal
    assert models.unpack_bundled(source).path == cache / "pinned"
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["pinned"]


def test_a_gguf_file_is_loaded_dense(tmp_path):
    source = resolve_model(str(write_gguf(tmp_path / "tiny.gguf")))
    model, tokenizer = load_model(source, "cpu", "bfloat16")
    assert (source.kind, model.dtype, context_length(model)) == ("gguf", torch.bfloat16, 64)
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, torch.nn.Parameter)
    assert tokenizer.pad_token == "<|pad|>" and end_token_ids(model, tokenizer) == {1}


@pytest.mark.parametrize("fault", ["a file in the folder's place", "a full disk"])
def test_a_cache_that_cannot_be_written_is_a_warning_and_the_model_loads(
    fault, tmp_path, monkeypatch, capsys
):
    cache = tmp_path / "cache" / "mcot"
    cache.mkdir(parents=True)
    if fault != "a full disk":
        cache.rmdir()
        cache.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    source = ModelSource("bundled", "bundled", write_gguf(tmp_path / "tiny.gguf"), "pinned")
    with no_file_beyond(20_000):  # the weights take 4 x 18,624 bytes
        model, tokenizer = load_model(source, "cpu")
    plain, _ = load_model(str(tmp_path / "tiny.gguf"), "cpu")
    assert torch.equal(logits_of(model), logits_of(plain)) and tokenizer.pad_token == "<|pad|>"
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and f"bundled cannot be kept in {cache}" in warnings[0]
    assert not cache.is_dir() or [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.slow
def test_bundled_model_is_complete_and_ends_its_turns(bundled):
    model, tokenizer = bundled
    assert model.num_parameters() == 134_515_008 and context_length(model) == 8192
    assert end_token_ids(model, tokenizer) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"


# ---- device, dtype, memory, tokens


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_is_refused(tiny_folder, name):
    with pytest.raises(UserError, match="--device"):
        load_model(str(tiny_folder), name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_is_refused_and_never_replaced(tiny_folder, name):
    with pytest.raises(UserError, match=f"--device {name}: .* no GPU") as caught:
        load_model(str(tiny_folder), name)
    assert caught.value.exit_code == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_model_lands_on_the_gpu_that_was_named(tiny_folder):
    model, _ = load_model(str(tiny_folder), "cuda:0")
    assert str(model.device) == "cuda:0" and model.dtype in (torch.bfloat16, torch.float16)
    with pytest.raises(UserError, match="GPUs"):
        load_model(str(tiny_folder), "cuda:99")


def test_weights_that_cannot_fit_end_in_one_line_with_sizes_and_the_flag_that_helps(tiny_folder, monkeypatch):
    monkeypatch.setattr(models, "gib_present", lambda device: 1e-6)
    with pytest.raises(
        UserError, match=r"out of memory: .* GiB in float32, cpu has .*--dtype bfloat16"
    ) as caught:
        load_model(str(tiny_folder), "cpu")
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match=r"use a smaller --model_name$"):
        load_model(str(tiny_folder), "cpu", "bfloat16")


def test_pad_falls_back_to_the_end_token(spoilable):
    config = json.loads((spoilable / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (spoilable / "tokenizer_config.json").write_text(json.dumps(config))
    model, tokenizer = load_model(str(spoilable), "cpu")
    assert tokenizer.pad_token == "<|end|>" == tokenizer.eos_token
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id


def test_end_tokens_come_from_generation_config_tokenizer_and_chat_template(spoilable):
    model, tokenizer = load_model(str(spoilable), "cpu")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|eot_id|>"]})
    model.generation_config.eos_token_id = [7, 9]
    assert end_token_ids(model, tokenizer) == {7, 9, 1}
    tokenizer.chat_template = "{{ messages[0].content }}<|im_end|>"
    assert end_token_ids(model, tokenizer) == {7, 9, 1, tokenizer.convert_tokens_to_ids("<|im_end|>")}
