"""Distillation of a finished run's network into a smaller student, on the run's own scans and with its recipe."""

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
from trainer.recipe import Recipe
from trainer.recipe_files import make_recipe

CHANNEL_DIVISORS = {"small": 2, "tiny": 4}
"""Divisor of the numbers of channels, by the name of the size."""

MINIMUM_CHANNELS = 4
DEFAULT_CHANNELS = (32, 64, 128, 256)
"""Channels of the UNet that is divided if the run's student is another network."""


def distil(
    run: Path,
    to: str,
    out: Path,
    *,
    data: Path,
    updates: int | None = None,
    report: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> Path:
    """Train a smaller student from ``run``; an interrupted training in ``out`` is resumed.

    Args:
        run: Folder of the finished run whose network is the teacher.
        to: ``small``, ``tiny``, or a recipe's ``student`` section as YAML or in a YAML file.
        out: Folder of the new run.
        data: Folder of the dataset that the run was trained on.
        updates: Number of updates; by default as many as the run had.
        report: Callback for each step; see :func:`trainer.loop.train`.

    Returns:
        The folder ``out``.

    Raises:
        BundleError, RunError: ``run`` is not a finished run, or ``out`` is not a folder of this training.
        InputError: ``to`` is not a student, or scans of the run are not in ``data``.
        ExportError: The student is not smaller than the teacher.
    """
    manifest, network = load_trained_network(run)
    section = smaller_student(network_config_from_manifest(manifest).model_dump(mode="json"), to)
    student = parse_network_config(section)
    size = count_parameters(student.build(len(manifest.channels), manifest.outputs, manifest.patch))
    if size >= count_parameters(network):
        raise ExportError(
            f"The student {to} has {size:,} parameters and its teacher {count_parameters(network):,}; it must be "
            "smaller."
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
    """Return the configuration of the student that ``to`` names.

    ``small`` and ``tiny`` are a UNet with the channels of the run's UNet divided by 2 or 4; if the run's network is
    another one, those of :data:`DEFAULT_CHANNELS`.

    Raises:
        InputError: ``to`` is neither a size nor a section.
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
        raise InputError(f"--distil-to {to!r} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(given, dict):
        raise InputError(
            f"--distil-to takes {', '.join(CHANNEL_DIVISORS)}, or a student such as "
            f"'{{kind: unet, channels: [8, 16, 32]}}', "
            f"not {to!r}."
        )
    return given


def distillation_recipe(recipe: dict[str, Any], run: Path, student: dict[str, Any], updates: int | None) -> Recipe:
    """Return the run's recipe, changed to train a student from the run's network."""
    recipe = make_recipe(dict(recipe)).model_dump(mode="json")  # present names, also of a run of an earlier version
    return make_recipe(
        {
            **recipe,
            "name": f"{recipe['name'][:52]} distilled",
            "method": "distil",
            "student": student,
            "init_from": None,
            "updates": updates or recipe["updates"],
            "methods": {**recipe["methods"], "distil": {"teacher": str(run.resolve())}},
        }
    )
