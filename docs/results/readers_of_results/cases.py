"""Write results of semiseg in every DICOM format, beside their sources and the masks they were made of.

    python docs/results/readers_of_results/cases.py FOLDER [--data DATA]

Each case is a folder with ``source/`` (the images), ``truth.npz`` (see truth.py) and the results: ``seg.dcm``,
``seg-labelmap.dcm``, ``seg-fractional.dcm``, ``rtstruct.dcm``, ``sr.dcm`` and ``overlay.dcm``. DATA holds real series,
``dicom/`` and ``dicom_odd/``; without it only phantoms are written. Run it where semiseg is installed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from semiseg.errors import SemisegError
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_overlay import segmentation_to_overlays
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.outputs.dicom_sr import segmentation_to_sr
from semiseg.outputs.formats.dicom import SegmentationType
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, reorient

ALGORITHM = Algorithm(name="readers of results", version="1", model_sha256="ab" * 32)
REGIONS = (Segment(name="whole", label=1), Segment(name="core", label=2), Segment(name="nothing", label=3))
FORMATS: dict[str, SegmentationType] = {"seg": "binary", "seg-labelmap": "labelmap", "seg-fractional": "fractional"}
Sources = Iterator[tuple[str, list[Path]]]


def phantoms(folder: Path) -> Sources:
    """Series that semiseg makes itself: orientations, spacings and irregularities."""
    phantom = make_phantom(21, (46, 37, 14), (2.1, 2.4, 7.0))
    affine = phantom.image.affine
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (11, 23, -8), degrees=True).as_matrix()
    for name, axes, turned in (
        ("axial", "LPS", False),
        ("sagittal", "PIR", False),
        ("coronal", "LIP", False),
        ("oblique", "LPS", True),
        ("oblique-sagittal", "PIR", True),
    ):
        array, placed = reorient(phantom.image.array, affine, axes)
        volume = Volume(np.ascontiguousarray(array), turn @ placed if turned else placed)
        yield name, write_dicom_series(folder / name, volume, patient_id=name)
    square = make_phantom(5, (40, 40, 12), (2.5, 2.5, 7.0)).image
    yield "square", write_dicom_series(folder / "square", square, patient_id="square")
    close = make_phantom(5, (40, 40, 12), (2.5, 2.5, 5.0)).image
    files = write_dicom_series(folder / "missing-slice", close, patient_id="missing-slice")
    yield "missing-slice", [*files[:6], *files[7:]]
    for name, moved in (
        ("tilted", lambda z: np.array([0.0, 7.0 * z * np.tan(np.radians(15)), 0.0])),
        ("uneven", lambda z: np.array([0.0, 0.0, 2.0 * (z % 2)])),
    ):
        files = write_dicom_series(folder / name, square, patient_id=name)
        _move(files, moved)
        yield name, files


def _move(files: Sequence[Path], shift: Callable[[int], NDArray[np.float64]]) -> None:
    """Move each slice by what ``shift`` says of its number, in mm."""
    for z, file in enumerate(files):
        image = pydicom.dcmread(file)
        placed = np.array(image.ImagePositionPatient, dtype=float) + shift(z)
        image.ImagePositionPatient = [f"{v:.6f}" for v in placed]
        image.save_as(file)


def real_series(data: Path, folder: Path) -> Sources:
    """Copies of the real series that semiseg reads, by the names of their folders and files."""
    odd = data / "dicom_odd"
    found = [path for path in (data / "dicom").iterdir() if path.is_dir()]
    for series in sorted([*found, *odd.glob("d2n_*"), odd / "dcmqi_23x38x3/image", odd / "dcmqi_23x38x3/multiframe"]):
        name = series.parent.name + "_" + series.name if series.parent.name.startswith("dcmqi") else series.name
        yield name, _copies(sorted(series.iterdir()), folder / name)
    yield "enhanced-ct", _copies([odd / "pydicom_data/eCT_Supplemental.dcm"], folder / "enhanced-ct")


def _copies(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copies that results can refer to: UIDs that an anonymiser removed are put in again."""
    folder.mkdir(parents=True)
    out = []
    for k, file in enumerate(files):
        image = pydicom.dcmread(file)
        image.SOPClassUID = image.get("SOPClassUID") or image.file_meta.MediaStorageSOPClassUID
        for keyword in ("FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if not image.get(keyword):
                own = file.name if keyword == "SOPInstanceUID" else ""
                setattr(image, keyword, generate_uid(entropy_srcs=[folder.name, keyword, own]))
        out.append(folder / f"{k:04d}.dcm")
        image.save_as(out[-1])
    return out


def labels(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Three structures that are hard on readers: one hollow and round, one a box, one on a single slice or pixel.

    The box is ragged in small volumes; contours of as many ragged voxels in a large one take minutes to write.
    """
    draw = np.random.default_rng(seed)
    size = np.array(shape, dtype=float)
    where = (np.moveaxis(np.indices(shape), 0, -1) + 0.5) / size
    out = np.zeros(shape, dtype=np.uint8)
    away = np.linalg.norm((where - (0.35, 0.45, 0.5)) * (1, 1, 0.8), axis=-1)
    out[(away < 0.27) & (away > 0.09)] = 1
    box = np.all((where > (0.68, 0.2, 0.25)) & (where < (0.9, 0.75, 0.75)), axis=-1)
    out[box & (draw.random(shape) < (0.7 if max(shape) <= 128 else 1.0))] = 2
    middle = shape[2] // 2
    out[shape[0] // 8 : shape[0] // 3, 1:3, middle] = 3
    out[-1, -1, middle] = out[0, 0, middle] = 3
    return out


def forms(series: DicomSeries) -> Iterator[tuple[str, Segmentation]]:
    """Segments that exclude each other, regions that overlap, and nothing at all."""
    array, affine = labels(series.volume.shape), series.volume.affine
    shares = np.random.default_rng(1).integers(1, 256, (3, *array.shape)).astype(np.uint8)
    inside = np.stack([array == s.label for s in SEGMENTS])
    yield "exclusive", Segmentation(SEGMENTS, array, affine, probabilities=shares * inside)
    regions = np.stack([array > 0, array == 1, np.zeros(array.shape, dtype=bool)])
    yield "overlapping", Segmentation(REGIONS, regions, affine, probabilities=shares * regions)
    yield "empty", Segmentation(SEGMENTS, array * 0, affine, probabilities=shares * 0)


def write_case(folder: Path, files: Sequence[Path], series: DicomSeries, segmentation: Segmentation) -> None:
    """Write sources, truth and results of one case."""
    source = folder / "source"
    source.mkdir(parents=True)
    used = {one.path for one in series.slices}
    for file in files:
        if file in used:
            shutil.copyfile(file, source / f"{file.stem}.dcm")
    masks = np.stack([segmentation.mask(k) for k in range(len(segmentation.segments))])
    plane = series.slices[0].plane
    assert segmentation.probabilities is not None
    np.savez_compressed(
        folder / "truth.npz",
        masks=series.on_slices(masks).transpose(0, 3, 2, 1),
        shares=series.on_slices(segmentation.probabilities).transpose(0, 3, 2, 1),
        names=np.array([segment.name for segment in segmentation.segments]),
        positions=np.array([one.plane.position for one in series.slices], dtype=float),
        along_row=np.array(plane.along_row) * plane.column_spacing,
        along_column=np.array(plane.along_column) * plane.row_spacing,
        uids=np.array([str(one.header.SOPInstanceUID) for one in series.slices]),
        frames=np.array([-1 if one.frame is None else one.frame for one in series.slices]),
        corrected=np.array([remark.code for remark in series.warnings if series.grid is not None]),
    )
    for name, form in FORMATS.items():
        if form != "labelmap" or segmentation.exclusive:
            made = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, segmentation_type=form)
            write_dicom(folder / f"{name}.dcm", made)
    write_dicom(folder / "rtstruct.dcm", segmentation_to_rtstruct(segmentation, series, algorithm=ALGORITHM))
    write_dicom(folder / "sr.dcm", segmentation_to_sr(segmentation, series, algorithm=ALGORITHM))
    # One of the pictures stands for all: they differ in their pixels and positions alone.
    picture = next(iter(segmentation_to_overlays(segmentation, series, algorithm=ALGORITHM)))
    write_dicom(folder / "overlay.dcm", picture)


def main() -> None:
    """Write the cases, and say which series gave none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    folder: Path = options.folder
    for name, files in chain(
        phantoms(folder / "phantoms"), real_series(options.data, folder / "real") if options.data else ()
    ):
        try:
            series = read_series(files)
        except SemisegError as error:
            print(f"{name}: no volume ({error})")
            continue
        for form, segmentation in forms(series):
            if form == "empty" and files[0].parent.parent != folder / "phantoms":
                continue
            try:
                write_case(folder / "cases" / f"{name} {form}", files, series, segmentation)
            except SemisegError as error:
                shutil.rmtree(folder / "cases" / f"{name} {form}")
                print(f"{name} {form}: {error}")


if __name__ == "__main__":
    main()
