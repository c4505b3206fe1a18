"""A smaller student for a finished run: trained by the run's network on the run's own scans, with the run's recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from exporter.errors import ExportError
from semiseg.dataset import load_dataset
from semiseg.dataset.split import Split
from semiseg.errors import InputError
from trainer.checkpoints import RunFolder, read_training_record
from trainer.engine import load_trained_network, network_config_from_manifest
from trainer.loop import train
from trainer.network_configs import count_parameters, parse_network_config
from trainer.network_configs.convolutional import UNetConfig
from trainer.plan import make_plan
from trainer.recipe import Recipe, make_recipe

CHANNEL_DIVISORS = {"small": 2, "tiny": 4}
"""By how much the channels are divided."""

MINIMUM_CHANNELS = 4
DEFAULT_CHANNELS = (32, 64, 128, 256)
"""The UNet that is divided where the run's student is something else."""


def distil(
    run: Path,
    to: str,
    out: Path,
    *,
    data: Path,
    updates: int | None = None,
    report: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> Path:
    """Train a smaller student from ``run``; interrupted, it goes on where it was.

    Args:
        run: the finished run whose network teaches.
        to: ``small``, ``tiny``, or a recipe's ``student`` section as YAML or in a YAML file.
        out: the new run's folder.
        data: the dataset that the run was trained on.
        updates: by default as many as the run had.
        report: told of each step.

    Raises:
        BundleError, RunError: ``run`` is not a finished run, or ``out`` holds something else.
        InputError: ``to`` is no student; scans of the run are not in ``data``.
        ExportError: the student is not smaller.
    """
    manifest, network = load_trained_network(run)
    section = smaller_student(network_config_from_manifest(manifest).model_dump(mode="json"), to)
    student = parse_network_config(section)
    size = count_parameters(student.build(len(manifest.channels), manifest.outputs, manifest.patch))
    if size >= count_parameters(network):
        raise ExportError(
            f"The student {to} has {size:,} parameters and its teacher {count_parameters(network):,}: nothing is won."
        )
    document = read_training_record(run)
    recipe = distillation_recipe(document["recipe"], run, section, updates)
    dataset = load_dataset(data)
    missing = [case for ids in document["split"].values() for case in ids if case not in dataset.cases]
    if missing:
        raise InputError(f"{data} does not hold scan '{missing[0]}', from which {run} was trained.")
    split = Split(**{pool: tuple(ids) for pool, ids in document["split"].items()})
    going_on = RunFolder(out).log.exists()
    train(make_plan(dataset, split, recipe), out, resume=going_on, report=report)
    return out


def smaller_student(student: dict[str, Any], to: str) -> dict[str, Any]:
    """The section of the student that ``to`` names.

    A UNet with its channels divided by 2 (``small``) or 4 (``tiny``); of another network, a UNet of such a size.

    Raises:
        InputError: neither a size nor a section.
    """
    if to in CHANNEL_DIVISORS:
        unet = (
            student
            if student.get("kind") == "unet"
            else UNetConfig(kind="unet", channels=DEFAULT_CHANNELS).model_dump()
        )
        channels = [max(MINIMUM_CHANNELS, width // CHANNEL_DIVISORS[to]) for width in unet["channels"]]
        return {**unet, "channels": channels}
    try:
        given = yaml.safe_load(Path(to).read_text(encoding="utf-8") if Path(to).is_file() else to)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--distil-to {to!r} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(given, dict):
        raise InputError(
            f"--distil-to is {', '.join(CHANNEL_DIVISORS)}, or a student such as "
            f"'{{kind: unet, channels: [8, 16, 32]}}', "
            f"not {to!r}."
        )
    return given


def distillation_recipe(recipe: dict[str, Any], run: Path, student: dict[str, Any], updates: int | None) -> Recipe:
    """The recipe of the run, for a student that its network teaches."""
    return make_recipe(
        {
            **recipe,
            "name": f"{recipe['name'][:52]} distilled",
            "method": "distil",
            "student": student,
            "start": None,
            "updates": updates or recipe["updates"],
            "methods": {**recipe.get("methods", {}), "distil": {"teacher": str(run.resolve())}},
        }
    )
