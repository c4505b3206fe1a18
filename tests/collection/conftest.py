"""A clinic's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.collection.clinical_data import (
    DIRECTIONS,
    Case,
    write_labels_as_rtstruct,
    write_labels_as_seg,
    write_scan,
)


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Three patients: one with a SEG, one with an RTSTRUCT, one that nobody outlined; and litter."""
    root = tmp_path / "src"
    for seed, (folder, direction) in enumerate([("a/x", "axial"), ("b/deep/er", "oblique"), ("c", "sagittal")], 1):
        series, labels = write_scan(root / folder, seed, direction, patient=f"MRN-77{seed}")
        if seed == 1:
            write_labels_as_seg(root / "elsewhere/object-55.dcm", series, labels)
        elif seed == 2:
            write_labels_as_rtstruct(root / "elsewhere/rt.dcm", series, labels)
    (root / "a/readme.txt").write_text("litter")
    (root / "c/.DS_Store").write_bytes(b"hidden")
    (root / "c/broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\x05\0")
    return root


@pytest.fixture(scope="module", params=list(DIRECTIONS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_scan(tmp_path_factory.mktemp("series"), 5, request.param)


@pytest.fixture(scope="module")
def axial(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_scan(tmp_path_factory.mktemp("axial"), 5)
