"""Draws of the labelled scans and folds: what they keep, what they change, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.dataset import Dataset, find_split, load_dataset, make_split, read_split, write_split
from semiseg.dataset.resampling import make_folds, resample_labelled
from semiseg.dataset.split import split_for_budget
from semiseg.errors import DatasetError
from semiseg.phantoms.writers import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, cases=12, labelled=4, test=3, development=1, shape=(16, 16, 12), spacing=(6.0, 6.0, 10.0))
    return load_dataset(folder)


def own(dataset: Dataset) -> object:
    path = find_split(dataset, None)
    assert path is not None
    return read_split(dataset, path)


def test_a_draw_changes_the_labelled_scans_alone(dataset: Dataset, tmp_path: Path) -> None:
    split = own(dataset)
    drawn = [resample_labelled(dataset, split, [2, 3], draw) for draw in (1, 2, 3)]  # type: ignore[arg-type]
    before = make_split(dataset)
    for number, one in enumerate(drawn):
        chosen = split_for_budget(dataset, one, 2)
        assert (chosen.test, chosen.development) == (before.test, before.development)
        assert {*chosen.labelled, *chosen.unlabelled} == {*before.labelled, *before.unlabelled}
        assert split_for_budget(dataset, one, 3).labelled[:2] == chosen.labelled, "nested"
        write_split(one, tmp_path / f"{number}.json")
        assert split_for_budget(dataset, read_split(dataset, tmp_path / f"{number}.json"), 2) == chosen
    assert len({split_for_budget(dataset, one, 3).labelled for one in drawn}) > 1
    again = resample_labelled(dataset, split, [3], 2)  # type: ignore[arg-type]
    assert split_for_budget(dataset, again, 3) == split_for_budget(dataset, drawn[1], 3), (
        "the number of the draw decides, not the counts"
    )


def test_every_outlined_scan_is_judged_by_one_fold(dataset: Dataset) -> None:
    parts = make_folds(dataset, 5, [2])
    tested = [i for part in parts for i in part.test]
    assert sorted(tested) == sorted(dataset.cases)
    assert {len(part.test) for part in parts} <= {2, 3}
    for part in parts:
        chosen = split_for_budget(dataset, part, 2)
        assert not {*chosen.test} & {*chosen.labelled, *chosen.unlabelled}
        assert {*chosen.test, *chosen.labelled, *chosen.unlabelled} == set(dataset.cases)
    other = make_folds(dataset, 5, [2], draw=1)
    assert [part.test for part in other] == [part.test for part in parts], "another draw has the same folds"
    assert [part.labelled for part in other] != [part.labelled for part in parts]
    assert [part.test for part in make_folds(dataset, 5, [2], seed=1)] != [part.test for part in parts]


def test_what_cannot_be_drawn_is_refused(dataset: Dataset) -> None:
    split = own(dataset)
    with pytest.raises(DatasetError, match="30 labelled scans were requested, but only 8 training scans"):
        resample_labelled(dataset, split, [30], 1)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="has validation scans"):
        resample_labelled(dataset, split.model_copy(update={"validation": ("x",)}), [2], 1)  # type: ignore[attr-defined]
    for count in (1, 13):
        with pytest.raises(DatasetError, match="make between 2 and 12 folds"):
            make_folds(dataset, count, [2])
