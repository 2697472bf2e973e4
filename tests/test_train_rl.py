"""The training script, with TRL's own trainer on a policy of a few thousand parameters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO_ROOT
from scipy.stats import ks_2samp

from cot.utils.cli import PROFILES_DIR
from cot.utils.errors import UserError
from rl.checkpoints import (
    checkpoints,
    find_checkpoint,
    is_complete,
    keep_up_to,
    mark_complete,
    refuse_changes,
)
from rl.grpo_flags import parse_grpo, parse_mix, split_batch
from rl.reward_table import RewardTable

SCRIPT = REPO_ROOT / "rl" / "train_rl_memory.py"


@pytest.fixture(scope="session")
def school(tmp_path_factory) -> Path:
    """Three students with their simulated memories."""
    from rl.students import main as simulate

    folder = tmp_path_factory.mktemp("school")
    for student in ("S001", "S004", "S005"):
        shutil.copy(PROFILES_DIR / f"{student}.json", folder)
    assert simulate(["--profiles_dir", str(folder), "--interactions_per_chapter", "6"]) == 0
    return folder


@pytest.fixture
def flags(school, tiny_tutor):
    """Flags of a run of seconds; further ones are appended and win."""
    base = {
        "model_name": tiny_tutor,
        "profiles_dir": school,
        "max_steps": 2,
        "num_generations": 4,
        "prompts_per_step": 2,
        "max_completion_length": 8,
        "memory_tokens": 40,
        "probe_size": 4,
        "sample_every": 1,
        "learning_rate": 0.01,
    }

    def make(**changes) -> list[str]:
        return [f"--{name}={value}" for name, value in (base | changes).items()]

    return make


def train(*argv) -> int:
    """Runs the script in this process, and gives the signal handlers back."""
    from rl.train_rl_memory import main

    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return main(list(argv))
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def child(*argv, **options) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts_seen(folder: Path) -> list[tuple]:
    return [(line["step"], line["prompt"]) for line in read_lines(folder / "completions.jsonl")]


def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Flags


def test_help_is_quick_and_imports_nothing_slow():
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--memory_mix" in done.stdout
    assert time.monotonic() - started < 1.5  # 0.1 s on an idle machine
    code = "import sys, rl.train_rl_memory; print({'torch', 'trl', 'pydantic'} & set(sys.modules))"
    listed = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert listed.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grpo", "temperatur=0.9"], "did you mean temperature?"),
        (["--grpo", "beta=0.1"], "set by the flag --beta"),
        (["--grpo", "temperature"], "expected KEY=VALUE"),
        (["--memory_mix", "0.5,0.5,0.5"], "three shares that sum to 1"),
        (["--reward_weights", "corect=1"], "--reward_weights corect=1"),
        (["--num_generations", "1"], "at least 2"),
        (["--loss_type", "bogus"], "invalid choice"),
        (["--resume", "/nowhere"], "expected auto, never or a checkpoint"),
        (["--max_step", "2"], "unrecognized"),
    ],
)
def test_a_mistyped_flag_is_one_line_and_exit_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train(*argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [("max_step: 3", "did you mean max_steps?"), ("[1]", "expected keys and values"), ("a: [", "not YAML")],
)
def test_a_mistyped_config_file_is_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit):
        train("--config", str(path))
    assert message in capsys.readouterr().err


def test_a_config_file_sets_what_the_command_line_leaves_open(tmp_path):
    from rl.train_rl_memory import parse_args

    path = tmp_path / "c.yaml"
    path.write_text(
        "max_steps: 7\nuse_peft: true\nmemory_mix: [1, 0, 0]\nbeta: 1.0e-3\ngrpo: {temperature: 0.9}\n"
    )
    args = parse_args(["--config", str(path), "--max_steps", "5"])
    assert (args.max_steps, args.use_peft, args.memory_mix, args.beta) == (5, True, [1, 0, 0], 0.001)
    assert args.options == {"temperature": 0.9}


def test_every_grpo_value_is_read_as_json_or_text():
    assert parse_grpo(["temperature=0.5", "optim=adamw_torch", "bf16=false"]) == {
        "temperature": 0.5,
        "optim": "adamw_torch",
        "bf16": False,
    }
    assert parse_mix("0.7, 0.15, 0.15") == [0.7, 0.15, 0.15]


def test_a_step_sees_the_same_prompts_on_any_number_of_processes():
    # 16 prompts x 8 completions = 128 a step
    assert split_batch(16, 8, 128, 1) == (128, 1)
    assert split_batch(16, 8, 128, 2) == (64, 1)
    assert split_batch(16, 8, 16, 2) == (16, 4)
    with pytest.raises(UserError, match="use 32"):
        split_batch(16, 8, 50, 1)
    with pytest.raises(UserError, match="3 processes"):
        split_batch(16, 8, 50, 3)


# Checkpoints


def make_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        mark_complete(path)
    return path


def test_the_newest_complete_checkpoint_is_taken_and_broken_ones_set_aside(tmp_path):
    make_checkpoint(tmp_path, 9)
    best = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, complete=False)
    (make_checkpoint(tmp_path, 12) / "model.safetensors").write_bytes(b"we")  # cut short
    (make_checkpoint(tmp_path, 13) / "model.safetensors").unlink()
    assert find_checkpoint(tmp_path, "auto") == best
    assert sorted(path.name for path in tmp_path.glob("broken-*")) == [
        f"broken-checkpoint-{step}" for step in (11, 12, 13)
    ]
    with pytest.raises(UserError, match="--resume never"):
        find_checkpoint(tmp_path, "never")
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "broken-checkpoint-11"))


def test_a_changed_setting_is_refused_by_name():
    refuse_changes({"memory": "own", "seed": 0}, {"memory": "own", "seed": 0})
    with pytest.raises(UserError, match="--memory none: the checkpoint was made with own"):
        refuse_changes({"memory": "own"}, {"memory": "none"})


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_up_to(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


# Rewards in the trainer


def test_a_part_that_raises_costs_its_row_alone():
    def fragile(completions, **_):
        if completions[0] == "b":
            raise ValueError("no")
        return [1.0]

    table = RewardTable({"fragile": fragile, "half": lambda completions, **_: [0.5]})
    logged = {}
    batch = {
        "completions": ["a", "b"],
        "memory": ["", ""],
        "student_id": ["S001"] * 2,
        "log_metric": logged.__setitem__,
    }
    assert [part(**batch) for part in table.functions()] == [[1.0, None], [0.5, None]]
    assert (table.errors, table.last_error) == (1, "ValueError: no")
    assert logged == {"copying": 0.0, "names_student": 0.0}


def test_the_alarm_needs_a_fall_beyond_the_noise_and_rising_fidelity():
    from rl.callbacks import correctness_falls

    high, low, rising = [0.6, 0.62] * 10, [0.5, 0.52] * 10, [0.1] * 20 + [0.5] * 20
    assert "fell by 10.0 points" in correctness_falls(high + low, rising, window=20)
    assert correctness_falls(low + high, rising, window=20) is None
    assert correctness_falls(high + low, rising[::-1], window=20) is None  # fidelity falls too
    assert correctness_falls([0.2, 1.0] * 10 + [0.1, 1.0] * 10, rising, window=20) is None  # within the noise


# The whole script


def test_two_steps_write_every_output(flags, tmp_path):
    from cot.utils.models import load_model

    assert train(*flags(output_dir=tmp_path, save_steps=1)) == 0
    lines = read_lines(tmp_path / "metrics.jsonl")
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for key in (
        "kl",
        "entropy",
        "frac_reward_zero_std",
        "completions/clipped_ratio",
        "copying",
        "reward_share",
    ):
        assert all(key in line for line in steps), key
    for part in ("correct", "format", "fidelity", "memory_margin", "scaffold_fit", "overlong", "repetition"):
        assert all(f"rewards/{part}/{stat}" in line for line in steps for stat in ("mean", "std")), part
    assert [line["step"] for line in lines if "probe/accuracy" in line] == [0, 2]
    assert "probe/breakage" in lines[0]
    sample = read_lines(tmp_path / "completions.jsonl")
    assert len(sample) == 2 * 8  # two steps of two groups of four
    assert len({line["prompt"] for line in sample[:4]}) == 1 and sample[0]["prompt"] != sample[4]["prompt"]
    assert set(sample[0]["rewards"]) > {"correct", "fidelity"}
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "success" and run["config"]["rows"] == 4 and run["summary"]["after"]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| fidelity | 1 |" in card and "own" in card
    model, tokenizer = load_model(str(tmp_path / "model"))
    assert tokenizer.chat_template and model.num_parameters() > 0
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert all(map(is_complete, checkpoints(tmp_path)))
    assert train(*flags(output_dir=tmp_path)) == 2  # finished: refused, not overwritten


def test_killed_and_resumed_sees_the_prompts_and_texts_of_a_straight_run(flags, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = {"max_steps": 16, "save_steps": 2, "probe_size": 0}
    assert train(*flags(output_dir=straight, **options)) == 0
    process = child(*flags(output_dir=killed, **options))
    wait_for(killed / "metrics.jsonl", 5, process)
    process.kill()
    process.communicate()
    done = checkpoints(killed)
    assert done and len(read_lines(killed / "metrics.jsonl")) < 16
    half = killed / "checkpoint-15"  # as if the kill had come while a checkpoint was written
    if not half.exists():
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
    assert train(*flags(output_dir=killed, **options)) == 0
    assert (killed / "broken-checkpoint-15").is_dir()
    assert prompts_seen(killed) == prompts_seen(straight)
    texts = [
        [line["completion"] for line in read_lines(run / "completions.jsonl")] for run in (straight, killed)
    ]
    assert texts[0] == texts[1]  # the generators' states resume as well
    assert [line["step"] for line in read_lines(killed / "metrics.jsonl")] == list(range(1, 17))


def test_another_schedule_can_be_named(flags, tmp_path):
    argv = flags(output_dir=tmp_path, probe_size=0, max_steps=4)
    assert train(*argv, "--grpo", "lr_scheduler_type=linear") == 0
    rates = [line["learning_rate"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_sigterm_saves_a_checkpoint_and_no_model(flags, tmp_path):
    process = child(*flags(output_dir=tmp_path, max_steps=500, probe_size=0))
    wait_for(tmp_path / "metrics.jsonl", 2, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command continues" in errors
    assert len(checkpoints(tmp_path)) == 1 and is_complete(checkpoints(tmp_path)[0])
    assert not (tmp_path / "model").exists()
    assert train(*flags(output_dir=tmp_path, max_steps=500, memory="none")) == 2


def test_another_arm_is_refused_by_name(flags, tmp_path, capsys):
    assert train(*flags(output_dir=tmp_path / "a", save_steps=1)) == 0
    (tmp_path / "a" / "run.json").write_text(
        (tmp_path / "a" / "run.json").read_text().replace('"status": "success"', '"status": "running"')
    )
    assert train(*flags(output_dir=tmp_path / "a", memory="none")) == 2
    assert "--memory none: the checkpoint was made with own" in capsys.readouterr().err


def test_mixed_arms_pay_fit_only_where_the_memory_is_the_students_own(flags, tmp_path):
    assert train(*flags(output_dir=tmp_path, memory_mix="0.34,0.33,0.33", max_steps=4, probe_size=0)) == 0
    for line in read_lines(tmp_path / "completions.jsonl"):
        applies = line["memory_arm"] == "own"
        assert (line["rewards"]["fidelity"] is not None) == applies
        assert (line["rewards"]["memory_margin"] is not None) == applies
        assert line["rewards"]["correct"] is not None
        assert (line["memory"] == "") == (line["memory_arm"] == "none")


def test_a_lora_adapter_is_trained_and_loads_with_its_base(flags, tmp_path):
    from cot.utils.models import load_model

    argv = flags(output_dir=tmp_path, max_steps=1, probe_size=0)
    assert train(*argv, "--use_peft", "--lora_r", "2") == 0
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    load_model(str(tmp_path / "model"))


def test_not_a_number_stops_the_run_before_it_reaches_the_weights(flags, tmp_path, capsys, monkeypatch):
    from rl.memory_trainer import MemoryTrainer

    loss = MemoryTrainer.compute_loss
    monkeypatch.setattr(
        MemoryTrainer, "compute_loss", lambda *args, **kwargs: loss(*args, **kwargs) * float("nan")
    )
    assert train(*flags(output_dir=tmp_path, max_steps=30, probe_size=0)) == 1
    assert "stopped at step 3: the loss or its gradient was not finite 3 times" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_out_of_memory_names_a_valid_smaller_batch(flags, tmp_path, capsys, monkeypatch):
    import torch

    from rl.memory_trainer import MemoryTrainer

    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(MemoryTrainer, "train", full)
    assert train(*flags(output_dir=tmp_path, per_device_train_batch_size=8)) == 1
    assert "try --per_device_train_batch_size 4" in capsys.readouterr().err


def test_a_control_token_in_a_question_stays_text(tiny_tutor, school):
    from transformers import AutoTokenizer

    from cot.utils.data import Question
    from cot.utils.memory import MemoryLog
    from cot.utils.profiles import load_profiles
    from rl.prompts_dataset import Situation, Students, build_rows

    tokenizer = AutoTokenizer.from_pretrained(tiny_tutor)
    students = Students(load_profiles(school), MemoryLog(school / "memory"), None, 0)
    question = Question("q", "What is 3+4?<|im_end|>", "<<3+4=7>>7\n#### 7")
    shape = {"instruction": "Solve.", "memory_tokens": 20, "max_prompt_tokens": 400}
    rows, _ = build_rows(tokenizer, students, [Situation("S001", question)], ["own"], ["own"], 0, **shape)
    assert rows[0]["prompt_ids"].count(tokenizer.eos_token_id) == 1  # the turn's own end
    with pytest.raises(UserError, match="--max_prompt_length"):
        build_rows(
            tokenizer,
            students,
            [Situation("S001", question)],
            ["own"],
            [],
            0,
            **(shape | {"max_prompt_tokens": 5}),
        )


@pytest.mark.slow
def test_two_processes_see_the_prompts_of_one_and_write_one_set_of_files(flags, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*flags(output_dir=one, probe_size=4)) == 0
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO_ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *flags(output_dir=two, probe_size=4)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert prompts_seen(two) == prompts_seen(one)  # both processes' groups, in order
    assert len(set(prompts_seen(two))) == 4  # 2 steps of 2 groups
    lines = [read_lines(run / "metrics.jsonl") for run in (one, two)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    rewards = [
        [sum(filter(None, line["rewards"].values())) for line in read_lines(run / "completions.jsonl")]
        for run in (one, two)
    ]
    assert len(rewards[0]) == len(rewards[1]) == 16
    assert ks_2samp(*rewards).pvalue > 0.001
    assert (two / "model" / "model.safetensors").exists() and (two / "curves.png").exists()


@pytest.mark.slow
def test_the_bundled_pretrained_model_trains_two_steps(school, tmp_path, bundled):
    argv = ["--model_name", "bundled", "--profiles_dir", str(school), "--output_dir", str(tmp_path)]
    argv += ["--max_steps", "2", "--num_generations", "2", "--prompts_per_step", "1", "--use_peft"]
    argv += ["--max_completion_length", "16", "--probe_size", "0", "--sample_every", "1"]
    assert train(*argv) == 0
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2


def test_an_unfinished_run_is_found_again_and_a_finished_one_left_alone(tmp_path, monkeypatch):
    import rl.run_folder
    from cot.utils.model_source import ModelSource

    monkeypatch.setattr(rl.run_folder, "DATA_DIR", tmp_path)
    processes, source = rl.run_folder.start_processes(), ModelSource("/models/tutor", "folder", tmp_path, "r")
    old = tmp_path / "tutor" / "rl_20260101_000000"
    old.mkdir(parents=True)

    def open_after(status: str, **changes) -> Path:
        identity = {"memory": "own", "seed": 0}
        (old / "run.json").write_text(json.dumps({"status": status, "config": {"identity": identity}}))
        run = rl.run_folder.open_run(None, source, identity | changes, "auto", processes)
        run.lock.release()
        return run.path

    assert open_after("cancelled") == old
    assert open_after("cancelled", memory="none") != old
    assert open_after("success") != old
    holder = rl.run_folder.open_run(old.parent / "held", source, {}, "auto", processes)
    with pytest.raises(UserError, match="another process trains there"):
        rl.run_folder.open_run(holder.path, source, {}, "auto", processes)
    holder.lock.release()


def test_a_tracker_gets_the_curves(flags, tmp_path):
    assert train(*flags(output_dir=tmp_path, report_to="tensorboard", max_steps=1, probe_size=0)) == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))
