"""Metrics of a mask against a reference: overlap, surface distances in mm, volumes in ml.

Papers differ in the definitions; these are used here:

* The surface of a mask consists of its voxels with at least one of the six face neighbours outside the mask (voxels
  outside the image count as outside the mask). Distances are measured between the centres of surface voxels, in mm.
* HD95 is the larger of the two directed 95th percentiles (linear interpolation between ranks), not the percentile of
  both directions pooled. Huttenlocher et al. 1993, "Comparing images using the Hausdorff distance".
* ASSD is the mean over both surfaces pooled: (sum of d(p, R) + sum of d(r, P)) / (|P| + |R|). Heimann et al. 2009,
  "Comparison and evaluation of methods for liver segmentation from CT datasets", section IV.
* ASD is one-way, from the prediction's surface to the reference's, as several semi-supervised papers report it. It does
  not measure what the prediction lacks.
* HD is the largest distance of either surface to the other (the 100th percentile instead of the 95th of HD95); a single
  distant voxel determines it. The "HSD" of comparative pre-training (Yildiz 2022) is HD in voxels of its own grid, not
  in mm.
* Precision is |A∩B| / |A| for prediction A, reference B, recall |A∩B| / |B|. In one scan F1, 2 P R / (P + R), is Dice.
  Over several scans F1 (:func:`f1_of_means`) is computed from the mean precision and the mean recall, not as the mean
  of the scans' Dice, because the released code of that paper reports these two means.
* An empty mask has no surface, so the four distances are NaN, never 0 (which would reward a network for finding
  nothing). Dice and Jaccard are 0 if one mask is empty and NaN if both are. Precision is NaN if the prediction is
  empty, recall if the reference is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from semiseg.errors import VolumeError
from semiseg.volumes.volume import affine_spacing, check_affine, voxel_ml

Mask = NDArray[np.bool_]

_ORTHOGONAL = 1e-3  # largest cosine between two voxel axes that float32 rounding in NIfTI can cause


@dataclass(frozen=True)
class SegmentScore:
    """Metrics of one segment in one scan; NaN if undefined (see the module's definitions)."""

    dice: float
    jaccard: float
    hd95_mm: float
    assd_mm: float
    asd_mm: float
    prediction_ml: float
    reference_ml: float
    hd_mm: float = math.nan
    precision: float = math.nan
    recall: float = math.nan


METRICS = ("dice", "jaccard", "hd95_mm", "assd_mm", "asd_mm", "hd_mm", "precision", "recall")
"""Attributes of :class:`SegmentScore` that measure the quality of a mask, in the order of tables."""

HIGHER_IS_BETTER = {metric: not metric.endswith("_mm") for metric in METRICS}


def score(prediction: Mask, reference: Mask, affine: NDArray[np.float64]) -> SegmentScore:
    """Compare two masks (X, Y, Z) on the grid of ``affine`` (4, 4).

    The spacing is the length of the affine's columns, so oblique grids are measured correctly. If the axes are not
    perpendicular (a sheared affine of a tilted gantry), distances are computed between world coordinates instead, which
    is exact as well.

    Raises:
        VolumeError: The masks are not 3D or differ in shape, or the affine is invalid.
    """
    _check(prediction, reference, affine)
    dice, jaccard = overlap(prediction, reference)
    there, back = surface_distances(prediction, reference, affine)
    precision, recall = precision_and_recall(prediction, reference)
    unit = voxel_ml(affine)
    return SegmentScore(
        dice=dice,
        jaccard=jaccard,
        hd95_mm=max(_percentile_95(there), _percentile_95(back)),
        assd_mm=_mean(np.concatenate([there, back])),
        asd_mm=_mean(there),
        prediction_ml=float(np.count_nonzero(prediction) * unit),
        reference_ml=float(np.count_nonzero(reference) * unit),
        hd_mm=max(_largest(there), _largest(back)),
        precision=precision,
        recall=recall,
    )


def overlap(prediction: Mask, reference: Mask) -> tuple[float, float]:
    """Return Dice 2|A∩B| / (|A| + |B|) and Jaccard |A∩B| / |A∪B|; both are NaN if both masks are empty.

    Examples:
        >>> import numpy as np
        >>> dice, jaccard = overlap(np.array([True, True, False]), np.array([True, False, False]))
        >>> round(dice, 3), jaccard
        (0.667, 0.5)
    """
    a, b = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if a + b == 0:
        return math.nan, math.nan
    both = int(np.count_nonzero(prediction & reference))
    return 2 * both / (a + b), both / (a + b - both)


def precision_and_recall(prediction: Mask, reference: Mask) -> tuple[float, float]:
    """Return precision |A∩B| / |A|, NaN if A is empty, and recall |A∩B| / |B|, NaN if B is empty."""
    found, there = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(prediction & reference))
    return both / found if found else math.nan, both / there if there else math.nan


def f1_of_means(precision: float, recall: float) -> float:
    """Return 2 P R / (P + R) of the means over scans; NaN if one of them is NaN, 0 if both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total else total


def surface_distances(
    prediction: Mask, reference: Mask, affine: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the distance in mm of every surface voxel to the other surface.

    Returns:
        Distances from the prediction's surface to the reference's, and back; both empty if either mask is empty.
    """
    nothing = np.empty(0)
    if not prediction.any() or not reference.any():
        return nothing, nothing
    box = _bounding_box(prediction | reference)
    a, b = surface(prediction[box]), surface(reference[box])
    if not _perpendicular(affine):
        return _between_points(a, b, affine)
    spacing = affine_spacing(affine)
    return _distance_to(b, spacing)[a], _distance_to(a, spacing)[b]


def surface(mask: Mask) -> Mask:
    """Return the voxels of ``mask`` with at least one of six face neighbours outside it (or outside the array)."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask), dtype=bool)


def _distance_to(surface_mask: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(~surface_mask, sampling=spacing))


def _between_points(a: Mask, b: Mask, affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # This is exact for any affine, but used for sheared ones only: between ragged masks (many surface voxels at equal
    # distances) a k-d tree needs minutes and the distance transform seconds.
    first, second = (np.argwhere(m) @ affine[:3, :3].T for m in (a, b))
    there, _ = cKDTree(second).query(first)
    back, _ = cKDTree(first).query(second)
    return np.asarray(there), np.asarray(back)


def _perpendicular(affine: NDArray[np.float64]) -> bool:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = directions.T @ directions - np.eye(3)
    return bool(np.abs(cosines).max() <= _ORTHOGONAL)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    box: tuple[slice, ...] = ndimage.find_objects(mask.astype(np.uint8))[0]
    return box


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def _largest(values: NDArray[Any]) -> float:
    return float(values.max()) if values.size else math.nan


def _percentile_95(values: NDArray[Any]) -> float:
    return float(np.percentile(values, 95)) if values.size else math.nan


def _check(prediction: Mask, reference: Mask, affine: NDArray[np.float64]) -> None:
    check_affine(affine)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise VolumeError(
            f"The two masks must have the same shape (X, Y, Z), not {prediction.shape} and {reference.shape}."
        )
