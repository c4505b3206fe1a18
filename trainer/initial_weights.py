"""A student that starts from the weights of an earlier run, such as one that was pre-trained on other scans."""

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
    """The manifest of the run that ``start`` names, or None.

    Raises:
        BundleError, RunError: it is no finished run.
        RecipeError: its student is another one, or takes other channels.
    """
    if recipe.start is None:
        return None
    manifest, _ = load_trained_network(recipe.start)
    theirs, ours = network_config_from_manifest(manifest), parse_network_config(recipe.student)
    if theirs != ours:
        raise RecipeError(
            f"In the recipe, start: the student of {recipe.start} is {_told(theirs.model_dump())}, and this one is "
            f"{_told(ours.model_dump())}; give both the same `student`."
        )
    if len(manifest.channels) != inputs:
        raise RecipeError(
            f"In the recipe, start: the student of {recipe.start} takes {len(manifest.channels)} channel(s), and these "
            f"scans have {inputs}."
        )
    if not ours.takes_any_size and tuple(manifest.patch) != recipe.size():
        raise RecipeError(
            f"In the recipe, start: a {ours.kind} is made for one patch size, {list(manifest.patch)} in {recipe.start} "
            f"and {list(recipe.size())} here."
        )
    return manifest


def load_initial_weights(run: Path, networks: Mapping[str, nn.Module]) -> None:
    """Give the student, and all networks that began as its copies, the run's weights.

    A layer whose size depends on the number of segments starts anew where that is another one.
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
