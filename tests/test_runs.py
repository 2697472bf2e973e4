"""Training runs on the disk: which checkpoint counts, which run continues."""

import json
from pathlib import Path

import pytest
from conftest import read_strictly

import rl.runs
from cot.utils.errors import UserError
from cot.utils.model_names import ModelSource
from rl.runs import (
    checkpoints,
    find_checkpoint,
    keep_up_to,
    mark_complete,
    open_run,
    refuse_changes,
)

# --- checkpoints ------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        mark_complete(path)
    return path


def test_the_newest_complete_checkpoint_is_taken_and_broken_ones_set_aside(tmp_path):
    make_checkpoint(tmp_path, 9)
    best = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, complete=False)
    (make_checkpoint(tmp_path, 12) / "model.safetensors").write_bytes(b"we")  # cut short
    (make_checkpoint(tmp_path, 13) / "model.safetensors").unlink()
    (make_checkpoint(tmp_path, 14) / "complete.json").write_text('{"files": {"model.saf')
    (make_checkpoint(tmp_path, 15) / "model.safetensors").write_bytes(bytes(7))  # as long as it was
    assert find_checkpoint(tmp_path, "auto") == best
    assert sorted(path.name for path in tmp_path.glob("broken-*")) == [
        f"broken-checkpoint-{step}" for step in (11, 12, 13, 14, 15)
    ]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    with pytest.raises(UserError, match="--resume never"):
        find_checkpoint(tmp_path, "never")
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "broken-checkpoint-11"))


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_up_to(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory", "--memory new: the checkpoint was made with old; use that, or start in another"),
        ("code_version", "the code changed since the checkpoint was made; start in another --output_dir"),
        ("model_revision", "--model_name: the weights changed"),
        ("students_content", "--profiles_dir: the profiles or memories changed"),
        ("questions_content", "--dataset: the questions changed"),
    ],
)
def test_what_decides_a_run_cannot_change_under_its_checkpoint(name, message):
    same = {"memory": "old", "seed": 0, "code_version": "old", name: "old"}
    refuse_changes(same, dict(same))
    with pytest.raises(UserError, match=message):
        refuse_changes(same, same | {name: "new"})


# --- run folders ------------------------------------------------------------------------------------------


class Alone:
    """The only process of a run."""

    is_main_process, num_processes = True, 1

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""


SOURCE = ModelSource("/models/tutor", "folder", Path("/models/tutor"), "r1")


def open_and_release(identity: dict, source: ModelSource = SOURCE):
    folder = open_run(None, source, identity, "auto", Alone())
    folder.lock.release()
    return folder


def test_an_unfinished_run_is_found_again_and_a_finished_one_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(rl.runs, "DATA_DIR", tmp_path)
    settings = {"memory": "own", "seed": 0}
    old = tmp_path / "tutor" / "rl_20260101_000000"
    old.mkdir(parents=True)
    identity = open_and_release(settings).identity

    def leave(status: str) -> None:
        (old / "run.json").write_text(json.dumps({"status": status, "config": {"identity": identity}}))

    leave("cancelled")
    assert open_and_release(settings).path == old
    assert open_and_release(settings | {"memory": "none"}).path != old
    other_weights = ModelSource("/models/tutor", "folder", Path("/models/tutor"), "r2")
    assert open_and_release(settings, other_weights).path != old
    monkeypatch.setattr("cot.utils.results.code_version", lambda: "another")
    assert open_and_release(settings).path != old
    monkeypatch.undo()

    monkeypatch.setattr(rl.runs, "DATA_DIR", tmp_path)
    leave("success")
    assert open_and_release(settings).path != old


def test_a_finished_run_and_one_that_another_process_trains_are_refused(tmp_path):
    holder = open_run(tmp_path / "held", SOURCE, {}, "auto", Alone())
    with pytest.raises(UserError, match="another process trains there"):
        open_run(tmp_path / "held", SOURCE, {}, "auto", Alone())
    holder.lock.release()
    (tmp_path / "held" / "run.json").write_text('{"status": "success"}')
    with pytest.raises(UserError, match="this run is finished; name another folder"):
        open_run(tmp_path / "held", SOURCE, {}, "auto", Alone())


def test_a_run_that_continues_keeps_the_moment_at_which_it_began(tmp_path):
    identity = {"seed": 0}
    first = open_run(tmp_path, SOURCE, identity, "auto", Alone())
    first.begin(config={}, device="cpu")
    record = read_strictly(tmp_path / "run.json") | {"started": "20240726_235900"}
    first.close(record, "cancelled")
    again = open_run(tmp_path, SOURCE, identity, "auto", Alone())
    assert again.started == again.begin(config={}, device="cpu")["started"] == "20240726_235900"
    again.close(record, "cancelled")
    other = open_run(tmp_path, SOURCE, {"seed": 1}, "auto", Alone())
    assert other.started != "20240726_235900"
