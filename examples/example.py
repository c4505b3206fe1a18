"""The steps that all examples share: scans, training, and the Dice of the test scans.

Each example names a method and its main settings, and calls :func:`run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import semiseg
from semiseg.phantoms.writers import write_dataset
from trainer.engine import open_run
from trainer.training import prepare_training

SMALL_SAM = """{
    finetune: whole,
    vision: {
        image_size: 160, patch_size: 8, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 2, mlp_dim: 96,
        output_channels: 32, window_size: 8, global_attn_indexes: [1],
    },
    decoder: {hidden_size: 32, mlp_dim: 64, num_attention_heads: 2, iou_head_hidden_dim: 16},
}"""
"""A SAM without pretrained weights, for mosaics of the slices of small patches (`methods.cfr.sam`)."""


def run(description: str, method: str, settings: Sequence[str] = ()) -> None:
    """Train with a method, and print the Dice of the test scans.

    Args:
        description: Text of ``--help``.
        method: Name of the method.
        settings: Changes of the default recipe, each as ``key=value``.
    """
    options = parse_options(description, method)
    data = options.data or generate_scans(options.out / "data")
    train(data, options.out / "run", method, [*settings, *options.set], options.labelled)


def parse_options(description: str, method: str) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset folder with a split.json; without it, scans are generated")
    parser.add_argument("--out", type=Path, default=Path("example-output") / method, help="folder of all results")
    parser.add_argument("--labelled", type=int, default=4, help="number of labelled scans (default: 4)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    return parser.parse_args()


def generate_scans(folder: Path) -> Path:
    """Generate 14 small phantoms: 4 labelled, 6 unlabelled and 4 test scans."""
    if not (folder / "split.json").is_file():
        write_dataset(folder, cases=14, labelled=4, test=4, shape=(32, 32, 24), spacing=(3.0, 3.0, 4.0))
    return folder


def train(data: Path, run: Path, method: str, settings: Sequence[str], labelled: int) -> None:
    """Train, show the decisions of the recipe, and print the Dice of the test scans."""
    training = prepare_training(data, run, method=method, changes=settings, labelled=labelled, resume=run.exists())
    for decision in training.decisions:
        print(f"{decision.key}: {decision.value} ({decision.reason})")
    training.train(report=_print_progress, tell=print)
    manifest, engine = open_run(run)
    segmenter = semiseg.Segmenter(manifest, engine)
    print(semiseg.evaluate(segmenter.segment, training.dataset, training.split.test).table().markdown())
    print(f"The run is in {run}; `semiseg export {run} --out BUNDLE` makes a bundle of its network.")


def _print_progress(step: int, steps: int, values: dict[str, Any]) -> None:
    if step % 50 == 0 or step == steps:
        print(f"{values['stage']}: step {step} of {steps}, loss {values['total']:.3f}", file=sys.stderr)
