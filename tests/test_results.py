"""What a result file says beside its records."""

import json

from cot.utils.results import code_version, document, environment


def make(status):
    return document(
        script="cot/run_baseline_cot.py",
        status=status,
        temperature=0.6,
        started="20260101_090000",
        config={"seed": 0},
        environment={"python": "3.11"},
        summary={"n": 1},
        results=[{"index": 0}],
    )


def test_only_what_has_ended_has_an_end():
    assert make("running")["finished"] is None
    assert len(make("cancelled")["finished"]) == len("20260101_090000")


def test_the_environment_names_versions_and_no_secret(monkeypatch):
    monkeypatch.setenv("CANARY_SECRET", "canary-9b1c")
    found = environment("cpu")
    assert "canary-9b1c" not in json.dumps(found)
    assert found["versions"]["torch"] and found["device"] == "cpu"
    assert found["code"] == code_version()


def test_the_code_version_changes_with_a_line_of_code(tmp_path, monkeypatch):
    before = code_version.__wrapped__()
    folder = tmp_path / "cot"
    folder.mkdir()
    (folder / "module.py").write_text("x = 1\n")
    monkeypatch.setattr("cot.utils.results.REPO_ROOT", tmp_path)
    one = code_version.__wrapped__()
    (folder / "module.py").write_text("x = 2\n")
    assert len({before, one, code_version.__wrapped__()}) == 3
