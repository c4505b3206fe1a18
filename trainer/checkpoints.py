"""A run on disk: what is needed to go on, and what is left when it is done. Tensors only; nothing here can run code."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from semiseg.bundle.bundle import read_manifest
from semiseg.system.durable_files import atomic_file, replace_file
from trainer.errors import RecipeError, RunError
from trainer.recipe import make_recipe

CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
STUDENT = "student.safetensors"
RECIPE = "recipe.yaml"
RUN = "run.json"
LOG = "log.jsonl"
CACHE = "cache"


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run folder."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The last complete checkpoint."""
        return self.path / CHECKPOINT

    @property
    def student(self) -> Path:
        """The exported module's weights, once training has ended."""
        return self.path / STUDENT

    @property
    def best(self) -> Path:
        """The exported module's weights at the best validation so far."""
        return self.path / BEST

    @property
    def log(self) -> Path:
        """One JSON object per line: step, learning rates, loss terms; or a validation."""
        return self.path / LOG

    @property
    def cache(self) -> Path:
        """The preprocessed scans, unless another folder is named for them."""
        return self.path / CACHE

    @property
    def decisions(self) -> Path:
        """What the recipe left open: what was decided, and why."""
        return self.path / "decisions.json"

    @property
    def members(self) -> Path:
        """Runs of networks that the method asked for, such as the members of a committee."""
        return self.path / "members"

    @property
    def manifest(self) -> Path:
        """The manifest as ``run.json``."""
        return self.path / RUN

    @property
    def has_begun(self) -> bool:
        """Whether a run has trained here."""
        return self.log.exists() or self.checkpoint.exists()

    @property
    def preview(self) -> Path:
        """A picture of what the network draws: the last thing that a run leaves."""
        return self.path / "preview.png"

    @property
    def has_ended(self) -> bool:
        """Whether a run has trained to its end here."""
        return self.student.is_file() and self.preview.is_file()

    def start(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Make the folder, or check that it holds the same run.

        ``identity`` is what decides the result: recipe, split, dataset.

        Raises:
            RunError: the folder holds another run, or a run and ``resume`` is not set, or something else.
        """
        file = self.path / RECIPE
        begun = self.has_begun
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run folder {self.path} cannot be made: {error.strerror}.") from None
        leftovers = [p for p in self.path.iterdir() if p.name.startswith(".") and p.name.endswith(".part")]
        # Preprocessed scans may be there: timing a run prepares them before it begins.
        if not file.exists() and set(self.path.iterdir()) - {*leftovers, self.cache}:
            raise RunError(f"{self.path} exists and holds no run; name a new folder with --out.")
        if begun and not resume:
            raise RunError(f"{self.path} already holds a run; continue it with --resume, or name another folder.")
        if begun:
            self._check_same(identity)
        for part in leftovers:  # what a kill left of a file that was being written
            part.unlink(missing_ok=True)
        if not begun:  # nothing is lost: what was refused before its first step may start with another recipe
            replace_file(file, yaml.safe_dump(identity, sort_keys=False).encode())

    def _check_same(self, identity: dict[str, Any]) -> None:
        try:
            before = yaml.safe_load((self.path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            before = None
        if not isinstance(before, dict):
            raise RunError(f"{self.path / RECIPE} cannot be read, so the run cannot be resumed; start it anew.")
        for key in identity:
            if _with_new_keys(key, before.get(key)) != identity[key]:
                raise RunError(
                    f"{self.path} was started with another {key}; a run can only be resumed as it was started."
                )


def _with_new_keys(key: str, value: Any) -> Any:
    """A recipe with the keys that came after the version that wrote it, each as it was before there was such a key."""
    if key != "recipe" or not isinstance(value, dict):
        return value
    try:
        return make_recipe(value).model_dump(mode="json")
    except RecipeError:
        return value


def read_training_record(run: Path) -> dict[str, Any]:
    """What a run's ``recipe.yaml`` holds: ``recipe``, ``split`` (ids of its training scans by their use), ``dataset``.

    Raises:
        BundleError: not a run folder.
        RunError: the file is missing or damaged.
    """
    read_manifest(run / RUN)  # a folder that is no run is refused by its sentence
    try:
        document = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{run / RECIPE} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"recipe", "split"} <= set(document):
        raise RunError(f"{run / RECIPE} does not say how the run was trained.")
    return document


@dataclass
class TrainingState:
    """All that changes while training: restored, the run goes on as if nothing had happened."""

    step: int
    networks: dict[str, dict[str, Tensor]]
    optimisers: dict[str, dict[str, Any]]
    scaler: dict[str, Any] | None
    foreground: dict[str, list[Tensor]]
    best: float | None
    waited: int


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    with atomic_file(path) as stream:
        torch.save(vars(state), stream)


def load_state(path: Path, device: torch.device) -> TrainingState:
    """Read a checkpoint (``weights_only``: it cannot run code).

    Raises:
        RunError: damaged, or not a checkpoint.
    """
    try:
        return TrainingState(**torch.load(path, map_location=device, weights_only=True))
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({type(error).__name__}); start the run anew.") from None


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's tensors as safetensors, complete or not at all."""
    state = network.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in _names(network)}
    with atomic_file(path) as stream:
        stream.write(save(tensors))


def load_weights(path: Path, network: nn.Module) -> nn.Module:
    """Read tensors into ``network``.

    Raises:
        RunError: missing, damaged, or made for another network.
    """
    if not path.is_file():
        raise RunError(f"{path.parent} has no {path.name}: the run has not finished; continue it with --resume.")
    try:
        tensors = load_file(path)
        if set(tensors) != set(_names(network)):
            raise RunError(f"The weights {path} are those of another network than this run's.")
        network.load_state_dict(tensors, strict=False)  # a tensor with two names is stored under one
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"The weights {path} do not fit the network of this run: {str(error).splitlines()[0]}") from None
    return network


def _names(network: nn.Module) -> list[str]:
    """The names of a network's tensors, each tensor once: some networks (DynUNet) reach the same layer on two ways."""
    kept = network.state_dict().keys()
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    return [name for name, _ in named if name in kept]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
