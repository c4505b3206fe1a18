"""Atlases registered onto a scan, restricted to the part of the scan with segments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.cases import PreparedCase
from trainer.label_channels import FloatArray
from trainer.registration import RegistrationScan, identity_transform, local_mean, register, warp

AROUND = 1.5  # standard deviation in voxels of the Gaussian with which d is averaged
MARGIN = 4.0  # margin around the segments of all atlases, in voxels of the registration grid


@dataclass(frozen=True)
class Atlas:
    """A labelled scan, prepared for registration.

    Attributes:
        scan: Image of the scan.
        masks: Images of :meth:`trainer.label_channels.LabelChannels.masks`, on the grid of ``scan.own``.
        has_ignored_voxels: True if the label of some voxels is unknown.
    """

    scan: RegistrationScan
    masks: tuple[Any, ...]
    has_ignored_voxels: bool


class RegisteredAtlases:
    """Atlases registered onto a scan, restricted to the box around the segments of all atlases, with a margin.

    Attributes:
        transforms: Transform from points of the scan to points of each atlas.
        box: First voxel of the box along each axis and the one after its last.
    """

    def __init__(self, atlases: Sequence[Atlas], scan: RegistrationScan, case: PreparedCase) -> None:
        """Register ``atlases`` onto the scan of ``case``."""
        self.transforms = [register(scan, atlas.scan) for atlas in atlases]
        self._scan, self._atlases = scan, atlases
        self._spacing = case.spacing
        self._around = AROUND * max(scan.work.GetSpacing()[0], min(case.spacing))
        self.box = self._box(case)
        inside = scan.own[tuple(slice(a, b) for a, b in reversed(self.box))]
        self._own = inside
        self._local = warp(scan.local, inside, identity_transform())

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels of the box along each axis."""
        return tuple(b - a for a, b in self.box)

    def votes(self) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield the warped masks (segments + 1, *shape) and d (*shape) of each atlas."""
        for atlas, transform in zip(self._atlases, self.transforms, strict=True):
            masks = np.stack([warp(mask, self._own, transform) for mask in atlas.masks])
            away = (self._local - warp(atlas.scan.local, self._own, transform)) ** 2
            yield masks, local_mean(away, self._spacing, self._around)

    def _box(self, case: PreparedCase) -> list[tuple[int, int]]:
        """Return the first voxel of the box along each axis and the one after its last."""
        coarse = self._scan.work
        work = coarse.GetSpacing()[0]
        found = np.zeros(coarse.GetSize()[::-1], bool)
        for atlas, transform in zip(self._atlases, self.transforms, strict=True):
            for mask in atlas.masks[:-1]:
                found |= warp(mask, coarse, transform) > 0.05
        places = np.argwhere(found)
        # Outside the box all atlases have the background, unless some of their labels are unknown.
        if not len(places) or any(atlas.has_ignored_voxels for atlas in self._atlases):
            return [(0, n) for n in case.shape]
        box = []
        for axis, (n, mm) in enumerate(zip(case.shape, case.spacing, strict=True)):
            first, last = places[:, axis].min() - MARGIN, places[:, axis].max() + 1 + MARGIN
            # The centre of both grids is at the origin.
            middle, sides = n / 2.0, found.shape[axis] / 2.0
            low = math.floor(middle + (first - sides) * work / mm)
            high = math.ceil(middle + (last - sides) * work / mm)
            start = min(max(0, low), n - 1)
            box.append((start, min(n, max(high, start + 1))))
        return box
