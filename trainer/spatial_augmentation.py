"""Random spatial augmentation of training patches: position, rotation, zoom, deformation and mirroring.

All random numbers of a patch come from generators of the patch, so that a patch is a function of its request. Reading
(:func:`read_region`) and resampling (:func:`resample_patch`) are separate, so that a GPU can do the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from trainer.monai_modules import create_rotate
from trainer.recipe import Augmentation


@dataclass(frozen=True)
class PatchGeometry:
    """Position of a patch in a scan.

    Attributes:
        matrix: Voxel o of the patch is read from the scan at ``matrix @ o`` (homogeneous voxel indices).
        is_translation: True if the matrix is a translation by whole voxels, so that the patch is a slice of the array.
        control: Control points (3, gx, gy, gz) of a deformation in voxels of the scan; None for no deformation.
    """

    matrix: NDArray[np.float64]
    is_translation: bool
    control: NDArray[np.float64] | None = None


def draw_rotation_and_zoom(
    augmentation: Augmentation, slice_axis: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], float] | None:
    """Draw a rotation matrix (3, 3) and a zoom factor; None for no rotation and zoom."""
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
    """Draw control points (3, gx, gy, gz) of a free-form deformation, in voxels of the scan; None for no deformation.

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
    """Draw the position of a patch in a scan.

    The rotation is applied in mm, so that anisotropic voxels are not sheared. A patch without rotation stays inside a
    scan that is larger than it. Along an axis on which the scan is not larger, the scan is centred in the patch, as in
    the sliding window.

    Args:
        shape: Voxels of the scan along each axis.
        patch: Voxels of the patch along each axis.
        turn: Rotation matrix (3, 3) and zoom factor; None for none.
        spacing: Voxel spacing in mm.
        voxel: Voxel of the scan that the patch has to contain; None for any position.
        random: Generator of the random numbers.
    """
    size, sides = np.asarray(shape), np.asarray(patch)
    half = (sides - 1) / 2.0
    rotation, zoom = turn or (np.eye(3), 1.0)
    mm = np.asarray(spacing)
    step = rotation * mm[None, :] / mm[:, None] / zoom  # step in voxels of the scan for one voxel of the patch
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
        # After clipping and centring, the voxel may be outside the patch; move the patch by as much as it is outside.
        where = np.linalg.solve(step, voxel - centre)
        centre = centre + step @ (where - np.clip(where, -half, half))
    matrix = np.eye(4)
    matrix[:3, :3] = step
    matrix[:3, 3] = np.round(centre - half) if turn is None else centre - step @ half
    return PatchGeometry(matrix, is_translation=turn is None)


def patch_faces(cut: PatchGeometry, patch: tuple[int, int, int], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the positions (3, 2) of the patch's two faces along each axis, as shares of the scan's extent.

    They are measured on the lines through the centre of the patch, which are tilted by a rotation.
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
    """Box of a scan from which a patch is resampled, and the position of the patch in this box.

    Attributes:
        image: Image float32 (C, X, Y, Z).
        labels: Label maps uint8 (K, X, Y, Z), of which there may be none.
        cut: Position of the patch, with ``cut.matrix`` in voxels of the box.
    """

    image: Tensor
    labels: Tensor
    cut: PatchGeometry

    def pin_memory(self) -> SourceRegion:
        """Copy the box to page-locked memory; the data loader calls this."""
        return replace(self, image=self.image.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> SourceRegion:
        """Copy the box to a device."""
        image, labels = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.labels))
        return replace(self, image=image, labels=labels)


def read_region(
    image: NDArray[np.generic], labels: Sequence[NDArray[np.generic]], cut: PatchGeometry, patch: tuple[int, int, int]
) -> SourceRegion:
    """Read only the part of ``image`` (C, X, Y, Z) and of each label map (X, Y, Z) that a patch needs."""
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
    """Resample a patch on the device of the box, with linear interpolation for the image and nearest for labels.

    Outside the scan, values are those of its border (``padding`` is ``edge``) or zero.

    Returns:
        The image (C, *patch) and the label maps (K, *patch), both float32.
    """
    arrays = [box.image, box.labels.float()] if len(box.labels) else [box.image]
    matrix = box.cut.matrix.copy()
    if box.cut.is_translation and box.cut.control is None:
        cuts = [_shifted(array, matrix[:3, 3].astype(int), patch, padding) for array in arrays]
    else:
        if padding == "zero":  # add a border of zeros, since torch does not zero-pad an axis of one voxel
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
    """Rotation by ``quarter_turns`` right angles in the ``plane`` of two axes of (X, Y, Z), then mirrored ``axes``."""

    quarter_turns: int
    plane: tuple[int, int]
    axes: tuple[int, ...]

    def apply(self, array: Tensor) -> Tensor:
        """Apply the symmetry to the last three axes of an array."""
        first = array.ndim - 3
        if self.quarter_turns:
            array = array.rot90(self.quarter_turns, (self.plane[0] + first, self.plane[1] + first))
        return array.flip([axis + first for axis in self.axes]) if self.axes else array

    def apply_to_faces(self, faces: Tensor) -> Tensor:
        """Apply the symmetry to :func:`patch_faces` (3, 2); the result is NaN for axes that were exchanged."""
        faces = faces.clone()
        if self.quarter_turns % 2:
            faces[list(self.plane)] = torch.nan
        for axis in {*self.axes} ^ ({*self.plane} if self.quarter_turns == 2 else set()):
            faces[axis] = faces[axis].flip(0)
        return faces


def draw_symmetry(
    augmentation: Augmentation, slice_axis: int, patch: tuple[int, int, int], random: np.random.Generator
) -> Symmetry:
    """Draw a rotation by right angles and mirrored axes."""
    first, second = (axis for axis in range(3) if axis != slice_axis)
    turns = 0
    if augmentation.quarter_turns and random.random() < augmentation.quarter_turns:
        turns = int(random.integers(4)) if patch[first] == patch[second] else 2 * int(random.integers(2))
    mirrored = tuple(axis for axis in augmentation.flip if random.random() < augmentation.flip_probability)
    return Symmetry(turns, (first, second), mirrored)


def _box(
    matrix: NDArray[np.float64], patch: tuple[int, int, int], shape: tuple[int, ...], margin: NDArray[np.int_]
) -> list[tuple[int, int]]:
    """Return the first voxel of the box that a patch needs and the one after its last, at least one voxel per axis."""
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
    """Convert ``matrix`` (voxel of the patch -> voxel of an array of ``shape``) to a grid for ``grid_sample``.

    In torch, positions range from -1 at the centre of the first voxel to 1 at that of the last one, with the last axis
    first.
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
    """Return a deformation (1, *patch, 3) in the units and order of axes of :func:`_sampling_grid`."""
    weights = [
        torch.from_numpy(_spline(n, g)).float().to(device) for n, g in zip(patch, control.shape[1:], strict=True)
    ]
    points = torch.from_numpy(control).float().to(device)
    moved = torch.einsum("cijk,xi,yj,zk->xyzc", points, *weights)
    scale = torch.tensor([2.0 / (n - 1) if n > 1 else 0.0 for n in shape], device=device)
    return (moved * scale).flip(-1)[None]


def _spline(voxels: int, control: int) -> NDArray[np.float64]:
    """Return weights (voxels, control) of the uniform cubic B-spline at voxels evenly over ``control - 3`` cells."""
    at = (np.arange(voxels) + 0.5) / voxels * (control - 3)
    cell = np.minimum(at.astype(int), control - 4)
    u = at - cell
    basis = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    weights = np.zeros((voxels, control))
    for k, values in enumerate(basis):
        weights[np.arange(voxels), cell + k] = values / 6.0
    return weights


def _shifted(local: Tensor, start: NDArray[np.int_], patch: tuple[int, int, int], padding: str) -> Tensor:
    """Cut the patch that begins at voxel ``start`` of ``local`` (C, X, Y, Z), with padding outside the array."""
    out = local
    for axis, (s, p, n) in enumerate(zip(start, patch, local.shape[1:], strict=True), start=1):
        places = torch.arange(int(s), int(s) + p, device=local.device)
        out = out.index_select(axis, places.clamp(0, n - 1))
        if padding == "zero":
            inside = ((places >= 0) & (places < n)).view(-1, *[1] * (3 - axis))
            out = out * inside
    return out.contiguous()
