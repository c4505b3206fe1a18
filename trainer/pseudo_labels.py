"""Pseudo-labels, predictions that serve as labels of the unlabelled scans, stored in the run folder.

They are stored by the step from which they are valid and the stage that made them, so that a run resumed at any step
finds the pseudo-labels it was trained with.
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
    """Storage of the pseudo-labels of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, step: int, source: str, case_id: str) -> bool:
        """Return True if the labels of a scan by the stage ``source`` that are valid from ``step`` on exist."""
        return (self._of(step, source) / f"{case_id}.npy").is_file()

    def write(self, step: int, source: str, case_id: str, labels: NDArray[np.uint8]) -> None:
        """Write the labels of a scan, codes (X, Y, Z) or soft (C + 1, X, Y, Z), atomically."""
        target = self._of(step, source)
        target.mkdir(parents=True, exist_ok=True)
        with atomic_file(target / f"{case_id}.npy") as stream:
            np.save(stream, labels)

    def read(self, step: int, source: str, case_ids: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
        """Map the labels by the stage ``source`` that are valid from ``step`` on into memory.

        Raises:
            RunError: A file is missing or damaged.
        """
        folder = self._of(step, source)
        if not folder.is_dir():  # runs before December 2026 stored the labels of all stages together
            folder = folder.parent
        try:
            return {i: map_array(folder / f"{i}.npy") for i in case_ids}
        except (OSError, ValueError) as error:
            raise RunError(
                f"The run's pseudo-labels of step {step} cannot be read ({error}); start the run again."
            ) from None

    def _of(self, step: int, source: str) -> Path:
        # A custom method is named package.module:Class, and file names cannot contain colons on Windows.
        return self._folder / str(step) / source.replace(":", ".")

    def clear(self) -> None:
        """Remove all pseudo-labels, after training has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
