"""Random changes of a training patch in space: where it is cut, how it is turned and deformed.

Every random number comes from one generator that belongs to the patch, so that a patch is a function of its request.
Reading (:func:`read_region`) and making (:func:`resample_patch`) are apart: a GPU may do the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.transforms.utils import create_rotate
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from trainer.recipe import Augmentation


@dataclass(frozen=True)
class PatchGeometry:
    """Where a patch lies in a scan: output voxel o reads the scan at ``matrix @ o`` (homogeneous voxel indices)."""

    matrix: NDArray[np.float64]
    is_translation: bool  # only a shift by whole voxels: the patch is a slice of the array
    control: NDArray[np.float64] | None = None  # (3, ...) control points of a deformation in voxels of the scan


def draw_rotation_and_zoom(
    augmentation: Augmentation, slice_axis: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], float] | None:
    """How a patch is turned and scaled: a rotation (3, 3) and a zoom, or None for a patch that stays as it is."""
    if random.random() >= augmentation.affine:
        return None
    zoom = float(random.uniform(*augmentation.scale))
    angles = [
        math.radians(random.uniform(-limit, limit))
        for limit in (
            augmentation.rotate if axis == slice_axis else augmentation.rotate_out_of_plane for axis in range(3)
        )
    ]
    return np.asarray(create_rotate(3, angles), dtype=np.float64)[:3, :3], zoom


def draw_deformation(
    augmentation: Augmentation,
    patch: tuple[int, int, int],
    spacing: tuple[float, float, float],
    random: np.random.Generator,
) -> NDArray[np.float64] | None:
    """Control points (3, gx, gy, gz) of a free-form deformation, in voxels of the scan; None for no deformation.

    They lie on a regular grid over the patch and are the coefficients of a cubic B-spline (Rueckert et al., "Nonrigid
    registration using free-form deformations", 1999), so no voxel moves further than the largest of them.
    """
    if not augmentation.elastic or random.random() >= augmentation.elastic_probability:
        return None
    most = random.uniform(0.0, augmentation.elastic)
    sides = [
        max(1, round(n * mm / augmentation.elastic_grid)) + 3 for n, mm in zip(patch, spacing, strict=True)
    ]  # three control points act beyond the last cell
    in_mm = random.uniform(-most, most, (3, *sides))
    return np.asarray(in_mm / np.asarray(spacing)[:, None, None, None])


def place_patch(
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
    turn: tuple[NDArray[np.float64], float] | None,
    spacing: tuple[float, float, float],
    voxel: tuple[int, int, int] | None,
    random: np.random.Generator,
) -> PatchGeometry:
    """Where in a scan of ``shape`` a patch turned by ``turn`` is cut; it holds ``voxel`` when there is one.

    The turn is one of the body: voxels that are longer along one axis (``spacing`` in mm) are not sheared.

    Apart from what a rotation needs, a patch does not leave a scan that is larger than it. Along an axis on which the
    scan is no larger, the scan stays in the middle of the patch, as the sliding window will have it.
    """
    size, sides = np.asarray(shape), np.asarray(patch)
    half = (sides - 1) / 2.0
    rotation, zoom = turn or (np.eye(3), 1.0)
    mm = np.asarray(spacing)
    step = rotation * mm[None, :] / mm[:, None] / zoom  # of the scan, for one voxel of the patch
    reach = half / zoom
    low, high = reach, size - 1 - reach
    if voxel is None:
        share = random.random(3)
        centre = low + share * (high - low) if turn else half + np.floor(share * (size - sides + 1))
    else:
        centre = voxel - step @ (random.integers(0, sides) - half)  # anywhere in the patch
        centre = np.clip(centre, low, np.maximum(low, high))
    centre = np.where(low > high, (size - 1) / 2.0, centre)
    centre = np.where(size <= sides, half - (sides - size) // 2, centre)
    if voxel is not None:
        # What was clipped or kept in the middle may have lost the voxel: back by just as much as it is outside.
        where = np.linalg.solve(step, voxel - centre)
        centre = centre + step @ (where - np.clip(where, -half, half))
    matrix = np.eye(4)
    matrix[:3, :3] = step
    matrix[:3, 3] = np.round(centre - half) if turn is None else centre - step @ half
    return PatchGeometry(matrix, is_translation=turn is None)


def patch_faces(cut: PatchGeometry, patch: tuple[int, int, int], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Where the patch's two faces across each axis lie along it, as shares of the scan's extent: (3, 2).

    They are taken on the line through the middle of the patch, which a rotation tilts.
    """
    found = np.empty((3, 2))
    for axis, (sides, length) in enumerate(zip(patch, shape, strict=True)):
        for end, voxel in enumerate((-0.5, sides - 0.5)):
            point = (np.asarray(patch) - 1) / 2.0
            point[axis] = voxel
            found[axis, end] = (cut.matrix[axis, :3] @ point + cut.matrix[axis, 3] + 0.5) / length
    return found


@dataclass(frozen=True)
class SourceRegion:
    """All that a cut reads of a scan, beside the cut itself, whose matrix counts voxels of this box.

    Attributes:
        image: float32 (C, X, Y, Z).
        labels: uint8 (K, X, Y, Z): the label maps that are cut with it, none or several.
        cut: output voxel o reads the box at ``cut.matrix @ o``.
    """

    image: Tensor
    labels: Tensor
    cut: PatchGeometry

    def pin_memory(self) -> SourceRegion:
        """The same in page-locked memory; the loader asks for it."""
        return replace(self, image=self.image.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> SourceRegion:
        """The same on another device."""
        image, labels = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.labels))
        return replace(self, image=image, labels=labels)


def read_region(
    image: NDArray[np.generic], labels: Sequence[NDArray[np.generic]], cut: PatchGeometry, patch: tuple[int, int, int]
) -> SourceRegion:
    """The part of ``image`` (C, X, Y, Z) and of each label map (X, Y, Z) that a patch needs: only this is read."""
    margin = np.zeros(3, int) if cut.is_translation and cut.control is None else np.ones(3, int)
    if cut.control is not None:
        margin += np.ceil(np.abs(cut.control).max(axis=(1, 2, 3))).astype(int)
    box = _box(cut.matrix, patch, image.shape[1:], margin)
    inside = tuple(slice(a, b) for a, b in box)
    matrix = cut.matrix.copy()
    matrix[:3, 3] -= [a for a, _ in box]
    maps = [np.array(one[inside], dtype=np.uint8) for one in labels]
    found = torch.from_numpy(np.stack(maps) if maps else np.zeros((0, *(b - a for a, b in box)), np.uint8))
    read = torch.from_numpy(np.array(image[(slice(None), *inside)], dtype=np.float32))
    return SourceRegion(read, found, replace(cut, matrix=matrix))


def resample_patch(box: SourceRegion, patch: tuple[int, int, int], padding: str) -> tuple[Tensor, Tensor]:
    """The patch: the image interpolated linearly, the labels by nearest voxel, on the device that the box is on.

    Beyond the scan lies its border value (``edge``) or zero. Both results are float32: (C, *patch) and (K, *patch).
    """
    arrays = [box.image, box.labels.float()] if len(box.labels) else [box.image]
    matrix = box.cut.matrix.copy()
    if box.cut.is_translation and box.cut.control is None:
        cuts = [_shifted(array, matrix[:3, 3].astype(int), patch, padding) for array in arrays]
    else:
        if padding == "zero":  # a frame of zeros, since torch has no zeros beyond an axis of one voxel
            arrays = [pad(array, (1, 1, 1, 1, 1, 1)) for array in arrays]
            matrix[:3, 3] += 1
        grid = _sampling_grid(matrix, arrays[0].shape[1:], patch, box.image.device)
        if box.cut.control is not None:
            grid = grid + _displacements(box.cut.control, arrays[0].shape[1:], patch, box.image.device)
        cuts = [
            grid_sample(array[None], grid, mode, padding_mode="border", align_corners=True)[0]
            for array, mode in zip(arrays, ("bilinear", "nearest"), strict=False)
        ]
    return cuts[0], cuts[1] if len(cuts) > 1 else box.image.new_zeros((0, *patch))


@dataclass(frozen=True)
class Symmetry:
    """A turn by ``turns`` right angles in the plane of two axes of (X, Y, Z), then mirrored ``axes``."""

    quarter_turns: int
    plane: tuple[int, int]
    axes: tuple[int, ...]

    def apply(self, array: Tensor) -> Tensor:
        """Applied to the last three axes of an array."""
        first = array.ndim - 3
        if self.quarter_turns:
            array = array.rot90(self.quarter_turns, (self.plane[0] + first, self.plane[1] + first))
        return array.flip([axis + first for axis in self.axes]) if self.axes else array

    def apply_to_faces(self, faces: Tensor) -> Tensor:
        """Applied to :func:`patch_faces` (3, 2); where axes have changed places, nothing lies along its own: NaN."""
        faces = faces.clone()
        if self.quarter_turns % 2:
            faces[list(self.plane)] = torch.nan
        for axis in {*self.axes} ^ ({*self.plane} if self.quarter_turns == 2 else set()):
            faces[axis] = faces[axis].flip(0)
        return faces


def draw_symmetry(
    augmentation: Augmentation, slice_axis: int, patch: tuple[int, int, int], random: np.random.Generator
) -> Symmetry:
    """How a patch is turned by right angles and mirrored."""
    first, second = (axis for axis in range(3) if axis != slice_axis)
    turns = 0
    if augmentation.quarter_turns and random.random() < augmentation.quarter_turns:
        turns = int(random.integers(4)) if patch[first] == patch[second] else 2 * int(random.integers(2))
    mirrored = tuple(axis for axis in augmentation.flip if random.random() < augmentation.flip_probability)
    return Symmetry(turns, (first, second), mirrored)


def _box(
    matrix: NDArray[np.float64], patch: tuple[int, int, int], shape: tuple[int, ...], margin: NDArray[np.int_]
) -> list[tuple[int, int]]:
    """First voxel of the part of the scan that a cut reads and the one after its last; at least one voxel per axis."""
    corners = np.asarray(
        [[x, y, z, 1] for x in (0, patch[0] - 1) for y in (0, patch[1] - 1) for z in (0, patch[2] - 1)]
    )
    points = (matrix @ corners.T)[:3]
    low = np.floor(points.min(axis=1)).astype(int) - margin
    high = np.ceil(points.max(axis=1)).astype(int) + margin + 1
    box = []
    for a, b, n in zip(low, high, shape, strict=True):
        start = int(np.clip(a, 0, n - 1))
        box.append((start, int(np.clip(b, start + 1, n))))
    return box


def _sampling_grid(
    matrix: NDArray[np.float64], shape: tuple[int, ...], patch: tuple[int, int, int], device: torch.device
) -> Tensor:
    """``matrix`` (voxel of the patch -> voxel of an array of ``shape``) as the grid that ``grid_sample`` reads.

    Torch counts positions from -1 at the first voxel's centre to 1 at the last one's, the last axis first.
    """
    half = (np.asarray(patch) - 1) / 2.0
    scale = np.asarray([2.0 / (n - 1) if n > 1 else 0.0 for n in shape])  # an axis of one voxel has one position
    theta = np.empty((3, 4))
    theta[:, :3] = scale[:, None] * matrix[:3, :3] * half
    theta[:, 3] = scale * (matrix[:3, :3] @ half + matrix[:3, 3]) - 1.0
    reversed_axes = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
    return affine_grid(torch.from_numpy(reversed_axes).float()[None].to(device), [1, 1, *patch], align_corners=True)


def _displacements(
    control: NDArray[np.float64], shape: tuple[int, ...], patch: tuple[int, int, int], device: torch.device
) -> Tensor:
    """A deformation (1, *patch, 3) in the units and order of axes of :func:`_sampling_grid`."""
    weights = [
        torch.from_numpy(_spline(n, g)).float().to(device) for n, g in zip(patch, control.shape[1:], strict=True)
    ]
    points = torch.from_numpy(control).float().to(device)
    moved = torch.einsum("cijk,xi,yj,zk->xyzc", points, *weights)
    scale = torch.tensor([2.0 / (n - 1) if n > 1 else 0.0 for n in shape], device=device)
    return (moved * scale).flip(-1)[None]


def _spline(voxels: int, control: int) -> NDArray[np.float64]:
    """Weights (voxels, control) of the uniform cubic B-spline at voxels that lie evenly over ``control - 3`` cells."""
    at = (np.arange(voxels) + 0.5) / voxels * (control - 3)
    cell = np.minimum(at.astype(int), control - 4)
    u = at - cell
    basis = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    weights = np.zeros((voxels, control))
    for k, values in enumerate(basis):
        weights[np.arange(voxels), cell + k] = values / 6.0
    return weights


def _shifted(local: Tensor, start: NDArray[np.int_], patch: tuple[int, int, int], padding: str) -> Tensor:
    """The patch that begins at voxel ``start`` of ``local`` (C, X, Y, Z), which it may leave on any side."""
    out = local
    for axis, (s, p, n) in enumerate(zip(start, patch, local.shape[1:], strict=True), start=1):
        places = torch.arange(int(s), int(s) + p, device=local.device)
        out = out.index_select(axis, places.clamp(0, n - 1))
        if padding == "zero":
            inside = ((places >= 0) & (places < n)).view(-1, *[1] * (3 - axis))
            out = out * inside
    return out.contiguous()
