"""The dataset of a training run, for commands in which --data is optional."""

from __future__ import annotations

from pathlib import Path

import typer

from semiseg.bundle.bundle import RUN
from semiseg.errors import InputError


def resolve_dataset_folder(named: Path | None, model: Path) -> Path:
    """The folder that --data names, or else the dataset on which the run in ``model`` was trained.

    A dataset that was not named is told on standard error, so that nobody takes it for another one.

    Args:
        named: Value of --data.
        model: Folder of a run or a bundle.

    Raises:
        InputError: Nothing was named, and ``model`` is a bundle, a run of an earlier version, or a run whose dataset
            is no longer where it was.
    """
    if named is not None:
        return named
    if not (model / RUN).is_file():
        raise InputError(f"{model} is no training run, which would know its dataset: name one with --data.")
    from trainer.run_sources import read_sources

    sources = read_sources(model)
    if sources is None:
        raise InputError(f"{model} did not record where its dataset is: name it with --data.")
    if not sources.data.is_dir():
        raise InputError(f"The dataset of {model} is no longer in {sources.data}: name it with --data.")
    typer.echo(f"The scans are those of {sources.data}, the dataset of the run.", err=True)
    return sources.data
