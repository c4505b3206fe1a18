"""One of several training processes, for test_parallel: started by torchrun, trains the recipe of a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from semiseg.dataset import load_dataset
from tests.trainer.tiny import trained
from trainer.recipe import make_recipe


def main(data: Path, recipe: Path, run: Path, *options: str) -> None:
    """Train on the CPU; ``stop=7`` breaks off after that step, ``resume`` goes on."""
    document = yaml.safe_load(recipe.read_text())
    stop = next((int(o.removeprefix("stop=")) for o in options if o.startswith("stop=")), None)

    def report(step: int, steps: int, values: dict[str, Any]) -> None:
        if step == stop:
            os._exit(1)

    trained(load_dataset(data), make_recipe(document), run, resume="resume" in options, report=report)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *sys.argv[4:])
