"""One of several training processes, for test_parallel: started by torchrun, trains the recipe of a file."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from semiseg.dataset import load_dataset
from tests.trainer.tiny import trained
from trainer.recipe import make_recipe


def main(data: Path, recipe: Path, run: Path, *options: str) -> None:
    """Train on the CPU."""
    document = yaml.safe_load(recipe.read_text())
    trained(load_dataset(data), make_recipe(document), run, resume="resume" in options)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *sys.argv[4:])
