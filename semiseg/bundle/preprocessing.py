"""Preprocessing of scans: configured in training, stored in the bundle, and executed by this module only.

The order is: orient, crop, normalise the intensities, resample. Each step has an inverse on the geometry, so that
:meth:`Preprocessing.restore` returns a mask to the scan's own grid, voxel for voxel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from semiseg.bundle.resample import resample_image, resample_labels, resample_mask, resampled_affine, resampled_shape
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.volume import Volume, affine_spacing, reorient, same_grid

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
SPREAD_FLOOR = 1e-6  # an image is constant if its standard deviation or range is below this share of its values

CHUNK_VOXELS = 1 << 22  # number of voxels that are summed at once


def _axcodes(value: str) -> str:
    letters = {frozenset("RL"), frozenset("AP"), frozenset("SI")}
    found = {pair for pair in letters for c in value if c in pair}
    if len(value) != 3 or len(found) != 3:
        raise ValueError(f"an orientation is three letters, one of R/L, one of A/P, one of S/I; not {value!r}")
    return value


class Intensity(BaseModel):
    """Normalisation of one channel's intensities.

    Attributes:
        clip: Lowest and highest value kept, in the scan's own units (HU for CT).
        percentiles: Percentiles of the scan to clip to, instead of ``clip``.
        scale: ``zscore`` subtracts the mean and divides by the standard deviation; ``minmax`` maps the smallest and the
            largest value to 0 and 1; ``window`` maps ``clip`` to 0 and 1, the same for every scan.
        over: Voxels that the statistics are computed over, ``all`` or ``nonzero``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: tuple[FiniteFloat, FiniteFloat] | None = None
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] | None = None
    scale: Literal["zscore", "minmax", "window"] = "zscore"
    over: Literal["all", "nonzero"] = "all"

    @model_validator(mode="after")
    def _consistent(self) -> Intensity:
        if self.clip and self.percentiles:
            raise ValueError("give `clip` or `percentiles`, not both")
        for pair in (self.clip, self.percentiles):
            if pair and not pair[0] < pair[1]:
                raise ValueError(f"the lower limit has to be below the upper one, got {list(pair)}")
        if self.scale == "window" and not self.clip:
            raise ValueError("`scale: window` maps the limits of `clip` to 0 and 1, so it needs `clip`")
        return self

    def apply(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise (X, Y, Z) values; a constant image becomes zeros under ``zscore`` and ``minmax``.

        Raises:
            VolumeError: A value is not finite.
        """
        # One copy, then in-place operations, because a CT of 10^8 voxels takes half a gigabyte as float32.
        values = array.astype(np.float32, order="C")
        if not np.isfinite((values.min(), values.max())).all():  # min and max are NaN if any value is
            raise VolumeError("The scan holds values that are not finite (NaN or infinity).")
        counted = values[values != 0] if self.over == "nonzero" and values.any() else values
        limits = self.clip
        if self.percentiles:
            low, high = (float(v) for v in np.percentile(counted, self.percentiles))
            limits = (low, high)
        if limits:
            np.clip(values, *limits, out=values)
            if counted is not values:
                np.clip(counted, *limits, out=counted)
        if self.scale == "window" and self.clip:
            low, high = self.clip
            values -= low
            values /= high - low
            return values
        smallest, largest = float(counted.min()), float(counted.max())
        centre, spread = moments(counted) if self.scale == "zscore" else (smallest, largest - smallest)
        if spread <= SPREAD_FLOOR * max(abs(smallest), abs(largest)):
            values.fill(0)
            return values
        values -= np.float32(centre)
        values /= np.float32(spread)
        return values


def moments(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation, summed chunk by chunk in float64, because float32 loses digits over a CT."""
    parts = np.split(values.reshape(-1), range(CHUNK_VOXELS, values.size, CHUNK_VOXELS))
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / values.size
    squares = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in parts)
    return mean, math.sqrt(squares / values.size)


@dataclass(frozen=True)
class GeometryRecord:
    """Geometry of the original scan, from which a mask is returned to the scan's grid.

    ``box`` is the crop, as (start, stop) per axis of the oriented grid.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    oriented_shape: tuple[int, int, int]
    box: Box

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Size of the crop in voxels along the oriented axes."""
        x, y, z = (stop - start for start, stop in self.box)
        return (x, y, z)


@dataclass(frozen=True, eq=False)
class PreprocessedScan:
    """The network's input: ``array`` float32 (C, X, Y, Z), its ``affine``, and the geometry of the original scan."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    geometry: GeometryRecord


class Preprocessing(BaseModel):
    """Preprocessing that training and inference share.

    Attributes:
        orientation: Axis codes that every scan is permuted and flipped to (never rotated).
        spacing: Voxel spacing in mm along those axes, or null to keep each scan's own.
        intensity: Normalisation of each channel, in order.
        crop: ``nonzero`` crops the scan to the box of voxels that differ from 0 in any channel, which removes the air
            around the body.
        slice_axis: Axis, after orientation, along which 2D teachers slice.
        padding: Values that fill up a scan smaller than the window: ``edge`` repeats the border values, ``zero`` adds
            zeros after normalisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    orientation: Annotated[str, AfterValidator(_axcodes)] = "RAS"
    spacing: tuple[float, float, float] | None = None
    intensity: tuple[Intensity, ...] = (Intensity(),)
    crop: Literal["none", "nonzero"] = "none"
    slice_axis: Literal[0, 1, 2] = 2
    padding: Literal["edge", "zero"] = "edge"

    @model_validator(mode="after")
    def _positive(self) -> Preprocessing:
        if self.spacing and not all(0 < s < 1000 for s in self.spacing):
            raise ValueError(f"a spacing is in mm and positive, got {list(self.spacing)}")
        if not self.intensity:
            raise ValueError("`intensity` needs one entry per channel")
        return self

    def apply(self, channels: Mapping[str, Volume]) -> PreprocessedScan:
        """Turn the channels of one scan, in order, into the network's input.

        Raises:
            InputError: The number of channels differs from the number of entries in ``intensity``.
            VolumeError: The channels are on different grids, or contain values that are not finite.
        """
        volumes = list(channels.values())
        if len(volumes) != len(self.intensity):
            raise InputError(f"This model takes {len(self.intensity)} channel(s); {len(volumes)} were given.")
        first = volumes[0]
        for name, volume in channels.items():
            if volume.shape != first.shape or not same_grid(volume.affine, first.affine, first.shape):
                raise VolumeError(
                    f"Channel {name!r} is not on the grid of the first channel "
                    f"(shape {volume.shape} against {first.shape}); resample it onto that grid first."
                )
        oriented = [reorient(v.array, v.affine, self.orientation)[0] for v in volumes]
        affine = reorient(np.broadcast_to(np.uint8(0), first.shape), first.affine, self.orientation)[1]
        box = _nonzero_box(oriented) if self.crop == "nonzero" else _whole(oriented[0].shape)
        inside = _slices(box)
        affine = _shifted(affine, [start for start, _ in box])
        size = _triple(oriented[0][inside].shape)
        shape = self.network_shape(size, affine)
        channel = (
            resample_image(intensity.apply(array[inside]), shape)
            for intensity, array in zip(self.intensity, oriented, strict=True)
        )
        return PreprocessedScan(
            # With one channel no stacking is needed, so that the scan is not copied.
            array=next(channel)[None] if len(oriented) == 1 else np.stack(list(channel)),
            affine=resampled_affine(affine, size, shape),
            geometry=GeometryRecord(
                shape=first.shape, affine=first.affine, oriented_shape=_triple(oriented[0].shape), box=box
            ),
        )

    def network_shape(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[int, int, int]:
        """Return the shape of an oriented, cropped grid after resampling to :attr:`spacing`."""
        if self.spacing is None:
            return _triple(shape)
        return resampled_shape(shape, affine_spacing(affine), self.spacing)

    def apply_labels(self, labels: NDArray[Any], prepared: PreprocessedScan) -> NDArray[Any]:
        """Resample a label map (X, Y, Z), or masks (K, X, Y, Z), from the scan's to the network's grid (training only).

        Raises:
            VolumeError: The shape of the labels differs from that of the scan that ``prepared`` was made from.
        """
        place = prepared.geometry
        if labels.shape[-3:] != place.shape:
            raise VolumeError(f"The labels have shape {labels.shape[-3:]}, the scan {place.shape}.")
        oriented = reorient(labels, place.affine, self.orientation)[0]
        x, y, z = _slices(place.box)
        cropped = oriented[..., x, y, z]
        shape = prepared.array.shape[1:]
        if labels.ndim == 3:
            return np.ascontiguousarray(resample_labels(cropped, shape))
        return np.stack([resample_mask(mask, shape) for mask in cropped])

    def restore(self, labels: NDArray[Any], geometry: GeometryRecord) -> NDArray[Any]:
        """Return a label map (X, Y, Z), or masks (K, X, Y, Z), from the network's grid to the scan's own grid.

        Orientation and crop are inverted exactly; resampling returns to the scan's exact shape, class by class. Voxels
        outside the crop are background.
        """
        if labels.ndim == 3:
            cropped = resample_labels(labels, geometry.cropped_shape)
        elif labels.shape[-3:] == geometry.cropped_shape:
            cropped = labels
        else:
            cropped = np.stack([resample_mask(mask, geometry.cropped_shape) for mask in labels])
        return self._placed(cropped, geometry)

    def restore_image(self, images: NDArray[np.uint8], geometry: GeometryRecord) -> NDArray[np.uint8]:
        """Return integer images (K, X, Y, Z) from the network's grid to the scan's own grid by linear interpolation.

        Voxels outside the crop are 0.
        """
        cropped = [np.rint(resample_image(image, geometry.cropped_shape)).astype(np.uint8) for image in images]
        return self._placed(np.stack(cropped), geometry)

    def _placed(self, cropped: NDArray[Any], geometry: GeometryRecord) -> NDArray[Any]:
        """Undo crop and orientation of (..., X, Y, Z); voxels outside the crop are 0."""
        oriented = np.zeros((*cropped.shape[:-3], *geometry.oriented_shape), dtype=cropped.dtype)
        x, y, z = _slices(geometry.box)
        oriented[..., x, y, z] = cropped
        _, oriented_affine = reorient(np.broadcast_to(np.uint8(0), geometry.shape), geometry.affine, self.orientation)
        return np.ascontiguousarray(_turned_back(oriented, oriented_affine, geometry.affine))


def _triple(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = shape
    return (x, y, z)


def _slices(box: Box) -> tuple[slice, slice, slice]:
    (x0, x1), (y0, y1), (z0, z1) = box
    return (slice(x0, x1), slice(y0, y1), slice(z0, z1))


def _whole(shape: tuple[int, ...]) -> Box:
    x, y, z = shape
    return ((0, x), (0, y), (0, z))


def _nonzero_box(arrays: list[NDArray[Any]]) -> Box:
    body = np.logical_or.reduce([array != 0 for array in arrays])
    if not body.any():
        return _whole(body.shape)
    bounds: list[tuple[int, int]] = []
    for axis in range(3):
        filled = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append((int(filled[0]), int(filled[-1]) + 1))
    return (bounds[0], bounds[1], bounds[2])


def _turned_back(array: NDArray[Any], turned: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Undo :func:`reorient`: return (..., X, Y, Z) from the grid ``turned`` to the axes of ``affine``.

    The permutation is computed from the two affines, not with :func:`reorient`: near 45 degrees the nearest direction
    of an axis depends on the order in which the axes are examined, so reorienting to the axis codes of the first grid
    could produce another grid.
    """
    steps = np.rint(np.linalg.solve(affine[:3, :3], turned[:3, :3])).astype(int)  # a signed permutation
    leading = array.ndim - 3
    flipped = tuple(leading + axis for axis in range(3) if steps[:, axis].sum() < 0)
    order = [leading + int(np.flatnonzero(row)[0]) for row in steps]
    return np.transpose(np.flip(array, axis=flipped), (*range(leading), *order))


def _shifted(affine: NDArray[np.float64], start: list[int]) -> NDArray[np.float64]:
    out = affine.copy()
    out[:3, 3] = affine[:3, :3] @ np.asarray(start, float) + affine[:3, 3]
    return out
