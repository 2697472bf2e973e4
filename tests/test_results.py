"""What a result file says beside its records."""

import pytest

from cot.utils.results import code_version, environment


@pytest.mark.parametrize(
    "name", ["cot/utils/module.py", "rl/module.py", "evaluate_rl.py", "data/textbook/chapter.json"]
)
def test_the_code_version_changes_with_a_line_of_code_or_of_the_textbook(name, tmp_path, monkeypatch):
    before = code_version.__wrapped__()
    assert environment("cpu")["code"] == before and environment("cpu")["versions"]["torch"]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("cot.utils.results.REPO_ROOT", tmp_path)
    found = {before}
    for line in ("1\n", "2\n"):
        (tmp_path / name).write_text(line)
        found.add(code_version.__wrapped__())
    assert len(found) == 3
