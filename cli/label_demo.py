"""The dataset of `semiseg label --demo`: phantoms, a few of them outlined, and a training that takes minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.durable_files import rename
from server.labelling.training import can_train

CASES, LABELLED, TEST = 16, 3, 4
CONFIG_FILE = "training.yaml"
_CONFIG = """\
# Training of `semiseg label --demo`: the recipe of `semiseg demo`, with fewer updates.
recipe: demo
changes: [updates=240]
"""


def prepare_demo(folder: Path, config: Path | None = None) -> Path | None:
    """Write the dataset into a folder that does not exist yet; the folder of an earlier demo is used as it is.

    Args:
        folder: Folder of the dataset.
        config: Configuration of the training that the user names; None for that of the demo.

    Returns:
        File of the training's configuration; None for no training, if the packages for it are not installed.

    Raises:
        InputError: The folder holds something else.
    """
    own = folder / CONFIG_FILE
    if not folder.exists() or not any(folder.iterdir()):
        from semiseg.phantoms.writers import write_dataset

        with tempfile.TemporaryDirectory(dir=folder.absolute().parent) as work:
            made = Path(work) / folder.name
            write_dataset(made, cases=CASES, labelled=LABELLED, test=TEST)
            (made / CONFIG_FILE).write_text(_CONFIG, encoding="utf-8")
            rename(made, folder)
    elif not own.is_file():
        raise InputError(f"{folder} was not made by `semiseg label --demo`; name another folder with --data.")
    return config or (own if can_train() else None)
