"""Reading of a client's label map in any supported format, and conversion to the grid of its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.grid_matching import reorder_to_grid
from semiseg.collection.labels_seg_nrrd import SegNrrdReader
from semiseg.dataset.folder import Case
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.formats.nrrd_header import parse_nrrd
from semiseg.volumes.formats.registry import is_image_file, supported_formats_text
from semiseg.volumes.image_files import read_image_file
from semiseg.volumes.nifti import read_labels
from semiseg.volumes.seg_nrrd import is_seg_nrrd, parse_segments
from semiseg.volumes.volume import Volume
from server.labelling.label_names import LabelNames
from server.labelling.store import NewLabel


def read_grid(case: Case) -> Volume:
    """The grid of an image: its first channel.

    Raises:
        VolumeError: The image cannot be read.
    """
    stored = read_image_file(case.image)
    return Volume(stored.array[..., 0], stored.affine)


def read_label(file: Path, case: Case, names: LabelNames, label_info: Any = None) -> NewLabel:
    """Read a label map from a file, with the values of the dataset, on the grid of its image.

    A label map that has the voxels of the image in another order is reordered. In a segmentation of 3D Slicer
    (``.seg.nrrd``) the segments are identified by their names, and its grid may be a part of the image's.

    Args:
        file: Label map in NIfTI, NRRD, MetaImage or another volume format, or ``.seg.nrrd``. The file's content
            decides its format, not its name.
        case: Image that the label belongs to.
        names: Label names of the dataset.
        label_info: Names and values from the client; see :meth:`LabelNames.translate`.

    Raises:
        VolumeError: The file is not a label map on the image's grid, or the image cannot be read.
        InputError: The label map holds an unknown value or name.
    """
    if not is_image_file(file):
        raise VolumeError(f"The format of the label is not supported; send {supported_formats_text()}.")
    grid = read_grid(case)
    try:
        array = _drawn_segments(file, grid, names) if is_seg_nrrd(file) else _label_map(file, grid, names, label_info)
    except VolumeError as error:
        raise VolumeError(str(error).replace(f"{file}: ", "").replace(str(file), "The label")) from None
    return NewLabel(array, grid.affine, case.image, names.count(array))


def _label_map(file: Path, grid: Volume, names: LabelNames, label_info: Any) -> NDArray[np.uint8]:
    label = read_labels(file)
    low, high = int(label.array.min()), int(label.array.max())
    if low < 0 or high > 255:
        raise InputError(f"The label has values from {low} to {high}; label values must be 0 to 255.")
    return names.translate(np.ascontiguousarray(reorder_to_grid(grid, label)), label_info)


def _drawn_segments(file: Path, grid: Volume, names: LabelNames) -> NDArray[np.uint8]:
    """The label map of a 3D Slicer segmentation; regions may overlap and are painted in the order of their names."""
    outlines = SegNrrdReader(file, grid)
    found = dict.fromkeys(segment.name for segment in parse_segments(parse_nrrd(file)))
    array = np.zeros(grid.shape, np.uint8)
    masks = {name: outlines.mask(name) for name in found}
    unknown = [name for name, mask in masks.items() if name not in names.values and mask.any()]
    if unknown:
        known = ", ".join(names.values)
        raise InputError(f"The label has the segment {unknown[0][:80]!r}, but the dataset has only {known}.")
    for name in names.paint_order:
        if name not in masks:
            continue
        twice = int(np.count_nonzero(array[masks[name]]))
        if twice and not names.regions:
            raise InputError(f"{twice} voxels of the segment {name!r} also belong to another segment; separate them.")
        array[masks[name]] = names.values[name]
    return array
