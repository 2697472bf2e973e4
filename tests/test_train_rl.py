"""The training script, with TRL's own trainer on a policy of a few thousand parameters."""

import json
import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from conftest import fork_here, read_lines, read_strictly, run_here, wait_for_exit
from transformers import AutoTokenizer

from cot.utils.models import load_model
from cot.utils.paths import PROFILES_DIR
from rl.moments import plan_prompts
from rl.recorder import Recorder
from rl.rewards import TUTOR_WEIGHTS
from rl.settings import fill_preset
from rl.splits import load_data
from rl.train_rl_memory import IDENTITY, build_data, main, parse_args

pytestmark = pytest.mark.slow

WEIGHTS = TUTOR_WEIGHTS | {"coin": 0.5}


@pytest.fixture(scope="module")
def school(tmp_path_factory) -> Path:
    """Three of the bundled students with their memories."""
    folder = tmp_path_factory.mktemp("school")
    (folder / "memory").mkdir()
    for student in ("S001", "S004", "S005"):
        for name in (f"{student}.json", f"memory/{student}.jsonl"):
            shutil.copy(PROFILES_DIR / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def flags(school, tiny_tutor):
    """Flags of a run of seconds; further ones are appended and win."""
    base = {
        "preset": "cpu",
        "model_name": tiny_tutor,
        "profiles_dir": school,
        "max_steps": 2,
        "num_generations": 4,
        "prompts_per_step": 2,
        "max_completion_length": 8,
        "memory_tokens": 40,
        "eval_size": 0,
        "sample_every": 1,
        "learning_rate": 0.01,
        # a random policy hardly ever ends within 8 tokens and is never right: without these it learns nothing
        "grpo": "mask_truncated_completions=false",
        "reward_weights": ",".join(f"{name}={weight}" for name, weight in WEIGHTS.items()),
    }

    def make(**changes) -> list[str]:
        return [f"--{name}={value}" for name, value in (base | changes).items()]

    return make


MIXED = {"memory_mix": "0.34,0.33,0.33", "max_steps": 4, "save_steps": 2, "eval_size": 4}


def train(*argv) -> int:
    code, _, error = run_here(main, *argv)
    print(error)  # pytest shows it when the test fails
    return code


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory) -> Path:
    """A run of four steps with prompts of every arm, two checkpoints, and held-out scores."""
    folder = tmp_path_factory.mktemp("finished")
    assert train(*flags(output_dir=folder, **MIXED)) == 0
    return folder


def prompts_seen(folder: Path, *also: str) -> list[tuple]:
    """The step and the prompt of every sampled completion, and what else of it."""
    keys = ("step", "prompt", *also)
    return [tuple(line[key] for key in keys) for line in read_lines(folder / "completions.jsonl")]


def saved_steps(folder: Path) -> dict[int, bool]:
    """The steps of a run's checkpoints, in order, and whether the last file of each is there."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*")}
    return {step: (found[step] / "complete.json").exists() for step in sorted(found)}


def wait_for(path: Path, lines: int) -> None:
    """Returns when the file has so many lines."""
    deadline = time.monotonic() + 180
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grpo", "temperatur=0.9"], "did you mean temperature?"),
        (["--students", "S001"], "--students S001: shuffled memory and the margin need a second student"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(flags, tmp_path, argv, message):
    code, _, error = run_here(main, *flags(output_dir=tmp_path), *argv)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- a run ------------------------------------------------------------------------------------------------


def test_a_run_writes_every_output(finished, flags):
    lines = read_lines(finished / "metrics.jsonl")
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    logged = {"kl", "entropy", "frac_reward_zero_std", "completions/clipped_ratio", "copying", "reward_share"}
    logged |= {f"rewards/{part}/{stat}" for part in WEIGHTS for stat in ("mean", "std")}
    assert all(logged <= set(line) for line in steps)
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 4]
    scores = ["accuracy", "fidelity", "style", "support_fit", "copying", "names_student", "output_tokens"]
    assert set(lines[0]) == {"step", "eval/breakage", *(f"eval/{name}" for name in scores)}

    run = read_strictly(finished / "run.json")
    assert run["status"] == "success" and run["config"]["rows"] == 8 and run["summary"]["after"]
    made_from = {"students_content", "questions_content", "model_revision", "code_version"}
    assert set(run["config"]["identity"]) == {*IDENTITY, *made_from}
    assert (finished / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "| fidelity | 1 |" in (finished / "model" / "README.md").read_text()
    model, tokenizer = load_model(str(finished / "model"), "cpu", "float32")
    assert tokenizer.chat_template and model.num_parameters() > 0
    assert saved_steps(finished) == {2: True, 4: True}
    assert train(*flags(output_dir=finished, **MIXED)) == 2  # finished: refused, not overwritten


def test_mixed_arms_show_and_pay_what_they_say(finished):
    lines = read_lines(finished / "completions.jsonl")
    assert len(lines) == 4 * 8  # four steps of two groups of four, whose prompt is one
    assert len({line["prompt"] for line in lines[:4]}) == 1 and lines[0]["prompt"] != lines[4]["prompt"]
    assert {line["memory_arm"] for line in lines} == {"own", "none", "shuffled"}
    for line in lines:
        own = f"Student {line['student_id']}," in line["prompt"]
        assert own == (line["memory_arm"] == "own")
        assert ("Student " in line["prompt"]) == (line["memory"] != "") == (line["memory_arm"] != "none")
        # fit is paid only where the memory is the student's own
        assert set(line["rewards"]) == set(WEIGHTS) and line["rewards"]["correct"] is not None
        assert (line["rewards"]["fidelity"] is not None) == own
        assert (line["rewards"]["memory_margin"] is not None) == own


@pytest.mark.parametrize("memory", ["none", "shuffled"])
def test_a_control_shows_its_memory_alone_and_anothers_is_paid_for_fit(flags, tiny_tutor, memory):
    args = parse_args(flags(memory=memory, max_steps=4))
    fill_preset(args)
    data = load_data(args)
    shape, room = plan_prompts(args, context=None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tutor)
    rows, dropped = build_data(args, tokenizer, data, shape, room, prompt_format=None)
    assert (len(rows), dropped, {row["memory_arm"] for row in rows}) == (8, 0, {memory})
    for row in rows:
        assert f"Student {row['student_id']}," not in row["prompt"]
        assert ("Student " in row["prompt"]) == (memory == "shuffled")
        assert row["fit_to"] == (row["student_id"] if memory == "shuffled" else None)


def test_a_lora_adapter_is_trained_and_a_tracker_gets_the_curves(flags, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    argv = flags(output_dir=tmp_path, max_steps=1, report_to="tensorboard", lora_r=2)
    assert train(*argv, "--use_peft") == 0
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    load_model(str(tmp_path / "model"), "cpu", "float32")
    assert list(tmp_path.rglob("events.out.tfevents.*"))


# --- what ends a run, and how it continues ----------------------------------------------------------------


def test_what_decides_a_run_is_refused_by_name_when_it_changes(finished, flags, school, tmp_path):
    run, other = tmp_path / "run", tmp_path / "school"
    shutil.copytree(finished, run)
    stopped = read_strictly(run / "run.json") | {"status": "cancelled"}
    (run / "run.json").write_text(json.dumps(stopped))
    shutil.copytree(school, other)
    log = other / "memory" / "S001.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))

    for changes, message in (
        ({"memory": "none"}, "--memory none: the checkpoint was made with own"),
        ({"memory_mix": "1,0,0"}, "--memory_mix [1.0, 0.0, 0.0]: the checkpoint was made with [0.34, 0"),
        ({"profiles_dir": other}, "--profiles_dir: the profiles or memories changed"),
    ):
        code, _, error = run_here(main, *flags(output_dir=run, **MIXED | changes))
        assert code == 2 and message in error and error.count("\n") == 1


def kill_while_a_checkpoint_is_written(process: int, folder: Path) -> int:
    """Kills a training from the second checkpoint on, as soon as one of its files is there; its step.

    The process is halted first: what it has finished before it is looked at does not count.
    """
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        step, is_whole = max(saved_steps(folder).items(), default=(0, True))
        if step > 2 and not is_whole and any((folder / f"checkpoint-{step}").iterdir()):
            os.kill(process, signal.SIGSTOP)
            if not saved_steps(folder)[step]:
                os.kill(process, signal.SIGKILL)
                assert wait_for_exit(process) == -signal.SIGKILL
                return step
            os.kill(process, signal.SIGCONT)
        time.sleep(0.001)
    pytest.fail("ended before it could be killed")


def test_killed_while_a_checkpoint_is_written_and_resumed_sees_the_prompts_of_a_straight_run(flags, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = {"max_steps": 12, "save_steps": 2}
    assert train(*flags(output_dir=straight, **options)) == 0

    process = fork_here(main, *flags(output_dir=killed, **options))
    half = kill_while_a_checkpoint_is_written(process, killed)
    assert half in range(4, 13, 2)

    code, stdout, stderr = run_here(main, *flags(output_dir=killed, **options))
    assert code == 0, stderr
    assert f"continues from checkpoint-{half - 2}\n" in stdout
    assert (killed / f"broken-checkpoint-{half}").is_dir()
    # the generators' states resume as well
    assert prompts_seen(killed, "completion") == prompts_seen(straight, "completion")
    assert [line["step"] for line in read_lines(killed / "metrics.jsonl")] == list(range(1, 13))


def test_sigterm_saves_a_checkpoint_and_no_model(flags, tmp_path):
    def stop() -> None:
        wait_for(tmp_path / "metrics.jsonl", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    code, _, error = run_here(main, *flags(output_dir=tmp_path, max_steps=500))
    thread.join()
    assert code == 143 and "the same command continues" in error
    assert list(saved_steps(tmp_path).values()) == [True]
    assert not (tmp_path / "model").exists()
    assert read_strictly(tmp_path / "run.json")["status"] == "cancelled"


def test_not_a_number_stops_the_run_before_it_reaches_the_weights(flags, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from rl.rollouts import MemoryTrainer

    loss = MemoryTrainer.compute_loss
    broken = float("nan")
    monkeypatch.setattr(MemoryTrainer, "compute_loss", lambda *args, **kwargs: loss(*args, **kwargs) * broken)
    # the second step is one on completions that were used before
    options = ["--grpo", "num_iterations=2", "mask_truncated_completions=false"]
    code, _, error = run_here(main, *flags(output_dir=tmp_path, max_steps=30), *options)
    assert code == 1
    assert "stopped at step 3: the loss or its gradient was not finite 3 times" in error
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors").values()
    assert all(weight.isfinite().all() for weight in weights)
    assert not (tmp_path / "model").exists()
    assert read_strictly(tmp_path / "run.json")["status"] == "error"


def test_out_of_memory_names_a_valid_smaller_batch(flags, tmp_path, monkeypatch):
    from rl.rollouts import MemoryTrainer

    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(MemoryTrainer, "train", full)
    code, _, error = run_here(main, *flags(output_dir=tmp_path, per_device_train_batch_size=8))
    assert code == 1 and "try --per_device_train_batch_size 4" in error


def test_a_steps_time_is_split_into_its_stages(finished):
    steps = [line for line in read_lines(finished / "metrics.jsonl") if "loss" in line]
    assert len(steps) == 4
    for step in steps:
        stages = [step[f"{stage}_s"] for stage in ("generate", "logprobs", "reward", "backward")]
        assert min(stages) > 0 and sum(stages) == pytest.approx(step["step_s"])
        # 2 groups of 4 completions
        tokens = step["tokens_per_second"] * step["generate_s"]
        assert tokens == pytest.approx(8 * step["completions/mean_length"])


def spread_over_cpus() -> None:
    """Lets accelerate spread weights by FSDP 2 over CPU processes: it does so where it counts GPUs."""
    told = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    os.environ.update(told | {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"})
    begin = PartialState.__init__

    def count_as_gpus(state, *args, **kwargs) -> None:
        begin(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = count_as_gpus


def train_by_two(*argv, folder: Path, before=lambda rank: None, stop=lambda processes: None):
    """The exit codes of two processes of one training, forked here, and what the first has said.

    Each fails where it ends with a connection open.

    Args:
        folder: of the run.
        before: called in each process, with its number.
        stop: called with the processes' ids.
    """
    from torch.distributed import TCPStore, is_initialized

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    told |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def be_process(rank: int) -> None:
        os.environ.update(told | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for state in (AcceleratorState, GradientState, PartialState):  # of this test's own process
            state._shared_state.clear()
        be_process.store = store  # as long as the process lives
        before(rank)

    def train_and_part(argv: list[str]) -> int:
        code = main(argv)
        assert not is_initialized()  # it might abort
        return code

    train_and_part.__module__ = main.__module__
    said = [folder.with_name(f"{folder.name}_said_{rank}.txt") for rank in (0, 1)]
    flags = [*argv, f"--output_dir={folder}"]
    processes = [
        fork_here(train_and_part, *flags, said=said[rank], before=partial(be_process, rank))
        for rank in (0, 1)
    ]
    stop(processes)
    codes = [wait_for_exit(process) for process in processes]
    print(said[0].read_text()[-3000:])  # pytest shows it when the test fails
    return codes, said[0].read_text()


@pytest.fixture(scope="module")
def by_two(flags, tmp_path_factory) -> Path:
    """The run of `finished`, in two processes."""
    folder = tmp_path_factory.mktemp("by_two")
    assert train_by_two(*flags(**MIXED), folder=folder)[0] == [0, 0]
    return folder


def test_two_processes_see_the_prompts_of_one_and_write_one_set_of_files(finished, by_two, flags, tmp_path):
    assert prompts_seen(by_two) == prompts_seen(finished)  # both processes' groups, in order
    one, two = (read_lines(run / "metrics.jsonl") for run in (finished, by_two))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert one[0] == two[0] and "eval/accuracy" in one[0]  # each answered half of the held-out exercises
    assert (by_two / "model" / "model.safetensors").exists() and (by_two / "curves.png").exists()
    states = sorted(path.name for path in (by_two / "checkpoint-4").glob("rng_state_*.pth"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"]  # there were two

    # one process goes on with the prompts that come next
    assert train(*flags(output_dir=tmp_path, resume=by_two / "checkpoint-2", **MIXED)) == 0
    assert prompts_seen(tmp_path) == [seen for seen in prompts_seen(finished) if seen[0] > 2]


def test_a_signal_to_one_process_ends_both_at_the_same_step(flags, tmp_path):
    def stop(processes: list[int]) -> None:
        wait_for(tmp_path / "metrics.jsonl", lines=2)
        os.kill(processes[1], signal.SIGTERM)

    codes, said = train_by_two(*flags(**MIXED | {"max_steps": 500}), folder=tmp_path, stop=stop)
    assert codes == [143, 143]
    assert read_strictly(tmp_path / "run.json")["status"] == "cancelled"
    ((step, is_whole),) = saved_steps(tmp_path).items()
    assert is_whole and f"step {step} is saved" in said
    assert not (tmp_path / "model").exists()


# --- weights that are spread over the processes -----------------------------------------------------------


@pytest.fixture(scope="module")
def spread(flags, tmp_path_factory) -> Path:
    """The run of `by_two`, with FSDP 2."""
    folder = tmp_path_factory.mktemp("spread")
    codes, _ = train_by_two(*flags(**MIXED), folder=folder, before=lambda rank: spread_over_cpus())
    assert codes == [0, 0]
    return folder


TIMES = {"step_time", "step_s", "generate_s", "logprobs_s", "backward_s", "reward_s", "reward_share"}
TIMES |= {"tokens_per_second"}


def weights_of(run: Path) -> dict:
    return load_model(str(run / "model"), "cpu", "float32")[0].state_dict()


def assert_same_training(run: Path, other: Path) -> None:
    """The same steps and held-out scores, but for what they took, and the same weights."""
    lines, others = (read_lines(folder / "metrics.jsonl") for folder in (run, other))
    for line, expected in zip(lines, others[-len(lines) :], strict=True):
        for key in expected.keys() - TIMES:
            assert line[key] == pytest.approx(expected[key], abs=1e-5), key
    torch.testing.assert_close(weights_of(run), weights_of(other))


def test_spread_weights_learn_what_whole_ones_learn_and_are_saved_whole(by_two, spread):
    parts = [path.name for path in (spread / "checkpoint-2" / "pytorch_model_fsdp_0").glob("*.distcp")]
    assert sorted(parts) == ["__0_0.distcp", "__1_0.distcp"]
    assert saved_steps(spread) == {2: True, 4: True}
    assert_same_training(spread, by_two)
    first, second, *_ = (line["kl"] for line in read_lines(spread / "metrics.jsonl") if "kl" in line)
    assert first == 0 and second > 0  # at the first step the policy is the reference


def test_a_checkpoint_of_spread_weights_is_continued_under_fsdp_alone(by_two, spread, flags, tmp_path):
    newer = flags(resume=spread / "checkpoint-2", **MIXED)
    codes, _ = train_by_two(*newer, folder=tmp_path / "on", before=lambda rank: spread_over_cpus())
    assert codes == [0, 0]
    assert_same_training(tmp_path / "on", spread)

    refused = f"{spread / 'checkpoint-2'}: made under FSDP, in several processes; continue it so"
    assert run_here(main, *newer, f"--output_dir={tmp_path / 'alone'}")[2].startswith(f"error: {refused}")


def test_not_a_number_in_one_process_alone_keeps_all_from_the_step(flags, tmp_path):
    def spoil(rank: int) -> None:
        spread_over_cpus()
        look = Recorder.on_pre_optimizer_step

        def spoil_and_look(*args, model, **kwargs) -> None:
            if rank:
                for weight in model.parameters():
                    weight.grad.to_local().fill_(float("nan"))
            look(*args, model=model, **kwargs)

        Recorder.on_pre_optimizer_step = spoil_and_look

    codes, _ = train_by_two(*flags(beta=0.1), folder=tmp_path, before=spoil)
    assert codes == [0, 0]
    assert [line["kl"] for line in read_lines(tmp_path / "metrics.jsonl") if "kl" in line] == [0, 0]
