"""The processes of one launch, which share a run's rows: which one this is, and what they agree on.

`torchrun` and `accelerate launch` start a command several times, on one machine or on several. Each copy is
told its number (`RANK`), how many there are (`WORLD_SIZE`), and where a store is that all of them reach
(`MASTER_ADDR`, `MASTER_PORT`). The store is asked when a run or a policy begins. Files say all else: what a
process has answered stands in its part of the journal, whose lock is free once it has ended, however it did.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil

from cot.utils.errors import EXIT_UNEXPECTED, UserError

if TYPE_CHECKING:
    from cot.utils.records import Row

GUARD = """
import contextlib, os, signal, sys
sys.stdin.read()  # to its end, which comes with that of the process at its other end
for pid in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
"""
WAIT_S = 600.0  # that process 0 may take longer than another to open the run
LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"}
LAUNCHER |= {"ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_")


def launcher_variables() -> list[str]:
    """Those of the environment by which a launcher says that a process is one of several."""
    return [name for name in os.environ if name in LAUNCHER or name.startswith(LAUNCHER_PREFIXES)]


def leave_launch() -> None:
    """From here on this process counts as alone, for work that it shares with none."""
    for name in launcher_variables():
        del os.environ[name]


def guard_children() -> subprocess.Popen:
    """A process that ends the children of this one with it, or with the object that this returns.

    By themselves those of a library outlive a process that is killed, and keep the memory that the same
    command needs.
    """
    pids = [
        str(process.pid)
        for process in psutil.Process().children(recursive=True)
        if not any("resource_tracker" in word for word in process.cmdline())  # it clears up by itself
    ]
    command = [sys.executable, "-c", GUARD, *pids]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def refuse_launcher(what: str) -> None:
    """For work that cannot be shared.

    Raises:
        UserError: there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what}: it takes one process; start it without torchrun and accelerate launch")


def share_rows(rows: Sequence["Row"], count: int) -> list[list["Row"]]:
    """Deals rows to so many processes: each gets about as many answers to generate, from prompts as long.

    Rows of one prompt stay together, whoever the student is: it is computed once, and so is an answer that is
    the same for all of them. From the longest prompt to the shortest, each goes where the fewest answers are.
    """
    prompts: dict[tuple, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row.shown, []).append(row)

    def length(shown: tuple) -> int:
        row = prompts[shown][0]
        return len(row.moment.question.question) + sum(map(len, row.memory.length_of or row.memory.lines))

    process_of, answers = {}, [0] * count
    for shown in sorted(prompts, key=length, reverse=True):
        process = process_of[shown] = answers.index(min(answers))
        # greedy samples of one prompt are one answer
        answers[process] += len({(row.temperature, row.temperature and row.sample) for row in prompts[shown]})
    return [[row for row in rows if process_of[row.shown] == process] for process in range(count)]


class Processes:
    """This process among those of its launch; alone where there is no launcher.

    Attributes:
        rank: its number. Process 0 opens the run and puts the results together.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        self._store = None
        if self.count > 1:
            from torch.distributed.rendezvous import rendezvous

            self._store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=WAIT_S)))

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def tell(self, name: str, value: str) -> None:
        """Says something to all others."""
        if self._store is not None:
            self._store.set(name, value)

    def hear(self, name: str, within_s: float = WAIT_S) -> str:
        """What a process has told, or will soon.

        Raises:
            UserError: it has not within that time.
        """
        deadline = time.monotonic() + within_s
        while not self._store.check([name]):  # and not `wait`, in which no signal would be noticed
            if time.monotonic() > deadline:
                problem = f"process 0 has not opened the run within {within_s:.0f} s of this one"
                raise UserError(f"process {self.rank} of {self.count}: {problem}", EXIT_UNEXPECTED)
            time.sleep(0.1)
        return self._store.get(name).decode()

    def agree(self, name: str, proposal: str) -> str:
        """What the first process to come has proposed under this name, be it this one."""
        if self._store is None:
            return proposal
        return self._store.compare_set(name, "", proposal).decode()
