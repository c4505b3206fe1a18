"""Processors, memory, GPU driver, signals and file owners, with and without what Linux has for each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semiseg.system import memory, nvidia, processors
from semiseg.system.file_owners import is_owned_by_current_user, set_private_umask
from semiseg.system.signals import STOP_SIGNALS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_proc(monkeypatch) -> None:
    """A system without /proc."""
    read = Path.read_text

    def hidden(self, *arguments, **more):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", hidden)
    processors.processor_flags.cache_clear()
    yield
    processors.processor_flags.cache_clear()


def test_as_many_processors_as_the_process_was_left(tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system does not let a process be kept to some processors")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from semiseg.system.processors import usable_processors; print(usable_processors())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "1"


def test_processors_are_counted_by_what_the_python_and_the_system_have(monkeypatch):
    monkeypatch.setitem(vars(os), "process_cpu_count", lambda: 3)
    assert processors.usable_processors() == 3
    monkeypatch.delitem(vars(os), "process_cpu_count", raising=False)
    monkeypatch.setitem(vars(os), "sched_getaffinity", lambda pid: {0, 5})
    assert processors.usable_processors() == 2
    monkeypatch.delitem(vars(os), "sched_getaffinity", raising=False)
    monkeypatch.setitem(vars(os), "cpu_count", lambda: 7)
    assert processors.usable_processors() == 7
    monkeypatch.setitem(vars(os), "cpu_count", lambda: None)
    assert processors.usable_processors() == 1


def test_linux_tells_instruction_sets_name_and_load():
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        pytest.skip("only Linux describes its processors in a file")
    assert processors.processor_name() in text or processors.processor_name() == os.uname().machine
    if "\nflags" in text:
        assert {"sse2", "fpu"} <= processors.processor_flags()
    assert processors.load_average() >= 0


@pytest.mark.usefixtures("without_proc")
def test_without_proc_nothing_is_claimed_of_the_processor_and_of_this_processs_memory(monkeypatch):
    monkeypatch.delitem(vars(os), "getloadavg", raising=False)
    assert processors.processor_flags() == frozenset()
    assert processors.processor_name()
    assert processors.load_average() is None
    assert memory.resident_memory() is None and memory.peak_memory() is None
    assert nvidia.nvidia_driver() is None or sys.platform == "win32"


def test_linux_tells_memory_and_its_peak_can_begin_anew():
    if memory.peak_memory() is None:
        pytest.skip("only Linux tells the peak")
    much = bytearray(2**26)
    much[::4096] = b"x" * len(much[::4096])
    assert memory.peak_memory() >= memory.resident_memory() > 2**26
    highest = memory.peak_memory()
    del much
    memory.reset_peak_memory()
    assert memory.peak_memory() < highest
    assert memory.physical_memory() > memory.resident_memory()


def test_physical_memory_is_unknown_where_neither_posix_nor_windows_tells_it(monkeypatch):
    monkeypatch.delitem(vars(os), "sysconf", raising=False)
    monkeypatch.delattr("ctypes.windll", raising=False)
    assert memory.physical_memory() is None


def test_windows_is_asked_for_its_memory_in_the_form_that_it_documents(monkeypatch):
    """Against a stand-in of GlobalMemoryStatusEx; the structure must be the documented 64 bytes."""

    class Kernel:
        @staticmethod
        def GlobalMemoryStatusEx(reference):  # noqa: N802 - Windows' name
            status = reference._obj
            assert status.length == 64
            status.total = 16 * 2**30
            return 1

    class Windll:
        kernel32 = Kernel

    monkeypatch.delitem(vars(os), "sysconf", raising=False)
    monkeypatch.setattr("ctypes.windll", Windll, raising=False)
    assert memory.physical_memory() == 16 * 2**30


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_memory_is_given_back_where_the_c_library_can_and_nothing_happens_elsewhere(monkeypatch, error):
    memory.limit_malloc_arenas()
    memory.release_free_memory()

    def no_library(name):
        raise error("not here")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    memory.limit_malloc_arenas()
    memory.release_free_memory()


def test_a_process_is_stopped_by_the_signals_that_its_system_has():
    assert set(STOP_SIGNALS) >= {signal.SIGTERM, signal.SIGINT}
    assert all(isinstance(one, signal.Signals) for one in STOP_SIGNALS)
    assert (len(STOP_SIGNALS) == 3) == hasattr(signal, "SIGBREAK")


def test_ctrl_break_stops_where_there_is_one():
    code = (
        "import signal; signal.SIGBREAK = signal.Signals(21); "
        "from semiseg.system.signals import STOP_SIGNALS; print(len(STOP_SIGNALS))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "3"


def test_own_file_is_ours_and_anothers_is_not_where_users_have_numbers(tmp_path, monkeypatch):
    found = tmp_path.stat()
    assert is_owned_by_current_user(found)
    monkeypatch.setitem(vars(os), "getuid", lambda: found.st_uid + 1)
    assert not is_owned_by_current_user(found)
    monkeypatch.delitem(vars(os), "getuid", raising=False)
    assert is_owned_by_current_user(found)


def test_new_files_of_a_process_that_asked_for_it_are_its_owners_alone(tmp_path):
    before = os.umask(0o022)
    try:
        set_private_umask()
        (tmp_path / "file").write_bytes(b"")
        assert (tmp_path / "file").stat().st_mode & 0o077 == 0 or sys.platform == "win32"
    finally:
        os.umask(before)
