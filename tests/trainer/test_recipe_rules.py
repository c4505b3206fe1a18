"""What a recipe leaves open is decided from the scans and the machine, with a reason, and nothing else is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from semiseg.bundle.fingerprint import Fingerprint, Range
from semiseg.dataset import Dataset, load_dataset, make_split
from semiseg.volumes.nifti import write_nifti
from tests.trainer.factories import write_phantoms
from trainer.errors import RecipeError
from trainer.network_configs import count_parameters, parse_network_config
from trainer.plan import make_plan
from trainer.planning_facts import DatasetFacts, MachineFacts, collect_dataset_facts
from trainer.recipe_files import find_recipe, make_recipe, read_document
from trainer.recipe_rules import (
    DECIDABLE_KEYS,
    NETWORK_SIZES,
    RecipeDecision,
    choose_patch,
    choose_strides,
    decide_open_keys,
    open_keys,
    write_decisions,
)
from trainer.scan_facts import ScanFacts

LAPTOP = MachineFacts("a processor", 8, 16.0)


def gpu(memory: float, *, bf16: bool = True) -> MachineFacts:
    return MachineFacts("a processor", 16, 128.0, "a GPU", memory, bf16)


def facts(
    shape: tuple[float, float, float] = (35.0, 50.0, 36.0),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    thinnest: tuple[float, float, float] | None = None,
    modality: str | None = "MR",
    labelled: int = 4,
    unlabelled: int = 100,
) -> DatasetFacts:
    mm = Range(minimum=thinnest or spacing, median=spacing, maximum=spacing)
    sides = Range(minimum=shape, median=shape, maximum=shape)
    told = Fingerprint(scans=104, shape=sides, spacing=mm, orientations={"RAS": 104}, intensity={})
    return DatasetFacts(ScanFacts(told, {2: 104}), (modality,), ((-150.0, 250.0),), labelled, unlabelled)


def decided(
    told: DatasetFacts, machine: MachineFacts = LAPTOP, **changes: Any
) -> tuple[dict[str, Any], dict[str, RecipeDecision]]:
    document = {**yaml.safe_load(find_recipe("default").read_text()), **changes}
    done, decisions = decide_open_keys(document, told, machine)
    make_recipe(done)  # it is one
    return done, {one.key: one for one in decisions}


# --- what is open -------------------------------------------------------------------------------------------------


def test_the_default_recipe_leaves_everything_open_and_every_key_can_be_said() -> None:
    document = read_document(find_recipe("default"))
    assert open_keys(document) == DECIDABLE_KEYS
    said = read_document(
        find_recipe("default"), ["batch=6", "preparation.spacing=median", "student={kind: vnet}", "augmentation={}"]
    )
    done, decisions = decide_open_keys(said, facts(), LAPTOP)
    assert done["batch"] == 6 and done["preparation"]["spacing"] == "median" and done["student"] == {"kind": "vnet"}
    assert {one.key for one in decisions} == {*DECIDABLE_KEYS} - {
        "batch",
        "preparation.spacing",
        "student",
        "augmentation",
    }
    assert document["preparation"] == {"spacing": "auto", "intensity": "auto"}, "the document that came in stays"


@pytest.mark.parametrize("name", ["hippocampus", "demo", "papers/la_mn"])
def test_recipes_that_say_everything_are_not_touched(name: str) -> None:
    document = read_document(find_recipe(name))
    assert open_keys(document) == ()
    assert decide_open_keys(document, facts(), LAPTOP) == (document, [])


def test_a_patch_alone_follows_the_scans_as_it_always_has() -> None:
    assert open_keys({"patch": "auto", "student": {"kind": "unet"}}) == ()


def test_a_student_may_be_a_size_and_an_unknown_one_is_refused() -> None:
    done, decisions = decided(facts(), student="small")
    assert done["student"]["channels"][0] == 16
    assert "names the size small" in decisions["student"].reason
    with pytest.raises(RecipeError, match="'huge' is not a size; there are auto, tiny, small, medium, large"):
        open_keys({"student": "huge"})


# --- scans --------------------------------------------------------------------------------------------------------


def test_a_small_organ_on_a_laptop_gets_a_small_network_at_full_resolution_and_whole_scans() -> None:
    done, _ = decided(facts())
    assert done["student"] == {
        "kind": "unet",
        "channels": [8, 16, 32, 64, 128],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "residual_units": 0,
    }
    assert done["patch"] == [35, 50, 36]
    assert (done["precision"], done["method"], done["preparation"]["spacing"]) == ("fp32", "committee", "own")
    assert done["augmentation"]["elastic"] == 3.5, "a tenth of the shortest side, in mm"


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "method", "words"),
    [
        (4, 100, "committee", "better than supervised training"),
        (4, 8, "committee", "better than supervised training"),
        (4, 7, "supervised", "too few unlabelled scans"),
        (2, 4, "committee", "better than supervised training"),
        (1, 100, "supervised", "registration cannot be assessed"),
        (4, 0, "supervised", "all scans are labelled"),
        (16, 100, "committee", "better than supervised training"),
        (17, 100, "supervised", "more than 16 labelled scans"),
    ],
)
def test_the_method_follows_the_numbers_of_scans(labelled: int, unlabelled: int, method: str, words: str) -> None:
    done, decisions = decided(facts(labelled=labelled, unlabelled=unlabelled))
    assert done["method"] == method
    assert words in decisions["method"].reason
    assert ("methods.committee.members" in decisions) == (method == "committee")
    assert ("committee" in done["methods"]) == (method == "committee")


def test_the_supervised_member_of_a_committee_is_one_size_larger_than_the_student() -> None:
    for machine, size in ((LAPTOP, "small"), (gpu(6.0), "medium"), (gpu(12.0), "large")):
        done, decisions = decided(facts((512.0, 512.0, 300.0), (0.8, 0.8, 1.5)), machine)
        supervised, mean_teacher = done["methods"]["committee"]["members"]
        assert f"size {size}" in decisions["methods.committee.members"].reason
        assert supervised["student"]["channels"][0] == NETWORK_SIZES[size].channels[0]
        assert mean_teacher == {"method": "mean_teacher"}
    for changed in (decided(facts(), gpu(80.0)), decided(facts(), student={"kind": "vnet"})):
        assert [one["method"] for one in changed[0]["methods"]["committee"]["members"]] == [
            "supervised",
            "mean_teacher",
        ]
        assert all("student" not in one for one in changed[0]["methods"]["committee"]["members"])


def test_thick_slices_are_not_halved_and_not_turned_out_of_their_plane() -> None:
    done, _ = decided(facts((256.0, 256.0, 20.0), (0.8, 0.8, 6.0)))
    assert [step[2] for step in done["student"]["strides"][:3]] == [1, 1, 1]
    assert done["augmentation"]["rotate_out_of_plane"] == 0
    assert math.prod(done["patch"]) <= NETWORK_SIZES["tiny"].patch * 1.05
    assert done["patch"][2] >= 8


def test_spacings_that_differ_become_the_median_and_thin_slices_are_not_lost() -> None:
    done, decisions = decided(facts(thinnest=(0.7, 0.7, 0.7)))
    assert done["preparation"]["spacing"] == [1.0, 1.0, 1.0]
    assert "different voxel spacings" in decisions["preparation.spacing"].reason
    done, decisions = decided(facts((256.0, 256.0, 20.0), (1.0, 1.0, 5.0), thinnest=(0.7, 0.7, 1.25)))
    assert done["preparation"]["spacing"] == [1.0, 1.0, 2.5]
    assert "to preserve thin slices" in decisions["preparation.spacing"].reason


@pytest.mark.parametrize(
    ("modality", "expected", "words"),
    [
        ("CT", {"clip": [-150.0, 250.0], "scale": "window"}, "CT has units"),
        ("MR", {"scale": "zscore"}, "MR has no units"),
        (None, {"scale": "zscore"}, "an unknown modality has no units"),
    ],
)
def test_only_ct_has_units(modality: str | None, expected: dict[str, Any], words: str) -> None:
    done, decisions = decided(facts(modality=modality))
    assert done["preparation"]["intensity"] == [expected]
    assert words in decisions["preparation.intensity"].reason


# --- machines -----------------------------------------------------------------------------------------------------


def test_networks_grow_with_the_memory_of_the_gpu_up_to_the_size_of_nnunets() -> None:
    parameters = []
    for memory in (6.0, 12.0, 80.0):
        done, decisions = decided(facts((512.0, 512.0, 300.0), (0.8, 0.8, 1.5)), gpu(memory))
        assert done["precision"] == "bf16"
        assert f"{memory:.0f} GiB" in decisions["student"].reason
        x, y, z = done["patch"]
        network = parse_network_config(done["student"]).build(1, 3, (x, y, z))
        parameters.append(count_parameters(network))
    assert parameters == sorted(parameters)
    assert parameters[-1] > 20_000_000, "nnU-Net's plain network has about thirty"
    assert decided(facts(), gpu(12.0, bf16=False))[0]["precision"] == "fp16"


def test_a_gpu_with_scans_of_few_voxels_still_gets_a_network_that_fits() -> None:
    done, decisions = decided(facts((12.0, 12.0, 8.0)), gpu(80.0))
    assert done["student"]["kind"] == "unet"
    assert "allow only 1 halving(s)" in decisions["student"].reason


@given(
    shape=st.tuples(*[st.floats(1, 800)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    memory=st.sampled_from([None, 4.0, 12.0, 80.0]),
)
def test_whatever_the_scans_are_a_recipe_comes_out_that_holds(
    shape: tuple[float, float, float], spacing: tuple[float, float, float], memory: float | None
) -> None:
    done, _ = decided(facts(shape, spacing), LAPTOP if memory is None else gpu(memory))
    section = parse_network_config(done["student"])
    for side, by in zip(done["patch"], section.divisor(), strict=True):
        assert side >= 1 and by <= 64
    assert math.prod(done["patch"]) <= 2_400_000


@given(shape=st.tuples(*[st.floats(1, 2000)] * 3), most=st.integers(500, 3_000_000))
def test_a_patch_never_exceeds_the_scan_or_its_limit(shape: tuple[float, float, float], most: int) -> None:
    patch = choose_patch(shape, most)
    assert all(1 <= p <= max(1, round(n)) for p, n in zip(patch, shape, strict=True))
    assert math.prod(patch) <= most


def test_strides_leave_four_voxels_and_bring_the_voxels_to_one_length() -> None:
    assert choose_strides((40, 56, 40), (1, 1, 1), 5) == [[2, 2, 2]] * 3
    assert choose_strides((128, 128, 16), (1, 1, 4), 6) == [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1]]
    assert choose_strides((4, 4, 4), (1, 1, 1), 5) == []


def test_decisions_are_kept_with_their_reasons(tmp_path: Path) -> None:
    write_decisions((RecipeDecision("batch", 4, "since"),), tmp_path / "decisions.json")
    assert json.loads((tmp_path / "decisions.json").read_text()) == [{"key": "batch", "value": 4, "reason": "since"}]


# --- from files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def test_a_decided_recipe_makes_a_plan_and_its_facts_are_not_read_twice(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(dataset)
    told = collect_dataset_facts(dataset, split, "RAS", {})
    assert (told.labelled, told.unlabelled) == (2, 4)
    assert told.foreground[0][0] < told.foreground[0][1]
    done, _ = decide_open_keys(read_document(find_recipe("default"), ["segments={}"]), told, LAPTOP)
    monkeypatch.setattr("trainer.scan_facts.read_channels", None)
    plan = make_plan(dataset, split, make_recipe(done), scans=told.scans)
    assert plan.recipe.size() == (16, 16, 12)


def test_values_inside_the_outlines_of_a_ct_set_its_window(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    random = np.random.default_rng(0)
    for k in range(3):
        image = random.normal(-800, 100, size=(16, 16, 16)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[4:12, 4:12, 4:12] = 1
        image[labels > 0] = random.uniform(0, 200, size=int(labels.sum()))
        write_nifti(tmp_path / "imagesTr" / f"s{k}.nii.gz", image, np.eye(4))
        write_nifti(tmp_path / "labelsTr" / f"s{k}.nii.gz", labels, np.eye(4))
    described = {"labels": {"0": "background", "1": "organ"}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (tmp_path / "split.json").write_text(json.dumps({"test": ["s2"], "labelled": {"1": ["s0"]}}))
    found = load_dataset(tmp_path)
    told = collect_dataset_facts(found, make_split(found), "RAS", {})
    assert told.modalities == ("CT",)
    low, high = told.foreground[0]
    assert 0 <= low < 10 and 190 < high <= 200
