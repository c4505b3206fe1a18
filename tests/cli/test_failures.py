"""What a person sees when something fails: a sentence, and neither a traceback nor a library's words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series

BREAK = """
import sys, typer
import cli.inspect as broken
app = typer.Typer()
@app.command()
def inspect(path: str) -> None:
    {failure}
broken.app = app
from cli.app import main
main(sys.argv[1:])
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("open('/nowhere/at/all')", "semiseg: /nowhere/at/all: No such file or directory."),
        ("{}['key']", "semiseg: this should not have happened (KeyError in <string>, line 7: 'key')."),
        ("raise RuntimeError", "semiseg: this should not have happened (RuntimeError in <string>, line 7)."),
    ],
)
def test_an_unforeseen_failure_is_a_sentence_and_a_traceback_only_on_demand(failure: str, told: str) -> None:
    code = BREAK.format(failure=failure)
    done = run(code, "inspect", "x")
    assert done.returncode == 1
    assert done.stderr.startswith(told) and "Traceback" not in done.stderr and "--debug" in done.stderr
    assert "Traceback" in run(code, "--debug", "inspect", "x").stderr


def test_libraries_do_not_warn_on_the_terminal(tmp_path: Path) -> None:
    """pydicom warns of text that it cannot decode, and quotes nothing here, but may elsewhere."""
    files = write_dicom_series(tmp_path / "series", make_phantom(7, (12, 10, 4), (8.0, 8.0, 24.0)).image)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "JANE"
        dataset.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"JANE", b"M\xfcl "))
    done = subprocess.run(
        [sys.executable, "-m", "semiseg", "inspect", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "PatientName cannot be decoded" in done.stdout


def test_a_pipe_that_is_closed_early_is_no_failure(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "series", make_phantom(7, (12, 10, 4), (8.0, 8.0, 24.0)).image)
    done = subprocess.run(
        f"{sys.executable} -m semiseg inspect {tmp_path} | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
