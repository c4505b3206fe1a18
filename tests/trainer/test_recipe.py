"""Recipes: what is refused and with which sentence, and what a plan decides from the scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.dataset import Dataset, load_dataset, make_split
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.series_rules import SeriesRule
from tests.trainer.factories import SEGFORMER_CONFIG, make_tiny_plan, make_tiny_recipe, write_phantoms
from trainer.errors import RecipeError
from trainer.plan import TrainingPlan, make_manifest, make_plan
from trainer.planning_facts import MachineFacts, collect_dataset_facts
from trainer.recipe import Recipe
from trainer.recipe_files import find_recipe, make_recipe, read_document, read_recipe
from trainer.recipe_rules import decide_open_keys

SHIPPED = sorted(p.stem for p in find_recipe("default").parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


# --- a recipe by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("updaets=3", "updaets: Extra inputs are not permitted"),
        ("augmentation.flipp=[0]", r"augmentation\.flipp: Extra inputs"),
        ("updates=many", "updates: Input should be a valid integer"),
        ("updates=0", "updates: Input should be greater than or equal to 1"),
        ("batch=2.5", "batch: Input should be a valid integer"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("patch=[8,8]", r"patch\."),
        ("patch=[8,8,9000]", r"patch\."),
        ("precision=fp8", "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        ("optimiser.rate=-1", r"optimiser\.rate"),
        ("augmentation.scale=[1.2,0.8]", "`scale` takes two positive limits, the smaller first"),
        ("augmentation.gamma=[0,1]", "`gamma` takes two positive limits"),
        ("accumulate=9", "a batch of 4 cannot be split into 9 parts"),
        ("preparation.orientation=RAX", "an orientation is three letters"),
        ("preparation.spacing=[1,0,1]", "a spacing is in mm and positive"),
        ("preparation.slice_axis=3", r"preparation\.slice_axis"),
        ("preparation.intensity=[{scale: window}]", "needs `clip`"),
        ("segments.liver={colour: [0, 0, 300]}", r"segments\.liver\.colour"),
        ("updates", "`--set updates` does not have the form key=value"),
        ("=3", "does not have the form key=value"),
        ("patch=[8,", "is not a YAML value"),
        ("updates.many=3", "'updates' is a value, not a section"),
    ],
)
def test_a_change_that_does_not_hold_is_refused_with_its_key(change: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as refusal:
        make_recipe({"updates": 100, "batch": 4}, [change])
    assert "\n" not in str(refusal.value)


def test_changes_reach_deep_places_and_the_later_one_wins() -> None:
    changes = [
        "updates=7",
        "updates=8",
        "optimiser.rate=1e-3",
        "methods.mn.teacher.finetune=decoder",
        "patch=[16, 16, 8]",
        "methods.mean_teacher={weight: 2}",
    ]
    recipe = make_recipe({"methods": {"mn": {"slices": 3}}}, changes)
    assert recipe.updates == 8
    assert recipe.optimiser.rate == 1e-3
    assert recipe.patch == (16, 16, 8)
    assert recipe.methods["mn"] == {"slices": 3, "teacher": {"finetune": "decoder"}}
    assert recipe.methods["mean_teacher"] == {"weight": 2}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: [1", "is not YAML"),
        (b"- 1\n- 2\n", "does not consist of `key: value` lines"),
        (b"", "does not consist of `key: value` lines"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"mine\.yaml.*{complaint}"):
        read_recipe(file)


def test_a_recipe_that_is_not_there_is_refused_with_the_names_that_are() -> None:
    with pytest.raises(RecipeError, match=r"no recipe file nothing.*default.*hippocampus"):
        find_recipe("nothing")


def test_a_recipe_survives_its_own_yaml() -> None:
    recipe = make_tiny_recipe("mn", {"patch": "auto", "augmentation": {"flip": [0, 2]}, "optimiser": {"rate": 1e-05}})
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe


# --- a recipe and a dataset ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "mn"])
def test_every_recipe_that_comes_with_semiseg_makes_a_plan_for_every_method(
    dataset: Dataset, name: str, method: str
) -> None:
    document = read_document(find_recipe(name), [f"method={method}", "segments={}"])
    done, _ = decide_open_keys(
        document, collect_dataset_facts(dataset, make_split(dataset), "RAS", {}), MachineFacts("a processor", 2, 8.0)
    )
    plan = make_tiny_plan(dataset, make_recipe(done))
    networks = plan.stages.build()
    assert plan.stages.exported(networks) is networks["student"]
    manifest = make_manifest(plan)
    assert manifest.provenance.method == method
    assert manifest.window == plan.recipe.size()


def planned(dataset: Dataset, changes: dict[str, Any] | None = None, method: str = "supervised") -> TrainingPlan:
    return make_tiny_plan(dataset, make_tiny_recipe(method, changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "mean_techer"}, "no method 'mean_techer'; there are supervised, self_training, mean_teacher"),
        ({"methods": {"cpss": {}}}, "no method 'cpss'"),
        ({"methods": {"mn": {"slcies": 3}}}, r"methods\.mn: slcies: Extra inputs"),
        ({"methods": {"supervised": {"weight": 3}}}, r"methods\.supervised: weight: Extra inputs"),
        ({"windows": [[8, 8, 7]]}, r"windows: \[8, 8, 7\]"),
        ({"patch": [2, 2, 2]}, "coarsest level is a single voxel"),
        ({"student": {"kind": "resnet"}}, "student: "),
        ({"student": {"kind": "unet", "channels": [4]}}, "student: unet.channels"),
        ({"student": {"kind": "unet", "chanels": [4, 8]}}, "student: unet.chanels"),
        ({"segments": {"heart": {"colour": [1, 2, 3]}}}, "segments: 'heart' is not one of the segments"),
        ({"postprocessing": {"segments": {"heart": {}}}}, "postprocessing: 'heart' is not one of the segments"),
        ({"preparation": {"intensity": [{}, {}]}}, "2 entries for 1 channels"),
        ({"series": {"T1": {}}}, r"series: 'T1' is not one of the channels \(MR\)"),
        ({"series": {"MR": {"orientaton": "axial"}}}, "series.MR.orientaton"),
    ],
)
def test_a_recipe_that_does_not_suit_the_dataset_is_refused(
    dataset: Dataset, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        planned(dataset, changes)


def test_segments_take_the_recipes_colours_and_codes(dataset: Dataset) -> None:
    code = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    plan = planned(dataset, {"segments": {"liver": {"colour": [1, 2, 3], "type": code, "category": code}}})
    liver, spleen = plan.segments[:2]
    assert liver.colour == (1, 2, 3)
    assert (liver.type.value, liver.category.value) == ("10200004", "10200004")
    assert spleen.colour == dataset.segments[1].colour


def test_the_model_says_which_series_it_takes(dataset: Dataset) -> None:
    def rule(changes: dict[str, Any]) -> SeriesRule | None:
        plan = planned(dataset, changes)
        (channel,) = make_manifest(plan).channels
        return channel.series

    assert rule({}) == SeriesRule(modality="MR"), "the channel's name is a modality"
    wanted = {"orientation": "axial", "least_slices": 20, "description": ["*t1*"]}
    assert rule({"series": {"MR": wanted}}) == SeriesRule(orientation="axial", least_slices=20, description=("*t1*",))


@pytest.mark.parametrize(
    ("channels", "patch"), [([4, 8], (16, 16, 12)), ([4, 8, 8, 8], (16, 16, 16)), ([4] * 5, (32, 32, 32))]
)
def test_an_automatic_patch_holds_a_whole_scan_and_suits_the_student(
    dataset: Dataset, channels: list[int], patch: tuple[int, int, int]
) -> None:
    student = {"kind": "unet", "channels": channels, "residual_units": 0}
    assert planned(dataset, {"patch": "auto", "student": student}).recipe.patch == patch


def test_an_automatic_patch_is_measured_on_the_resampled_grid_and_stops_at_96(dataset: Dataset) -> None:
    finer = planned(dataset, {"patch": "auto", "preparation": {"spacing": [3.0, 0.5, 5.0]}})
    assert finer.recipe.patch == (32, 96, 24)


@given(st.integers(4, 90), st.floats(0.2, 5.0))
@settings(max_examples=50, deadline=None)
def test_an_automatic_patch_of_a_scan_that_suits_is_that_scan(side: int, spacing: float) -> None:
    from semiseg.bundle.fingerprint import Fingerprint
    from semiseg.bundle.preprocessing import Preprocessing
    from semiseg.volumes.volume import Volume
    from trainer.plan import _with_patch

    shape = (2 * (side // 2), 8, 4)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    fingerprint = Fingerprint.collect([{"image": Volume(np.zeros(shape, np.int16), affine)}], "RAS")
    x, y, z = fingerprint.spacing.median
    for own in (None, (x, y, z)):
        planned = _with_patch(
            make_tiny_recipe("supervised", {"patch": "auto"}), fingerprint, Preprocessing(spacing=own)
        )
        assert planned.patch == shape


# --- what is decided from the scans -------------------------------------------------------------------------------


def scans_of(folder: Path, grids: list[tuple[tuple[int, int, int], np.ndarray]]) -> TrainingPlan:
    """A plan on scans of these shapes and affines; the last one is unlabelled."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for k, (shape, affine) in enumerate(grids):
        write_nifti(folder / "imagesTr" / f"s{k}.nii.gz", random.integers(0, 99, shape, dtype=np.int16), affine)
        if k < len(grids) - 1:
            write_nifti(folder / "labelsTr" / f"s{k}.nii.gz", np.ones(shape, np.uint8), affine)
    document = {"name": "Grids", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "all"}}
    (folder / "dataset.json").write_text(json.dumps(document))
    chosen = load_dataset(folder)
    recipe = make_tiny_recipe("supervised", {"preparation": {"spacing": "median"}})
    return make_plan(chosen, make_split(chosen), recipe)


def diagonal(*spacing: float) -> np.ndarray:
    return np.diag([*spacing, 1.0])


def permuted(spacing: tuple[float, float, float], order: tuple[int, int, int]) -> np.ndarray:
    """An affine whose file axes run along world axes ``order``; ``spacing`` is per file axis."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, length) in enumerate(zip(order, spacing, strict=True)):
        affine[world, axis] = -length if world == 1 else length
    return affine


CUBE = (8, 8, 8)


def test_the_median_spacing_is_taken_over_all_training_scans(tmp_path: Path) -> None:
    grids = [(CUBE, diagonal(1, 1, s)) for s in (2.0, 3.0, 5.0)]
    assert scans_of(tmp_path, grids).preprocessing.spacing == (1.0, 1.0, 3.0)


def test_2d_teachers_slice_along_the_axis_that_most_scans_are_thickest_along(tmp_path: Path) -> None:
    axial, sagittal = (CUBE, diagonal(1, 1, 4)), (CUBE, diagonal(4, 1, 1))
    assert scans_of(tmp_path / "a", [axial, sagittal, sagittal]).preprocessing.slice_axis == 0
    assert scans_of(tmp_path / "b", [axial, axial, sagittal]).preprocessing.slice_axis == 2


def test_a_tie_goes_to_the_last_axis(tmp_path: Path) -> None:
    assert scans_of(tmp_path / "isotropic", [(CUBE, diagonal(1, 1, 1))] * 2).preprocessing.slice_axis == 2
    assert scans_of(tmp_path / "flat", [(CUBE, diagonal(2, 2, 1))] * 2).preprocessing.slice_axis == 1
    grids = [(CUBE, diagonal(1, 1, 4)), (CUBE, diagonal(4, 1, 1))]
    assert scans_of(tmp_path / "draw", grids).preprocessing.slice_axis == 2


def test_thick_sagittal_slices_are_found_however_the_file_stores_them(tmp_path: Path) -> None:
    # Sagittal as scanners write it: in-plane posterior and superior first, slices along left-right last.
    sagittal = ((8, 8, 6), permuted((1.0, 1.0, 5.0), (1, 2, 0)))
    plan = scans_of(tmp_path, [sagittal, sagittal])
    assert plan.preprocessing.slice_axis == 0
    assert plan.preprocessing.spacing == (5.0, 1.0, 1.0)
    assert plan.fingerprint.shape.median == (6.0, 8.0, 8.0)


def test_the_recipe_may_choose_the_slice_axis_and_keep_each_scans_spacing(dataset: Dataset) -> None:
    plan = planned(dataset, {"preparation": {"slice_axis": 1, "orientation": "LPS"}})
    assert plan.preprocessing.slice_axis == plan.stages.last.task.slice_axis == 1
    assert plan.preprocessing.spacing is None
    assert plan.preprocessing.orientation == "LPS"


def test_one_intensity_serves_every_channel(dataset: Dataset) -> None:
    plan = planned(dataset, {"preparation": {"intensity": [{"scale": "minmax"}]}})
    assert [i.scale for i in plan.preprocessing.intensity] == ["minmax"]


def test_a_2d_network_from_scratch_needs_no_licence(dataset: Dataset) -> None:
    plan = make_tiny_plan(dataset, make_tiny_recipe("mn", teacher={"config": SEGFORMER_CONFIG}))
    assert plan.stages.pretrained() == ()


def test_a_student_with_a_fixed_window_refuses_further_windows(tmp_path):
    changes = {
        "student": {"kind": "swinunetr", "feature_size": 12},
        "patch": [64, 32, 32],
        "windows": [[32, 32, 64]],
    }
    with pytest.raises(RecipeError, match="windows of the patch's size only"):
        make_tiny_plan(write_phantoms(tmp_path / "data"), make_tiny_recipe("supervised", changes))


@pytest.mark.parametrize("overlap", [1.0, [0.5, 0.5], [0.5, 1.0, 0.5], "half", [0.5], -0.1])
def test_an_overlap_that_cannot_be_is_refused_in_one_sentence(overlap: object) -> None:
    with pytest.raises(RecipeError, match="overlap: an overlap is a number from 0 to below 1, or three of them"):
        make_recipe({"overlap": overlap})


def test_an_overlap_is_one_share_or_one_for_each_axis() -> None:
    assert make_recipe({}).overlap == 0.5
    assert make_recipe({"overlap": 0}).overlap == 0
    assert make_recipe({"overlap": [0.84, 0, 0.95]}).overlap == (0.84, 0, 0.95)
