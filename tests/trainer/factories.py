"""Datasets, recipes and networks so small that a whole training run takes a second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semiseg.bundle.manifest import Manifest
from semiseg.dataset import Dataset, load_dataset, make_split
from semiseg.phantoms.writers import write_dataset
from semiseg.volumes.segmentation import Segment
from trainer.cases import PreparedCase, sample_segment_voxels
from trainer.loop import train
from trainer.methods import METHODS, make_method
from trainer.methods.method import Method, Networks, SegmentationTask
from trainer.patches import Batch
from trainer.plan import TrainingPlan, make_plan
from trainer.recipe import Recipe
from trainer.recipe_files import make_recipe
from trainer.targets import ExclusiveClasses

ALL_METHODS = tuple(name for name in METHODS if name != "distil")
"""Every method but the one that needs a finished run; its tests make one."""

SEGMENTS = (Segment(name="one", label=1), Segment(name="two", label=2))
SHAPE = (16, 16, 12)
SPACING = (6.0, 6.0, 10.0)

SEGFORMER_CONFIG: dict[str, Any] = {
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
    "sr_ratios": [2, 1, 1, 1],
}


SAM_CONFIG: dict[str, Any] = {
    "vision": {
        "hidden_size": 12,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 16,
    },
    "decoder": {"mlp_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "iou_head_hidden_dim": 8},
}
CONFIG_OWNER = {"mn_2d": "mn", "cfr_ft": "cfr"}
"""Methods whose switches are another one's."""

SHORT_SCHEDULE = {"feature_updates": 2, "output_updates": 2, "partitions": 2}
PARTNER_NETWORK = {"kind": "unet", "channels": [6, 12], "residual_units": 1}
THREE_LEVEL_NETWORK = {"kind": "unet", "channels": [4, 6, 8], "residual_units": 0}
BATCH_NORM_NETWORK = {"kind": "unet", "channels": [4, 8], "residual_units": 0, "norm": "batch", "dropout": 0.2}


def make_tiny_recipe(method: str = "mn", changes: Mapping[str, Any] | None = None, **switches: Any) -> Recipe:
    """A recipe of few updates on small patches; ``changes`` are its keys, ``switches`` its method's."""
    document: dict[str, Any] = {
        "name": "tiny",
        "method": method,
        "student": {"kind": "unet", "channels": [4, 8], "residual_units": 0},
        "patch": [8, 8, 8],
        "batch": 2,
        "updates": 8,
        "threads": 1,
        "checkpoint_every": 1000,
        "optimiser": {"rate": 0.01},
    }
    if method == "mn":
        switches = {
            "teacher": {"finetune": "whole", "config": SEGFORMER_CONFIG},
            "iterations": 2,
            "stage1": 0.25,
            **switches,
        }
    if method == "mn_2d":
        switches = {"teacher": {"finetune": "whole", "config": SEGFORMER_CONFIG}, **switches}
    document["methods"] = {CONFIG_OWNER.get(method, method): switches}
    return make_recipe({**document, **(changes or {})})


def make_recipe_for(method: str, changes: Mapping[str, Any] | None = None, **switches: Any) -> Recipe:
    """A recipe that suits every method: batches of fours, few updates, cubes that fit."""
    own: dict[str, dict[str, Any]] = {
        "magicnet": {"cubes": 2, "hidden": 8},
        "uamt": {"passes": 2},
        "dual": {"partner": PARTNER_NETWORK},
        "cfr": {"sam": SAM_CONFIG, "sam_updates": 3},
        "cfr_ft": {"sam": SAM_CONFIG},
        "committee": {"members": [{"method": "supervised"}], "atlas": False},
        "comparative": SHORT_SCHEDULE,
        "contrastive": SHORT_SCHEDULE,
    }
    switches = {**own.get(method, {}), **switches}
    student = {"student": THREE_LEVEL_NETWORK} if method == "urpc" else {}
    return make_tiny_recipe(method, {"batch": 4, "updates": 4, **student, **(changes or {})}, **switches)


def build_method(recipe: Recipe, *, labelled: int = 4, unlabelled: int = 12, outputs: int = 3, axis: int = 2) -> Method:
    """The recipe's method for one input channel."""
    return make_method(recipe, SegmentationTask(1, ExclusiveClasses(outputs - 1), axis, labelled, unlabelled))


def perturbed_networks(method: Method) -> Networks:
    """A method's networks with weights that differ from those of their start, so that a copy differs, too."""
    torch.manual_seed(0)
    networks = method.build()
    with torch.no_grad():
        for network in networks.values():
            for p in network.parameters():
                p.add_(0.3 * torch.randn_like(p))
    return networks


class RecordingNetwork(nn.Module):
    """Remembers what it was shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """As the network."""
        self.seen.append(x.detach().clone())
        out: Tensor = self.network(x)
        return out


def make_batch(
    labelled: int, unlabelled: int, *, step: int = 0, outputs: int = 3, seed: int = 0, side: int = 8
) -> Batch:
    """Patches of noise whose labels follow the noise."""
    random = torch.Generator().manual_seed(seed)
    count = labelled + unlabelled
    images = torch.randn((count, 1, side, side, side), generator=random)
    labels = ((images[:, 0] + 2) / 4 * outputs).long().clamp(0, outputs - 1)
    labels[labelled:] = 0
    views = {name: images + 0.1 * torch.randn(images.shape, generator=random) for name in ("strong", "stronger")}
    return Batch(images, labels, labelled, tuple(f"scan{k}" for k in range(count)), step, views=views)


def make_case(case_id: str, shape: tuple[int, int, int], *, seed: int = 0, labelled: bool = True) -> PreparedCase:
    """A preprocessed scan of noise with two cubes of foreground (3 and 2 voxels a side), in memory."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(1, *shape)).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    for value, side in ((1, 3), (2, 2)):
        x, y, z = (int(random.integers(0, max(0, n - side) + 1)) for n in shape)
        labels[x : x + side, y : y + side, z : z + side] = value
    return PreparedCase(
        case_id, image, labels if labelled else None, sample_segment_voxels(labels, SEGMENTS) if labelled else ()
    )


def write_phantoms(folder: Path, *, cases: int = 8, labelled: int = 2, test: int = 1, development: int = 1) -> Dataset:
    """A dataset folder of procedural scans with a split beside it."""
    write_dataset(
        folder, cases=cases, labelled=labelled, test=test, development=development, shape=SHAPE, spacing=SPACING
    )
    return load_dataset(folder)


def make_tiny_plan(
    dataset: Dataset, recipe: Recipe, labelled: int | None = None, split: Path | None = None
) -> TrainingPlan:
    """The plan of a recipe on a dataset with its own split."""
    return make_plan(dataset, make_split(dataset, split, labelled), recipe)


def train_on_cpu(
    dataset: Dataset,
    recipe: Recipe,
    run: Path,
    *,
    labelled: int | None = None,
    split: Path | None = None,
    pictures: bool = False,
    **options: Any,
) -> Manifest:
    """Train on the CPU; the pictures of the run are empty files unless a test looks at them (``pictures``)."""
    with contextlib.nullcontext() if pictures else without_pictures():
        return train(make_tiny_plan(dataset, recipe, labelled, split), run, device="cpu", **options)


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Leave empty files in the place of a run's pictures: drawing takes longer than the few updates of most tests."""
    with (
        patch("trainer.loop.plot_training_curve", lambda run, target: target.touch()),
        patch("trainer.loop.draw_preview", lambda segmenter, plan, target: target.touch()),
    ):
        yield


def train_and_interrupt(dataset: Dataset, recipe: Recipe, run: Path, step: int, **options: Any) -> None:
    """Train, and break off after ``step`` steps as Ctrl-C does, before the last of them is in a checkpoint."""

    def stop(done: int, steps: int, values: dict[str, Any]) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(dataset, recipe, run, report=stop, **options)


def load_run_weights(run: Path) -> dict[str, Tensor]:
    """What a finished run keeps, as copies: the tensors of safetensors keep their file mapped."""
    return {name: tensor.clone() for name, tensor in load_file(run / "student.safetensors").items()}


def weights_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later updates do not touch."""
    return {name: value.detach().clone() for name, value in tensors.items()}
