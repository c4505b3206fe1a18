"""A classic series as one enhanced multi-frame object, with each functional group where a test wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

Where = Literal["shared", "frame", "object", "absent"]
MEASURES = ("PixelSpacing", "SliceThickness")


def write_enhanced(
    path: Path,
    files: Sequence[Path],
    *,
    measures: Where = "shared",
    orientation: Where = "shared",
    rescale: Where = "absent",
    intercept: float = 0,
    frames: Sequence[Mapping[str, Mapping[str, Any]]] = (),
) -> Path:
    """Write the slices ``files`` as one object.

    Args:
        path: Path of the file.
        files: Files of a single-frame series.
        measures: Place of Pixel Measures.
        orientation: Place of Plane Orientation.
        rescale: Place of the rescale slope 1 and ``intercept``.
        intercept: Rescale Intercept.
        frames: Further groups of each frame: attributes by the keyword of the group.
    """
    slices = [pydicom.dcmread(file) for file in files]
    first = slices[0]
    made = pydicom.dcmread(files[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", *MEASURES, "RescaleSlope", "RescaleIntercept"):
        if keyword in made:
            del made[keyword]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(one.PixelData for one in slices)
    groups = (
        (measures, "PixelMeasuresSequence", {k: first[k].value for k in MEASURES}),
        (orientation, "PlaneOrientationSequence", {"ImageOrientationPatient": first.ImageOrientationPatient}),
        (rescale, "PixelValueTransformationSequence", {"RescaleSlope": 1, "RescaleIntercept": intercept}),
    )
    shared, own = Dataset(), [Dataset() for _ in slices]
    for where, group, attributes in groups:
        for target in {"shared": [shared], "frame": own, "absent": []}.get(where, []):
            setattr(target, group, [sequence_item(attributes)])
        if where == "object":
            for keyword, value in attributes.items():
                setattr(made, keyword, value)
    for k, (target, one) in enumerate(zip(own, slices, strict=True)):
        target.PlanePositionSequence = [sequence_item({"ImagePositionPatient": one.ImagePositionPatient})]
        for group, attributes in (frames[k] if frames else {}).items():
            setattr(target, group, [sequence_item(attributes)])
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = own
    made.save_as(path)
    return path


def sequence_item(attributes: Mapping[str, Any]) -> Dataset:
    """A sequence item."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made
