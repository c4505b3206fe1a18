"""A server that segments and an archive, each made once for the tests of a process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundles import make_threshold_bundle
from tests.disks import small_disk
from tests.gateway.harness import dcmtk_program, storescu
from tests.outputs.orthanc import Orthanc, running_orthanc
from tests.server.harness import RunningServer, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle")
    with running_server(bundle.folder, folder / "process") as server:
        yield server


@pytest.fixture(scope="session")
def archive(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(require_program("Orthanc"), tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def send(require_program: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Sends a folder to a gateway as a modality does."""
    program = dcmtk_program(require_program, "storescu")
    return lambda gateway, folder, **options: storescu(program, gateway.dicom_port, folder, **options)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 24 MB."""
    with small_disk(tmp_path / "disk", 24) as folder:
        yield folder
