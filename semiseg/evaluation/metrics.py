"""How well a mask agrees with a reference outline: overlap, surface distances in mm, volumes in ml.

Conventions, since papers differ in them:

* The surface of a mask is its voxels that do not have all six face neighbours inside it (what lies outside the image
  counts as outside the mask); distances run between the centres of surface voxels, in mm.
* HD95 is the larger of the two directed 95th percentiles (linear interpolation between ranks), not the percentile of
  both directions pooled. Huttenlocher et al. 1993, "Comparing images using the Hausdorff distance".
* ASSD is the mean over both surfaces pooled: (sum of d(p, R) + sum of d(r, P)) / (|P| + |R|). Heimann et al. 2009,
  "Comparison and evaluation of methods for liver segmentation from CT datasets", section IV.
* ASD is one-way, from the prediction's surface to the reference's: what several semi-supervised papers print as "ASD".
  It does not see what the prediction left out.
* HD is the largest distance of either surface to the other (the 100th percentile where HD95 has the 95th): one voxel
  far away decides it. The "HSD" of comparative pre-training (Yildiz 2022) is this in voxels of its own grid, not in mm.
* Precision is |A∩B| / |A| for prediction A, reference B, recall |A∩B| / |B|. In one scan F1, 2 P R / (P + R), is Dice.
  Over several scans F1 (:func:`f1_of_means`) is that of the mean precision and the mean recall, not the mean of the
  scans' Dice: the released code of that paper keeps these two means.
* An empty mask has no surface, so the four distances are NaN, never 0 (which would reward a network for finding
  nothing); Dice and Jaccard are 0 if one mask is empty and NaN if both are, where there was nothing to find.
  Precision is NaN where nothing was found, recall where there was nothing to find.
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

_ORTHOGONAL = 1e-3  # largest cosine between two voxel axes that NIfTI's float32 rounding explains


@dataclass(frozen=True)
class SegmentScore:
    """The figures of one segment in one scan; NaN where there is none (see the module's conventions)."""

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
"""The figures of :class:`SegmentScore` that say how good a mask is, in the order in which tables show them."""

HIGHER_IS_BETTER = {metric: not metric.endswith("_mm") for metric in METRICS}


def score(prediction: Mask, reference: Mask, affine: NDArray[np.float64]) -> SegmentScore:
    """Compare two masks (X, Y, Z) on the grid of ``affine`` (4, 4).

    Spacing comes from the affine's columns, so an oblique grid counts as it lies. Where the axes are not perpendicular
    (a sheared affine, from a tilted gantry) distances are taken between world coordinates instead, which is exact too.

    Raises:
        VolumeError: the masks are not 3D or differ in shape, or the affine is not one.
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
    """Dice 2|A∩B| / (|A| + |B|) and Jaccard |A∩B| / |A∪B|; both NaN when both masks are empty."""
    a, b = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if a + b == 0:
        return math.nan, math.nan
    both = int(np.count_nonzero(prediction & reference))
    return 2 * both / (a + b), both / (a + b - both)


def precision_and_recall(prediction: Mask, reference: Mask) -> tuple[float, float]:
    """|A∩B| / |A| and |A∩B| / |B|; NaN where A, or B, is empty."""
    found, there = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(prediction & reference))
    return both / found if found else math.nan, both / there if there else math.nan


def f1_of_means(precision: float, recall: float) -> float:
    """2 P R / (P + R) of the means over scans; NaN where one of them is, 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total else total


def surface_distances(
    prediction: Mask, reference: Mask, affine: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance in mm of every surface voxel to the other surface.

    Returns:
        From the prediction's surface to the reference's, and back; both empty if either mask is.
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
    """The voxels of ``mask`` with at least one of six face neighbours outside it (or outside the array)."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask), dtype=bool)


def _distance_to(surface_mask: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(~surface_mask, sampling=spacing))


def _between_points(a: Mask, b: Mask, affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Not the only way, although exact for any affine: between ragged masks (many surface voxels equally far) a k-d tree
    # needs minutes where the distance transform needs seconds.
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
            f"Two masks of one scan have one shape (X, Y, Z); these have {prediction.shape} and {reference.shape}."
        )
