"""How a script ends: exit codes, one-line errors, real signals, a closed terminal."""

import inspect
import os
import signal
import subprocess
import sys

import pytest
from conftest import run_python

from cot.utils.errors import UserError
from cot.utils.paths import REPO_ROOT


def script_of(*body, debug=False):
    """A script whose body is given; the exit code it would end with is 3."""
    lines = [
        "import os, signal, sys",
        "from cot.utils.errors import UserError, script_frame",
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
    if code != 3:
        done = run_body(body, debug=True)
        assert done.returncode == code and "Traceback" in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_script_with_128_and_its_number_after_what_must_be_saved(name):
    # a library may catch every Exception: a signal must get past it
    done = run_body(
        f"try: os.kill(os.getpid(), signal.{name})", "except Exception: pass", "finally: print('saved')"
    )
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stdout == "saved\n"
    assert done.stderr == f"\ninterrupted by {name}; run the same command again\n"


def test_what_holds_signals_comes_to_its_end_first_and_a_signal_that_was_lost_ends_the_next_loop():
    kill = "os.kill(os.getpid(), signal.SIGTERM)"
    held = ["with hold_signals():", f"    {kill}", "    print('whole')", "print('not here')"]
    # what is raised inside a __del__ is only printed
    lost = ["class Gone:", f"    def __del__(self): {kill}", "Gone(); print('whole')", "raise_if_signalled()"]
    for body in (held, lost):
        done = run_body("from cot.utils.errors import hold_signals, raise_if_signalled", *body)
        assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "whole\n")
        assert done.stderr.endswith("\ninterrupted by SIGTERM; run the same command again\n")


def test_a_script_that_a_signal_ended_calls_the_hooks_of_libraries_and_frees_nothing():
    # to free what a run of 100,000 answers holds takes a second
    body = ["import atexit", "atexit.register(print, 'hook')", "print('said', end=' ')"]
    body += ["class Held:", "    def __del__(self): print('freed')", "held = Held()"]
    done = run_body(*body, "os.kill(os.getpid(), signal.SIGTERM)")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "said hook\n")

    done = run_body(*body)
    assert (done.returncode, sorted(done.stdout.split())) == (3, ["freed", "hook", "said"])


def test_a_second_interrupt_ends_the_process_at_once():
    kill = "os.kill(os.getpid(), signal.SIGINT)"
    done = run_body(f"try: {kill}", f"finally: {kill}; print('never', flush=True)")
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")


def test_nohup_keeps_a_script_running(monkeypatch):
    monkeypatch.setenv("NOHUP", "1")
    assert run_body("os.kill(os.getpid(), signal.SIGHUP)").returncode == 3


@pytest.mark.slow
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


@pytest.mark.parametrize("package", ["faiss", "matplotlib", "sentence_transformers", "spacy"])
def test_an_absent_package_is_named_before_a_model_loads(package, monkeypatch):
    from cot.utils.scorers import load_scorers

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install -r requirements\.txt"):
        inspect.unwrap(load_scorers)("cpu")  # the tests' own is made once
