"""One of several training processes, for test_parallel: started by torchrun, trains one recipe after the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from semiseg.dataset import load_dataset
from tests.trainer.factories import train_on_cpu
from trainer.errors import RecipeError
from trainer.parallel import shut_down
from trainer.recipe_files import make_recipe


def main(data: Path, jobs: Path) -> None:
    """Do every job of a file: a recipe, a run folder, whether to resume, and a step to break off after.

    What a job is refused for is written beside its run folder.
    """
    dataset = load_dataset(data)
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        run = Path(job["run"])

        def report(step: int, steps: int, values: dict[str, Any], stop: int | None = job.get("stop")) -> None:
            if step == stop:
                raise KeyboardInterrupt  # in every process after the same step

        try:
            train_on_cpu(dataset, make_recipe(job["recipe"]), run, resume=job.get("resume", False), report=report)
        except RecipeError as error:
            run.with_suffix(".refused").write_text(str(error))
        except KeyboardInterrupt:
            pass
    shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
