"""Slices on canvases: where each lies, that none is lost, and what is between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from trainer.bezier import apply_random_curves, bezier_curve
from trainer.errors import RecipeError
from trainer.slice_mosaic import make_slice_mosaic, mosaic_labels

PAPER = [  # patch, cells per side, margin, offset, empty cells before the first slice (as CFR describes)
    ((112, 112, 80), 9, 1, -1, 0),
    ((96, 96, 96), 10, 3, 2, 2),
    ((128, 128, 64), 8, 0, 0, 0),
]
Side = st.integers(1, 40)


@pytest.mark.parametrize(("patch", "cells", "margin", "offset", "lead"), PAPER)
def test_the_papers_patches_lie_as_the_paper_has_them(
    patch: tuple[int, int, int], cells: int, margin: int, offset: int, lead: int
) -> None:
    canvas = make_slice_mosaic(patch, 2, 1024)
    assert canvas.grid == (cells, cells)
    assert canvas.margin == (margin, margin)
    assert canvas.offset == (offset, offset)
    assert canvas.lead == lead


@given(Side, Side, Side, st.integers(0, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_what_is_concatenated_is_split_into_what_it_was(
    x: int, y: int, z: int, axis: int, count: int, channels: int, seed: int
) -> None:
    patch = (x, y, z)
    try:
        canvas = make_slice_mosaic(patch, axis, 128)
    except RecipeError:
        height, width = (n for a, n in enumerate(patch) if a != axis)
        assert (128 // height) * (128 // width) < patch[axis]
        return
    volumes = torch.randn((count, channels, *patch), generator=torch.Generator().manual_seed(seed))
    images = canvas.concatenate(volumes)
    assert images.shape == (count, channels, 128, 128)
    assert torch.equal(canvas.split(images), volumes)
    labels = torch.randint(0, 5, (count, *patch), generator=torch.Generator().manual_seed(seed))
    shown, there = mosaic_labels(canvas, labels)
    assert torch.equal(canvas.split(shown[:, None])[:, 0], labels)
    assert int(there.sum()) == labels.numel(), "every voxel once, and nothing else"
    assert int(shown[~there].abs().sum()) == 0


def test_slices_stand_row_by_row_behind_the_empty_cells() -> None:
    canvas = make_slice_mosaic((10, 10, 12), 2, 40)  # 4 x 4 cells, 2 of them empty before
    volume = torch.arange(1.0, 13).expand(1, 1, 10, 10, 12)
    image = canvas.concatenate(volume)[0, 0]
    assert canvas.lead == 2
    for k in range(12):
        row, column = divmod(k + 2, 4)
        assert set(image[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10].unique().tolist()) == {k + 1.0}
    assert float(image[:10, :20].abs().max()) == float(image[30:, 20:].abs().max()) == 0


def test_slices_that_do_not_fit_are_refused_with_their_number() -> None:
    with pytest.raises(RecipeError, match=r"holds 36 slices of 160 x 160 voxels, but a patch of .* has 64"):
        make_slice_mosaic((160, 160, 64), 2, 1024)
    with pytest.raises(RecipeError, match="holds 0 slices"):
        make_slice_mosaic((200, 10, 10), 2, 128)
    with pytest.raises(RecipeError, match="make the grid at most 3"):
        make_slice_mosaic((40, 40, 10), 2, 128, grid=4)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_enlarged_slices_on_several_canvases_come_back_nearly_as_they_were(grid: int) -> None:
    patch = (24, 20, 11)
    canvas = make_slice_mosaic(patch, 2, 128, grid)
    assert canvas.count == -(-11 // grid**2)
    volume = functional.avg_pool3d(torch.randn((2, 1, *patch), generator=torch.Generator().manual_seed(0)), 5, 1, 2)
    images = canvas.concatenate(volume)
    assert images.shape == (2 * canvas.count, 1, 128, 128)
    assert float((canvas.split(images) - volume).abs().mean()) < 0.2 * float(volume.abs().mean())
    labels = (volume[:, 0] > 0).long()
    shown, there = mosaic_labels(canvas, labels)
    assert float((canvas.split(shown[:, None].float())[:, 0].round() == labels).float().mean()) > 0.95
    assert int(there.sum()) == 2 * 11 * canvas.shown[0] * canvas.shown[1]


def test_large_slices_shrink_to_a_small_canvas_of_their_own() -> None:
    canvas = make_slice_mosaic((64, 64, 3), 2, 32, grid=1)
    assert canvas.shown == (32, 32)
    assert canvas.concatenate(torch.randn(1, 1, 64, 64, 3)).shape == (3, 1, 32, 32)


# --- bending ------------------------------------------------------------------------------------------------------


def test_a_curve_with_control_points_on_the_diagonal_changes_nothing() -> None:
    x, y = bezier_curve(torch.tensor([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]))
    assert torch.allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_bent_slices_keep_their_limits_and_the_order_of_their_values(seed: int) -> None:
    torch.manual_seed(seed)
    slices = torch.randn(6, 1, 16, 16)
    bent = apply_random_curves(slices, 1.0)
    for before, after in zip(slices, bent, strict=True):
        assert float(after.min()) == pytest.approx(float(before.min()), abs=1e-5)
        assert float(after.max()) == pytest.approx(float(before.max()), abs=1e-5)
        sorted_after = after.flatten()[before.flatten().argsort()]
        assert bool((sorted_after.diff() >= -1e-5).all())
    assert float((bent < 0).float().mean()) > 0.1, "negative values are not clamped away"


def test_a_bent_slice_follows_its_curve() -> None:
    torch.manual_seed(3)
    slices = torch.randn(1, 1, 16, 16)
    torch.manual_seed(4)
    bent = apply_random_curves(slices, 1.0)
    torch.manual_seed(4)
    torch.rand(1)
    x, y = bezier_curve(torch.rand(1, 2, 2)[0])
    low, span = slices.min(), slices.max() - slices.min()
    expected = np.interp(((slices - low) / span).numpy(), x.numpy(), y.numpy())
    assert np.abs(bent.numpy() - (expected * float(span) + float(low))).max() < 1e-4


def test_only_a_share_of_the_slices_is_bent_and_a_flat_one_stays() -> None:
    torch.manual_seed(0)
    slices = torch.randn(200, 1, 4, 4)
    same = (apply_random_curves(slices, 0.5) == slices).flatten(1).all(dim=1)
    assert 70 < int(same.sum()) < 130
    assert torch.equal(apply_random_curves(slices, 0.0), slices)
    assert torch.equal(apply_random_curves(torch.full((2, 1, 4, 4), 3.0), 1.0), torch.full((2, 1, 4, 4), 3.0))
