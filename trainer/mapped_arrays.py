"""Memory-mapped arrays that are passed to other processes as file names.

Pickling a mapped array copies all of its values. Without this module, every scan would be sent to each worker process
that is not forked (multiprocessing's ``spawn``, the only method on Windows and the default on macOS, and
``forkserver``, the default on Linux from Python 3.14 on).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ArrayFile:
    """Reference to an .npy file, which stands for the array in the file."""

    path: Path


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of an .npy file into memory.

    Raises:
        OSError, ValueError: The file does not exist or contains no array.
    """
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def to_file_reference(value: Any) -> Any:
    """Replace an array from :func:`map_array` by a reference to its file; return other values, and views, unchanged."""
    if not isinstance(value, np.memmap) or value.filename is None:
        return value
    whole: Any = value.base  # the mmap itself for an array of the whole file, although NumPy's types name an array
    return ArrayFile(Path(value.filename)) if isinstance(whole, mmap.mmap) else value


def from_file_reference(value: Any) -> Any:
    """Map the array of a file reference; the inverse of :func:`to_file_reference`."""
    return map_array(value.path) if isinstance(value, ArrayFile) else value
