"""Where a run stands, for the person at the terminal and for a log."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

from tqdm import tqdm

LINE_EVERY_S = 15.0  # where there is no terminal
STEP_EVERY_S = 0.5  # of a batch in flight, on a terminal
DEFAULT_SIZE = 80, 24


def keep_bars_out_of_logs() -> None:
    """Lets the library's bars while weights load stand on a terminal alone."""
    if not sys.stderr.isatty():
        from transformers import modeling_gguf_pytorch_utils as gguf
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        gguf.tqdm = partial(tqdm, disable=True)  # the bar of a GGUF file asks for no setting


def tell_how_far(what: str) -> Callable[[int, int], None]:
    """A watcher of work that takes minutes where there is much of it: now and then a line on standard error.

    Args:
        what: is done, such as "texts embedded".
    """
    last_line = time.monotonic()

    def watch(done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if done < total and now - last_line >= LINE_EVERY_S:
            last_line = now
            print(f"{done}/{total} {what}", file=sys.stderr, flush=True)

    return watch


class Progress:
    """Progress with rate and ETA on standard error: a bar on a terminal, now and then a line in a log.

    Args:
        total: rows of the whole run.
        done: rows that an earlier attempt has finished; they count, but not towards the rate.
        max_new_tokens: at which a batch ends at the latest.
        silent: says nothing, as of several processes one speaks.
    """

    def __init__(self, total: int, done: int, max_new_tokens: int, silent: bool = False) -> None:
        self._terminal, self._silent = sys.stderr.isatty() and not silent, silent
        self._start = self._last_line = time.monotonic()
        # some terminals do not know their size: a bar as wide as they say would be empty
        knows_size = self._terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        columns, lines = (None, None) if knows_size else DEFAULT_SIZE
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="row",
            disable=not self._terminal,
            ncols=columns,
            nrows=lines,
            dynamic_ncols=knows_size,
        )
        self._total, self._first, self._done = total, done, done
        self._max_new_tokens, self._note = max_new_tokens, ""
        self._batch_start, self._batch_tokens, self._batch_steps = self._start, 0, 0

    def step(self, tokens: int, rows: int) -> None:
        """Says now and then where the batch in flight stands.

        Args:
            tokens: that the longest row of it has by now; 0 while its prompts are read.
            rows: of it that go on; with 0 tokens, prompts that have been read.
        """
        now = time.monotonic()
        if tokens == 1:  # a rate takes two moments
            self._batch_start, self._batch_tokens, self._batch_steps = now, 0, 0
            return
        if tokens:
            self._batch_tokens += rows
            self._batch_steps += 1
        if self._silent or now - self._last_line < (STEP_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        self._last_line = now

        text = f"batch: {rows} prompts read"
        if tokens:
            elapsed_s = max(now - self._batch_start, 1e-9)
            left_s = elapsed_s / self._batch_steps * (self._max_new_tokens - tokens)
            rate = self._batch_tokens / elapsed_s
            text = f"batch: token {tokens} of at most {self._max_new_tokens}, {rate:.0f} tokens/s,"
            text += f" at most {self._bar.format_interval(left_s)} left"
        if self._terminal:
            self._bar.set_postfix_str(", ".join(filter(None, (self._note, text))))
        else:
            print(f"{self._done}/{self._total} rows, {text}", file=sys.stderr, flush=True)

    def update(self, rows: int, note: str) -> None:
        """Adds finished rows; `note` is what the user wants to see beside them."""
        self._done, self._note = self._done + rows, note
        if self._terminal:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(rows)
            return

        now = time.monotonic()
        if self._silent or (now - self._last_line < LINE_EVERY_S and self._done < self._total):
            return
        self._last_line = now
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        eta = self._bar.format_interval((self._total - self._done) / rate)
        line = f"{self._done}/{self._total} rows, {rate:.2f} rows/s, {note}, ETA {eta}"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
