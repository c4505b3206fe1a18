"""Postprocessing of masks: largest component, minimum volume, filling of holes. All steps are off by default."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)  # 26-neighbourhood, as in the challenges' own evaluation code


class SegmentCleaning(BaseModel):
    """Postprocessing of one segment.

    Attributes:
        largest_component: If True, keep only the largest 26-connected component.
        minimum_ml: Volume in ml below which components are removed.
        fill_holes: If True, fill background that the segment encloses in 3D.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    largest_component: bool = False
    minimum_ml: Annotated[float, Field(ge=0)] = 0.0
    fill_holes: bool = False

    def apply(self, mask: NDArray[np.bool_], voxel_ml: float) -> NDArray[np.bool_]:
        """Clean one mask (X, Y, Z); ``voxel_ml`` is the volume of a voxel in ml."""
        out = mask
        if (self.largest_component or self.minimum_ml > 0) and mask.any():
            components, _ = ndimage.label(mask, structure=CONNECTIVITY)
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            keep = sizes * voxel_ml >= self.minimum_ml
            keep[0] = False
            if self.largest_component:
                keep &= np.arange(sizes.size) == int(sizes.argmax())
            out = keep[components]
        if self.fill_holes:
            out = ndimage.binary_fill_holes(out)
        return np.asarray(out, dtype=bool)


class Postprocessing(BaseModel):
    """Postprocessing of all segments.

    Attributes:
        segments: Steps for each segment, by name; a segment that is not named is not changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segments: dict[str, SegmentCleaning] = {}

    def apply(self, array: NDArray[Any], labels: dict[str, int], voxel_ml: float) -> NDArray[Any]:
        """Clean a label map (X, Y, Z) or masks (K, X, Y, Z).

        In a label map, a voxel that is removed from a segment becomes background, and a hole is filled only where there
        is no other segment.

        Args:
            array: The label map or masks.
            labels: Label of each segment by name, in the segments' order.
            voxel_ml: Volume of a voxel in ml.
        """
        if not self.segments:
            return array
        out = array.copy()
        for index, (name, label) in enumerate(labels.items()):
            cleaning = self.segments.get(name)
            if cleaning is None:
                continue
            if array.ndim == 4:
                out[index] = cleaning.apply(array[index].astype(bool), voxel_ml)
                continue
            before = out == label
            after = cleaning.apply(before, voxel_ml)
            out[before & ~after] = 0
            out[after & (out == 0)] = label
        return out
