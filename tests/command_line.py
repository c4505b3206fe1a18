"""The command line, run in the process of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.app import main


def run_semiseg(*arguments: str | Path) -> int:
    """Run a command; its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)
