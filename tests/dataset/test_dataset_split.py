"""A scan is labelled only if it has a label file and the split, or --labelled, names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semiseg.dataset import (
    Case,
    Dataset,
    Split,
    evaluation_scans,
    load_dataset,
    make_split,
    random_split,
    read_split,
    write_split,
)
from semiseg.dataset.split import split_for_budget
from semiseg.errors import DatasetError
from tests.datasets import write_dataset, write_json

NESTED = {
    "test": ["s0"],
    "train": ["s1", "s2", "s3", "s4", "s5"],
    "labelled": {"1": ["s3"], "3": ["s3", "s1", "s5"]},
    "development": ["s6"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scans; s7 has no label file."""
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, labelled=7, without_label=1)
    return path


def split_of(folder: Path, tmp_path: Path, document: dict[str, Any], labelled: int | None = None) -> Split:
    return make_split(load_dataset(folder), write_json(tmp_path / "split.json", document), labelled)


def test_the_list_for_a_budget_is_taken_and_the_rest_of_train_is_unlabelled(folder: Path, tmp_path: Path) -> None:
    split = split_of(folder, tmp_path, NESTED, 3)
    assert split.labelled == ("s3", "s1", "s5")
    assert split.unlabelled == ("s2", "s4")
    assert (split.test, split.development, split.budget) == (("s0",), ("s6",), 3)


def test_a_budget_without_a_list_starts_with_the_longest_list_and_goes_on_with_train(
    folder: Path, tmp_path: Path
) -> None:
    assert split_of(folder, tmp_path, NESTED, 2).labelled == ("s3", "s1")
    assert split_of(folder, tmp_path, NESTED, 4).labelled == ("s3", "s1", "s5", "s2")


def test_several_budgets_need_a_choice_and_one_does_not(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="labelled lists of 1, 3 scans: select one with --labelled"):
        split_of(folder, tmp_path, NESTED)
    assert split_of(folder, tmp_path, {**NESTED, "labelled": {"2": ["s1", "s2"]}}).labelled == ("s1", "s2")
    assert split_of(folder, tmp_path, {**NESTED, "labelled": ["s1", "s2"]}).labelled == ("s1", "s2")


def test_a_fixed_list_can_be_shortened_but_opens_no_other_label(folder: Path, tmp_path: Path) -> None:
    fixed = {**NESTED, "labelled": ["s4", "s2"]}
    assert split_of(folder, tmp_path, fixed, 1).labelled == ("s4",)
    with pytest.raises(DatasetError, match="3 labelled scans were requested, but only 2 scans that may be"):
        split_of(folder, tmp_path, fixed, 3)


def test_train_defaults_to_all_but_test_and_development(folder: Path, tmp_path: Path) -> None:
    split = split_of(folder, tmp_path, {"test": ["s0"], "development": ["s6"], "labelled": ["s1"]})
    assert split.unlabelled == ("s2", "s3", "s4", "s5", "s7")


def test_scans_without_label_file_are_passed_over_when_counting_and_refused_when_named(
    folder: Path, tmp_path: Path
) -> None:
    document = {"test": ["s0"], "train": ["s7", "s1", "s2"]}
    assert split_of(folder, tmp_path, document, 2).labelled == ("s1", "s2")
    with pytest.raises(DatasetError, match="3 labelled scans were requested, but only 2"):
        split_of(folder, tmp_path, document, 3)
    with pytest.raises(DatasetError, match="'s7' must be labelled but has no label file"):
        split_of(folder, tmp_path, {"test": ["s0"], "labelled": ["s7", "s1"]})


def test_the_budget_of_labels_includes_validation(folder: Path, tmp_path: Path) -> None:
    inside = {**NESTED, "validation": ["s1"]}
    split = split_of(folder, tmp_path, inside, 3)
    assert (split.labelled, split.validation, split.budget) == (("s3", "s5"), ("s1",), 3)
    beside = {**NESTED, "labelled": {"3": ["s3", "s5"]}, "validation": ["s1"]}
    assert split_of(folder, tmp_path, beside, 3) == split
    with pytest.raises(DatasetError, match="together name 4 scans; the label budget includes validation"):
        split_of(folder, tmp_path, {**NESTED, "validation": ["s2"]}, 3)
    without_list = {"test": ["s0"], "train": NESTED["train"], "validation": ["s4"]}
    assert split_of(folder, tmp_path, without_list, 2).labelled == ("s1",)
    with pytest.raises(DatasetError, match="all 1 labels go to validation"):
        split_of(folder, tmp_path, without_list, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": ["s0", "s1"]}, "'s1' cannot be in both test and train"),
        ({"development": ["s0"]}, "'s0' cannot be in both test and development"),
        ({"development": ["s2"]}, "'s2' cannot be in both development and train"),
        ({"validation": ["s0"], "train": None}, "'s0' cannot be in both test and validation"),
        ({"labelled": {"1": ["s6"]}, "train": None}, "'s6' cannot be in both development and labelled '1'"),
        ({"labelled": {"1": ["s7"]}}, "labelled '1' names 's7', which train does not"),
        ({"unlabelled": {"1": ["s3"]}}, "'s3' cannot be in both unlabelled '1' and labelled '1'"),
        ({"unlabelled": ["s1"], "validation": ["s1"]}, "'s1' cannot be in both unlabelled and validation"),
        ({"unlabelled": {"1": ["s2"]}}, r"scans of train, but the list for 1 labels differs in 's1', 's4', 's5'"),
        ({"test": ["s0", "s0"]}, "test names 's0' more than once"),
        ({"test": ["nobody", "s0"]}, "test names 'nobody', which .* does not have"),
        ({"labelled": {"few": ["s1"]}}, "keys of 'labelled' are numbers of labels, not 'few'"),
        ({"labelled": {"1": ["s1", "s2"]}}, "together name 2 scans"),
        ({"labeled": ["s1"]}, "has the unknown key 'labeled'; known keys are test, train, labelled"),
        ({"test": "s0"}, "'test' cannot be read"),
        ({"labelled": {}, "train": ["s7"]}, "1 labelled scans were requested, but only 0"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    document = {key: value for key, value in {**NESTED, **change}.items() if value is not None}
    with pytest.raises(DatasetError, match=said):
        split_of(folder, tmp_path, document, 1)


def test_a_split_must_say_which_scans_are_for_the_test(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="lacks 'test'"):
        split_of(folder, tmp_path, {"labelled": ["s1"]})
    assert split_of(folder, tmp_path, {"test": [], "labelled": ["s1"]}).test == ()


def test_no_labelled_scan_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not say which scans are labelled"):
        split_of(folder, tmp_path, {"test": ["s0"], "labelled": []})
    with pytest.raises(DatasetError, match="At least one scan must be labelled; 0"):
        split_of(folder, tmp_path, NESTED, 0)
    with pytest.raises(DatasetError, match="no labelled scan"):
        Split(())


def test_without_a_split_every_outline_teaches_if_there_are_scans_without(tmp_path: Path) -> None:
    mixed = write_dataset(tmp_path / "mixed", labelled=2, without_label=3)
    assert make_split(mixed) == Split(("s0", "s1"), ("s2", "s3", "s4"))
    with pytest.raises(DatasetError, match="lists the 1 labelled scans"):
        make_split(mixed, None, 1)
    complete = write_dataset(tmp_path / "complete", labelled=3)
    with pytest.raises(DatasetError, match="every scan has a label file"):
        make_split(complete)


def test_the_split_of_the_folder_is_found(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=3, split={"test": ["s0"], "labelled": ["s2"]})
    assert make_split(dataset) == Split(("s2",), ("s1",), test=("s0",))


def test_only_scans_with_a_label_file_judge(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(folder)
    path = write_json(tmp_path / "split.json", {**NESTED, "test": ["s0"]})
    assert evaluation_scans(dataset, path, "test") == ("s0",)  # although no budget is chosen
    assert evaluation_scans(dataset, path, "development") == ("s6",)
    with pytest.raises(DatasetError, match="names no validation scans"):
        evaluation_scans(dataset, path, "validation")
    with pytest.raises(DatasetError, match="not 'all'"):
        evaluation_scans(dataset, path, "all")
    bad = write_json(tmp_path / "bad.json", {"test": ["s7"]})
    with pytest.raises(DatasetError, match="test names 's7', which has no label file"):
        evaluation_scans(dataset, bad, "test")
    assert len(evaluation_scans(dataset, None, "all")) == 7
    with pytest.raises(DatasetError, match="--on all for its 7 outlined scans"):
        evaluation_scans(dataset, None, "test")


def test_a_drawn_split_survives_writing_and_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(folder)
    drawn = random_split(dataset, test=2, labelled=[1, 3], development=1, seed=5)
    path = tmp_path / "drawn.json"
    write_split(drawn, path)
    assert read_split(dataset, path).model_dump() == drawn.model_dump()
    with pytest.raises(DatasetError, match="already exists"):
        write_split(drawn, path)
    with pytest.raises(DatasetError, match=r"has 7 scans .* make 8"):
        random_split(dataset, test=2, labelled=[6])


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Dataset, int, int, int]:
    outlined = draw(st.integers(2, 12))
    test = draw(st.integers(1, outlined - 1))
    budget = draw(st.integers(1, outlined - test))
    development = draw(st.integers(0, outlined - test - budget))
    without = draw(st.integers(0, 5))
    return (
        Dataset(Path("memory"), "memory", ("image",), (), cases_in_memory(outlined, without)),
        test,
        budget,
        development,
    )


def cases_in_memory(outlined: int, without: int) -> dict[str, Case]:
    here = Path(__file__)  # any file that exists: a split never opens a label
    return {f"c{k}": Case(f"c{k}", here, here if k < outlined else None) for k in range(outlined + without)}


@given(datasets(), st.integers(0, 2**32))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_drawn_split_divides_all_scans_and_nests_its_budgets(
    drawn: tuple[Dataset, int, int, int], seed: int
) -> None:
    dataset, test, budget, development = drawn
    file = random_split(dataset, test=test, labelled=[budget], development=development, seed=seed)
    previous: tuple[str, ...] = ()
    for n in range(1, budget + 1):
        split = split_for_budget(dataset, file, n)
        pools = split.pools().values()
        assert sorted(i for ids in pools for i in ids) == sorted(dataset.cases)
        assert split.budget == n and len(split.test) == test
        assert all(dataset.cases[i].label for i in (*split.labelled, *split.test, *split.development))
        assert split.labelled[: len(previous)] == previous
        previous = split.labelled


@pytest.mark.parametrize("budget", [4, 8, 16])
def test_hippocampus_split_gives_its_published_pools(semiseg_data: Path, budget: int) -> None:
    split = make_split(load_dataset(semiseg_data / "hippocampus"), None, budget)
    sizes = {pool: len(ids) for pool, ids in split.pools().items()}
    assert sizes == {"labelled": budget, "unlabelled": 140 - budget, "validation": 0, "test": 60, "development": 40}


def test_left_atrium_split_refuses_more_labels_than_its_train_list_has(semiseg_data: Path) -> None:
    dataset = load_dataset(semiseg_data / "left_atrium")
    assert len(make_split(dataset, None, 4).unlabelled) == 11
    with pytest.raises(DatasetError, match="16 labelled scans were requested, but only 15"):
        make_split(dataset, None, 16)
