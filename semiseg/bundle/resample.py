"""Resampling between grids that cover the same box, with voxel edges (not centres) aligned.

Output voxel ``o`` is read at ``(o + 0.5) * n_in / n_out - 0.5``. The two grids cover exactly the same box in mm, so
resampling to the other grid and back restores the original shape and affine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Interval = tuple[int, int]
CHUNK_VOXELS = 1 << 24  # voxels of the new grid that are computed at once: 128 MB beside the result


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, int, int]:
    """Return the voxels per axis that come closest to ``target`` mm without changing the box (at least 1 per axis)."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return (x, y, z)


def resampled_affine(
    affine: NDArray[np.float64], shape: Sequence[int], new_shape: Sequence[int]
) -> NDArray[np.float64]:
    """Return the affine of the grid with ``new_shape`` voxels over the box of ``shape`` voxels."""
    zoom = np.asarray(shape, float) / np.asarray(new_shape, float)
    step = np.eye(4)
    step[:3, :3] = np.diag(zoom)
    step[:3, 3] = (zoom - 1.0) / 2.0
    return np.asarray(affine @ step)


@dataclass(frozen=True)
class _Taps:
    """Interpolation along one axis: the two old voxels beside each new one, and its distance from the first, 0..1."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    fraction: NDArray[np.float32]

    @classmethod
    def between(cls, old: int, new: int) -> _Taps:
        """Compute the neighbours; beyond the outermost voxel centres both are the border voxel."""
        at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.floor(at).astype(np.intp)
        return cls(low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32))

    def touched_by(self, old: Interval) -> Interval:
        """Return the interval of new voxels that depend on any of the old voxels ``old``."""
        return int(np.searchsorted(self.high, old[0])), int(np.searchsorted(self.low, old[1]))


def resample_image(array: NDArray[Any], new_shape: Sequence[int]) -> NDArray[np.float32]:
    """Resample (X, Y, Z) to ``new_shape`` trilinearly; beyond the outermost voxel centres the border value is used."""
    if array.shape == tuple(new_shape):
        return np.asarray(array, dtype=np.float32)
    taps = [_Taps.between(old, new) for old, new in zip(array.shape, new_shape, strict=True)]
    return _interpolated(array, taps, [(0, new) for new in new_shape])


def resample_labels(labels: NDArray[Any], new_shape: Sequence[int]) -> NDArray[Any]:
    """Resample a label map (X, Y, Z) class by class: each new voxel takes the label with the largest share there.

    This preserves the boundary between two segments, which nearest-neighbour resampling would turn into steps. Ties go
    to the smaller label, so background, 0, wins over a structure that fills exactly half a voxel. Only the bounding
    boxes of the labels are computed, part by part, so the cost depends on the size of the structures.
    """
    if labels.shape == tuple(new_shape):
        return labels
    taps = [_Taps.between(old, new) for old, new in zip(labels.shape, new_shape, strict=True)]
    boxes = [
        (label, [axis.touched_by((cut.start, cut.stop)) for axis, cut in zip(taps, box, strict=True)])
        for label, box in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False)), start=1)
        if box is not None
    ]
    out = np.zeros(tuple(new_shape), dtype=labels.dtype)
    for part in _parts([box for _, box in boxes]):
        size = [stop - start for start, stop in part]
        best, rest = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
        found = np.zeros(size, dtype=labels.dtype)
        for label, box in boxes:
            here = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, part, strict=True)]
            if any(start >= stop for start, stop in here):
                continue
            share = _interpolated(labels, taps, here, label)
            inside = tuple(slice(a - at, b - at) for (a, b), (at, _) in zip(here, part, strict=True))
            rest[inside] -= share
            wins = share > best[inside] + 1e-6
            found[inside][wins] = label
            best[inside][wins] = share[wins]
        found[best <= rest + 1e-6] = 0
        out[tuple(slice(start, stop) for start, stop in part)] = found
    return out


def resample_mask(mask: NDArray[np.bool_], new_shape: Sequence[int]) -> NDArray[np.bool_]:
    """Resample a mask (X, Y, Z): a new voxel belongs to the mask if the mask covers more than half of the voxel."""
    return resample_labels(mask.astype(np.uint8), new_shape).astype(bool)


def _parts(boxes: Sequence[Sequence[Interval]]) -> Iterator[list[Interval]]:
    """Yield the bounding box of all boxes, cut along the first axis into parts of at most ``CHUNK_VOXELS`` voxels."""
    if not boxes:
        return
    (x0, x1), y, z = ((min(box[k][0] for box in boxes), max(box[k][1] for box in boxes)) for k in range(3))
    planes = max(1, CHUNK_VOXELS // max(1, (y[1] - y[0]) * (z[1] - z[0])))
    for start in range(x0, x1, planes):
        yield [(start, min(start + planes, x1)), y, z]


def _interpolated(
    array: NDArray[Any], taps: Sequence[_Taps], box: Sequence[Interval], label: int | None = None
) -> NDArray[np.float32]:
    """Interpolate the new voxels in ``box``, of an image or of the mask of ``label``, one axis at a time.

    This is several times as fast as :func:`scipy.ndimage.affine_transform` and as SimpleITK's filter.
    """
    old = [(int(t.low[start]), int(t.high[stop - 1]) + 1) for t, (start, stop) in zip(taps, box, strict=True)]
    cropped = array[tuple(slice(start, stop) for start, stop in old)]
    out = np.asarray(cropped if label is None else cropped == label, dtype=np.float32)
    growth = [(stop - start) / side for (start, stop), side in zip(box, out.shape, strict=True)]
    for axis in sorted(range(3), key=lambda k: growth[k]):  # axes that shrink come first, so that the others cost less
        (start, stop), tap = box[axis], taps[axis]
        fraction = tap.fraction[start:stop].reshape([-1 if k == axis else 1 for k in range(3)])
        if out.shape[axis] == stop - start and not fraction.any():
            continue
        low = np.take(out, tap.low[start:stop] - old[axis][0], axis=axis)
        out = np.take(out, tap.high[start:stop] - old[axis][0], axis=axis)
        out -= low
        out *= fraction
        out += low
    return out
