"""What was written in a case, to be compared with what a reader found; needs NumPy alone.

``truth.npz`` holds, on the N images of the source in the order of their positions:

    masks, shares    (K, N, rows, columns) masks and probabilities in 255ths of the K segments
    names            (K,) names of the segments
    positions        (N, 3) centre of each image's first pixel in mm, LPS (Image Position (Patient))
    along_row        (3,) step from one column to the next in mm
    along_column     (3,) step from one row to the next in mm
    uids, frames     (N,) SOP Instance UID and 0-based frame of each image, frame -1 for a single-frame image
    corrected        codes of what was irregular about the series
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.05
"""Distance from the centre of a voxel, in voxels, within which a position counts as that voxel's."""


@dataclass(frozen=True)
class Truth:
    """The arrays of a case, as in this file's docstring."""

    masks: NDArray[np.bool_]
    shares: NDArray[np.uint8]
    names: tuple[str, ...]
    positions: NDArray[np.float64]
    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]
    uids: tuple[str, ...]
    frames: tuple[int, ...]
    corrected: tuple[str, ...]

    @classmethod
    def of(cls, case: Path) -> Truth:
        """Read the truth of a case."""
        held = np.load(case / "truth.npz")
        return cls(
            masks=held["masks"].astype(bool),
            shares=held["shares"],
            names=tuple(held["names"].tolist()),
            positions=held["positions"],
            along_row=held["along_row"],
            along_column=held["along_column"],
            uids=tuple(held["uids"].tolist()),
            frames=tuple(held["frames"].tolist()),
            corrected=tuple(held["corrected"].tolist()),
        )

    def on_images(
        self, voxels: NDArray[Any], origin: NDArray[np.float64], steps: NDArray[np.float64]
    ) -> tuple[NDArray[Any], int, int]:
        """Bring a reader's volume onto the images by positions in the patient alone.

        Args:
            voxels: (Z, Y, X) of the reader.
            origin: Position of the reader's first voxel in mm, LPS.
            steps: (3, 3), columns are the steps in mm along X, Y and Z.

        Returns:
            (N, rows, columns), 0 where the reader has no voxel; the number of images that lie within the reader's
            volume but not on one of its planes; and the number of the reader's voxels that are not 0 and lie on no
            pixel.
        """
        count, rows, columns = self.masks.shape[1:]
        out = np.zeros((count, rows, columns), dtype=voxels.dtype)
        used = np.zeros(voxels.shape, dtype=bool)
        inverse = np.linalg.inv(steps)
        grid = np.arange(columns)[None, :, None] * self.along_row + np.arange(rows)[:, None, None] * self.along_column
        between = 0
        for n, position in enumerate(self.positions):
            places = (position + grid - origin) @ inverse.T
            index = np.rint(places).astype(int)
            size = np.array(voxels.shape[::-1])
            within = np.all((index >= 0) & (index < size), axis=-1)
            on_centre = np.all(np.abs(places - index) < TOLERANCE, axis=-1)
            between += bool((within & ~on_centre).any())
            x, y, z = index[within & on_centre].T
            out[n][within & on_centre] = voxels[z, y, x]
            used[z, y, x] = True
        return out, between, int(np.count_nonzero(voxels[~used]))


@dataclass
class Count:
    """How many voxels a reader has too many and too few, of how many.

    Attributes:
        true: Voxels that were written.
        more: Voxels that the reader has and that were not written.
        fewer: Voxels that were written and that the reader does not have.
    """

    true: int = 0
    more: int = 0
    fewer: int = 0

    def add(self, written: NDArray[Any], read: NDArray[Any]) -> None:
        """Count masks of one shape."""
        written, read = np.asarray(written, dtype=bool), np.asarray(read, dtype=bool)
        self.true += int(np.count_nonzero(written))
        self.more += int(np.count_nonzero(read & ~written))
        self.fewer += int(np.count_nonzero(written & ~read))

    def __str__(self) -> str:
        """Words for a cell of the table."""
        if not self.more and not self.fewer:
            return f"all {self.true}"
        return f"{self.more} more, {self.fewer} fewer of {self.true}"


def cases(folder: Path) -> Iterator[Path]:
    """The cases that cases.py wrote."""
    yield from sorted(path.parent for path in (folder / "cases").glob("*/truth.npz"))


def short(error: BaseException) -> str:
    """An error on one line, ready for a cell."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".replace("|", "\\|")[:160]


def _for_node(case: Path) -> None:
    """Write the truth of a case again as ``truth.json`` and ``truth.bin``, the masks byte by byte."""
    truth = Truth.of(case)
    described = {
        "names": truth.names,
        "rows": truth.masks.shape[2],
        "columns": truth.masks.shape[3],
        "positions": truth.positions.tolist(),
        "along_row": truth.along_row.tolist(),
        "along_column": truth.along_column.tolist(),
        "uids": truth.uids,
        "frames": truth.frames,
    }
    (case / "truth.json").write_text(json.dumps(described))
    (case / "truth.bin").write_bytes(truth.masks.astype(np.uint8).tobytes())


if __name__ == "__main__":
    for one in cases(Path(sys.argv[1])):
        _for_node(one)
