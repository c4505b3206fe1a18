"""The contact sheet shows the scan the radiological way round, with the outlines where the segments are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import VolumeError
from semiseg.outputs.overlay import contact_sheet
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, reorient

RED = Segment(name="right front", label=1, colour=(255, 0, 0))


def blocks(shape: tuple[int, int, int] = (40, 40, 10)) -> tuple[Volume, Segmentation]:
    """A flat image with one segment in the patient's right front, in RAS+."""
    array = np.full(shape, 100, dtype=np.int16)
    mask = np.zeros(shape, dtype=np.uint8)
    mask[28:36, 26:38, 2:8] = 1
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    return Volume(array, affine), Segmentation((RED,), mask, affine)


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def red_places(pixels: np.ndarray) -> np.ndarray:
    return np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60))


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SAL"])
def test_the_patients_right_is_on_the_left_and_the_front_is_up_whatever_the_axes(axcodes: str, tmp_path: Path) -> None:
    image, segmentation = blocks()
    turned = Volume(*reorient(image.array, image.affine, axcodes))
    mask, affine = reorient(segmentation.array, segmentation.affine, axcodes)
    contact_sheet(tmp_path / "s.png", turned, [("p", Segmentation((RED,), mask, affine))], (), "caption", columns=1)
    bare = drawn(tmp_path / "s.png")
    contact_sheet(tmp_path / "s.png", turned, [("p", Segmentation((RED,), mask, affine))], (RED,), "caption", columns=1)
    places = red_places(drawn(tmp_path / "s.png"))
    assert len(red_places(bare)) == 0
    tile_left, tile_top, tile = 34, 6 + 300 + 6, 300
    outline = places[places[:, 0] < tile_top + tile]
    y, x = (outline.mean(axis=0) - (tile_top, tile_left)) / tile
    assert x < 0.35  # RAS x of 28..36 in 40: the patient's right
    assert y < 0.35  # RAS y of 26..38 in 40: the front


def test_pixels_are_square_millimetres(tmp_path: Path) -> None:
    image = Volume(np.zeros((20, 60, 5), np.int16), np.diag([3.0, 0.5, 8.0, 1.0]))  # 60 mm by 30 mm
    contact_sheet(tmp_path / "s.png", image, [], (), "", columns=3)
    pixels = drawn(tmp_path / "s.png")
    grey = pixels[..., 0] == pixels[..., 2]  # the paper around the pictures is a little blue
    rows = np.flatnonzero(grey[:, 40:300].mean(axis=1) > 0.5)
    columns = np.flatnonzero(grey[20:140].mean(axis=0) > 0.5)
    assert rows[-1] - rows[0] + 1 == 150
    assert columns[0] == 34
    assert columns[columns < 34 + 303][-1] - columns[0] + 1 == 300


def test_slices_are_cut_across_the_widest_spacing(tmp_path: Path) -> None:
    image = Volume(np.zeros((50, 8, 50), np.int16), np.diag([1.0, 6.0, 1.0, 1.0]))
    contact_sheet(tmp_path / "a.png", image, [], (), "", columns=8)
    other = Volume(np.zeros((50, 50, 8), np.int16), np.diag([1.0, 1.0, 6.0, 1.0]))
    contact_sheet(tmp_path / "b.png", other, [], (), "", columns=8)
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size


def test_a_row_for_the_image_and_each_mask_and_a_column_for_each_slice(tmp_path: Path) -> None:
    phantom = make_phantom(2, (24, 24, 12), (4, 4, 8))
    sizes = {}
    for rows in range(3):
        masks = [("reference", phantom.labels)] * rows
        contact_sheet(tmp_path / "s.png", phantom.image, masks, SEGMENTS, "Dice 0.9", columns=4)
        sizes[rows] = Image.open(tmp_path / "s.png").size
    assert sizes[1][1] - sizes[0][1] == sizes[2][1] - sizes[1][1] == 306
    assert sizes[0][0] == 34 + 4 * 306


def test_a_mask_on_another_grid_is_not_drawn(tmp_path: Path) -> None:
    image, segmentation = blocks()
    elsewhere = Volume(image.array, image.affine + np.pad([[5.0]], ((0, 3), (3, 0))))
    with pytest.raises(VolumeError, match="The prediction is on another grid"):
        contact_sheet(tmp_path / "s.png", elsewhere, [("prediction", segmentation)], (RED,), "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_and_constant_images_are_drawn_too(tmp_path: Path) -> None:
    image, segmentation = blocks()
    nothing = Segmentation((RED,), np.zeros_like(segmentation.array), segmentation.affine)
    contact_sheet(tmp_path / "s.png", image, [("prediction", nothing)], (RED,), "nothing was found\n" * 3)
    assert Image.open(tmp_path / "s.png").format == "PNG"
