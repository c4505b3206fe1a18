"""A series of twelve slices, written anew for each test; a module may make it of another phantom."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.volumes.edited_series import SLICE_COUNT


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return make_phantom(7, (26, 22, SLICE_COUNT), (3.6, 4.2, 5.0)).image


@pytest.fixture
def files(phantom: Volume, tmp_path: Path) -> list[Path]:
    return write_dicom_series(tmp_path / "series", phantom)
