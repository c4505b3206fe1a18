"""The first scans to outline: one of each kind, never one that is unlike all others, and chosen without a label."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.dataset import Dataset
from semiseg.errors import InputError
from semiseg.volumes.volume import reorient
from tests.datasets import write_dataset, write_scan
from trainer.first_scans import (
    STRATEGIES,
    Strategy,
    find_outliers,
    medoids,
    select_at_random,
    select_first_scans,
    select_typical,
)
from trainer.scan_distances import cell_means, image_distances

SHAPE = (24, 28, 20)
SPACING = (1.0, 1.0, 1.5)
# Where the bright organ of each kind lies, in shares of the scan, and its radii in mm.
KINDS = {
    "a": ((0.3, 0.3, 0.5), (5.0, 5.0, 6.0)),
    "b": ((0.7, 0.7, 0.5), (5.0, 5.0, 6.0)),
    "c": ((0.5, 0.5, 0.4), (9.0, 3.0, 8.0)),
}


def organ(
    kind: str, seed: int, shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, ...] = SPACING
) -> NDArray[np.int16]:
    """A noisy scan (X, Y, Z) of a bright ellipsoid in a body; scans of one kind differ by a little."""
    random = np.random.default_rng(seed)
    centre, radii = KINDS[kind]
    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    middle = [c * n * mm + random.normal(0, 0.3) for c, n, mm in zip(centre, shape, spacing, strict=True)]
    away = (((at - np.reshape(middle, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(axis=0)
    return (300 + 400 * (away < 1) + random.normal(0, 10, shape)).astype(np.int16)


def kinds(
    folder: Path, images: dict[str, NDArray[Any]], affines: dict[str, NDArray[np.float64]] | None = None
) -> Dataset:
    """A dataset without any label."""
    (folder / "imagesTr").mkdir(parents=True)
    for name, image in images.items():
        affine = (affines or {}).get(name, np.diag([*SPACING, 1.0]))
        write_scan(folder, name, image, None, affine=affine)
    channels = next(iter(images.values())).shape[3:] or (1,)
    entries = [f"./imagesTr/{name}.nii.gz" for name in images]
    names = {str(k): f"channel {k}" for k in range(channels[0])}
    return write_dataset(folder, 0, document={"training": entries, "modality": names})


def kinds_of(names: tuple[str, ...]) -> list[str]:
    return sorted(name[0] for name in names)


@pytest.fixture(scope="module")
def three_kinds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    images = {f"{kind}{k}": organ(kind, 10 * k + ord(kind)) for kind in KINDS for k in range(4)}
    return kinds(tmp_path_factory.mktemp("kinds") / "data", images)


@pytest.mark.parametrize("strategy", ["typical", "registered"])
def test_each_kind_of_scan_is_chosen_once(three_kinds: Dataset, strategy: Strategy) -> None:
    choice = select_first_scans(three_kinds, tuple(three_kinds.cases), 3, strategy)
    assert kinds_of(choice.chosen) == ["a", "b", "c"]


def test_each_chosen_scan_stands_for_its_kind(three_kinds: Dataset) -> None:
    choice = select_first_scans(three_kinds, tuple(three_kinds.cases), 3)
    for scan in choice.scans:
        assert scan.nearest[0] == scan.scan[0]
        assert (scan.distance == 0.0) == (scan.scan in choice.chosen)
    assert all(len(choice.represented(name)) == 3 for name in choice.chosen)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_choice_depends_on_the_scans_and_not_on_their_order(three_kinds: Dataset, strategy: Strategy) -> None:
    ids = tuple(three_kinds.cases)
    assert select_first_scans(three_kinds, ids, 3, strategy) == select_first_scans(three_kinds, ids[::-1], 3, strategy)


def test_draws_of_other_seeds_are_others() -> None:
    names = [f"s{k}" for k in range(20)]
    drawn = {select_at_random(names, np.zeros((20, 20)), 4, seed).chosen for seed in range(5)}
    assert len(drawn) == 5


def test_a_scan_unlike_all_others_is_named_and_not_chosen(tmp_path: Path) -> None:
    images = {f"a{k}": organ("a", k) for k in range(9)}
    images["odd"] = np.random.default_rng(0).integers(0, 1000, SHAPE, dtype=np.int16)
    data = kinds(tmp_path / "data", images)
    choice = select_first_scans(data, tuple(data.cases), 2)
    assert choice.outliers == ("odd",)
    assert "odd" not in choice.chosen


def test_a_kind_that_only_the_second_channel_shows_is_seen(tmp_path: Path) -> None:
    images = {
        f"{kind}{k}": np.stack([organ("a", k), organ(kind, 100 + k)], axis=3) for kind in ("b", "c") for k in range(4)
    }
    data = kinds(tmp_path / "data", images)
    assert kinds_of(select_first_scans(data, tuple(data.cases), 2).chosen) == ["b", "c"]


def test_scans_of_other_sizes_spacings_and_orientations_are_compared_by_what_they_show(tmp_path: Path) -> None:
    images: dict[str, NDArray[Any]] = {}
    affines = {}
    for kind in ("a", "b"):
        for k, (shape, spacing) in enumerate([(SHAPE, SPACING), ((48, 28, 10), (0.5, 1.0, 3.0)), (SHAPE, SPACING)]):
            name = f"{kind}{k}"
            images[name], affines[name] = organ(kind, 10 * k + ord(kind), shape, spacing), np.diag([*spacing, 1.0])
        images[name], affines[name] = reorient(images[name], affines[name], "LPS")
    data = kinds(tmp_path / "data", images, affines)
    names = sorted(images)
    apart = image_distances(data, names)
    same = np.array([[one[0] == other[0] for other in names] for one in names])
    assert apart[same].max() < apart[~same].min()
    assert kinds_of(select_first_scans(data, names, 2).chosen) == ["a", "b"]


def test_no_label_file_is_opened(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 5)
    before = select_first_scans(data, tuple(data.cases), 2)
    for case in data.cases.values():
        assert case.label is not None
        case.label.write_bytes(b"no label")
    assert select_first_scans(data, tuple(data.cases), 2) == before


@pytest.mark.parametrize(
    ("ids", "count", "words"),
    [
        (("s0", "s1"), 3, "3 scans were requested, but there are only 2 to choose from"),
        (("s0", "s1"), 0, "At least one scan has to be chosen; 0 were requested"),
        (("s0", "s0"), 1, "Scan 's0' is named twice"),
        (("s0", "s2"), 1, "Scan s2: "),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, ids: tuple[str, ...], count: int, words: str
) -> None:
    data = write_dataset(tmp_path / "data", 3)
    data.case("s2").image.write_bytes(b"no scan")
    with pytest.raises(InputError, match=words):
        select_first_scans(data, ids, count)


def test_all_scans_can_be_chosen_also_where_some_are_equal(tmp_path: Path) -> None:
    data = kinds(tmp_path / "data", {f"s{k}": organ("a", 0) for k in range(3)})
    choice = select_first_scans(data, tuple(data.cases), 3)
    assert sorted(choice.chosen) == ["s0", "s1", "s2"]
    assert all(scan.nearest == scan.scan for scan in choice.scans)


points = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=4, max_size=8)


@settings(max_examples=60, deadline=None)
@given(points, st.integers(1, 3))
def test_no_swap_of_a_medoid_lowers_the_sum_of_distances(at: list[tuple[float, float]], count: int) -> None:
    place = np.array(at)
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)

    def cost(of: list[int]) -> float:
        return float(apart[:, of].min(axis=1).sum())

    found = medoids(apart, count)
    assert len(set(found)) == count
    for slot, other in itertools.product(range(count), range(len(at))):
        assert cost([*found[:slot], other, *found[slot + 1 :]]) >= cost(found) * (1 - 1e-6) - 1e-12


def test_outliers_do_not_leave_fewer_scans_than_were_asked_for() -> None:
    place = np.array([*np.linspace(0, 1, 9), 50.0])
    apart = np.abs(place[:, None] - place[None])
    assert find_outliers(apart).nonzero()[0].tolist() == [9]
    names = [f"s{k}" for k in range(10)]
    assert "s9" not in select_typical(names, apart, 3).chosen
    assert len(select_typical(names, apart, 10).chosen) == 10


@pytest.mark.parametrize("shape", [(24, 36, 12), (30, 7, 12), (5, 5, 5)])
def test_the_cells_of_a_scan_keep_its_mean_whatever_its_shape(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    found = cell_means(array, 12)
    assert found.shape == (12, 12, 12)
    assert found.mean() == pytest.approx(array.mean())
