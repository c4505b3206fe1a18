"""Predictions of the unlabelled scans that serve as their labels, on disk in the run folder.

They are kept by the step from which they hold and the stage that made them, so that a run resumed at any step finds
those it was trained with.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.system.durable_files import atomic_file
from trainer.errors import RunError
from trainer.mapped_arrays import map_array


class PseudoLabels:
    """The pseudo-labels of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, step: int, source: str, case_id: str) -> bool:
        """Whether the labels of a scan by the stage ``source`` that hold from ``step`` on are there."""
        return (self._of(step, source) / f"{case_id}.npy").is_file()

    def write(self, step: int, source: str, case_id: str, labels: NDArray[np.uint8]) -> None:
        """Keep the labels of a scan, codes (X, Y, Z) or soft (C + 1, X, Y, Z), complete or not at all."""
        target = self._of(step, source)
        target.mkdir(parents=True, exist_ok=True)
        with atomic_file(target / f"{case_id}.npy") as stream:
            np.save(stream, labels)

    def read(self, step: int, source: str, case_ids: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
        """The labels by the stage ``source`` that hold from ``step`` on, mapped into memory.

        Raises:
            RunError: one is missing.
        """
        folder = self._of(step, source)
        if not folder.is_dir():  # a run of before December 2026 kept those of all stages together
            folder = folder.parent
        try:
            return {i: map_array(folder / f"{i}.npy") for i in case_ids}
        except (OSError, ValueError) as error:
            raise RunError(
                f"The run's pseudo-labels of step {step} cannot be read ({error}); start the run anew."
            ) from None

    def _of(self, step: int, source: str) -> Path:
        # A method from outside is named package.module:Class, and Windows has no colons in names.
        return self._folder / str(step) / source.replace(":", ".")

    def clear(self) -> None:
        """Remove them, when training has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
