"""The independent readers: GDCM and the NIfTI library (in SimpleITK), dcm2niix, and DCMTK's decoders.

Each says of some files what volume they are, as :class:`Reading`; none of them shares code with pydicom.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from docs.readers.grids import Grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DCMTK_DECODERS = {
    "1.2.840.10008.1.2.4.50": "dcmdjpeg",
    "1.2.840.10008.1.2.4.51": "dcmdjpeg",
    "1.2.840.10008.1.2.4.57": "dcmdjpeg",
    "1.2.840.10008.1.2.4.70": "dcmdjpeg",
    "1.2.840.10008.1.2.4.80": "dcmdjpls",
    "1.2.840.10008.1.2.4.81": "dcmdjpls",
    "1.2.840.10008.1.2.5": "dcmdrle",
}


@dataclass(frozen=True, eq=False)
class Reading:
    """What a reader makes of some files.

    Attributes:
        grids: the volumes, one or several; none if it reads none.
        sentence: reason for the absence of a volume, or the reader's remark.
    """

    grids: tuple[Grid, ...]
    sentence: str = ""


@dataclass(frozen=True, eq=False)
class Image:
    """One file as ITK reads it: frames (F, rows, columns), and ITK's geometry in LPS+ mm."""

    frames: NDArray[Any]
    spacing: NDArray[np.float64]
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]
    error: str = ""


class ItkReader:
    """A process that reads images with SimpleITK, in its own environment."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("itk_reader.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version: str = self._answer()["SimpleITK"]

    def images(self, kind: str, paths: Sequence[Path]) -> list[Image]:
        """Read each file by itself."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "arrays.npz"
            assert self._process.stdin is not None
            request = {"kind": kind, "paths": [str(path) for path in paths], "out": str(out)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            told = self._answer()["images"]
            with np.load(out) as arrays:
                return [_image(one, arrays.get(str(number))) for number, one in enumerate(told)]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process that reads with SimpleITK has ended.")
        return json.loads(line)

    def nifti(self, path: Path) -> Reading:
        """One NIfTI file."""
        (image,) = self.images("nifti", [path])
        if image.error:
            return Reading((), image.error)
        if image.frames.ndim != 3:
            return Reading((), f"{image.frames.ndim} axes")
        return Reading((_grid_of(image),))


def stack_slices(images: Sequence[Image]) -> Reading:
    """The one multi-frame file, or slices in the order of their positions along their normal.

    Equal copies at one place count once. There is no volume where a file could not be read.
    """
    errors = [image.error for image in images if image.error]
    if errors:
        return Reading((), errors[0])
    if len(images) == 1:
        frames = images[0].frames
        if frames.ndim != 3 or len(frames) < 2:
            return Reading((), f"an image of shape {frames.shape}")
        return Reading((_grid_of(images[0]),))
    if any(image.frames.ndim != 3 or len(image.frames) != 1 for image in images):
        return Reading((), "several multi-frame files")
    if len({image.frames.shape for image in images}) > 1:
        return Reading((), "slices of several sizes")
    normal = images[0].direction[:, 2]
    ordered = sorted(images, key=lambda image: float(image.origin @ normal))
    kept = [ordered[0]]
    for image in ordered[1:]:
        if float((image.origin - kept[-1].origin) @ normal) > 5e-3:
            kept.append(image)
        elif not np.array_equal(image.frames, kept[-1].frames):
            return Reading((), "several images of one place")
    if len(kept) < 2:
        return Reading((), "a single slice")
    first, last = kept[0], kept[-1]
    affine = np.eye(4)
    affine[:3, :2] = first.direction[:, :2] * first.spacing[:2]
    affine[:3, 2] = (last.origin - first.origin) / (len(kept) - 1)
    affine[:3, 3] = first.origin
    array = np.stack([image.frames[0].T for image in kept], axis=2)
    return Reading((Grid(array, LPS_TO_RAS @ affine),))


def decode_with_dcmtk(itk: ItkReader, path: Path, syntax: str) -> Image | None:
    """A compressed file, decoded by DCMTK; None where DCMTK has no decoder for its transfer syntax."""
    tool = DCMTK_DECODERS.get(syntax)
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "decoded.dcm"
        done = subprocess.run([tool, path, out], capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            return _not_read((done.stderr.strip().splitlines() or ["no output"])[-1])
        return itk.images("dicom", [out])[0]


def read_with_dcm2niix(program: Path, paths: Sequence[Path], *, merge: bool = False) -> Reading:
    """Everything that dcm2niix makes of these files: rescaled as DICOM says and not as Philips does, not cropped.

    A volume that it resampled itself (names with _Tilt or _Eq) is left out: the same slices come unresampled, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        out.mkdir()
        for number, path in enumerate(paths):
            (source / f"{number:06d}.dcm").symlink_to(path.resolve())
        options = ["-b", "n", "-z", "n", "-x", "i", "-p", "n", "-l", "o", "-f", "%s", "-w", "2"]
        options += ["-m", "y"] if merge else []
        try:
            done = subprocess.run(
                [program, *options, "-o", out, source], capture_output=True, text=True, check=False, timeout=300
            )
        except subprocess.TimeoutExpired:
            return Reading((), "dcm2niix did not end in 300 s")
        grids, several = [], []
        for path in sorted(out.glob("*.nii")):
            if "_Tilt" in path.name or re.search(r"_Eq(_|\d|\.)", path.name):
                continue
            try:
                image: Any = nib.load(path)
            except HeaderDataError as error:
                return Reading((), f"a header that is damaged ({error})")
            if len(image.shape) == 3:
                grids.append(Grid(np.asarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)))
            else:
                several.append("x".join(map(str, image.shape)))
        if several:
            return Reading(tuple(grids), f"series of volumes: {', '.join(several)}")
        said = (
            "" if grids else next((li for li in done.stdout.splitlines() if "rror" in li or "nable" in li), "nothing")
        )
        return Reading(tuple(grids), said.replace(str(source), "")[:160])


def read_with_nibabel(path: Path) -> Reading:
    """One NIfTI file as nibabel reads it: the product takes nibabel's word for the header, not for the voxels."""
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.get_fdata(caching="unchanged"))
        if array.ndim < 3 or array.size != np.prod(array.shape[:3]):
            return Reading((), f"shape {array.shape}")
        return Reading((Grid(array.reshape(array.shape[:3]), np.asarray(image.affine, dtype=np.float64)),))
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        return Reading((), f"{type(error).__name__}: {error}"[:160])


def _not_read(error: str) -> Image:
    nowhere = np.zeros(3)
    return Image(np.zeros((0, 0, 0)), nowhere, nowhere, np.eye(3), error)


def _image(told: dict[str, Any], array: NDArray[Any] | None) -> Image:
    if array is None or told.get("components", 1) != 1:
        return _not_read(told.get("error") or "a colour image")
    side = len(told["spacing"])
    if side < 3:
        return _not_read("no volume")
    direction = np.array(told["direction"]).reshape(side, side)
    return Image(
        frames=array if array.ndim != 2 else array[None],
        spacing=np.array(told["spacing"])[:3],
        origin=np.array(told["origin"])[:3],
        direction=direction[:3, :3],
    )


def _grid_of(image: Image) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = image.direction * image.spacing
    affine[:3, 3] = image.origin
    return Grid(np.transpose(image.frames, (2, 1, 0)), LPS_TO_RAS @ affine)
