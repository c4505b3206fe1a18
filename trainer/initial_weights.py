"""Initial weights of the student from an earlier run, such as a run pre-trained on other scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from semiseg.bundle.manifest import Manifest
from trainer.engine import load_trained_network, network_config_from_manifest
from trainer.errors import RecipeError
from trainer.network_configs import parse_network_config
from trainer.networks.training_wrapper import unwrap_network
from trainer.recipe import Recipe


def check_initial_run(recipe: Recipe, inputs: int) -> Manifest | None:
    """Check that the run under the key ``init_from`` suits a recipe; return its manifest, or None without a run.

    Args:
        recipe: The recipe.
        inputs: Number of channels of the scans.

    Raises:
        BundleError, RunError: The folder is not a finished run.
        RecipeError: The student of the run has another configuration, number of channels, or fixed patch size.
    """
    if recipe.init_from is None:
        return None
    manifest, _ = load_trained_network(recipe.init_from)
    theirs, ours = network_config_from_manifest(manifest), parse_network_config(recipe.student)
    if theirs != ours:
        raise RecipeError(
            f"In the recipe, init_from: the student of {recipe.init_from} is {_told(theirs.model_dump())}, but "
            f"the student of this recipe is {_told(ours.model_dump())}; give both the same `student`."
        )
    if len(manifest.channels) != inputs:
        raise RecipeError(
            f"In the recipe, init_from: the student of {recipe.init_from} takes {len(manifest.channels)} channel(s), "
            f"but these scans have {inputs}."
        )
    if not ours.takes_any_size and tuple(manifest.patch) != recipe.size():
        raise RecipeError(
            f"In the recipe, init_from: a {ours.kind} has a fixed patch size, which is {list(manifest.patch)} in "
            f"{recipe.init_from} and {list(recipe.size())} in this recipe."
        )
    return manifest


def load_initial_weights(run: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load the weights of a run into the student and into all networks that are initialised as its copies.

    A layer whose size depends on the number of segments keeps its random weights if this number differs.
    """
    _, network = load_trained_network(run)
    found = network.state_dict()
    student = {key: value.clone() for key, value in unwrap_network(networks["student"]).state_dict().items()}
    if student.keys() != found.keys():
        return
    fitting = {key: value if value.shape == student[key].shape else student[key] for key, value in found.items()}
    for one in networks.values():
        own = unwrap_network(one).state_dict()
        if own.keys() == student.keys() and all(torch.equal(value, student[key]) for key, value in own.items()):
            unwrap_network(one).load_state_dict(fitting)


def _told(section: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in section.items() if value is not None)
