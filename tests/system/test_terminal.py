"""What is printed where the output's encoding has few characters, as Windows' code pages have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from semiseg.system import terminal

PRINT = """
from semiseg.system.terminal import replace_unencodable_characters
replace_unencodable_characters()
print("Größe \\u0394 \\u65e5")
"""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", "Größe ? ?"), ("ascii", "Gr??e ? ?"), ("utf-8", "Größe \u0394 \u65e5")]
)
def test_character_that_the_encoding_lacks_is_replaced_and_stops_nothing(encoding: str, shown: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRINT],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.decode(encoding).strip() == shown


def test_the_command_line_ends_well_when_the_encoding_lacks_a_character(tmp_path: Path) -> None:
    name = tmp_path / "日本"
    run = subprocess.run(
        [sys.executable, "-m", "cli.app", "inspect", str(name)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 2, run.stderr
    assert b"Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "typed"), [("nt", 'train --out "my run" C:\\data'), ("posix", "train --out 'my run' 'C:\\data'")]
)
def test_command_is_shown_as_the_systems_shell_takes_it(monkeypatch: pytest.MonkeyPatch, name: str, typed: str) -> None:
    monkeypatch.setattr(terminal, "os", SimpleNamespace(name=name))
    assert terminal.shell_join(["train", "--out", "my run", "C:\\data"]) == typed
