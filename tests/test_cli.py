"""Flags and their help, and how a script ends: exit codes, one-line errors, real signals."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
from conftest import run_python

from cot.utils.cli import (
    REPO_ROOT,
    OneLineParser,
    add_memory_flags,
    add_sweep_flags,
    flags_of,
    number,
    writable_dir,
)
from cot.utils.errors import UserError

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


def test_an_output_folder_is_created_or_refused(tmp_path):
    assert writable_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*file: "):
        writable_dir(tmp_path / "file")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="not writable"):
            writable_dir(tmp_path / "closed")


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
    modules = "errors cli files answers equations fidelity model_names models"
    code = "import sys\n" + "".join(f"import cot.utils.{module}\n" for module in modules.split())
    done = run_python(f"{code}print({HEAVY | {'pydantic', 'huggingface_hub'}!r} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


# ---- how a script ends


def script_of(*body, debug=False):
    """A script whose body is given; the exit code it would end with is 3."""
    lines = [
        "import os, signal, sys",
        "from cot.utils.cli import script_frame",
        "from cot.utils.errors import UserError",
        "if os.environ.get('NOHUP'): signal.signal(signal.SIGHUP, signal.SIG_IGN)",
        "def main():",
        f"    with script_frame({debug}) as outcome:",
        *(f"        {line}" for line in body),
        "        outcome.exit_code = 3",
        "    return outcome.exit_code",
        "sys.exit(main())",
    ]
    return "\n".join(lines)


def run_body(*body, debug=False):
    """The same in a process of its own."""
    return run_python(script_of(*body, debug=debug))


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("pass", 3, ""),
        ("raise UserError('--flag x: expected\\ny')", 2, "error: --flag x: expected y\n"),
        ("raise UserError('too large', exit_code=1)", 1, "error: too large\n"),
        (
            "raise ValueError('odd\\nthing')",
            1,
            "error: unexpected ValueError: odd thing (--debug shows the traceback)\n",
        ),
        ("open('/no/such/file')", 1, "error: /no/such/file: No such file or directory\n"),
    ],
)
def test_a_script_ends_with_its_own_exit_code_or_with_one_line_and_an_errors(body, code, line):
    done = run_body(body)
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize(
    ("body", "code"), [("raise UserError('wrong')", 2), ("raise ValueError('wrong')", 1)]
)
def test_debug_shows_the_traceback_and_leaves_the_exit_code(body, code):
    done = run_body(body, debug=True)
    assert done.returncode == code
    assert "Traceback" in done.stderr and "wrong" in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_script_with_128_and_its_number_after_what_must_be_saved(name):
    # a library may catch every Exception: a signal must get past it
    done = run_body(
        f"try: os.kill(os.getpid(), signal.{name})", "except Exception: pass", "finally: print('saved')"
    )
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stdout == "saved\n"
    assert done.stderr == f"\ninterrupted by {name}; run the same command again\n"


def test_a_signal_whose_exception_is_lost_ends_the_next_loop():
    # what is raised inside a __del__ is only printed
    lines = ["class Gone:", "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)", "Gone()"]
    done = run_body(*lines, "from cot.utils.errors import raise_if_signalled", "raise_if_signalled()")
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.endswith("\ninterrupted by SIGTERM; run the same command again\n")


def test_what_holds_signals_comes_to_its_end_first():
    done = run_body(
        "from cot.utils.errors import hold_signals",
        "with hold_signals():",
        "    os.kill(os.getpid(), signal.SIGTERM)",
        "    print('whole')",
        "print('not here')",
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "whole\n")


def test_a_second_interrupt_ends_the_process_at_once():
    kill = "os.kill(os.getpid(), signal.SIGINT)"
    done = run_body(f"try: {kill}", f"finally: {kill}; print('never', flush=True)")
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == ""


def test_nohup_keeps_a_script_running(monkeypatch):
    monkeypatch.setenv("NOHUP", "1")
    assert run_body("os.kill(os.getpid(), signal.SIGHUP)").returncode == 3


@pytest.mark.parametrize(("nohup", "code"), [("", 128 + signal.SIGHUP), ("1", 3)])
def test_a_closed_terminal_is_a_signal_and_no_print_fails_on_it(nohup, code, tmp_path):
    body = [
        "import time",
        "try:",
        "    for _ in range(40): print('row'); print('row', file=sys.stderr); time.sleep(0.02)",
        "finally: print('saving'); open(sys.argv[1], 'x').close()",
    ]
    master, slave = os.openpty()

    def take_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.login_tty(slave)

    process = subprocess.Popen(
        [sys.executable, "-c", script_of(*body), str(tmp_path / "saved")],
        cwd=REPO_ROOT,
        env=os.environ | {"NOHUP": nohup},
        preexec_fn=take_terminal,
    )
    os.close(slave)
    assert b"row" in os.read(master, 100)
    os.close(master)
    assert process.wait(timeout=60) == code
    assert (tmp_path / "saved").exists()
