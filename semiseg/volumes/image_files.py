"""Reads volumes from files of every supported format: as stored, split into channels, or with scaled values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.file_types import unsupported_file_text
from semiseg.volumes.formats.reader import ImageFile, StoredImage
from semiseg.volumes.formats.registry import reader_for_file
from semiseg.volumes.volume import Volume


def read_image_file(file: ImageFile | str | Path) -> StoredImage:
    """Read a file as it is stored.

    Raises:
        VolumeError: The file is in no supported format, which the message describes, or the reader refuses it.
    """
    image = file if isinstance(file, ImageFile) else ImageFile(Path(file))
    try:
        with image.path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(f"{image.path}: cannot be read ({error.strerror or error}).") from error
    reader = reader_for_file(image.path)
    if reader is None:
        raise VolumeError(f"{image.path}: {unsupported_file_text(image.path)}.")
    return reader.read(image)


def split_channels(path: Path, stored: StoredImage, names: Sequence[str]) -> dict[str, Volume]:
    """Split a stored array (X, Y, Z, K) into one volume for each of K channel names.

    Raises:
        VolumeError: The number of volumes is not the number of names, or voxels are NaN or infinite.
    """
    count = stored.array.shape[3]
    if count != len(names):
        raise VolumeError(
            f"{path}: the model needs {len(names)} channel(s) ({', '.join(names)}), but the file holds {count} (shape "
            f"{format_stored_shape(stored)})."
        )
    return {name: Volume(require_finite(path, apply_scaling(stored, k)), stored.affine) for k, name in enumerate(names)}


def single_volume(path: Path, stored: StoredImage) -> Volume:
    """Return the only volume (X, Y, Z) of a file.

    Raises:
        VolumeError: The file holds several volumes, or voxels are NaN or infinite.
    """
    count = stored.array.shape[3]
    if count != 1:
        raise VolumeError(
            f"{path}: one volume is needed, but the file holds {count} (shape {format_stored_shape(stored)})."
        )
    return Volume(require_finite(path, apply_scaling(stored, 0)), stored.affine)


def apply_scaling(stored: StoredImage, index: int) -> NDArray[Any]:
    """Return volume ``index`` (X, Y, Z) with the header's scaling applied; as float32 if there is any scaling."""
    raw = stored.array[..., index]
    if not stored.needs_scaling:
        return raw
    out = np.empty(raw.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # require_finite refuses overflows
        for z in range(raw.shape[2]):  # one slice at a time, to limit the memory for float64
            out[..., z] = raw[..., z].astype(np.float64) * stored.slope + stored.intercept
    return out


def require_finite(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Return ``values`` unchanged if all of them are finite.

    Raises:
        VolumeError: Some values are NaN or infinite.
    """
    if values.dtype.kind == "f":
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise VolumeError(f"{path}: {bad} of {values.size} voxels are NaN or infinite; replace them first.")
    return values


def format_stored_shape(stored: StoredImage) -> str:
    """Return the shape as text for messages: ``64 x 64 x 40 x 1``."""
    return " x ".join(str(n) for n in stored.array.shape)
