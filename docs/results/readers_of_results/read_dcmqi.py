"""Read each case's SEG with dcmqi, compiled to WebAssembly, and compare voxel by voxel; a Markdown table.

    pip install itkwasm-dicom numpy
    python docs/results/readers_of_results/read_dcmqi.py FOLDER docs/results/readers_of_results/dcmqi.md

FOLDER is the one that cases.py wrote; what dcmqi says of each file goes to the terminal. Its ``segimage2itkimage``
makes an image for each segment, or one for all that do not overlap: ``read_overlapping_segmentation`` and
``read_segmentation`` do the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from itkwasm_dicom import read_overlapping_segmentation, read_segmentation
from numpy.typing import NDArray
from truth import Count, Truth, cases, short


def placed(image: Any, voxels: NDArray[Any], truth: Truth) -> tuple[NDArray[Any], str]:
    """Voxels of an ITK image on the source's images, and what does not fit."""
    steps = np.asarray(image.direction, dtype=float) * np.asarray(image.spacing, dtype=float)
    found, between, outside = truth.on_images(voxels, np.asarray(image.origin, dtype=float), steps)
    said = [f"{between} of {len(found)} images between its planes"] if between else []
    return found, ", ".join(said + ([f"{outside} voxels on no pixel"] if outside else []))


def each_segment(path: Path, truth: Truth, written: NDArray[Any]) -> str:
    """Compare one component for each segment."""
    image, _ = read_overlapping_segmentation(path)
    components = np.asarray(image.data)
    components = components if components.ndim == 4 else components[..., None]
    if components.shape[-1] != len(written):
        return f"{components.shape[-1]} components for {len(written)} segments"
    count, differing, notes = Count(), 0, set()
    for k, mask in enumerate(written):
        found, note = placed(image, components[..., k], truth)
        count.add(mask, found)
        notes.add(note)
        if mask.dtype != bool:
            differing += int(np.count_nonzero(found != mask))
    notes.add(f"{differing} other values" if differing else "")
    return "; ".join([str(count), *sorted(notes - {""})])


def one_map(path: Path, truth: Truth, written: NDArray[Any]) -> str:
    """Compare one label map, which holds the numbers of the segments."""
    image, _ = read_segmentation(path)
    found, note = placed(image, np.asarray(image.data), truth)
    count = Count()
    for k, mask in enumerate(written, start=1):
        count.add(mask, found == k)
    return f"{count}; {note}" if note else str(count)


def told(read: Callable[[Path, Truth, NDArray[Any]], str], path: Path, truth: Truth, written: NDArray[Any]) -> str:
    """The outcome of reading one file, or the error."""
    if not path.exists():
        return "-"
    try:
        return read(path, truth, written)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is its answer
        return short(error)


def main() -> None:
    """Write the table."""
    folder, table = map(Path, sys.argv[1:3])
    lines = [f"itkwasm-dicom {version('itkwasm-dicom')} (dcmqi)\n"]
    lines += [
        "| case | BINARY, each segment | BINARY, one map | FRACTIONAL, each segment | LABELMAP |",
        f"|{'---|' * 5}",
    ]
    for case in cases(folder):
        truth = Truth.of(case)
        cells = [
            told(each_segment, case / "seg.dcm", truth, truth.masks),
            told(one_map, case / "seg.dcm", truth, truth.masks),
            told(each_segment, case / "seg-fractional.dcm", truth, truth.shares),
            told(one_map, case / "seg-labelmap.dcm", truth, truth.masks),
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
