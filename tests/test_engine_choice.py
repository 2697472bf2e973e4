"""Which engine a command gets, and the one line where the one that was named cannot be had."""

import argparse
import importlib.util
import json

import pytest
import torch
from conftest import run_here

from cot import run_baseline_cot
from cot.utils.engine_choice import adapter_rank, limit_context, settle_engine, stay_with, why_not_in_vllm
from cot.utils.errors import UserError
from cot.utils.model_names import ModelSource

HAS_VLLM = importlib.util.find_spec("vllm") is not None
without_vllm = pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")


def flags(**changes) -> argparse.Namespace:
    """What `settle_engine` reads of a command line."""
    usual = {"device": "cpu", "engine": "auto", "tensor_parallel_size": None, "gpu_memory_utilization": None}
    usual |= {
        "load_in_4bit": False,
        "batch_invariant": False,
        "attn_implementation": "auto",
        "temperatures": [0.6],
    }
    return argparse.Namespace(**usual | changes)


def write_adapter(folder, **config):
    folder.mkdir()
    usual = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    return folder


def test_auto_is_transformers_on_a_cpu_and_says_so(capsys):
    assert settle_engine(flags(), []) == "transformers"
    assert capsys.readouterr().out == "engine:  transformers (picked)\n"
    assert settle_engine(flags(engine="transformers"), []) == "transformers"
    assert capsys.readouterr().out == "engine:  transformers\n"


@without_vllm
def test_vllm_that_is_absent_is_one_line_with_the_install_command(tiny_folder, tmp_path):
    command = ["--model_name", tiny_folder, "--dataset", "textbook", "--engine", "vllm", "--device", "cpu"]
    code, _, stderr = run_here(run_baseline_cot.main, *command, "--output_dir", tmp_path)
    assert code == 2
    assert stderr.count("\n") == 1 and "--engine vllm: vLLM is not installed: pip install vllm==" in stderr
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(("flag", "value"), [("tensor_parallel_size", 2), ("gpu_memory_utilization", 0.5)])
def test_a_flag_of_vllm_without_vllm_is_refused(flag, value):
    with pytest.raises(UserError, match=f"--{flag}: of vLLM, and the engine is transformers"):
        settle_engine(flags(**{flag: value}), [])


@pytest.mark.skipif(not HAS_VLLM or torch.cuda.is_available(), reason="needs the CPU build of vLLM")
def test_what_vllm_cannot_do_is_refused_by_name(tmp_path):
    source = ModelSource("a.gguf", "gguf", tmp_path / "a.gguf", "")
    with pytest.raises(UserError, match=r"--engine vllm: a.gguf is a GGUF file, .* --engine transformers"):
        settle_engine(flags(engine="vllm"), [source])
    with pytest.raises(UserError, match="--engine vllm: vLLM draws at temperatures up to 2"):
        settle_engine(flags(engine="vllm", temperatures=[0.0, 2.5]), [])


def test_models_that_vllm_does_not_load_are_told_from_those_that_it_does(tmp_path):
    def model(kind, path, base=None):
        return ModelSource(path.name, kind, path, "", base)

    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"model_type": "qwen"}')
    base = model("folder", tmp_path)
    lora = model("adapter", write_adapter(tmp_path / "lora", use_dora=False, modules_to_save=None), base)
    assert [why_not_in_vllm(source) for source in (base, lora)] == [None, None]

    gguf, old = model("gguf", tmp_path / "a.gguf"), model("folder", tmp_path / "old")
    assert "GGUF" in why_not_in_vllm(gguf)
    assert "first-generation Qwen" in why_not_in_vllm(old)
    assert "GGUF" in why_not_in_vllm(model("adapter", lora.path, gguf))
    assert "an adapter on an adapter" in why_not_in_vllm(model("adapter", lora.path, lora))
    for number, (config, told) in enumerate(
        [
            ({"peft_type": "IA3"}, "IA3"),
            ({"use_dora": True}, "use_dora"),
            ({"modules_to_save": ["x"]}, "save"),
        ]
    ):
        adapter = write_adapter(tmp_path / str(number), **config)
        assert told in why_not_in_vllm(model("adapter", adapter, base))


def test_an_adapters_rank_is_its_largest(tmp_path):
    assert adapter_rank(write_adapter(tmp_path / "a")) == 8
    assert adapter_rank(write_adapter(tmp_path / "b", rank_pattern={"k_proj": 32, "v_proj": 4})) == 32


def test_a_named_engine_is_taken_whatever_a_run_began_with(tmp_path):
    source = ModelSource("a.gguf", "gguf", tmp_path / "a.gguf", "")
    assert stay_with("vllm", "transformers", flags(engine="transformers"), source) == "transformers"
    assert stay_with("transformers", "vllm", flags(), source) == "transformers"
    assert stay_with("vllm", "transformers", flags(), source) == "transformers"  # vLLM does not load GGUF


def test_a_context_may_be_shortened_and_not_lengthened():
    assert [limit_context(128, None), limit_context(128, 40), limit_context(None, 40)] == [128, 40, 40]
    with pytest.raises(UserError, match="--max_model_len 129: the model has 128 positions"):
        limit_context(128, 129)
