"""Positions of the slices of a DICOM series, and the check that they make one regular volume.

Only Image Position (Patient) and Image Orientation (Patient) (PS3.3 C.7.6.2.1.1) and Pixel Spacing (PS3.3 10.7.1.3)
are used. File names, instance numbers, Slice Location and Slice Thickness are never used: they are often wrong, and
thickness is not distance.

:func:`stack_planes` sorts the slices and describes their positions. :func:`find_irregularities` lists the deviations
from a regular volume and refuses a stack that cannot be corrected. :mod:`semiseg.volumes.dicom_resampling` makes the
correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError

GAP_TOLERANCE_MM = 0.02
"""Gaps that differ by less than this are equal: positions are often written with two decimals."""
GAP_TOLERANCE = 0.01
"""Gaps that differ by less than this share of the gap are equal (as in highdicom)."""
DRIFT_TOLERANCE = 0.05
"""Largest distance of a slice from its place in a regular stack, as a share of the gap."""
TILT_TOLERANCE_PIXELS = 0.25
"""Largest lateral offset in pixels over the length of an upright stack: cosines are written with few decimals."""
JUMP_TOLERANCE_MM = 0.1
"""Largest distance of a slice of a tilted stack from the straight line: about the last decimal of its position."""
MAX_TILT_DEGREES = 45.0
"""Largest tilt that is corrected; CT gantries tilt by 30 degrees at most."""
MAX_BRIDGED_MM = 12.5
"""Largest gap between two slices that is interpolated, unless all gaps are as large."""
SAME_PLACE_MM = GAP_TOLERANCE_MM / 2
"""Slices closer than this lie at the same position."""
ANGLE_TOLERANCE = 1e-3
"""Direction cosines that differ by less than this are equal."""
EXACT = 6
"""Positions with this many decimals or more count as not rounded."""
AMBIGUOUS = 0.34
"""If positions are rounded by more than this share of the gap, rounding cannot be told from a missing slice."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """Position, orientation and size of one slice, in mm in LPS+ patient coordinates.

    Attributes:
        position: Centre of the first pixel (x, y, z).
        along_row: Unit vector in the direction of increasing column index.
        along_column: Unit vector in the direction of increasing row index.
        column_spacing: Distance between columns in mm (second value of Pixel Spacing).
        row_spacing: Distance between rows in mm (first value of Pixel Spacing).
        rows: Number of pixels along a column.
        columns: Number of pixels along a row.
        decimals: Numbers of decimals with which x, y and z of the position are written.
    """

    position: tuple[float, float, float]
    along_row: tuple[float, float, float]
    along_column: tuple[float, float, float]
    column_spacing: float
    row_spacing: float
    rows: int
    columns: int
    decimals: tuple[int, int, int] = (EXACT, EXACT, EXACT)


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Planes of one orientation and size, sorted along their normal.

    Attributes:
        order: Index of each slice in the given planes, from the lowest along the normal to the highest.
        planes: The planes in that order.
        normal: Unit vector along_row x along_column, LPS+.
        distances: (N,) position of each slice along the normal, in mm.
        shifts: (N, 2) lateral offset of each slice from the normal through the first one, along rows and columns, in
            mm; with a tilted gantry it grows with the distance.
        rounding: Largest error of a distance in mm that comes from positions written with few decimals.
    """

    order: tuple[int, ...]
    planes: tuple[Plane, ...]
    normal: NDArray[np.float64]
    distances: NDArray[np.float64]
    shifts: NDArray[np.float64]
    rounding: float = 0.0

    @property
    def gaps(self) -> NDArray[np.float64]:
        """(N-1,) distances between neighbouring slices along the normal, in mm."""
        return np.diff(self.distances)

    @property
    def gap(self) -> float:
        """Distance of neighbouring slices in mm: the median, or the step of the fitted line for rounded positions."""
        if _even_but_rounded(self):
            return float(np.polyfit(np.arange(len(self.order)), self.distances, 1)[0])
        return float(np.median(self.gaps))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the line through the slices' positions and their normal, in degrees."""
        along = float(self.distances[-1] - self.distances[0])
        return float(np.degrees(np.arctan2(np.linalg.norm(self.shifts[-1]), along)))


@dataclass(frozen=True)
class Irregularity:
    """A deviation of a stack of slices from a regular volume.

    Attributes:
        code: Code of the irregularity.
        sentence: Description with figures.
        remedy: Advice to the user for the case that it may not be corrected here.
    """

    code: Literal["gantry_tilt", "missing_slices", "uneven_slices"]
    sentence: str
    remedy: str


def make_plane(
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
    size: tuple[int, int],
    decimals: Sequence[int] = (EXACT, EXACT, EXACT),
) -> Plane:
    """Make a :class:`Plane` from the values of DICOM attributes.

    Args:
        position: Image Position (Patient), 3 values.
        orientation: Image Orientation (Patient), 6 values.
        spacing: Pixel Spacing, row spacing first.
        size: (Rows, Columns).
        decimals: Numbers of decimals with which the three values of the position are written.

    Raises:
        VolumeError: The cosines are not two perpendicular unit vectors, the spacing is not positive, or there are no
            pixels.
    """
    values = np.array([*position, *orientation, *spacing], dtype=np.float64)
    if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or not np.isfinite(values).all():
        raise VolumeError("Image Position, Image Orientation and Pixel Spacing need 3, 6 and 2 finite numbers.")
    row, column = np.array(orientation[:3], dtype=np.float64), np.array(orientation[3:], dtype=np.float64)
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if (np.abs(lengths - 1) > 1e-2).any() or abs(float(row @ column)) > 1e-2:
        raise VolumeError("Image Orientation (Patient) is not two perpendicular unit vectors.")
    if min(spacing) <= 0:
        raise VolumeError(f"Pixel Spacing {tuple(map(float, spacing))} is not positive.")
    if min(size) < 1:
        raise VolumeError(f"An image of {size[0]} rows and {size[1]} columns has no pixels.")
    return Plane(
        position=_three(np.array(position, dtype=np.float64)),
        along_row=_three(row / lengths[0]),
        along_column=_three(column / lengths[1]),
        column_spacing=float(spacing[1]),
        row_spacing=float(spacing[0]),
        rows=int(size[0]),
        columns=int(size[1]),
        decimals=(decimals[0], decimals[1], decimals[2]),
    )


def stack_planes(planes: Sequence[Plane]) -> SliceStack:
    """Sort planes along their common normal and describe their positions.

    Raises:
        VolumeError: The planes differ in orientation, rows, columns or pixel spacing.
    """
    _require_one_kind(planes)
    row, column = np.array(planes[0].along_row), np.array(planes[0].along_column)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([p.position for p in planes])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    aside = positions - positions[0]
    return SliceStack(
        order=tuple(int(i) for i in order),
        planes=tuple(planes[i] for i in order),
        normal=normal,
        distances=positions @ normal,
        shifts=np.stack([aside @ row, aside @ column], axis=1),
        rounding=_rounding(planes, normal),
    )


def _rounding(planes: Sequence[Plane], normal: NDArray[np.float64]) -> float:
    """Return half a unit of the last decimal of each coordinate, projected onto the normal, in mm.

    Trailing zeros are often not written, so the slice with the most decimals determines the precision.
    """
    most = np.array([plane.decimals for plane in planes]).max(axis=0)
    halves = np.where(most >= EXACT, 0.0, 0.5 * 10.0 ** -np.minimum(most, EXACT))
    return float(np.abs(normal) @ halves)


def find_irregularities(stack: SliceStack) -> tuple[Irregularity, ...]:
    """List the deviations of a stack from a regular volume; empty if there are none.

    Raises:
        VolumeError: The stack cannot be corrected: it holds a single slice, several images of one place, or slices with
            irregular lateral offsets, or its tilt or a gap exceeds the limit. The message gives the figures.
    """
    count = len(stack.order)
    if count < 2:
        raise VolumeError("The series holds a single slice; a volume needs at least two.")
    gaps = stack.gaps
    twice = int((gaps < SAME_PLACE_MM).sum())
    if twice:
        where = float(stack.distances[int(np.argmin(gaps))])
        raise VolumeError(
            f"{twice} of {count} slices lie where another one does (for example {where:.2f} mm along the normal): the "
            f"series holds several images of the same place, such as time points, echoes, b-values or copies."
        )
    return tuple(found for found in (_lean(stack), _odd_gaps(stack)) if found is not None)


def require_regular(stack: SliceStack) -> None:
    """Refuse a stack that is not a regular volume without correction.

    Raises:
        VolumeError: There is an irregularity, which the message describes with advice, or the stack cannot be
            corrected; see :func:`find_irregularities`.
    """
    for found in find_irregularities(stack):
        raise VolumeError(f"{found.sentence} {found.remedy}")


def stack_affine(stack: SliceStack) -> NDArray[np.float64]:
    """Return the affine (4, 4) of the array (columns, rows, slices), from voxel indices to RAS+ mm.

    DICOM's patient coordinates are LPS+ (PS3.3 C.7.6.2.1.1): the first two world axes change sign. The slice step is
    the mean step from the first slice's position to the last one's. For rounded positions it is the step of the
    straight line that fits all of them best, which is more exact than any two of them.
    """
    first, last = stack.planes[0], stack.planes[-1]
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.along_row) * first.column_spacing
    affine[:3, 1] = np.array(first.along_column) * first.row_spacing
    affine[:3, 2] = (np.array(last.position) - np.array(first.position)) / (len(stack.planes) - 1)
    affine[:3, 3] = first.position
    if 2 * stack.rounding > GAP_TOLERANCE_MM:
        index = np.arange(len(stack.planes)) - (len(stack.planes) - 1) / 2
        positions = np.array([plane.position for plane in stack.planes])
        affine[:3, 2] = index @ positions / (index @ index)
        affine[:3, 3] = positions.mean(axis=0) + index[0] * affine[:3, 2]
    return lps_to_ras(affine)


def lps_to_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert an affine (4, 4) from LPS+ (DICOM) to RAS+ (NIfTI) world coordinates; the function is its own inverse."""
    return np.asarray(_LPS_TO_RAS @ affine)


def _require_one_kind(planes: Sequence[Plane]) -> None:
    sizes = Counter((p.rows, p.columns) for p in planes)
    if len(sizes) > 1:
        listed = ", ".join(f"{n} of {rows} x {columns}" for (rows, columns), n in sizes.most_common(4))
        raise VolumeError(f"The slices differ in rows and columns ({listed}); they do not make one volume.")
    orientations: list[tuple[NDArray[np.float64], int]] = []
    for plane in planes:
        cosines = np.array([*plane.along_row, *plane.along_column])
        for k, (known, n) in enumerate(orientations):
            if np.abs(known - cosines).max() < ANGLE_TOLERANCE:
                orientations[k] = (known, n + 1)
                break
        else:
            orientations.append((cosines, 1))
    if len(orientations) > 1:
        counts = ", ".join(str(n) for _, n in sorted(orientations, key=lambda o: -o[1])[:4])
        raise VolumeError(
            f"The slices have {len(orientations)} orientations ({counts} slices); they do not make one volume "
            f"(the series may hold localisers or several planes)."
        )
    spacings = np.array([(p.row_spacing, p.column_spacing) for p in planes])
    if (np.ptp(spacings, axis=0) > 1e-3 * spacings.min(axis=0)).any():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        raise VolumeError(
            f"The slices differ in pixel spacing ({low[0]:g} x {low[1]:g} mm to {high[0]:g} x {high[1]:g} mm); "
            f"they do not make one volume."
        )


def _lean(stack: SliceStack) -> Irregularity | None:
    first = stack.planes[0]
    lean = float(np.abs(stack.shifts).max())
    if lean <= TILT_TOLERANCE_PIXELS * min(first.row_spacing, first.column_spacing):
        return None
    # Offsets that grow evenly mean a tilted gantry; irregular ones mean something else (a moved table, two scans).
    even = np.outer((stack.distances - stack.distances[0]) / np.ptp(stack.distances), stack.shifts[-1])
    jump = float(np.abs(stack.shifts - even).max())
    if jump > max(JUMP_TOLERANCE_MM, 2 * stack.rounding, GAP_TOLERANCE * float(np.linalg.norm(stack.shifts[-1]))):
        raise VolumeError(
            f"The slices are not stacked along their normal: some are displaced sideways by up to {lean:.1f} mm; they "
            "do not make one volume."
        )
    sentence = (
        f"The slices are not stacked along their normal but tilted by {stack.tilt_degrees:.1f} degrees (gantry tilt): "
        f"without correction the anatomy would be sheared by {lean:.1f} mm."
    )
    if stack.tilt_degrees > MAX_TILT_DEGREES:
        raise VolumeError(f"{sentence} No gantry can be tilted that far; the positions are wrong.")
    return Irregularity("gantry_tilt", sentence, "Correct the tilt first.")


def _odd_gaps(stack: SliceStack) -> Irregularity | None:
    gaps = stack.gaps
    gap = float(np.median(gaps))
    if _even_but_rounded(stack):
        return None
    tolerance = max(GAP_TOLERANCE_MM, GAP_TOLERANCE * gap)
    if stack.rounding < AMBIGUOUS * gap:
        tolerance = max(tolerance, 2 * stack.rounding + 1e-6)
    odd = np.flatnonzero(np.abs(gaps - gap) > tolerance)
    if not odd.size:
        regular = np.linspace(stack.distances[0], stack.distances[-1], len(stack.order))
        drift = float(np.abs(stack.distances - regular).max())
        if drift <= max(GAP_TOLERANCE_MM, DRIFT_TOLERANCE * gap):
            return None
        sentence = (
            f"The slices are unevenly spaced: gaps run from {gaps.min():.3f} to {gaps.max():.3f} mm, which puts slices "
            f"up to {drift:.2f} mm away from their places in a regular stack."
        )
        return Irregularity("uneven_slices", sentence, "Resample the series to even gaps first.")
    k = int(odd[np.argmax(np.abs(gaps[odd] - gap))])
    listed = (
        f"between slices {k + 1} and {k + 2} of {len(stack.order)} (from {stack.distances[k]:.2f} to "
        f"{stack.distances[k + 1]:.2f} mm along the normal) the gap is {gaps[k]:.2f} mm instead of {gap:.2f} mm"
    )
    multiples = gaps[odd] / gap
    whole = np.rint(multiples)
    if (whole >= 2).all() and (np.abs(multiples - whole) * gap <= tolerance * whole).all():
        sentence = f"{int((whole - 1).sum())} slice(s) are missing: {listed}."
        found = Irregularity("missing_slices", sentence, "Send the whole series.")
    else:
        sentence = f"The slices are unevenly spaced: {odd.size} of {gaps.size} gaps differ, and {listed}."
        found = Irregularity("uneven_slices", sentence, "Resample the series to even gaps first.")
    if gaps.max() > max(MAX_BRIDGED_MM, gap + tolerance):
        raise VolumeError(
            f"{sentence} A gap of {gaps.max():.1f} mm is too wide to be interpolated (the limit is {MAX_BRIDGED_MM:g} "
            "mm)."
        )
    return found


def _even_but_rounded(stack: SliceStack) -> bool:
    """Return True if rounding of the positions alone can explain why the distances are not even."""
    index = np.arange(len(stack.order))
    step, start = np.polyfit(index, stack.distances, 1)
    off = float(np.abs(stack.distances - (start + step * index)).max())
    # The line is fitted to rounded values and may itself be off, by less than the values are.
    return stack.rounding < AMBIGUOUS * step and off <= 1.5 * stack.rounding


def _three(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector)
    return (x, y, z)
