"""Which policies an evaluation compares: their names, their base, the newest run."""

import pytest
from conftest import make_run

from cot.utils.errors import UserError
from rl.policies import newest_run, parse_trained, resolve_policies


def test_the_newest_completed_run_is_found(tiny_folder, tmp_path):
    for number, (started, status) in enumerate(
        [("20260101_000000", "success"), ("20260301_000000", "success"), ("20260401_000000", "running")]
    ):
        make_run(tmp_path / "qwen" / f"rl_{number}", tiny_folder, tiny_folder, status=status, started=started)
    assert newest_run(tmp_path) == tmp_path / "qwen" / "rl_1"
    with pytest.raises(UserError, match=r"python rl/train_rl_memory\.py"):
        newest_run(tmp_path / "qwen")


def test_policies_are_named_by_what_they_were_trained_with(tiny_folder, tmp_path):
    runs = {
        memory: make_run(tmp_path / f"rl_{memory}", tiny_folder, tiny_folder, config={"memory": memory})
        for memory in ("own", "none", "shuffled")
    }
    found = resolve_policies(None, [(None, str(run)) for run in runs.values()])
    assert [policy.name for policy in found] == ["base", "ipo", "no_memory", "shuffled_memory"]
    assert found[0].source.name == str(tiny_folder) and found[1].source.path == runs["own"] / "model"
    described = found[2].describe()
    assert (described["memory"], described["training_seed"]) == ("none", 3)
    assert described["reward_weights"] == {"correct": 1.0}


def test_policies_that_cannot_be_told_apart_or_compared_are_refused(tiny_folder, tmp_path):
    run = make_run(tmp_path / "rl_1", tiny_folder, tiny_folder)
    with pytest.raises(UserError, match="two policies are called ipo"):
        resolve_policies(None, [(None, str(run)), ("ipo", str(run))])
    with pytest.raises(UserError, match="no policy names its base"):
        resolve_policies(None, [("x", str(run / "model"))])
    unfinished = make_run(tmp_path / "rl_2", tiny_folder, tiny_folder, status="running")
    with pytest.raises(UserError, match="not finished"):
        resolve_policies(None, [(None, str(unfinished))])
    assert parse_trained("a=b=c") == ("a", "b=c")
