"""The recipes of the papers: each is read, has the papers' networks, and runs when everything is made small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semiseg.dataset import Dataset
from semiseg.inference.windows import starts_along
from tests.trainer.factories import SAM_CONFIG, SEGFORMER_CONFIG, train_on_cpu, write_phantoms
from trainer.methods import find_method, make_method
from trainer.methods.method import SegmentationTask
from trainer.network_configs import count_parameters
from trainer.recipe_files import find_recipe, make_recipe, read_recipe
from trainer.stages import StageSequence
from trainer.targets import make_targets

ROOT = Path(__file__).parents[2]
FOLDER = Path(find_recipe("papers/la_mn")).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MIT_B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}

# Channels, segments, whether these overlap; then parameters by network, where METHODS names a number.
VNET, RESNET_VNET, VNET_OF_14 = 9_448_866, 17_930_354, 9_443_470
PAPERS: dict[str, tuple[int, int, bool, dict[str, int | tuple[float, float]]]] = {
    "la_mn": (1, 1, False, {"student": 25_884_546, "teacher": (27e6, 33e6)}),  # 27 M and its adapters
    "pancreas_mn": (1, 1, False, {"student": 25_884_546}),
    "la_dual": (1, 1, False, {"student": VNET, "partner": RESNET_VNET}),
    "dual_as_released": (1, 1, False, {"student": VNET, "partner": RESNET_VNET}),
    "pancreas_dual": (1, 1, False, {"student": VNET, "partner": RESNET_VNET}),
    "la_cfr": (1, 1, False, {"student": VNET, "sam": (90e6, 95e6)}),
    "brats_cfr": (1, 1, True, {"sam": (90e6, 95e6)}),
    "btcv_cfr": (1, 13, False, {"sam": (90e6, 96e6)}),
    "btcv_cfr_magicnet": (1, 13, False, {"student": VNET_OF_14, "location": (8.4e6, 8.6e6)}),
    "mact_cfr": (1, 8, False, {"sam": (90e6, 96e6)}),
    "mact_cfr_magicnet": (1, 8, False, {"location": (8.4e6, 8.6e6)}),
    "spleen_comparative": (1, 1, False, {"student": (92e6, 93e6)}),
    "brain_tumour_comparative": (4, 3, True, {"student": (101e6, 103e6)}),
}
LIGHT_SAM = {"weights": None, **SAM_CONFIG, "side": 128}
SLOW = ("btcv_cfr_magicnet", "mact_cfr_magicnet", "pancreas_dual", "la_dual", "brats_cfr")
"""Recipes whose code others run, too, in less time: CFR, MagicNet and dual networks."""
SMALL: dict[str, dict[str, Any]] = {  # what makes a recipe of each kind small
    "mn": {"teacher": {"finetune": "lora", "config": SEGFORMER_CONFIG, "chunk": 4}, "iterations": 2},
    "dual": {},
    "cfr": {"sam": LIGHT_SAM, "sam_updates": 1},
    "comparative": {"feature_updates": 2, "output_updates": 2},
    "contrastive": {"feature_updates": 2, "output_updates": 2},
}


STRIDES = {
    **dict.fromkeys(("la_dual", "dual_as_released", "la_cfr"), (18, 18, 4)),
    "pancreas_dual": (16, 16, 16),
    **dict.fromkeys(("btcv_cfr", "btcv_cfr_magicnet", "mact_cfr", "mact_cfr_magicnet"), (12, 12, 12)),
    "brats_cfr": (64, 64, 64),
}
"""Voxels between two windows, of the papers that say how theirs lie."""


@pytest.mark.parametrize("name", STRIDES)
def test_windows_lie_as_the_paper_has_them(name: str) -> None:
    recipe = read_recipe(find_recipe(f"papers/{name}"))
    patch, overlap = recipe.size(), recipe.overlap
    shares = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    # Whole numbers of windows after the first, so that only the stride shows.
    shape = tuple(side + 10 * stride for side, stride in zip(patch, STRIDES[name], strict=True))
    starts = [starts_along(*one) for one in zip(shape, patch, shares, strict=True)]
    assert [axis[1] - axis[0] for axis in starts] == list(STRIDES[name]) and {len(axis) for axis in starts} == {11}


def without_downloads(name: str) -> dict[str, Any]:
    """The recipe with networks of the same size that start from scratch."""
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    methods = document["methods"]
    if "mn" in methods:
        methods["mn"]["teacher"] = {"finetune": "lora", "config": MIT_B2}
    if "cfr" in methods:
        methods["cfr"]["sam"] = {"finetune": "lora", "rank": 4}
    return document


def small(name: str) -> dict[str, Any]:
    """The recipe with its own losses, schedules and switches on networks and patches that take a second."""
    document = without_downloads(name)
    method = document["method"]
    document |= {"updates": 2, "threads": 1, "checkpoint_every": 1000, "foreground": 0.5}
    if name == "brats_cfr":
        document["regions"] = {"WT": [1, 2, 3]}  # the phantoms have no 4
    document["preparation"] = {**document["preparation"], "spacing": "own"}
    students = {"unet3d": {"kind": "unet3d", "channels": [4, 8]}}
    students["unetr"] = {**document["student"], "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2}
    document["student"] = students.get(document["student"]["kind"], document["student"])
    document["patch"] = [32, 32, 16]
    document["methods"] = {**document["methods"], method: {**document["methods"][method], **SMALL[method]}}
    if "magicnet" in document["methods"]:
        document["patch"] = [64, 32, 32]
        document["methods"]["magicnet"] |= {"cubes": 2, "hidden": 8}
        document["methods"]["cfr"]["sam"] = {**LIGHT_SAM, "side": 256}
    return document


def test_every_recipe_of_the_papers_is_known_here_and_in_the_documentation() -> None:
    assert set(NAMES) == set(PAPERS)
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`papers/(\w+)`", text)) == set(NAMES)


def documented() -> list[tuple[str, str]]:
    """The recipe and the `key=value` of each row of docs/papers.md, and those that its prose gives for a method."""
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    changes = []
    for line in text.splitlines():
        cells = line.split(" | ")
        if line.startswith("| `papers/") and len(cells) > 2:
            names = re.findall(r"`papers/(\w+)`", cells[0])
            changes += [(n, c) for n in names for c in re.findall(r"`([\w.]+=[^`]+)`", cells[2])]
    of = {"M&N": "la_mn", "Dual Networks": "la_dual", "CFR": "la_cfr", "Comparative pre-training": "spleen_comparative"}
    for part in re.split(r"\n### (?=[MDC])", text)[1:]:
        title, body = part.split("\n", 1)
        method = {"la_mn": "mn", "la_dual": "dual", "la_cfr": "cfr"}.get(of[title], "comparative")
        for change in re.findall(r"`(?:--set )?([\w.]+=[\w.]+)`", body):
            whole = (
                change
                if "." in change.partition("=")[0] or change.startswith("transd")
                else f"methods.{method}.{change}"
            )
            changes.append((of[title], whole.replace("denominator", "denominator")))
    return changes


def test_every_change_that_the_documentation_gives_is_one_that_the_recipe_takes() -> None:
    changes = documented()
    assert len(changes) > 20
    for name, change in changes:
        document = without_downloads(name)
        if "methods.comparative.denominator" in change:
            document, change = {**document, "method": "contrastive"}, change.replace("comparative", "contrastive")
        before = make_recipe(dict(document))
        after = make_recipe(yaml.safe_load(yaml.safe_dump(document)), [change.replace("{folder: ...}", "{folder: f}")])
        assert after != before, (name, change)
        find_method(after)


@pytest.mark.parametrize(("name", "weight"), [("la_dual", 0.0), ("pancreas_dual", 0.0), ("dual_as_released", 0.5)])
def test_a_term_of_the_released_code_alone_is_in_its_recipe_alone(name: str, weight: float) -> None:
    recipe = make_recipe(without_downloads(name))
    assert find_method(recipe).read_config(recipe).mistake_weight == weight  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_are_the_papers(name: str) -> None:
    read_recipe(FOLDER / f"{name}.yaml")
    inputs, segments, overlapping, expected = PAPERS[name]
    recipe = make_recipe(without_downloads(name))
    method = make_method(recipe, SegmentationTask(inputs, make_targets(segments, overlapping=overlapping), 2, 16, 64))
    sides = recipe.size()
    for student in find_method(recipe).students(recipe):
        assert all(side % d == 0 for side, d in zip(sides, student.divisor(), strict=True))
    with torch.device("meta"):
        networks = StageSequence(method).build()
    for network, count in expected.items():
        found = count_parameters(networks[network])
        if isinstance(count, tuple):
            assert count[0] < found < count[1], (network, found)
        else:
            assert found == count, network


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in SLOW else ()) for n in NAMES])
def test_the_recipe_runs_when_everything_is_small(dataset: Dataset, tmp_path: Path, name: str) -> None:
    manifest = train_on_cpu(dataset, make_recipe(small(name)), tmp_path / "run")
    assert manifest.name == name
    assert (tmp_path / "run" / "student.safetensors").is_file()
