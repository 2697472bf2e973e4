"""Presets, a configuration file, and TRL's configuration from the flags."""

import argparse
import json

import pytest
import torch
from conftest import write_gguf

from cot.utils.devices import use_one_gpu
from cot.utils.errors import UserError
from rl.grpo_options import check_options, parse_grpo
from rl.settings import (
    PRESETS,
    fill_preset,
    find_base,
    make_config,
    parse_mix,
    read_config,
    split_batch,
)
from rl.train_rl_memory import build_parser, parse_args


def settings(*argv):
    args = parse_args(list(argv))
    fill_preset(args)
    return args


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max_steps=7", "--dataset=gsm8k"], {"max_steps": 7, "dataset": "gsm8k", "model_name": "tutor"}),
        (["--beta=0.2"], {"beta": 0.2, "top_k": 0, "memory_tokens": 48, "use_peft": False}),
        (["--preset=gpu"], {"model_name": "Qwen/Qwen2.5-1.5B-Instruct", "top_k": 2, "use_peft": True}),
        (["--preset=gpu", "--no-use_peft", "--reward_weights=correct=1"], {"weights": {"correct": 1.0}}),
        (
            ["--memory_level=episodes"],
            {"top_k": 4, "memory_tokens": 256},
        ),  # past exercises, and room for them
        (["--preset=gpu", "--memory_level=episodes", "--top_k=3"], {"top_k": 3, "memory_tokens": 256}),
    ],
)
def test_a_preset_fills_what_the_user_left_open(flags, expected):
    args = vars(settings("--preset", "cpu", *flags))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "students", "level"),
    [
        ([], ["generated:256"], "history"),
        (["--students", "generated:8"], ["generated:8"], "history"),
        (["--students", "generated:8", "--memory_level", "stated"], ["generated:8"], "stated"),
        (["--students", "S001", "S002"], ["S001", "S002"], "stated"),
        (["--profiles_dir", "/mine"], ["all"], "stated"),
    ],
)
def test_students_whom_nobody_named_are_generated_and_only_their_history_speaks(flags, students, level):
    args = settings("--preset", "cpu", *flags)
    assert (args.students, args.memory_level) == (students, level)


def test_every_preset_sets_the_same_flags_of_the_script():
    flags = vars(build_parser().parse_args([]))
    assert set(PRESETS["cpu"]) == set(PRESETS["gpu"]) <= set(flags)


def test_a_config_file_sets_what_the_command_line_leaves_open(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "max_steps: 7\nuse_peft: true\nmemory_mix: [1, 0, 0]\nbeta: 1.0e-3\ngrpo: {temperature: 0.9}\n"
        "thinking: off\nchat_template_kwargs: {enable_thinking: false}\n"  # off is YAML's false
    )
    args = parse_args(["--config", str(path), "--max_steps", "5"])
    assert (args.max_steps, args.use_peft, args.memory_mix, args.beta) == (5, True, [1, 0, 0], 0.001)
    assert args.options == {"temperature": 0.9}
    assert (args.thinking, args.chat_template_kwargs) == ("off", {"enable_thinking": False})


@pytest.mark.parametrize(
    ("content", "message"),
    [("max_step: 3", "did you mean max_steps?"), ("[1]", "expected keys and values"), ("a: [", "not YAML")],
)
def test_a_mistyped_config_file_is_refused(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_config(path, build_parser())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("beta=0.1", "set by the flag --beta"),
        ("gradient_accumulation_steps=2", "set by the flag --prompts_per_step"),
        ("eval_strategy=steps", "set by the flag --eval_every"),
        ("temperature", "expected KEY=VALUE"),
        ("temperature=0", "temperature=0: expected a number above 0"),
        ("temperature=hot", "temperature=hot: expected a number above 0"),
        ("eval_on_start=true", "eval_on_start=true: held-out exercises are answered before the first step"),
        ("auto_find_batch_size=true", "--per_device_train_batch_size sets it"),
        ('model_init_kwargs={"use_kernels": true}', "the policy would not obey them"),
        ("push_to_hub=true", "can be uploaded by hf upload"),
        ("use_liger_kernel=true", "liger-kernel is not installed: pip install liger-kernel"),
        ("optim=adamw_bnb_8bit", "bitsandbytes is not installed: pip install bitsandbytes"),
        ("top_k=-5", "top_k=-5: expected at least 0"),
        ("epsilon=NaN", "epsilon=nan: expected at least 0, and finite"),
        ("num_iterations=0", "num_iterations=0: expected at least 1"),
        ("num_iterations=2.5", "num_iterations=2.5: Input should be a valid integer"),
        ("top_p=1.5", "top_p=1.5: .*has to be a float > 0 and < 1"),
        ("min_p=2", "min_p=2: .*`min_p` has to be a float in the \\[0, 1\\] interval"),
        ("repetition_penalty=0", "repetition_penalty=0: .*strictly positive"),
        ("log_completions=1", "log_completions=1: Input should be a valid boolean"),
        ("generation_kwargs=[1]", "Input should be a valid dictionary"),
    ],
)
def test_a_grpo_entry_that_trl_would_stumble_over_later_is_refused(entry, message):
    with pytest.raises(UserError, match=f"--grpo .*{message}"):
        check_options(parse_grpo([entry]))


def test_values_that_can_be_meant_are_left_alone():
    entries = ["top_k=0", "top_p=1", "min_p=0.1", "epsilon=0", "epsilon_high=0.28", "delta=null", "bf16=true"]
    entries += ["entropy_coef=-0.01", "local_rank=-1", "max_grad_norm=0", "lr_scheduler_type=cosine"]
    entries += ["optim=adamw_torch", 'generation_kwargs={"length_penalty": 1.0}', "repetition_penalty=1"]
    check_options(parse_grpo(entries))


@pytest.mark.parametrize(
    ("flags", "package"), [(["--use_vllm"], "vllm"), (["--report_to", "wandb"], "wandb")]
)
def test_an_optional_package_that_is_absent_is_named_with_its_install(flags, package, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert f"{flags[0]}: {package} is not installed: pip install {package}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0.5,0.5,0.5", "1,0", "1,1,-1", "a,b,c"])
def test_shares_of_memory_sum_to_one(text):
    with pytest.raises(argparse.ArgumentTypeError, match="three shares that sum to 1"):
        parse_mix(text)


def test_a_step_sees_the_same_prompts_on_any_number_of_processes():
    # 16 prompts x 8 completions = 128 a step
    assert split_batch(16, 8, 128, 1) == (128, 1)
    assert split_batch(16, 8, 128, 2) == (64, 1)
    assert split_batch(16, 8, 16, 2) == (16, 4)
    with pytest.raises(UserError, match="use 32"):
        split_batch(16, 8, 50, 1)
    with pytest.raises(UserError, match="3 processes"):
        split_batch(16, 8, 50, 3)


def test_grpo_options_win_and_unknown_ones_are_named():
    args = settings(
        "--preset", "cpu", "--reward_weights", "correct=1,coin=0.5", "--grpo", "temperature=0.5", "top_k=7"
    )
    config = make_config(args, processes=1)
    assert config.reward_weights == [1.0, 0.5]
    assert (config.temperature, config.top_k, config.beta) == (0.5, 7, 0.1)
    # 8 prompts x 8 completions, 64 at once
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (64, 1)
    assert config.lr_scheduler_type == "warmup_stable_decay"
    with pytest.raises(UserError, match="--grpo temperatur: GRPOConfig has no such field; did you mean temp"):
        make_config(settings("--preset", "cpu", "--grpo", "temperatur=0.5"), processes=1)
    with pytest.raises(UserError, match="refused by GRPOConfig"):
        make_config(settings("--preset", "cpu", "--grpo", "save_strategy=sometimes"), processes=1)


def test_without_a_launcher_one_of_several_gpus_is_used_and_the_launcher_is_named():
    config = make_config(settings("--preset", "cpu"), processes=1)
    assert use_one_gpu(config) is None and config.n_gpu == 0
    config._n_gpu = 4  # as transformers counts them in a process of its own
    assert "the first of 4; for all: accelerate launch --num_processes 4" in use_one_gpu(config)
    assert config.n_gpu == 1  # with more, GRPOTrainer raises
    assert use_one_gpu(config) is None  # so it is where a launcher has given this process its own


def test_fields_that_are_switched_off_are_no_error():
    entries = ["push_to_hub=false", "use_liger_kernel=false", "optim=adamw_torch", "deepspeed=null"]
    assert set(parse_grpo(entries).values()) == {False, "adamw_torch", None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")
def test_vllm_without_a_gpu_is_one_line_before_a_model_loads():
    args = settings("--preset", "cpu")
    args.use_vllm = True  # its package is asked for at the command line
    with pytest.raises(UserError, match="--use_vllm: needs a CUDA GPU"):
        make_config(args, processes=1)


def test_a_model_that_vllm_cannot_load_by_its_name_is_refused_by_it(tiny_folder, tmp_path):
    def find(name, use_vllm=True, vllm_mode="colocate"):
        flags = {"model_name": str(name), "revision": None, "attn_implementation": "auto"}
        return find_base(argparse.Namespace(use_vllm=use_vllm, vllm_mode=vllm_mode, **flags))

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_folder)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    gguf = write_gguf(tmp_path / "tiny.gguf")
    qwen = tmp_path / "qwen"
    qwen.mkdir()
    (qwen / "config.json").write_text('{"model_type": "qwen"}')
    for name in ("model.safetensors", "qwen.tiktoken"):
        (qwen / name).write_bytes(b"")
    kinds = {tmp_path: "is an adapter", gguf: "is a GGUF file", qwen: "is a first-generation Qwen"}
    for name, problem in kinds.items():
        with pytest.raises(UserError, match=f"--use_vllm: --model_name {name} {problem}"):
            find(name)
        find(name, use_vllm=False)
    find(tiny_folder)
    find(gguf, vllm_mode="server")
