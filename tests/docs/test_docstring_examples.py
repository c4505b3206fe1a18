"""The examples in docstrings run, in a folder with the files that they name, and the public names have examples."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import semiseg
from docs.generators.document import REPOSITORY
from semiseg.phantoms.writers import write_dataset, write_dicom_series
from tests.packaging.environments import SHIPPED_PACKAGES
from tests.server.harness import RunningServer, running_server

RELEASE = REPOSITORY / "tests" / "releases" / "0.1.0"
MODULES = sorted(
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
    for package in SHIPPED_PACKAGES
    for file in (REPOSITORY / package).rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("examples")
    shutil.copytree(RELEASE / "bundle", made / "BUNDLE")
    shutil.copy(RELEASE / "scan.nii.gz", made / "SCAN.nii.gz")
    write_dicom_series(made / "SERIES", semiseg.read_nifti(RELEASE / "scan.nii.gz"))
    write_dataset(made / "DATA", cases=3, labelled=2, test=1, shape=(22, 20, 13), spacing=(5.0, 5.0, 8.0))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> RunningServer:
    with running_server(folder / "BUNDLE", folder / "process") as running:
        yield running


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, folder: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    module = importlib.import_module(name)
    found = doctest.testmod(module, extraglobs={"URL": server.url}, optionflags=doctest.ELLIPSIS, verbose=False)
    assert found.attempted > 0 and found.failed == 0


def test_every_public_name_has_an_example() -> None:
    without = [name for name in semiseg.__all__ if ">>> " not in (getattr(semiseg, name).__doc__ or "")]
    assert without == []
