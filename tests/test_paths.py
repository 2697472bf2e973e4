"""Folders: where results may be written."""

import os

import pytest

from cot.utils.errors import UserError
from cot.utils.paths import writable_dir


def test_an_output_folder_is_created_or_refused(tmp_path):
    assert writable_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*file: "):
        writable_dir(tmp_path / "file")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="not writable"):
            writable_dir(tmp_path / "closed")
