"""Progress of a training run and an estimate of its remaining time, from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LOG, RECIPE = "log.jsonl", "recipe.yaml"
SPEED_LINES = 20  # lines of the log from which the speed is computed
CURVE_POINTS = 200  # maximum number of points of the curve


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run.

    Attributes:
        update: Number of updates of the exported network so far.
        updates: Total number of updates; 0 while it is not known.
        seconds_left: Estimated time until the last update, in seconds; None while there is not enough data.
        estimate: Estimate as a sentence, with its basis.
        best_dice: Best mean Dice on the validation scans; None without a validation.
        curve: Points (step, loss), at most :data:`CURVE_POINTS`.
    """

    update: int = 0
    updates: int = 0
    seconds_left: float | None = None
    estimate: str = ""
    best_dice: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)


def read_training_progress(run: Path, *, running: bool) -> TrainingProgress:
    """Read the log of a run.

    Args:
        run: Folder of the run; it need not exist yet.
        running: True if the run is training now; otherwise no estimate is made.
    """
    rows = _rows(run / LOG)
    updates = _updates(run / RECIPE)
    learning = [row for row in rows if isinstance(row.get("update"), int) and row["update"] >= 0]
    update = learning[-1]["update"] + 1 if learning else 0
    validated = [float(row["validation_dice"]) for row in rows if "validation_dice" in row]
    losses = [(int(row["step"]), float(row["total"])) for row in rows if "total" in row]
    step = -(-len(losses) // CURVE_POINTS) or 1
    left = _seconds_left(learning, update, updates) if running else None
    return TrainingProgress(
        update=update,
        updates=updates,
        seconds_left=left,
        estimate=_sentence(left, update, updates) if running else "",
        best_dice=max(validated, default=None),
        curve=losses[::step],
    )


def _seconds_left(learning: Sequence[dict[str, Any]], update: int, updates: int) -> float | None:
    """The time for the remaining updates, at the speed of the last lines of the log."""
    recent: list[dict[str, Any]] = []
    for row in reversed(learning[-SPEED_LINES:]):
        if recent and row["elapsed"] > recent[-1]["elapsed"]:
            break  # the run was resumed in between, which restarts its clock
        recent.append(row)
    if len(recent) < 2 or updates < 1 or recent[0]["update"] <= recent[-1]["update"]:
        return None
    speed = (recent[0]["elapsed"] - recent[-1]["elapsed"]) / (recent[0]["update"] - recent[-1]["update"])
    return round(max(updates - update, 0) * speed, 1)


def _sentence(left: float | None, update: int, updates: int) -> str:
    if left is None:
        return "The remaining time of the training is not known yet."
    minutes = max(round(left / 60), 1)
    unit = "minute" if minutes == 1 else "minutes"
    return (
        f"{update} of {updates} updates are done; about {minutes} {unit} remain at the current speed, followed by the "
        "export and the comparison with the model in use."
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; incomplete lines, such as one that is being written, are skipped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _updates(path: Path) -> int:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return 0
    recipe = document.get("recipe", document) if isinstance(document, dict) else None
    found = recipe.get("updates") if isinstance(recipe, dict) else None
    return found if isinstance(found, int) else 0
