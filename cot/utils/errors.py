"""How a script ends: exit codes, errors of one line, signals, a lost terminal, and the frame of a script.

Every exception but `UserError` and `Interrupted` is a defect or a condition that the caller handles; it ends
a script with `EXIT_UNEXPECTED` and, under `--debug`, its traceback.
"""

import atexit
import errno
import gc
import importlib.util
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_USAGE = 2  # a flag, a file, the data or the environment
EXIT_SAMPLES = 3  # too many samples failed
EXIT_SIGNAL = 128  # plus the signal's number
# What scoring one text can raise: a gold answer that does not parse, broken arithmetic, a missing field.
TEXT_ERRORS = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError)


class UserError(Exception):
    """One line that says what is wrong and what to do about it.

    Args:
        message: names the flag or the file, the value, and what is allowed; line breaks become spaces.
        exit_code: the script's exit status, `EXIT_USAGE` unless told.
    """

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(" ".join(str(message).split()))
        self.exit_code = exit_code


def require(*packages: str) -> None:
    """Looks for packages that are imported late, without importing them.

    Raises:
        UserError: one of them is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install -r requirements.txt")


class Interrupted(BaseException):
    """A signal asked the process to end. A `BaseException`, so that no handler of errors takes it for one.

    Attributes:
        exit_code: 128 plus the signal's number.
        advice: what the person at the terminal can do next.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = EXIT_SIGNAL + signum
        self.advice = "run the same command again"


class _Signals:
    """What this process was asked for; there is one, as handlers belong to the process.

    Attributes:
        received: the first signal since `raise_on_signals`.
        held: it is only noted, for now.
        ended_by: what a signal ended the script with; its frames hold all that the script held.
    """

    received: int | None = None
    held: bool = False
    ended_by: Interrupted | None = None


class _Terminal(io.FileIO):
    """The terminal; once it is gone, what is written to it goes nowhere."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def is_main_process() -> bool:
    """Whether this process says where a run stands: of several that a launcher started, one does."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


def outlive_terminal() -> None:
    """Lets no print of this process fail because its terminal was closed, as when SSH drops."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream.isatty():
            stream.flush()
            raw = _Terminal(stream.fileno(), "w", closefd=False)
            text = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
            )
            setattr(sys, name, text)


def raise_on_signals() -> None:
    """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`; a second Ctrl-C ends the process at once.

    SIGHUP stays ignored where `nohup` has ignored it.
    """
    _Signals.received, _Signals.held, _Signals.ended_by = None, False, None

    def interrupt(signum: int, _frame) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # one request to end is enough while the results are saved
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_SIGNAL + signal.SIGINT))
        _Signals.received = signum
        if not _Signals.held:
            raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
            continue
        signal.signal(signum, interrupt)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Lets its body come to its end: a signal is only noted, and is `Interrupted` after it."""
    _Signals.held = True
    try:
        yield
    finally:
        _Signals.held = False
    raise_if_signalled()


def signal_received() -> int:
    """The first signal that asked this process to end; 0 where none did."""
    return _Signals.received or 0


def share_signal(signum: int) -> None:
    """Takes a signal that another process of the same run received for this one's own."""
    _Signals.received = _Signals.received or signum


def raise_if_signalled() -> None:
    """For loops: an exception that a handler raises is lost where a `__del__` is running.

    Raises:
        Interrupted: a signal came.
    """
    if _Signals.received is not None:
        raise Interrupted(_Signals.received)


class Outcome:
    """How a script ends: its exit code, `EXIT_OK` until the script says otherwise."""

    exit_code: int = EXIT_OK


@contextmanager
def script_frame(debug: bool) -> Iterator[Outcome]:
    """Runs a script's body: an error becomes one line on standard error and an exit code.

    Args:
        debug: print an error's traceback, too.

    Yields:
        What the body sets its exit code on. An error in the body sets the error's own.
    """
    if not debug:
        sys.excepthook = _print_in_one_line  # the interpreter then exits with EXIT_UNEXPECTED
    atexit.register(_leave_at_once)  # before those of the libraries: the first hook is called last
    outlive_terminal()
    if not is_main_process():
        sys.stdout = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    raise_on_signals()
    outcome = Outcome()
    try:
        yield outcome
    except Interrupted as error:
        if is_main_process():
            print(f"\ninterrupted by {error}; {error.advice}", file=sys.stderr)
        outcome.exit_code = error.exit_code
        _Signals.ended_by = error
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        outcome.exit_code = error.exit_code


def _leave_at_once() -> None:
    """Shortens an interpreter's end, which looks through all imports: three seconds.

    One that a signal ended does not free what it holds either: of 100,000 answers that takes another.
    """
    gc.freeze()
    if _Signals.ended_by:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_Signals.ended_by.exit_code)


def _print_in_one_line(kind: type[BaseException], error: BaseException, _trace) -> None:
    if isinstance(error, OSError):  # a full disk, a vanished folder: the operating system's own words
        message = f"{error.filename or 'output'}: {error.strerror or error}"
    else:
        message = f"unexpected {kind.__name__}: {error} (--debug shows the traceback)"
    message = "; ".join([message, *getattr(error, "__notes__", [])])
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
