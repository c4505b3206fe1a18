"""A training run made in seconds: tiny phantoms, a tiny student, and a 2D teacher with LoRA that has to stay behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.bundle.manifest import Manifest
from semiseg.dataset import load_dataset, make_split
from semiseg.phantoms.writers import write_dataset
from trainer.loop import train
from trainer.plan import make_plan
from trainer.recipe_files import make_recipe

WINDOW = (16, 16, 8)
NARROW_WINDOW = (16, 8, 8)
TEST_CASES = 2


@dataclass(frozen=True)
class TinyRun:
    """A finished run, the dataset it learnt from, and its manifest."""

    folder: Path
    data: Path
    manifest: Manifest


def tiny_recipe_document(**changes: Any) -> dict[str, Any]:
    """M&N with both stages in four updates; ``changes`` replace whole sections."""
    return {
        "name": "tiny",
        "method": "mn",
        "student": {"kind": "unet", "channels": [4, 8], "residual_units": 0},
        "patch": list(WINDOW),
        "windows": [list(NARROW_WINDOW)],
        "batch": 2,
        "updates": 4,
        "threads": 1,
        "optimiser": {"kind": "adamw", "rate": 0.02},
        "methods": {
            "mn": {
                "iterations": 1,
                "stage1": 0.5,
                "slices": 4,
                "refresh": [],
                "teacher": {
                    "finetune": "lora",
                    "lora": {"rank": 2, "alpha": 2},
                    "config": {
                        "hidden_sizes": [8, 8, 8, 8],
                        "depths": [1, 1, 1, 1],
                        "num_attention_heads": [1, 1, 1, 1],
                        "decoder_hidden_size": 8,
                        "sr_ratios": [1, 1, 1, 1],
                    },
                },
            }
        },
        **changes,
    }


def make_tiny_run(folder: Path, *, cache: Path | None = None) -> TinyRun:
    """Make the dataset ``folder/data`` and train on it into ``folder/run``."""
    data, run = folder / "data", folder / "run"
    write_dataset(data, cases=5, labelled=2, test=TEST_CASES, shape=(22, 20, 13), spacing=(5.0, 5.0, 8.0))
    dataset = load_dataset(data)
    plan = make_plan(dataset, make_split(dataset, labelled=2), make_recipe(tiny_recipe_document()))
    return TinyRun(run, data, train(plan, run, cache=cache, device="cpu"))
