"""Flags and their help, and what is imported when."""

import argparse

import pytest
from conftest import run_python

from cot.utils.cli import OneLineParser, add_memory_flags, add_sweep_flags, flags_of, number

SCRIPTS = [
    "cot/run_baseline_cot.py",
    "cot/run_baseline_faiss.py",
    "rl/train_rl_memory.py",
    "rl/run_experiment.py",
    "rl/simulate_students.py",
    "rl/import_students.py",
    "rl/fit_mastery.py",
    "rl/warm_start.py",
    "evaluate_rl.py",
]
HEAVY = {"torch", "transformers", "numpy", "faiss", "spacy", "datasets", "trl", "pandas", "matplotlib"}


def make_parser():
    parser = OneLineParser(prog="script")
    add_sweep_flags(parser)
    add_memory_flags(parser)
    return parser


# ---- flags


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperatures", "-1"],
        ["--temperatures", "nan"],
        ["--temperatures", "inf"],
        ["--temperatures", "0.6", "0.60"],
        ["--temperatures", "0", "-0.0"],
        ["--temperatures", "0.33333333"],  # no record would have it
        ["--temperatures"],
        ["--subset_size", "2.5"],
        ["--batch_size", "0"],
        ["--fail_on_error", "1.5"],
        ["--dtype", "int8"],
        ["--chat_template_kwargs", "[1]"],
        ["--students", "S001", "S001"],
        ["--min_similarity", "1.1"],
        ["--memory_half_life", "0"],
        ["--subset", "5"],  # no abbreviation
        ["--no_such_flag"],
    ],
)
def test_a_bad_flag_is_one_line_and_exit_2(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        make_parser().parse_args(flags)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("script: ") and flags[0] in error


def test_flags_parse_to_values():
    args = make_parser().parse_args(["--temperatures", "-0.0", "0.6", "--batch_size", "auto", "--seed", "3"])
    assert str(args.temperatures) == "[0.0, 0.6]"  # no -0.0, which would name another file
    assert args.batch_size is None
    assert args.seed == 3
    assert (args.top_k, args.min_similarity, args.memory_tokens, args.memory_half_life) == (2, 0.2, 256, None)
    assert make_parser().parse_args(["--batch_size", "7"]).batch_size == 7


def test_a_file_of_fitted_mastery_is_recorded_so_that_it_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = make_parser().parse_args(["--mastery_parameters", "m.json"])
    assert flags_of(args)["mastery_parameters"] == str(tmp_path / "m.json")
    assert flags_of(make_parser().parse_args([]))["mastery_parameters"] is None


def test_the_record_of_the_flags_is_json_and_without_debug():
    flags = flags_of(make_parser().parse_args(["--output_dir", "a/b", "--debug"]))
    assert flags["output_dir"] == "a/b"
    assert "debug" not in flags


def test_help_names_a_default_and_both_values_where_the_machine_decides():
    text = " ".join(make_parser().format_help().split())
    assert "cut a prompt's memory at N tokens (default: 256)" in text
    assert "auto is Qwen/Qwen-7B on a CUDA GPU and the bundled SmolLM2-135M-Instruct elsewhere" in text
    assert "(default: None)" not in text and "(default: False)" not in text


def test_a_number_has_bounds():
    assert [number(int, 1, 3)(bound) for bound in "13"] == [1, 3]
    for text in ("0", "4", "2.0", "nan"):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"'{text}': expected int of at least 1 and at most 3"
        ):
            number(int, 1, 3)(text)


# ---- what is imported when


def test_no_scripts_help_imports_anything_heavy():
    code = (
        "import runpy, sys\n"
        f"for script in {SCRIPTS!r}:\n"
        "    sys.argv = [script, '--help']\n"
        "    try:\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as exit_:\n"
        "        assert exit_.code == 0\n"
        f"    assert not {HEAVY!r} & set(sys.modules), (script, {HEAVY!r} & set(sys.modules))\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(SCRIPTS)


def test_modules_that_scripts_import_at_once_are_light():
    modules = "errors paths cli files answers equations fidelity model_names models"
    code = "import sys\n" + "".join(f"import cot.utils.{module}\n" for module in modules.split())
    done = run_python(f"{code}print({HEAVY | {'pydantic', 'huggingface_hub'}!r} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr
