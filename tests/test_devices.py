"""Which number format a model gets, what is timed for it, and what is said of a slow one."""

import os

import pytest
import torch
from conftest import only, read_strictly, run_here

from cot.run_baseline_cot import main
from cot.utils import devices
from cot.utils.devices import choose_dtype, faster_dtype, settle_sums, time_product, warn_of_cpu
from cot.utils.errors import UserError
from cot.utils.models import load_model

CPU = torch.device("cpu")
SMALL = [(1000, 1000)] * 49  # 49 million parameters
LARGE = [(3000, 1000), (7, 8, 9_000), (5,)] * 20  # 70 million; the largest matrix has 3000 rows


@pytest.fixture
def clock(monkeypatch):
    """Sets what a product takes in milliseconds by format; notes what is timed."""
    timed = []

    def set_times(**times_ms):
        def take(dtype, outputs, inputs):
            timed.append((dtype, outputs, inputs))
            return times_ms[dtype]

        monkeypatch.setattr(devices, "time_product", take)
        return timed

    return set_times


@pytest.mark.parametrize(("bfloat16_ms", "dtype"), [(5.0, "bfloat16"), (5.1, "float32"), (40.0, "float32")])
def test_auto_takes_bfloat16_only_where_it_is_twice_as_fast(clock, bfloat16_ms, dtype):
    timed = clock(float32=10.0, bfloat16=bfloat16_ms)
    choice = choose_dtype("auto", CPU, LARGE)
    assert choice == faster_dtype(float32_ms=10.0, bfloat16_ms=bfloat16_ms) and choice.dtype == dtype
    assert choice.probe == {"float32_ms": 10.0, "bfloat16_ms": bfloat16_ms} and choice.warning is None
    assert f"10.0 ms in float32, {bfloat16_ms} ms in bfloat16" in choice.reason
    assert timed == [("float32", 3000, 1000), ("bfloat16", 3000, 1000)]


def test_a_small_model_is_float32_and_nothing_is_timed(clock):
    timed = clock()
    choice = choose_dtype("auto", CPU, SMALL)
    assert (choice.dtype, choice.probe) == ("float32", None) and "50 million" in choice.reason
    assert choose_dtype("bfloat16", CPU, SMALL) == devices.DtypeChoice("bfloat16")
    assert timed == []


def test_a_slow_format_that_was_named_is_one_line_that_names_the_other(clock):
    clock(float32=3.0, bfloat16=6.0, float16=7.0)
    line = choose_dtype("bfloat16", CPU, LARGE).warning
    assert line == (
        "--dtype bfloat16 is slow on this CPU: a product takes 6.0 ms, in float32 3.0 ms; use --dtype float32"
    )
    assert "--dtype float16 is slow" in choose_dtype("float16", CPU, LARGE).warning
    assert choose_dtype("float32", CPU, LARGE).warning is None
    clock(float32=6.1, bfloat16=3.0)
    assert "use --dtype bfloat16" in choose_dtype("float32", CPU, LARGE).warning
    assert choose_dtype("float32", CPU, LARGE).dtype == "float32"  # what is named is never replaced


def test_a_huge_matrix_is_timed_in_part(clock):
    timed = clock(float32=1.0, bfloat16=9.0)
    choose_dtype("auto", CPU, [(151_936, 4096)])
    assert timed[0] == ("float32", 2048, 4096)  # 2^23 elements of them


def test_a_product_is_timed_once_for_both_models_of_a_run():
    assert time_product("float32", 64, 32) == time_product("float32", 64, 32) > 0


def test_nothing_is_timed_where_code_names_the_format(clock, tiny_folder):
    timed = clock()
    assert load_model(str(tiny_folder), "cpu", torch.bfloat16)[0].dtype == torch.bfloat16
    assert timed == []


@pytest.mark.parametrize("name", ["int8", "", "torch.float32"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(UserError, match=f"--dtype {name}: expected auto, float32, bfloat16 or float16"):
        choose_dtype(name, CPU, SMALL)


def test_a_named_cpu_beside_a_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert warn_of_cpu("cpu", 50_000_000).endswith("use --device cuda")
    assert warn_of_cpu("auto", 50_000_000) is None and warn_of_cpu("cpu", 49_999_999) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warn_of_cpu("cpu", 50_000_000) is None


@pytest.mark.parametrize(
    ("cpu", "asked", "mode"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx avx2 fma", False, "AVX2"),
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", False, None),
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", True, "AUTO"),
        ("vendor_id : GenuineIntel\nflags : avx2", False, None),
        ("vendor_id : GenuineIntel\nflags : avx2", True, "AUTO"),
    ],
)
def test_mkl_is_put_into_its_mode_where_asked_or_faster_and_never_against_the_user(
    cpu, asked, mode, monkeypatch, tmp_path
):
    described = tmp_path / "cpuinfo"
    described.write_text(cpu)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    settle_sums(asked, described)
    assert os.environ.pop("MKL_CBWR", None) == mode
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    settle_sums(asked, described)
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


# ---- in a sweep


@pytest.fixture
def sweep(tiny_long, tmp_path, scorers, monkeypatch):
    """Runs a sweep of one question; its output, and what its summary records of the model."""
    monkeypatch.setattr("cot.utils.scorers.load_scorers", lambda _device: scorers)
    monkeypatch.setattr("cot.utils.sweeps.draw_sweep", lambda *_: None)

    def run(*flags):
        output = tmp_path / "out"
        questions = ["--dataset", "textbook", "--subset_size", "1", "--temperatures", "0"]
        fixed = ["--model_name", tiny_long, *questions, "--max_new_tokens", "2", "--device", "cpu"]
        code, out, error = run_here(main, *fixed, "--output_dir", output, *flags)
        assert code == 0, error
        (described,) = read_strictly(only(output, "summary_*.json"))["config"]["models"].values()
        return out, described

    return run


@pytest.mark.slow
def test_a_run_says_what_the_clock_decided_records_it_and_keeps_it_when_it_continues(
    sweep, clock, monkeypatch, tmp_path
):
    monkeypatch.setattr(devices, "SLOW_PARAMETERS", 1000)  # the tiny model has 37 thousand
    clock(float32=3.0, bfloat16=9.0)
    out, model = sweep()
    assert "dtype:   float32 (picked: a product takes 3.0 ms in float32, 9.0 ms in bfloat16)\n" in out
    assert model["dtype_probe"] == {"float32_ms": 3.0, "bfloat16_ms": 9.0}
    results = only(tmp_path, "results_*.json")
    (before,) = read_strictly(results)["results"]
    journal = only(tmp_path, "journal_*.jsonl")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))  # header and model

    clock(float32=9.0, bfloat16=3.0)
    out, model = sweep()
    assert f"continuing {journal}" in out and model["dtype"] == "float32"
    (after,) = read_strictly(results)["results"]
    assert after == before  # to the last digit of its likelihood
