"""Files that are complete or not there, on Linux and by the rules of Windows."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from semiseg.system import durable_files
from semiseg.system.durable_files import atomic_file, free_bytes, link_or_copy, move_durably, rename, replace_file, sync

WRITE = """
import os, sys
os.umask(int(sys.argv[2], 8))
from pathlib import Path
from semiseg.system.durable_files import atomic_file
for name, private in (("plain", False), ("private", True)):
    with atomic_file(Path(sys.argv[1]) / name, private=private) as stream:
        stream.write(b"x")
        part = next(Path(sys.argv[1]).glob(f".{name}.*.part"))
        print(oct(part.stat().st_mode & 0o777), end=" ")
    print(oct((Path(sys.argv[1]) / name).stat().st_mode & 0o777))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows takes permissions from the folder")
@pytest.mark.parametrize("mask", ["022", "027", "077", "002"])
@pytest.mark.parametrize("told", [True, False], ids=["mask told by the kernel", "mask read from a new file"])
def test_new_file_has_the_permissions_of_an_ordinary_one_and_a_private_one_is_its_owners(tmp_path, mask, told):
    code = WRITE if told else WRITE.replace("from pathlib import Path\n", "from pathlib import Path\n" + HIDE_PROC, 1)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), mask], capture_output=True, text=True, check=True, cwd=ROOT
    )
    ordinary = oct(0o666 & ~int(mask, 8))
    assert run.stdout.splitlines() == [f"0o600 {ordinary}", "0o600 0o600"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "private"]


ROOT = Path(__file__).parents[2]
HIDE_PROC = """
read = Path.read_text
def hidden(self, *args, **more):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(2, "No such file", str(self))
    return read(self, *args, **more)
Path.read_text = hidden
"""


def test_failure_inside_the_block_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    replace_file(tmp_path / "file", b"old")
    with pytest.raises(ValueError, match="no"), atomic_file(tmp_path / "file") as stream:
        stream.write(b"half")
        raise ValueError("no")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def held_by_others(number: int) -> PermissionError:
    """What Windows raises; ``number`` 5 is access denied, 32 a sharing violation."""
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = number
    return error


@pytest.mark.parametrize("number", [5, 32])
def test_file_that_a_virus_scanner_holds_for_a_moment_is_replaced_as_soon_as_it_lets_go(tmp_path, monkeypatch, number):
    """On Windows only; the error is Windows' own, the file system here never raises it."""
    replace_file(tmp_path / "file", b"old")
    let_go = threading.Event()
    pauses = []
    real = Path.replace

    def held(self, target):
        if not let_go.is_set():
            raise held_by_others(number)
        return real(self, target)

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            let_go.set()

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(durable_files.time, "sleep", pause)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(pauses) == 3


def test_file_that_stays_held_is_an_error_and_the_old_content_stays(tmp_path, monkeypatch):
    replace_file(tmp_path / "file", b"old")

    def held(self, target):
        raise held_by_others(32)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(durable_files.time, "sleep", lambda seconds: None)
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_permission_that_is_really_missing_is_an_error_at_once(tmp_path, monkeypatch):
    def denied(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    def pause(seconds):
        raise AssertionError("waited for a permission that will not come")

    monkeypatch.setattr(Path, "replace", denied)
    monkeypatch.setattr(durable_files.time, "sleep", pause)
    with pytest.raises(PermissionError):
        rename(tmp_path / "file", tmp_path / "other")


@pytest.mark.parametrize("opens_folders", [True, False], ids=["folders can be opened", "they cannot"])
def test_moved_folder_is_there_with_its_files_and_nowhere_else(tmp_path, monkeypatch, opens_folders):
    if opens_folders and not hasattr(os, "O_DIRECTORY"):
        pytest.skip("the system opens no folders")
    synced = []
    real = os.fsync
    monkeypatch.setattr(durable_files, "_opens_folders", lambda: opens_folders)
    monkeypatch.setattr("os.fsync", lambda handle: (synced.append(os.fstat(handle).st_mode), real(handle)))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").write_bytes(b"x")
    move_durably(tmp_path / "work", tmp_path / "moved")
    assert (tmp_path / "moved" / "file").read_bytes() == b"x"
    assert not (tmp_path / "work").exists()
    folders = [mode for mode in synced if os.path.stat.S_ISDIR(mode)]
    assert len(synced) - len(folders) == 1  # the file, always
    assert len(folders) == (2 if opens_folders else 0)


def test_sync_of_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "nothing")


def test_second_name_of_a_file_takes_no_room_where_there_are_links(tmp_path):
    (tmp_path / "one").write_bytes(b"x")
    link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"x"
    assert (tmp_path / "one").samefile(tmp_path / "two")


def test_file_is_copied_where_the_file_system_has_no_links_and_other_errors_are_told(tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(b"x")

    def fails_with(number):
        def link(source, target):
            raise OSError(number, os.strerror(number))

        return link

    monkeypatch.setattr("os.link", fails_with(errno.EPERM))
    link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"x"
    assert not (tmp_path / "one").samefile(tmp_path / "two")
    monkeypatch.setattr("os.link", fails_with(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        link_or_copy(tmp_path / "one", tmp_path / "three")


def test_free_bytes_are_those_that_this_user_may_write(tmp_path):
    if not hasattr(os, "statvfs"):
        pytest.skip("the system has no statvfs to compare with")
    before = os.statvfs(tmp_path)
    free = free_bytes(tmp_path)
    assert abs(free - before.f_bavail * before.f_frsize) < 2**30  # others write meanwhile


def test_disk_is_asked_to_write_its_own_cache_where_the_system_can_ask_it(tmp_path, monkeypatch):
    """macOS' F_FULLFSYNC, against a stand-in; a file system without it is written all the same."""
    fcntl = pytest.importorskip("fcntl", reason="only POSIX has it")
    asked = []

    def full(descriptor, command):
        asked.append(command)
        raise OSError(errno.ENOTSUP, "not on this file system")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    replace_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert set(asked) == {51} or not hasattr(os, "O_DIRECTORY")
