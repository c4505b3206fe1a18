"""Fill each case's RTSTRUCT with other people's programs, and compare voxel by voxel; a Markdown table.

    pip install rt-utils platipy dcmrtstruct2nii scikit-image SimpleITK pydicom
    python docs/results/readers_of_results/read_rtstruct.py FOLDER > docs/results/readers_of_results/rtstruct.md

FOLDER is the one that cases.py wrote. rt-utils and platipy leave out what they cannot place, so what is missing counts.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray
from skimage.draw import polygon2mask
from truth import Count, Truth, cases, short

with contextlib.redirect_stdout(io.StringIO()):  # it prints whom to cite
    from dcmrtstruct2nii import dcmrtstruct2nii
from platipy.dicom.io.rtstruct_to_nifti import read_dicom_image, transform_point_set_from_dicom_struct
from rt_utils import RTStructBuilder

Masks = dict[str, NDArray[np.bool_]]


def by_rt_utils(case: Path, struct: Path, truth: Truth) -> Masks:
    """rt-utils: corners are rounded to whole pixels, and OpenCV's fillPoly paints the boundary, too."""
    read = RTStructBuilder.create_from(dicom_series_path=str(case / "source"), rt_struct_path=str(struct))
    order = [truth.uids.index(str(one.SOPInstanceUID)) for one in read.series_data]
    out = {}
    for name in truth.names:
        if has_contours(struct, name):
            found = read.get_roi_mask_by_name(name).transpose(2, 0, 1)
            if found.shape != truth.masks.shape[1:]:
                raise ValueError(f"masks of {found.shape[1:]} for images of {truth.masks.shape[2:]} rows and columns")
            out[name] = np.zeros(found.shape, dtype=bool)
            out[name][order] = found
    return out


def by_platipy(case: Path, struct: Path, truth: Truth) -> Masks:
    """platipy: corners are rounded to whole pixels, and scikit-image's polygon takes the boundary in."""
    image = read_dicom_image(case / "source")
    found, names = transform_point_set_from_dicom_struct(image, pydicom.dcmread(struct))
    return {name: on_images(truth, one) for name, one in zip(names, found, strict=True)}


def by_dcmrtstruct2nii(case: Path, struct: Path, truth: Truth) -> Masks:
    """dcmrtstruct2nii: scikit-image's polygon2mask with corners as they are."""
    with tempfile.TemporaryDirectory() as folder:
        dcmrtstruct2nii(str(struct), str(case / "source"), folder, convert_original_dicom=False)
        found = {path.name: sitk.ReadImage(str(path)) for path in Path(folder).glob("mask_*.nii.gz")}
    return {
        name: on_images(truth, found[f"mask_{name}.nii.gz"]) for name in truth.names if f"mask_{name}.nii.gz" in found
    }


def by_scikit_image(case: Path, struct: Path, truth: Truth) -> Masks:
    """polygon2mask on the image that each contour refers to, without another program's geometry."""
    steps = np.stack([truth.along_column, truth.along_row], axis=1)
    places = {key: n for n, key in enumerate(zip(truth.uids, truth.frames, strict=True))}
    out = {name: np.zeros(truth.masks.shape[1:], dtype=bool) for name in truth.names}
    for name, drawn in zip(truth.names, pydicom.dcmread(struct).ROIContourSequence, strict=True):
        for contour in drawn.get("ContourSequence", []):
            image = contour.ContourImageSequence[0]
            n = places[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber", 0) - 1]
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) - truth.positions[n]
            out[name][n] ^= polygon2mask(truth.masks.shape[2:], points @ np.linalg.pinv(steps).T)
    return out


READERS: dict[str, Callable[[Path, Path, Truth], Masks]] = {
    "rt-utils": by_rt_utils,
    "platipy": by_platipy,
    "dcmrtstruct2nii": by_dcmrtstruct2nii,
    "scikit-image": by_scikit_image,
}


def has_contours(struct: Path, name: str) -> bool:
    """Whether a structure has contours; rt-utils does not ask."""
    read = pydicom.dcmread(struct)
    number = {one.ROIName: one.ROINumber for one in read.StructureSetROISequence}[name]
    return any("ContourSequence" in one for one in read.ROIContourSequence if one.ReferencedROINumber == number)


def on_images(truth: Truth, image: sitk.Image) -> NDArray[np.bool_]:
    """An image of SimpleITK on the source's images."""
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    found, between, outside = truth.on_images(sitk.GetArrayFromImage(image), np.array(image.GetOrigin()), steps)
    if between or outside:
        raise ValueError(f"{between} images between its planes, {outside} voxels on no pixel")
    return found.astype(bool)


def main() -> None:
    """Print the table."""
    packages = ("rt-utils", "platipy", "dcmrtstruct2nii", "scikit-image", "SimpleITK", "opencv-python")
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    print(f"| case | {' | '.join(READERS)} |\n|---|{'---|' * len(READERS)}")
    for case in cases(Path(sys.argv[1])):
        truth = Truth.of(case)
        cells = [told(read, case, case / "rtstruct.dcm", truth) for read in READERS.values()]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


def told(read: Callable[[Path, Path, Truth], Masks], case: Path, struct: Path, truth: Truth) -> str:
    """The outcome of one reader."""
    try:
        found = read(case, struct, truth)
        count = Count()
        for k, name in enumerate(truth.names):
            count.add(truth.masks[k], found.get(name, np.zeros_like(truth.masks[k])))
        return str(count)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is its answer
        return short(error)


if __name__ == "__main__":
    main()
