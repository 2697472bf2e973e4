"""What a result file says beside its records."""

from cot.utils.results import code_version, environment


def test_the_code_version_changes_with_a_line_of_code(tmp_path, monkeypatch):
    before = code_version.__wrapped__()
    assert environment("cpu")["code"] == before and environment("cpu")["versions"]["torch"]
    (tmp_path / "cot").mkdir()
    monkeypatch.setattr("cot.utils.results.REPO_ROOT", tmp_path)
    found = {before}
    for line in ("x = 1\n", "x = 2\n"):
        (tmp_path / "cot" / "module.py").write_text(line)
        found.add(code_version.__wrapped__())
    assert len(found) == 3
