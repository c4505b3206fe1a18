"""Log of a run: JSON lines, TensorBoard events, and a picture of the training curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from semiseg.system.durable_files import replace_file
from trainer.checkpoints import RunFolder, read_log


class RunLog:
    """Writer of ``log.jsonl`` and TensorBoard events.

    Opening it at a step discards entries of this and later steps, which an interrupted run may have left.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        kept = [row for row in read_log(run.log) if row["step"] < step]
        replace_file(run.log, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = run.log.open("a", encoding="utf-8", newline="\n")
        self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line, and one TensorBoard scalar per number."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._board.close()


def plot_training_curve(run: RunFolder, target: Path) -> None:
    """Plot the loss terms, the learning rates and the validation Dice, if there is one, as PNG."""
    rows = read_log(run.log)
    training = [row for row in rows if "total" in row]
    validation = [row for row in rows if "validation_dice" in row]
    figure = Figure(figsize=(9, 6))  # a layout engine would take longer than the rest of the picture
    figure.subplots_adjust(left=0.1, right=0.92, top=0.97, bottom=0.09, hspace=0.08)
    losses, rates = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    terms = sorted(
        {k for row in training for k in row} - {"step", "stage", "unlabelled", "update", "seconds", "elapsed", "total"}
    )
    for name in [t for t in terms if not t.startswith("rate/")]:
        points = [(row["step"], row[name]) for row in training if name in row]
        losses.plot(*zip(*points, strict=True), label=name, linewidth=1)
    losses.set_ylabel("loss")
    losses.set_yscale("log")
    if validation:
        dice = losses.twinx()
        dice.plot([r["step"] for r in validation], [r["validation_dice"] for r in validation], "k.-", label="Dice")
        dice.set_ylabel("validation Dice")
        dice.set_ylim(0, 1)
    for name in [t for t in terms if t.startswith("rate/")]:
        points = [(row["step"], row[name]) for row in training if name in row]
        rates.plot(*zip(*points, strict=True), ".", markersize=2, label=name.removeprefix("rate/"))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    losses.legend(loc="upper right")
    rates.legend(loc="upper right")
    figure.savefig(target, dpi=110)
