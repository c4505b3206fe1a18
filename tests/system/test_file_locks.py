"""A folder that one process holds: against this and earlier versions, and whatever becomes of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semiseg.errors import InputError
from semiseg.system.file_locks import LOCK, exclusive_lock

HOLD = """
import sys
from pathlib import Path
from semiseg.system.file_locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
# What semiseg 0.1.0 does to hold a folder.
HOLD_AS_BEFORE = """
import fcntl, os, sys
stream = os.fdopen(os.open(sys.argv[1] + "/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb+")
fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path, code: str = HOLD) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_folder_is_held_by_one_at_a_time_and_by_the_next_one_afterwards(tmp_path):
    with (
        exclusive_lock(tmp_path / "state"),
        pytest.raises(InputError, match="Another process"),
        exclusive_lock(tmp_path / "state"),
    ):
        pass
    with exclusive_lock(tmp_path / "state"):
        pass


def test_folder_of_another_process_is_refused_until_that_process_was_killed(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(InputError, match="Another process"), exclusive_lock(tmp_path):
            pass
        process.kill()
        process.wait(60)
        with exclusive_lock(tmp_path):
            pass


def test_folder_that_an_earlier_version_holds_is_refused(tmp_path):
    pytest.importorskip("fcntl", reason="earlier versions ran where there is fcntl")
    with holder(tmp_path, HOLD_AS_BEFORE) as process:
        with pytest.raises(InputError, match="Another process"), exclusive_lock(tmp_path):
            pass
        process.kill()


def test_earlier_version_is_kept_out_of_a_folder_that_is_held(tmp_path):
    pytest.importorskip("fcntl", reason="earlier versions ran where there is fcntl")
    with exclusive_lock(tmp_path):
        run = subprocess.run(
            [sys.executable, "-c", HOLD_AS_BEFORE, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert run.returncode != 0 and "BlockingIOError" in run.stderr


def test_lock_is_not_taken_through_a_link_and_changes_nothing_behind_it(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "state"
    victim.write_bytes(b"precious")
    folder.mkdir()
    try:
        (folder / LOCK).symlink_to(victim)
    except OSError:
        pytest.skip("this user may not make symbolic links")
    with pytest.raises(InputError, match="cannot be written"), exclusive_lock(folder):
        pass
    assert victim.read_bytes() == b"precious"


def test_lock_file_is_its_owners_alone_and_keeps_its_content(tmp_path):
    with exclusive_lock(tmp_path):
        file = tmp_path / LOCK
        assert file.stat().st_mode & 0o077 == 0 or sys.platform == "win32"
    file.write_bytes(b"kept")
    with exclusive_lock(tmp_path):
        pass
    assert file.read_bytes() == b"kept"


def test_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file.state cannot be written"), exclusive_lock(tmp_path / "file" / "state"):
        pass
