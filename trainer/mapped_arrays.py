"""Arrays that stay in their files: mapped into memory, and handed to another process by the name of the file.

Pickling a mapped array copies all of its values. A worker process that is started anew (multiprocessing's ``spawn``,
the only way on Windows and the default one on macOS, and ``forkserver``, Linux's default from Python 3.14 on) would so
be sent every scan of a training.
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
    """An .npy file in place of the array that it holds."""

    path: Path


def map_array(path: Path) -> NDArray[Any]:
    """The array of an .npy file, read when it is used.

    Raises:
        OSError, ValueError: there is no such file, or it holds no array.
    """
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def to_file_reference(value: Any) -> Any:
    """An array that :func:`map_array` made becomes the name of its file; anything else, a part of one too, stays."""
    if not isinstance(value, np.memmap) or value.filename is None:
        return value
    whole: Any = value.base  # numpy's types call it an array; of a whole file it is the map itself
    return ArrayFile(Path(value.filename)) if isinstance(whole, mmap.mmap) else value


def from_file_reference(value: Any) -> Any:
    """The inverse of :func:`to_file_reference`."""
    return map_array(value.path) if isinstance(value, ArrayFile) else value
