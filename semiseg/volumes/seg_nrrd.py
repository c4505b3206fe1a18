"""Segmentations of 3D Slicer (``.seg.nrrd``): NRRD with the segments' names, values and layers as key/value pairs.

The keys are those of https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.nrrd import read_with_header
from semiseg.volumes.formats.nrrd_header import NrrdHeader, is_nrrd, parse_nrrd
from semiseg.volumes.formats.reader import ImageFile, StoredImage
from semiseg.volumes.formats.stream import read_start

_MAX_SEGMENTS = 10_000


@dataclass(frozen=True)
class SegNrrdSegment:
    """One segment, as the header describes it.

    Attributes:
        name: Name of the segment, or its ID if it has no name.
        layer: Index of the volume that holds it.
        value: Value of its voxels; None for any value except 0 (files of older versions of Slicer).
    """

    name: str
    layer: int
    value: int | None

    def mask(self, stored: StoredImage) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) of the segment in the file's own grid."""
        layer: NDArray[Any] = stored.array[..., self.layer]
        return np.asarray(layer != 0 if self.value is None else layer == self.value)


def is_seg_nrrd(path: Path) -> bool:
    """Return True if a file is NRRD and describes segments, whatever its name; never raises on content."""
    if not is_nrrd(read_start(path)):
        return False
    try:
        return "Segment0_ID" in parse_nrrd(path).pairs
    except VolumeError:
        return False


def parse_segments(header: NrrdHeader) -> tuple[SegNrrdSegment, ...]:
    """Return the segments that a header describes, in its order.

    Raises:
        VolumeError: A layer or value is not a number, or the file holds surfaces or fractions.
    """
    pairs = header.pairs
    kind = pairs.get("Segmentation_SourceRepresentation", pairs.get("Segmentation_MasterRepresentation", "")).strip()
    if kind not in ("", "Binary labelmap"):
        raise VolumeError(f"{header.path}: a Slicer segmentation of the representation '{kind[:40]}' is not supported.")
    out: list[SegNrrdSegment] = []
    while f"Segment{len(out)}_ID" in pairs and len(out) < _MAX_SEGMENTS:
        number = len(out)
        name = pairs.get(f"Segment{number}_Name", "").strip() or pairs[f"Segment{number}_ID"].strip()
        layer = _integer(header, f"Segment{number}_Layer", number)
        value = _integer(header, f"Segment{number}_LabelValue", None)
        if not name or layer is None or layer < 0:
            raise VolumeError(f"{header.path}: segment {number} has no name, or a layer below 0.")
        out.append(SegNrrdSegment(name, layer, value))
    return tuple(out)


def read_seg_nrrd(path: Path) -> tuple[StoredImage, tuple[SegNrrdSegment, ...]]:
    """Read the layers and segments of a Slicer segmentation.

    Raises:
        VolumeError: The file is refused (see :func:`semiseg.volumes.formats.nrrd.read` and :func:`parse_segments`), or
            a layer is missing.
    """
    header = parse_nrrd(path)
    segments = parse_segments(header)
    stored = read_with_header(ImageFile(path), header)
    missing = [segment.name for segment in segments if segment.layer >= stored.array.shape[3]]
    if missing:
        raise VolumeError(f"{path}: the segment '{missing[0]}' is in a layer that the file does not have.")
    return stored, segments


def _integer(header: NrrdHeader, key: str, default: int | None) -> int | None:
    text = header.pairs.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text):
        raise VolumeError(f"{header.path}: {key} is '{text[:40]}'; a whole number is needed.")
    return int(text)
