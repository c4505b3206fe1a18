"""Parses the header of a NIfTI file and finds its contradictions.

nibabel interprets the fields. Contradictions that it would repair without notice are checked here first and become
warnings or errors. The fields are those of nifti1.h (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import check_geometry, no_orientation_warning, to_four_axes
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.volume import corner_distance

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # nibabel's messages about a header are for programmers, not for users
_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_SUBJECT_SPACES = (1, 2)  # scanner and aligned anatomical coordinates; higher codes are those of atlases
_HALF_VOXEL = 0.5
_ONE_PERCENT = 0.01
_INTENTS = {
    1002: "labels",
    1003: "names of structures",
    1004: "matrices",
    1005: "symmetric matrices",
    1006: "displacements",
    1008: "points",
    1009: "triangles",
    1010: "quaternions",
    2005: "shapes",
} | dict.fromkeys(range(2, 25), "statistics")


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A parsed header.

    Attributes:
        path: Path of the file.
        raw: Fields as stored, in nibabel's class.
        fixed: Copy of the fields after nibabel's repairs.
        single: True if the voxels are in the same file (magic ``n+1``); False if they are in an ``.img`` beside it
            (``ni1``).
    """

    path: Path
    raw: Any
    fixed: Any
    single: bool

    @property
    def size(self) -> int:
        """Size of the header itself in bytes: 348, or 540 in NIfTI-2."""
        return int(self.raw.sizeof_hdr)

    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape (X, Y, Z, K); axes of length one after the third are dropped.

        Raises:
            VolumeError: The image is empty, flat, or has more than four axes.
        """
        count = int(self.raw["dim"][0])
        if not 1 <= count <= 7:
            raise VolumeError(f"{self.path}: the header gives {count} dimensions (dim[0]), but NIfTI has 1 to 7.")
        return to_four_axes(self.path, [int(n) for n in self.raw["dim"][1 : count + 1]])

    def dtype(self) -> np.dtype[Any]:
        """Return the stored type.

        Raises:
            VolumeError: NIfTI does not define the type, or it is not a type of grey values.
        """
        try:
            dtype: np.dtype[Any] = self.fixed.get_data_dtype()
        except HeaderDataError as error:
            raise VolumeError(f"{self.path}: the NIfTI header is damaged ({error}).") from error
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise VolumeError(
                f"{self.path}: voxels of type {dtype} are not grey values; convert to integers or float32."
            )
        return dtype

    def affine(self) -> NDArray[np.float64]:
        """Return the affine that nibabel chooses (sform, else qform, else the voxel sizes), in mm.

        Raises:
            VolumeError: The affine is not valid, or its unit is unknown.
        """
        if not self._coded("sform"):
            zooms = self.raw["pixdim"][1:4]
            if not np.isfinite(zooms).all() or (zooms == 0).any():
                raise VolumeError(f"{self.path}: a voxel has no size (pixdim {_listed(zooms)}).")
        try:
            affine = np.array(self.fixed.get_best_affine(), dtype=np.float64)
        except (HeaderDataError, ValueError) as error:
            raise VolumeError(f"{self.path}: sform and qform give no valid affine ({error}).") from error
        affine[:3] *= self._mm_per_unit()
        return affine

    def scaling(self) -> tuple[float, float]:
        """Return (slope, intercept) of the stored values; (1, 0) if the header gives none.

        Raises:
            VolumeError: The slope is infinite, or there is a slope and the intercept is not a number.
        """
        if np.isinf(self.raw["scl_slope"]):
            raise VolumeError(f"{self.path}: the header's scaling is not a number (scl_slope is infinite).")
        try:
            slope, intercept = self.fixed.get_slope_inter()
        except HeaderDataError as error:
            raise VolumeError(f"{self.path}: the header's scaling is not a number ({error}).") from error
        return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))

    def warnings(self, shape: tuple[int, int, int, int]) -> tuple[ScanWarning, ...]:
        """Return warnings about fields that contradict each other or are missing."""
        found = [
            *self._scaling_remarks(),
            *self._voxel_size_remarks(),
            *self._orientation_remarks(shape[:3]),
            *check_geometry(self.path, self.affine(), shape),
            *self._intent_remarks(),
        ]
        return tuple(found)

    def _scaling_remarks(self) -> Iterator[ScanWarning]:
        slope, intercept = float(self.raw["scl_slope"]), float(self.raw["scl_inter"])
        if np.isnan(slope) or (slope == 0 and not np.isnan(intercept) and intercept != 0):
            yield _contradiction(f"scl_slope is {slope:g} and scl_inter {intercept:g}; the values were not scaled.")

    def _voxel_size_remarks(self) -> Iterator[ScanWarning]:
        zooms = np.array(self.raw["pixdim"][1:4], dtype=np.float64)
        sizes = _listed(zooms)
        if not np.isfinite(zooms).all() or (zooms <= 0).any():
            followed = "sform was used" if self._coded("sform") else "the sign was dropped"
            yield _contradiction(f"pixdim gives voxel sizes of {sizes}; {followed}.")
        elif self._coded("sform"):
            steps = np.linalg.norm(self.fixed.get_sform()[:3, :3], axis=0)
            if (np.abs(steps - zooms) > _ONE_PERCENT * zooms).any():
                yield _contradiction(f"pixdim gives voxel sizes of {sizes} and sform {_listed(steps)}; sform was used.")

    def _orientation_remarks(self, shape: tuple[int, ...]) -> Iterator[ScanWarning]:
        sform, qform = self._coded("sform"), self._coded("qform")
        if not sform and not qform:
            yield no_orientation_warning(
                "the codes of sform and qform are 0", "the first axis was assumed to run to the left"
            )
            return
        if not qform:
            return
        qfac = float(self.raw["pixdim"][0])
        if qfac not in (1.0, -1.0) and not sform:
            text = f"pixdim[0], which defines left and right, is {qfac:g} and not 1 or -1; it was taken as 1."
            yield ScanWarning("contradictory_orientation", f"The header contradicts itself: {text}")
        if not sform:
            return
        try:
            other = np.array(self.fixed.get_qform(), dtype=np.float64)
        except (HeaderDataError, ValueError):
            yield _contradiction("the quaternion of qform is not normalised; sform was used.")
            return
        yield from self._compared(np.array(self.fixed.get_sform(), dtype=np.float64), other, shape)

    def _compared(
        self, sform: NDArray[np.float64], qform: NDArray[np.float64], shape: tuple[int, ...]
    ) -> Iterator[ScanWarning]:
        """Compare sform, which is used, with qform."""
        lengths = [np.linalg.norm(one[:3, :3], axis=0) for one in (sform, qform)]
        if any((one == 0).any() or not np.isfinite(one).all() for one in lengths):
            return  # an invalid sform is refused elsewhere, and an invalid qform has caused the warning about pixdim
        ways = [io_orientation(one) for one in (sform, qform)]
        codes = [int(self.fixed[f"{form}_code"]) for form in ("sform", "qform")]
        if not np.array_equal(ways[0], ways[1], equal_nan=True):
            along = [way[way[:, 0] == 0] for way in ways]
            axes = [int(np.flatnonzero(way[:, 0] == 0)[0]) if (way[:, 0] == 0).any() else -1 for way in ways]
            sideways = axes[0] != axes[1] or not np.array_equal(along[0], along[1])
            about = "left and right" if sideways else "the directions of the axes"
        elif (codes[0] in _SUBJECT_SPACES) != (codes[1] in _SUBJECT_SPACES):
            return  # one is in an atlas space, so their positions differ on purpose
        else:
            apart = corner_distance(sform, qform, shape)
            if apart <= _HALF_VOXEL:
                return
            about = f"the place of the voxels (up to {apart:.3g} voxels)"
        text = f"The header contradicts itself: sform and qform differ about {about}; sform was used."
        yield ScanWarning("contradictory_orientation", text)

    def _intent_remarks(self) -> Iterator[ScanWarning]:
        meant = _INTENTS.get(int(self.raw["intent_code"]))
        if meant:
            text = (
                f"The header declares that the voxels are {meant} and not grey values (intent code "
                f"{self.raw['intent_code']})."
            )
            yield ScanWarning("declared_content", text)

    def _coded(self, form: str) -> bool:
        # nibabel's repairs set a code that NIfTI does not define to 0.
        return int(self.fixed[f"{form}_code"]) > 0

    def _mm_per_unit(self) -> float:
        try:
            return _MM_PER_UNIT[self.fixed.get_xyzt_units()[0]]
        except KeyError as error:
            raise VolumeError(f"{self.path}: the header gives a unit of length that NIfTI does not define.") from error


def parse_header(path: Path, file: IO[bytes]) -> NiftiHeader:
    """Parse the header and leave ``file`` positioned at its end.

    Raises:
        VolumeError: There is no NIfTI header, or it is damaged.
    """
    start = file.read(4)
    found = [
        (kind, order) for kind in (nib.Nifti1Header, nib.Nifti2Header) for order in "<>" if start == _mark(kind, order)
    ]
    if not found:
        raise VolumeError(f"{path}: not a NIfTI file (its first bytes are not a NIfTI header).")
    kind, order = found[0]
    block = start + file.read(kind.sizeof_hdr - 4)
    try:
        raw = kind(block, endianness=order, check=False)
        magic = raw["magic"].item()[:3]
        if magic not in (b"n+1", b"n+2", b"ni1", b"ni2"):
            raise VolumeError(f"{path}: not a NIfTI file (an ANALYZE header, or one without NIfTI's magic).")
        offset = float(raw["vox_offset"])
        if not np.isfinite(offset) or offset != int(offset):
            raise VolumeError(f"{path}: the header's vox_offset is not a whole number, so the file is damaged.")
        fixed = raw.copy()
        # The reader determines the offset of the voxels itself; nibabel refuses offsets that can be repaired.
        fixed["vox_offset"] = 0 if magic[1:2] == b"i" else kind.single_vox_offset
        fixed.check_fix(logger=_LOG, error_level=40)
    except (HeaderDataError, WrapStructError, ValueError, KeyError) as error:
        raise VolumeError(f"{path}: the NIfTI header is damaged ({error}).") from error
    return NiftiHeader(path, raw, fixed, single=magic[1:2] == b"+")


def _mark(kind: Any, order: str) -> bytes:
    return int(kind.sizeof_hdr).to_bytes(4, "little" if order == "<" else "big")


def _contradiction(text: str) -> ScanWarning:
    return ScanWarning("contradictory_header", f"The header contradicts itself: {text}")


def _listed(values: NDArray[Any]) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)
