"""Volumes out of files of every format that is read: as they are stored, as channels, as what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.reader import ImageFile, Stored
from semiseg.volumes.formats.registry import reader_of
from semiseg.volumes.kinds import said_of
from semiseg.volumes.volume import Volume


def read_stored(file: ImageFile | str | Path) -> Stored:
    """Read a file as it is stored.

    Raises:
        VolumeError: It is in no format that is read (the sentence says what it is), or the reader refuses it.
    """
    image = file if isinstance(file, ImageFile) else ImageFile(Path(file))
    try:
        with image.path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(f"{image.path}: cannot be read ({error.strerror or error}).") from error
    reader = reader_of(image.path)
    if reader is None:
        raise VolumeError(f"{image.path}: {said_of(image.path)}.")
    return reader.read(image)


def channels_of(path: Path, stored: Stored, names: Sequence[str]) -> dict[str, Volume]:
    """One volume per channel: (X, Y, Z, K) for K names.

    Raises:
        VolumeError: The number of volumes is not the number of names, or voxels are NaN or infinite.
    """
    count = stored.array.shape[3]
    if count != len(names):
        raise VolumeError(
            f"{path}: the model needs {len(names)} channel(s) ({', '.join(names)}), but the file holds {count} (shape "
            f"{shape_text(stored)})."
        )
    return {name: Volume(finite(path, scaled(stored, k)), stored.affine) for k, name in enumerate(names)}


def volume_of(path: Path, stored: Stored) -> Volume:
    """The only volume (X, Y, Z) of a file.

    Raises:
        VolumeError: There are several, or voxels are NaN or infinite.
    """
    count = stored.array.shape[3]
    if count != 1:
        raise VolumeError(f"{path}: one volume is needed, but the file holds {count} (shape {shape_text(stored)}).")
    return Volume(finite(path, scaled(stored, 0)), stored.affine)


def scaled(stored: Stored, index: int) -> NDArray[Any]:
    """Volume ``index`` (X, Y, Z) with the header's scaling applied, as float32 if there is any."""
    raw = stored.array[..., index]
    if not stored.scaled:
        return raw
    out = np.empty(raw.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted and refused by finite
        for z in range(raw.shape[2]):  # slice by slice: float64 only for one slice at a time
            out[..., z] = raw[..., z].astype(np.float64) * stored.slope + stored.intercept
    return out


def finite(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """``values`` themselves.

    Raises:
        VolumeError: Some are NaN or infinite.
    """
    if values.dtype.kind == "f":
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise VolumeError(f"{path}: {bad} of {values.size} voxels are NaN or infinite; replace them first.")
    return values


def shape_text(stored: Stored) -> str:
    """The shape, for a sentence: ``64 x 64 x 40 x 1``."""
    return " x ".join(str(n) for n in stored.array.shape)
