"""One tiny run and its bundle for all tests of the exporter (one per process when they run in parallel)."""

from __future__ import annotations

import pytest

from exporter.export import export
from semiseg.bundle.bundle import Bundle
from tests.runs import TinyRun, make_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Finished; not to be changed."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported from it; not to be changed."""
    return export(tiny_run.folder, tmp_path_factory.mktemp("bundles") / "tiny").bundle
