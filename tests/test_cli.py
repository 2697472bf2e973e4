"""Flags and their help, and what is imported when."""

import pytest
from conftest import run_python

from cot.utils.cli import OneLineParser, add_memory_flags, flags_of
from cot.utils.run_flags import add_sweep_flags

SCRIPTS = [
    *("cot/run_baseline_cot.py", "cot/run_baseline_faiss.py", "cot/run_study.py", "cot/run_dialogues.py"),
    *("rl/train_rl_memory.py", "rl/run_experiment.py", "rl/simulate_students.py", "rl/import_students.py"),
    *("rl/fit_mastery.py", "rl/warm_start.py", "evaluate_rl.py"),
]


HEAVY = {"torch", "transformers", "numpy", "faiss", "spacy", "datasets", "trl", "pandas", "matplotlib"}


def make_parser():
    parser = OneLineParser(prog="script")
    add_sweep_flags(parser)
    add_memory_flags(parser)
    return parser


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperatures", "-1"],
        ["--temperatures", "nan"],
        ["--temperatures", "0", "-0.0"],
        ["--temperatures", "0.33333333"],  # no record would have it
        ["--temperatures"],
        ["--subset_size", "2.5"],
        ["--subset_size", "every"],
        ["--offset", "-1"],
        ["--top_p", "0"],  # no token would be left
        ["--top_p", "1.1"],
        ["--min_p", "-0.1"],
        ["--sampling_top_k", "-1"],
        ["--system_prompt", " "],
        ["--attn_implementation", "kernels-community/attention"],  # code from the hub
        ["--batch_size", "0"],
        ["--dtype", "int8"],
        ["--chat_template_kwargs", "[1]"],
        ["--students", "S001", "S001"],
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


def test_flags_parse_to_values_and_are_recorded_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--temperatures", "-0.0", "0.6", "--batch_size", "7", "--output_dir", "a/b", "--debug"]
    args = make_parser().parse_args([*flags, "--mastery_parameters", "m.json"])
    assert str(args.temperatures) == "[0.0, 0.6]"  # no -0.0, which would name another file
    assert (args.batch_size, make_parser().parse_args(["--batch_size", "auto"]).batch_size) == (7, None)
    recorded = flags_of(args)
    assert recorded["output_dir"] == "a/b" and "debug" not in recorded
    assert recorded["mastery_parameters"] == str(tmp_path / "m.json")  # found from any folder


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
