"""The figures of docs/results/server, made anew: each script ends with 0 only when what it measures holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "docs" / "results" / "server"


def run(script: str, *arguments: str, environ: dict[str, str] | None = None) -> None:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    environment = {**os.environ, **(environ or {})}
    done = subprocess.run(
        command, cwd=SCRIPTS.parents[2], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_fifty_kills_lose_nothing_and_double_nothing():
    run("kills.py")


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_crowd_of_clients_gets_the_masks_that_each_would_get_alone():
    run("crowd.py", "600", "32")


@pytest.mark.parametrize("count", ["15", pytest.param("500", marks=pytest.mark.long)])
@pytest.mark.timeout(1600)
def test_hostile_uploads_get_a_mask_or_a_sentence(semiseg_data, count):
    """SRV-02."""
    run("hostile.py", count, environ={"SEMISEG_DATA": str(semiseg_data)})
