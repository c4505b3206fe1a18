"""Folders of the server: held by one process, and moved as a whole."""

from __future__ import annotations

import pytest

from semiseg.errors import InputError
from server.jobs.files import held, move_durably


def test_folder_is_held_by_one_process_at_a_time(tmp_path):
    with held(tmp_path / "state"), pytest.raises(InputError, match="Another process"), held(tmp_path / "state"):
        pass
    with held(tmp_path / "state"):
        pass


def test_moved_folder_is_there_with_its_files_and_nowhere_else(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").write_bytes(b"x")
    move_durably(tmp_path / "work", tmp_path / "moved")
    assert (tmp_path / "moved" / "file").read_bytes() == b"x"
    assert not (tmp_path / "work").exists()
