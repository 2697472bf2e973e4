"""Progress in a log: lines now and then, of finished rows and of the batch in flight."""

import pytest

from cot.utils import progress as module
from cot.utils.progress import Progress, tell_how_far


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand, in seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_finished_rows_are_told_with_rate_and_what_is_left(clock, capsys):
    progress = Progress(total=40, done=8, max_new_tokens=100)
    clock[0] = 20.0
    progress.update(16, "accuracy 25.0%")  # 16 rows in 20 s; 16 are left
    clock[0] = 21.0
    progress.update(1, "accuracy 24.0%")  # too soon for another line
    clock[0] = 40.0
    progress.update(15, "accuracy 30.0%")
    assert capsys.readouterr().err.splitlines() == [
        "24/40 rows, 0.80 rows/s, accuracy 25.0%, ETA 00:20",
        "40/40 rows, 0.80 rows/s, accuracy 30.0%, ETA 00:00",
    ]


def test_a_long_batch_is_no_silence(clock, capsys):
    progress = Progress(total=32, done=0, max_new_tokens=100)
    for tokens in range(1, 41):  # a second a token, 8 rows of which 4 end after the 20th
        clock[0] = float(tokens)
        progress.step(tokens, 8 if tokens <= 20 else 4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    # token 15, 14 s after the first: 14 * 8 tokens, and 85 tokens at a second each
    assert lines[0] == "0/32 rows, batch: token 15 of at most 100, 8 tokens/s, at most 01:25 left"
    assert lines[1].startswith("0/32 rows, batch: token 30 of at most 100, ")


def test_the_next_batch_counts_from_its_own_beginning(clock, capsys):
    progress = Progress(total=32, done=0, max_new_tokens=50)
    clock[0] = 20.0
    progress.step(1, 12)  # a line is due, but one moment has no rate
    clock[0] = 26.0
    progress.step(2, 12)
    (line,) = capsys.readouterr().err.splitlines()
    assert "token 2 of at most 50, 2 tokens/s, at most 04:48 left" in line  # 12 tokens in 6 s; 48 times 6 s


def test_work_without_rows_tells_how_far_it_is_unless_it_ends_soon(clock, capsys):
    watch = tell_how_far("texts embedded")
    for clock[0], done in ((9.0, 10), (18.0, 20), (27.0, 30), (36.0, 40)):
        watch(done, 40)
    assert capsys.readouterr().err == "20/40 texts embedded\n"  # nothing at 27 s, nothing at the end
