"""Concatenation of a volume's slices into images of the input size of a network for natural images.

CFR (Li et al. 2024), Eq. 1. The slices are placed row by row in a grid of cells, each slice in the centre of its cell;
the inverse cuts them out again. The inverse is exact if slices are not resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.errors import RecipeError
from trainer.slices import from_slices, to_slices

LABEL_PADDING = -1  # label of pixels without a voxel


@dataclass(frozen=True)
class SliceMosaic:
    """Layout of the slices of a patch on square images; see :func:`make_slice_mosaic`.

    Attributes:
        side: Side of an image in pixels.
        axis: Spatial axis of the volume along which it is sliced.
        depth: Number of slices of a volume.
        slice: Height and width of a slice in voxels.
        shown: Height and width of a slice in an image, in pixels.
        grid: Number of rows and columns of cells.
        margin: Number of rows above and below, and of columns left and right of each slice in its cell.
        count: Number of images per volume.
    """

    side: int
    axis: int
    depth: int
    slice: tuple[int, int]
    shown: tuple[int, int]
    grid: tuple[int, int]
    margin: tuple[int, int]
    count: int

    @property
    def cell(self) -> tuple[int, int]:
        """The height and width of a cell."""
        return self.shown[0] + 2 * self.margin[0], self.shown[1] + 2 * self.margin[1]

    @property
    def lead(self) -> int:
        """The number of empty cells before the first slice; the same number, or one more, follows the last slice."""
        return (self.count * self.grid[0] * self.grid[1] - self.depth) // 2

    @property
    def offset(self) -> tuple[int, int]:
        """The row and column at which the first cell begins; negative if the margin of the outer cells is cut off."""
        (rows, columns), (high, wide) = self.grid, self.cell
        return (self.side - rows * high) // 2, (self.side - columns * wide) // 2

    def concatenate(self, volumes: Tensor, fill: float = 0.0, mode: str = "bilinear") -> Tensor:
        """Convert volumes (N, C, X, Y, Z) to images (N * count, C, side, side), with ``fill`` outside slices."""
        slices = to_slices(volumes, self.axis)
        if self.shown != self.slice:
            slices = _resize(slices, self.shown, mode)
        (top, left), (rows, columns) = self.margin, self.grid
        slices = functional.pad(slices, (left, left, top, top), value=fill)
        stacks = slices.unflatten(0, (-1, self.depth)).movedim(1, -1)  # (N, C, high, wide, depth)
        rest = self.count * rows * columns - self.depth - self.lead
        cells = functional.pad(stacks, (self.lead, rest), value=fill).unflatten(-1, (self.count, rows, columns))
        images = cells.permute(0, 4, 1, 5, 2, 6, 3).flatten(0, 1).flatten(4, 5).flatten(2, 3)
        return self._fit(images, fill)

    def split(self, canvases: Tensor) -> Tensor:
        """Convert images (N * count, C, side, side) back to volumes (N, C, X, Y, Z)."""
        (top, left), (rows, columns), (high, wide) = self.margin, self.grid, self.cell
        y, x = self.offset
        bottom, right = rows * high + y - self.side, columns * wide + x - self.side
        images = functional.pad(canvases, (-x, right, -y, bottom))
        cells = images.unflatten(3, (columns, wide)).unflatten(2, (rows, high)).unflatten(0, (-1, self.count))
        stacks = cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(1, 3)[:, self.lead : self.lead + self.depth]
        slices = stacks[..., top : top + self.shown[0], left : left + self.shown[1]].flatten(0, 1)
        if self.shown != self.slice:
            slices = _resize(slices, self.slice, "bilinear")
        return from_slices(slices, stacks.shape[0], self.axis)

    def _fit(self, images: Tensor, fill: float) -> Tensor:
        """Centre the grid in the image; negative padding crops it."""
        y, x = self.offset
        below, right = self.side - images.shape[2] - y, self.side - images.shape[3] - x
        return functional.pad(images, (x, right, y, below), value=fill)


def make_slice_mosaic(patch: tuple[int, int, int], axis: int, side: int, grid: int | None = None) -> SliceMosaic:
    """Choose the layout for patches.

    Args:
        patch: Number of voxels along X, Y, Z.
        axis: Axis along which patches are sliced.
        side: Side of an image in pixels.
        grid: Number of cells per side. Slices are enlarged to the size of the cells and spread over as many images as
            necessary; with one cell, they may also be reduced. None puts all slices, with their own size, on one image.

    Raises:
        RecipeError: The slices do not fit.
    """
    height, width = (n for a, n in enumerate(patch) if a != axis)
    depth = patch[axis]
    if grid is not None:
        zoom = min(side // grid / height, side // grid / width)
        if zoom < 1 and grid > 1:
            raise RecipeError(
                f"{grid} x {grid} slices of {height} x {width} voxels do not fit on an image of {side} x {side} "
                f"pixels; make the grid at most {side // max(height, width)}."
            )
        shown = (math.floor(height * zoom), math.floor(width * zoom))
        count = math.ceil(depth / grid**2)
        margins = [(side // grid - n) // 2 for n in shown]
        return SliceMosaic(side, axis, depth, (height, width), shown, (grid, grid), (margins[0], margins[1]), count)
    rows, columns = side // height, side // width
    if rows * columns < depth:
        raise RecipeError(
            f"An image of {side} x {side} pixels holds {rows * columns} slices of {height} x {width} voxels, but a "
            f"patch of {list(patch)} has {depth}; make the patch smaller or the image larger."
        )
    margins = [_margin(side, cells, n) for cells, n in ((rows, height), (columns, width))]
    return SliceMosaic(
        side, axis, depth, (height, width), (height, width), (rows, columns), (margins[0], margins[1]), count=1
    )


def _margin(side: int, cells: int, length: int) -> int:
    """Return the paper's round((side / cells - length) / 2), or one less if voxels would otherwise be cut off."""
    margin = round((side / cells - length) / 2)
    cut = max(0, math.ceil((cells * (length + 2 * margin) - side) / 2))
    return margin if cut <= margin else margin - 1


def _resize(slices: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "nearest":
        return functional.interpolate(slices.float(), size=size, mode="nearest-exact").to(slices.dtype)
    return functional.interpolate(slices, size=size, mode=mode, align_corners=False)


def mosaic_labels(canvas: SliceMosaic, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Arrange labels (N, X, Y, Z) as images (N * count, side, side) int64.

    Returns:
        The labels, 0 outside slices, and a mask (N * count, side, side) of the pixels with a voxel.
    """
    shown = canvas.concatenate(labels[:, None].to(torch.int64), LABEL_PADDING, "nearest")[:, 0]
    return shown.where(shown != LABEL_PADDING, torch.zeros_like(shown)), shown != LABEL_PADDING
