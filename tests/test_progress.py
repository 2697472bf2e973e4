"""Progress in a log: lines now and then, of finished rows and of the batch in flight."""

import time

from cot.utils.progress import Progress, tell_how_far


def test_progress_is_told_now_and_then_with_rate_and_what_is_left(monkeypatch, capsys):
    now = [0.0]  # in seconds
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(total=40, done=8, max_new_tokens=100)
    now[0] = 20.0
    progress.update(16, "accuracy 25.0%")  # 16 rows in 20 s; 16 are left
    now[0] = 21.0
    progress.update(1, "accuracy 24.0%")  # too soon for another line
    for tokens in range(1, 21):  # a second a token, of 8 rows
        now[0] = 20.0 + tokens
        progress.step(tokens, 8)
    now[0] = 60.0
    progress.update(8, "accuracy 30.0%")
    now[0] = 80.0
    progress.step(0, 4)  # of the next batch
    now[0] = 100.0
    progress.update(7, "accuracy 35.0%")
    assert capsys.readouterr().err.splitlines() == [
        "24/40 rows, 0.80 rows/s, accuracy 25.0%, ETA 00:20",
        # token 15, 14 s after the first: 14 * 8 tokens, and 85 tokens at a second each
        "25/40 rows, batch: token 15 of at most 100, 8 tokens/s, at most 01:25 left",
        "33/40 rows, 0.42 rows/s, accuracy 30.0%, ETA 00:16",  # 25 rows in 60 s; 7 are left
        "33/40 rows, batch: 4 prompts read",
        "40/40 rows, 0.32 rows/s, accuracy 35.0%, ETA 00:00",
    ]


def test_work_without_rows_tells_how_far_it_is_unless_it_ends_soon(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = tell_how_far("texts embedded")
    for now[0], done in ((9.0, 10), (18.0, 20), (27.0, 30), (36.0, 40)):
        watch(done, 40)
    assert capsys.readouterr().err == "20/40 texts embedded\n"  # nothing at 27 s, nothing at the end
