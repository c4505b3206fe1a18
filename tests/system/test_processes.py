"""A process that outlives its parent, and one that is stopped only if it still is the one that was meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semiseg.system.processes import process_start_id, start_detached, stop_process, supports_start_ids
from tests.polling import wait_until

SLEEP = [sys.executable, "-c", "import time; print('began', flush=True); time.sleep(600)"]


def test_a_detached_process_goes_on_without_its_parent(tmp_path: Path) -> None:
    output, ended = tmp_path / "output", tmp_path / "ended"
    child = f"import pathlib, time; time.sleep(1); pathlib.Path({str(ended)!r}).touch(); print('done')"
    parent = (
        "import sys; from pathlib import Path; from semiseg.system.processes import start_detached\n"
        f"start_detached([sys.executable, '-c', {child!r}], Path({str(output)!r}))"
    )
    subprocess.run([sys.executable, "-c", parent], check=True, timeout=60)
    assert not ended.exists()
    wait_until(lambda: ended.exists() and output.read_bytes().strip() == b"done")


@pytest.mark.skipif(not supports_start_ids(), reason="the system does not tell when a process was started")
def test_only_the_process_that_is_meant_is_stopped(tmp_path: Path) -> None:
    process = start_detached(SLEEP, tmp_path / "output")
    wait_until(lambda: (tmp_path / "output").read_bytes())
    birth = process_start_id(process.pid)
    assert birth and birth == process_start_id(process.pid) != process_start_id(os.getpid())
    assert not stop_process(process.pid, process_start_id(os.getpid())) and not stop_process(process.pid, "")
    assert process.poll() is None
    assert stop_process(process.pid, birth)
    process.wait(60)
    assert process_start_id(process.pid) == "" and not stop_process(process.pid, birth)
