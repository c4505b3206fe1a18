"""The proof in docs/results/readers: its comparison sees differences, and its tables leave none unexplained."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from docs.readers.explain import AGREED_OUTCOMES
from docs.readers.grids import Grid, differences
from docs.readers.reference_readers import Image, stack_slices

FOLDER = Path(__file__).parents[2] / "docs" / "results" / "readers"
AFFINE = np.array([[-1.5, 0.0, 0.2, 30.0], [0.0, 0.75, 0.0, -10.0], [0.0, 0.1, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]])


def volume() -> Grid:
    return Grid(np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3), AFFINE)


def rows_of(table: str) -> list[dict[str, str]]:
    with (FOLDER / table).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_voxels_in_another_order_are_the_same_volume() -> None:
    ours = volume()
    flipped = AFFINE.copy()
    flipped[:3, 3] += AFFINE[:3, 1] * 3
    flipped[:3, 1] *= -1
    assert differences(ours, Grid(ours.array[:, ::-1], flipped)) == ""
    turned = AFFINE[:, [2, 0, 1, 3]]
    assert differences(ours, Grid(ours.array.transpose(2, 0, 1), turned)) == ""


def test_a_mirrored_volume_a_shifted_one_and_a_single_changed_value_are_seen() -> None:
    ours = volume()
    assert "values differ" in differences(ours, Grid(ours.array[::-1], AFFINE))
    shifted = AFFINE.copy()
    shifted[2, 3] += 0.05
    assert differences(ours, Grid(ours.array, shifted)) == "voxels up to 0.05 mm apart"
    changed = ours.array.copy()
    changed[4, 3, 2] += 1
    assert differences(ours, Grid(changed, AFFINE)).startswith("1 of 60 values differ by up to 1 ")
    assert differences(ours, Grid(changed, AFFINE), tolerance=1.0) == ""
    assert differences(ours, Grid(ours.array[:, :, :2], AFFINE)) == "shape 5x4x3, theirs 5x4x2"


def test_slices_are_stacked_by_their_positions_and_several_images_of_one_place_are_no_volume() -> None:
    spacing, direction = np.array([1.5, 0.75, 3.0]), np.eye(3)

    def image(z: float, value: int) -> Image:
        return Image(np.full((1, 4, 5), value), spacing, np.array([0.0, 0.0, z]), direction)

    (grid,) = stack_slices([image(6.0, 3), image(0.0, 1), image(3.0, 2), image(3.0, 2)]).grids
    assert grid.array[0, 0].tolist() == [1, 2, 3]
    assert np.allclose(grid.affine @ [1, 1, 1, 1], [-1.5, -0.75, 3.0, 1.0])
    assert stack_slices([image(0.0, 1), image(0.0, 2), image(3.0, 3)]).grids == ()


@pytest.mark.parametrize("table", ["real.csv", "lifted.csv", "made.csv", "nifti.csv"])
def test_every_disagreement_has_an_explanation(table: str) -> None:
    open_rows = [row for row in rows_of(table) if row["outcome"] not in AGREED_OUTCOMES and not row["explanation"]]
    assert open_rows == []


def test_the_tables_hold_as_many_series_as_they_are_to_prove() -> None:
    real = [row for row in rows_of("real.csv") if row["series"] != "NIfTI" and int(row["slices"]) > 1]
    assert len(real) >= 250
    assert len(rows_of("made.csv")) >= 2000


@pytest.mark.parametrize("table", ["real.csv", "lifted.csv", "made.csv", "nifti.csv"])
def test_no_disagreement_is_a_fault_and_none_with_a_known_volume_is_silent(table: str) -> None:
    rows = rows_of(table)
    assert [row for row in rows if row["outcome"] == "FAULT" or row["explanation"].startswith("fault")] == []
    if table in ("made.csv", "nifti.csv"):
        assert [row for row in rows if row["outcome"] == "DISAGREE"] == []
