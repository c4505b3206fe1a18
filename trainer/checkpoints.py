"""Files of a run: its checkpoint, and what remains when training has ended.

Checkpoints and weights contain only tensors and plain values, so loading them cannot execute code.
"""

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
from trainer.recipe_files import make_recipe

CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
STUDENT = "student.safetensors"
RECIPE = "recipe.yaml"
RUN = "run.json"
LOG = "log.jsonl"
CACHE = "cache"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The last complete checkpoint."""
        return self.path / CHECKPOINT

    @property
    def student(self) -> Path:
        """The weights of the exported module, written when training has ended."""
        return self.path / STUDENT

    @property
    def best(self) -> Path:
        """The weights of the exported module at the best validation so far."""
        return self.path / BEST

    @property
    def log(self) -> Path:
        """The log, with one JSON object per line: step, learning rates and loss terms, or a validation."""
        return self.path / LOG

    @property
    def cache(self) -> Path:
        """The default folder of the preprocessed scans."""
        return self.path / CACHE

    @property
    def decisions(self) -> Path:
        """The decisions on keys that the recipe left open, with their reasons."""
        return self.path / "decisions.json"

    @property
    def members(self) -> Path:
        """The runs of further networks that the method requested, such as the members of a committee."""
        return self.path / "members"

    @property
    def manifest(self) -> Path:
        """The manifest as ``run.json``."""
        return self.path / RUN

    @property
    def has_begun(self) -> bool:
        """True if training has begun in this folder."""
        return self.log.exists() or self.checkpoint.exists()

    @property
    def preview(self) -> Path:
        """A picture of a predicted segmentation, the last file that a run writes."""
        return self.path / "preview.png"

    @property
    def has_ended(self) -> bool:
        """True if training has ended in this folder."""
        return self.student.is_file() and self.preview.is_file()

    def start(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Create the folder, or check that it contains the same run.

        Args:
            identity: Values that determine the result: recipe, split, dataset.
            resume: If True, the folder may contain a run that has begun.

        Raises:
            RunError: The folder contains another run, a run without ``resume``, or other files, or cannot be created.
        """
        file = self.path / RECIPE
        begun = self.has_begun
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run folder {self.path} cannot be created: {error.strerror}.") from None
        leftovers = [p for p in self.path.iterdir() if p.name.startswith(".") and p.name.endswith(".part")]
        # Preprocessed scans are allowed, since a time estimate prepares them before the run begins.
        if not file.exists() and set(self.path.iterdir()) - {*leftovers, self.cache}:
            raise RunError(f"{self.path} exists but is not a run folder; name a new folder with --out.")
        if begun and not resume:
            raise RunError(f"{self.path} already contains a run; continue it with --resume, or name another folder.")
        if begun:
            self._check_same(identity)
        for part in leftovers:  # incomplete files of a process that was killed
            part.unlink(missing_ok=True)
        if not begun:  # a run that was refused before its first step may start with another recipe
            replace_file(file, yaml.safe_dump(identity, sort_keys=False).encode())

    def _check_same(self, identity: dict[str, Any]) -> None:
        try:
            before = yaml.safe_load((self.path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            before = None
        if not isinstance(before, dict):
            raise RunError(f"{self.path / RECIPE} cannot be read, so the run cannot be resumed; start it again.")
        for key in identity:
            if _with_new_keys(key, before.get(key)) != identity[key]:
                raise RunError(
                    f"{self.path} was started with another {key}; a run can only be resumed with the same {key}."
                )


def _with_new_keys(key: str, value: Any) -> Any:
    """Add the defaults of keys that did not exist in the version that wrote a recipe; return other values unchanged."""
    if key != "recipe" or not isinstance(value, dict):
        return value
    try:
        return make_recipe(value).model_dump(mode="json")
    except RecipeError:
        return value


def read_training_record(run: Path) -> dict[str, Any]:
    """Read a run's ``recipe.yaml``: ``recipe``, ``split`` (ids of the training scans by their use) and ``dataset``.

    Raises:
        BundleError: The folder is not a run folder.
        RunError: The file is missing or damaged.
    """
    read_manifest(run / RUN)  # raises the error for a folder that is not a run folder
    try:
        document = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{run / RECIPE} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"recipe", "split"} <= set(document):
        raise RunError(f"{run / RECIPE} does not state how the run was trained.")
    return document


@dataclass
class TrainingState:
    """Everything that changes while training; a run restored from it continues as if it had not been interrupted."""

    step: int
    networks: dict[str, dict[str, Tensor]]
    optimisers: dict[str, dict[str, Any]]
    scaler: dict[str, Any] | None
    foreground: dict[str, list[Tensor]]
    best: float | None
    waited: int


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint; if the process is killed, the file holds either the old or the new checkpoint."""
    with atomic_file(path) as stream:
        torch.save(vars(state), stream)


def load_state(path: Path, device: torch.device) -> TrainingState:
    """Read a checkpoint with ``weights_only``, so that it cannot execute code.

    Raises:
        RunError: The file is missing, damaged, or not a checkpoint.
    """
    try:
        return TrainingState(**torch.load(path, map_location=device, weights_only=True))
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({type(error).__name__}); start the run again.") from None


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's tensors as safetensors, atomically."""
    state = network.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in _names(network)}
    with atomic_file(path) as stream:
        stream.write(save(tensors))


def load_weights(path: Path, network: nn.Module) -> nn.Module:
    """Load weights from a file into ``network``.

    Raises:
        RunError: The file is missing, damaged, or belongs to another network.
    """
    if not path.is_file():
        raise RunError(f"{path.parent} has no {path.name}: the run has not finished; continue it with --resume.")
    try:
        tensors = load_file(path)
        if set(tensors) != set(_names(network)):
            raise RunError(f"The weights {path} belong to another network than this run's.")
        network.load_state_dict(tensors, strict=False)  # a tensor with two names is stored under one of them
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"The weights {path} do not fit the network of this run: {str(error).splitlines()[0]}") from None
    return network


def _names(network: nn.Module) -> list[str]:
    """Return the names of a network's tensors, each tensor once: in some networks (DynUNet), a layer has two names."""
    kept = network.state_dict().keys()
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    return [name for name, _ in named if name in kept]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log; an incomplete last line, left by a killed process, is omitted."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
