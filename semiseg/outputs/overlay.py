"""Contact sheets: PNG pictures of a scan with outlines of its segments, for a quick visual check.

They are drawn with Pillow. Pictures are in radiological orientation: the patient's right is on the picture's left,
anterior (or superior) is up. Pixels are square in mm, regardless of the voxel spacing.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, reorient, same_grid

_TILE = 300  # pixels along a picture's longer side
_GAP = 6
_LEFT = 34  # width of the rows' titles
_OF_EACH = 6  # number of slices of each of several volumes
_PICTURES = 24  # number of slices along the normal of each plane
_INK, _PAPER, _FAINT = (235, 235, 235), (18, 18, 20), (165, 165, 170)


@dataclass(frozen=True)
class _Plane:
    """Slicing of a RAS+ volume: normal axis, axes of the picture, and letters at its sides."""

    across: int
    horizontal: int
    vertical: int
    left: str
    right: str
    top: str
    bottom: str
    name: str


_PLANES = (
    _Plane(2, 0, 1, "R", "L", "A", "P", "axial"),
    _Plane(1, 0, 2, "R", "L", "S", "I", "coronal"),
    _Plane(0, 1, 2, "A", "P", "S", "I", "sagittal"),
)
_ACROSS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def contact_sheet(
    path: Path,
    image: Volume,
    masks: Sequence[tuple[str, Segmentation]],
    segments: Sequence[Segment],
    caption: str,
    *,
    columns: int = 5,
) -> None:
    """Write a PNG with a row of slices of the image and, for each of ``masks``, a row with its outlines.

    The slices pass through the structures, perpendicular to the axis of largest spacing (axial if equal). Oblique
    volumes are cut along their own axes, and the letters name the nearest directions.

    Args:
        path: Path of the file, ending in .png.
        image: The scan.
        masks: Pairs (title, segmentation) of the further rows, on the image's grid, such as reference and prediction.
        segments: Segments of the legend with their colours, matched to those of the segmentations by name.
        caption: Text below the pictures.
        columns: Number of slices.

    Raises:
        VolumeError: A segmentation is on another grid than the image.
    """
    for title, segmentation in masks:
        if segmentation.shape != image.shape or not same_grid(segmentation.affine, image.affine, image.shape):
            raise VolumeError(f"The {title} is on another grid than the image, so it cannot be drawn on it.")
    array, affine = reorient(image.array, image.affine, "RAS")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    plane = next(p for p in _PLANES if spacing[p.across] >= spacing.max() * 0.999)
    outlined = [_oriented(segmentation, segments) for _, segmentation in masks]
    places = _slices(array.shape[plane.across], plane, outlined, columns)
    grey = rescale_to_uint8(array)
    size = _tile_size(array.shape, spacing, plane)
    rows: list[tuple[str, list[Image.Image]]] = [("image", [_picture(grey, plane, k, size) for k in places])]
    for (title, _), named in zip(masks, outlined, strict=True):
        pictures = [_picture(grey, plane, k, size) for k in places]
        for picture, k in zip(pictures, places, strict=True):
            _outline(picture, named, plane, k)
        rows.append((title, pictures))
    for k, picture in zip(places, rows[0][1], strict=True):
        _letters(picture, plane, f"{k + 1}/{array.shape[plane.across]}")
    sheet = _assemble(rows, segments, caption, plane)
    with atomic_file(Path(path)) as file:
        sheet.save(file, format="PNG")


def render_slices(image: Volume, segmentation: Segmentation) -> Iterator[tuple[str, bytes]]:
    """Yield pictures of slices in all three planes, with outlines: a name such as ``axial-01``, and a PNG.

    Slices are evenly spaced through the whole volume, in radiological orientation; see :func:`contact_sheet`.
    """
    array, affine = reorient(image.array, image.affine, "RAS")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    named = _oriented(segmentation, segmentation.segments)
    grey = rescale_to_uint8(array)
    for plane in _PLANES:
        length, size = array.shape[plane.across], _tile_size(array.shape, spacing, plane)
        places = sorted({int(k) for k in np.linspace(0, length - 1, _PICTURES).round()})
        for number, k in enumerate(places, start=1):
            picture = _picture(grey, plane, k, size)
            _outline(picture, named, plane, k)
            _letters(picture, plane, f"{k + 1}/{length}")
            png = io.BytesIO()
            picture.save(png, format="PNG")
            yield f"{plane.name}-{number:02d}", png.getvalue()


def series_sheet(path: Path, series: Sequence[tuple[str, Volume]], caption: str) -> None:
    """Write a PNG with a row of slices of each volume, along its third axis, in radiological orientation.

    Args:
        path: Path of the file, ending in .png.
        series: Pairs (title, volume) of the rows.
        caption: Text below the pictures.
    """
    rows = []
    for title, volume in series:
        array, affine = reorient(volume.array, volume.affine, "RAS")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        plane = next(p for p in _PLANES if _ACROSS[volume.axcodes[2]] == p.across)
        grey, size = rescale_to_uint8(array), _tile_size(array.shape, spacing, plane)
        tiles = []
        for k in _slices(array.shape[plane.across], plane, [], _OF_EACH):
            picture = _picture(grey, plane, k, size)
            _letters(picture, plane, f"{k + 1}/{array.shape[plane.across]}")
            tile = Image.new("RGB", (_TILE, _TILE), _PAPER)  # so that rows of other proportions are aligned
            tile.paste(picture, ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
            tiles.append(tile)
        rows.append((title, tiles))
    sheet = _assemble(rows, (), caption, None)
    with atomic_file(Path(path)) as file:
        sheet.save(file, format="PNG")


def _oriented(segmentation: Segmentation, segments: Sequence[Segment]) -> list[tuple[Segment, NDArray[np.bool_]]]:
    """Return each of ``segments`` with its mask in RAS+."""
    by_name = {segment.name: k for k, segment in enumerate(segmentation.segments)}
    return [
        (segment, np.asarray(reorient(segmentation.mask(by_name[segment.name]), segmentation.affine, "RAS")[0]))
        for segment in segments
        if segment.name in by_name
    ]


def _slices(
    length: int, plane: _Plane, outlined: Sequence[Sequence[tuple[Segment, NDArray[np.bool_]]]], count: int
) -> list[int]:
    """Return evenly spaced slices through the structures, or through the whole volume if there are none."""
    other = tuple(axis for axis in range(3) if axis != plane.across)
    filled = np.zeros(length, dtype=bool)
    for named in outlined:
        for _, mask in named:
            filled |= mask.any(axis=other)
    where = np.flatnonzero(filled) if filled.any() else np.arange(length)
    low, high = int(where[0]), int(where[-1])
    steps = (np.arange(count) + 0.5) / count
    return sorted({round(low + s * (high - low)) for s in steps})


def rescale_to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale grey values to 0..255, between percentiles of the voxels that are not background."""
    sample = array[tuple(slice(None, None, max(1, n // 128)) for n in array.shape)].astype(np.float64)
    dark = sample.min()
    tissue = sample[sample > dark + 0.05 * (np.percentile(sample, 99) - dark)]
    if tissue.size == 0:
        tissue = sample
    low, high = np.percentile(tissue, (1, 99.5))
    span = (high - low) or 1.0
    return np.asarray(np.clip((array - (low - 0.1 * span)) / (1.1 * span), 0, 1) * 255, dtype=np.uint8)


def _tile_size(shape: Sequence[int], spacing: NDArray[np.float64], plane: _Plane) -> tuple[int, int]:
    width, height = shape[plane.horizontal] * spacing[plane.horizontal], shape[plane.vertical] * spacing[plane.vertical]
    scale = _TILE / max(width, height)
    return (max(24, round(width * scale)), max(24, round(height * scale)))


def _cut(volume: NDArray[Any], plane: _Plane, k: int) -> NDArray[Any]:
    """Return slice ``k`` as (row, column) with row 0 at the top and the patient's right (or anterior) on the left."""
    cut = np.take(volume, k, axis=plane.across)  # the remaining axes are horizontal, vertical in that order
    return np.asarray(cut[::-1, ::-1].T)


def _picture(grey: NDArray[np.uint8], plane: _Plane, k: int, size: tuple[int, int]) -> Image.Image:
    flat = Image.fromarray(np.ascontiguousarray(_cut(grey, plane, k)))
    return flat.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def _outline(picture: Image.Image, named: Sequence[tuple[Segment, NDArray[np.bool_]]], plane: _Plane, k: int) -> None:
    """Draw each segment's border two pixels wide, in its colour, inside the segment."""
    pixels = np.asarray(picture).copy()
    for segment, mask in named:
        flat = Image.fromarray(np.ascontiguousarray(_cut(mask, plane, k)).astype(np.uint8) * 255)
        inside = np.asarray(flat.resize(picture.size, Image.Resampling.BILINEAR)) > 127
        # With border_value=1 the edge of the picture does not count as a border of the structure.
        border = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
        pixels[border] = segment.colour
    picture.paste(Image.fromarray(pixels))


def _letters(picture: Image.Image, plane: _Plane, number: str) -> None:
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    font = _font(15)
    style: dict[str, Any] = {"font": font, "fill": (255, 255, 255), "stroke_width": 2, "stroke_fill": (0, 0, 0)}
    draw.text((5, height / 2), plane.left, anchor="lm", **style)
    draw.text((width - 5, height / 2), plane.right, anchor="rm", **style)
    draw.text((width / 2, 4), plane.top, anchor="mt", **style)
    draw.text((width / 2, height - 4), plane.bottom, anchor="mb", **style)
    draw.text((5, height - 4), number, anchor="lb", **(style | {"font": _font(12)}))


def _assemble(
    rows: Sequence[tuple[str, list[Image.Image]]], segments: Sequence[Segment], caption: str, plane: _Plane | None
) -> Image.Image:
    tile_width, tile_height = rows[0][1][0].size
    count = max(len(pictures) for _, pictures in rows)
    width = max(_LEFT + count * (tile_width + _GAP), 560)
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, max(40, width // 8))]
    legend_top = _GAP + len(rows) * (tile_height + _GAP)
    legend_rows = _legend_rows(segments, width)
    height = legend_top + 8 + 24 * len(legend_rows) + 22 * (len(lines) + 1) + 8
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, (title, pictures) in enumerate(rows):
        top = _GAP + r * (tile_height + _GAP)
        sheet.paste(_upright(title, tile_height), (4, top))
        for c, picture in enumerate(pictures):
            sheet.paste(picture, (_LEFT + c * (tile_width + _GAP), top))
    y = legend_top + 8
    for row in legend_rows:
        for x, segment in row:
            draw.rectangle((x, y + 3, x + 13, y + 16), fill=segment.colour)
            draw.text((x + 20, y + 10), segment.name, font=_font(15), fill=_INK, anchor="lm")
        y += 24
    for line in lines:
        draw.text((_LEFT, y), line, font=_font(15), fill=_INK)
        y += 22
    what = f"{plane.name} slices, radiological view: {_WORDS[plane.left]} on the left. " if plane else ""
    note = f"{what}Research use only."
    draw.text((_LEFT, y), note, font=_font(13), fill=_FAINT)
    return sheet


_WORDS = {"R": "the patient's right", "A": "anterior"}


def _legend_rows(segments: Sequence[Segment], width: int) -> list[list[tuple[int, Segment]]]:
    """Return the layout of the legend: (x, segment) by row."""
    rows: list[list[tuple[int, Segment]]] = [[]]
    x = _LEFT
    for segment in segments:
        needed = 20 + int(_font(15).getlength(segment.name)) + 24
        if x + needed > width and rows[-1]:
            rows.append([])
            x = _LEFT
        rows[-1].append((x, segment))
        x += needed
    return rows


def _upright(title: str, height: int) -> Image.Image:
    """Return a row's title as a picture, rotated to be read from bottom to top."""
    strip = Image.new("RGB", (height, _LEFT - 8), _PAPER)
    ImageDraw.Draw(strip).text((height / 2, strip.height / 2), title, font=_font(16), fill=_INK, anchor="mm")
    return strip.rotate(90, expand=True)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own font, so that pictures are the same on every machine
