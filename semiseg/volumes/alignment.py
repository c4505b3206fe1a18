"""Channels of one scan on the grid of the first: as they are, or resampled where their places can be compared.

Positions of two DICOM series can be compared when they share a Frame of Reference UID (PS3.3 C.7.4.1.1.1). Series of
two frames of reference, and NIfTI files with different grids, lie in one space only if a person says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.volume import Volume, same_grid


def align_channels(
    volumes: Mapping[str, Volume], frames: Mapping[str, str], *, aligned: bool = False
) -> tuple[dict[str, Volume], tuple[ScanWarning, ...]]:
    """Every channel on the grid of the first one, and what was done for it.

    Args:
        volumes: the channels, the one first whose grid counts.
        frames: Frame of Reference UID of each; "" for none.
        aligned: a person vouches that all lie in one space.

    Raises:
        VolumeError: a channel on another grid whose place cannot be compared, or that nowhere meets the first one.
    """
    (first, reference), *others = volumes.items()
    out, warnings = {first: reference}, []
    for name, volume in others:
        comparable = bool(frames[first]) and frames[first] == frames[name]
        apart = bool(frames[first] and frames[name]) and not comparable
        one_grid = volume.shape == reference.shape and same_grid(volume.affine, reference.affine, reference.shape)
        if not comparable and not aligned and (apart or not one_grid):
            why = "are in different frames of reference" if apart else "lie on different grids"
            raise VolumeError(
                f"The channels '{first}' and '{name}' {why}, so nothing says that they show the same places. If they "
                "do, say so (`--aligned`, over HTTP `aligned=true`)."
            )
        if one_grid:
            out[name] = volume
            continue
        out[name], covered = _onto(volume, reference)
        if not covered:
            raise VolumeError(f"The channels '{first}' and '{name}' nowhere show the same part of the patient.")
        why = "they share the frame of reference" if comparable else "the sender says that they lie in one space"
        text = f"Channel '{name}' was resampled onto the grid of '{first}' ({why}); it covers {covered:.0%} of it."
        warnings.append(ScanWarning("resampled_channel", text))
    return out, tuple(warnings)


def _onto(volume: Volume, reference: Volume) -> tuple[Volume, float]:
    """Trilinear, the smallest value where ``volume`` does not reach; and the share of the grid that it reaches."""
    step = np.linalg.inv(volume.affine) @ reference.affine
    values = np.asarray(volume.array, dtype=np.float32)
    low = float(values.min())
    array = ndimage.affine_transform(
        values, step[:3, :3], offset=step[:3, 3], output_shape=reference.shape, order=1, mode="nearest"
    )
    inside = np.ones(reference.shape, dtype=bool)
    for axis, count in enumerate(volume.shape):
        x, y, z = (np.arange(n) * step[axis, k] for k, n in enumerate(reference.shape))
        index = x[:, None, None] + y[None, :, None] + z + step[axis, 3]
        inside &= (index > -0.5) & (index < count - 0.5)
    array[~inside] = low
    return Volume(array, reference.affine), float(inside.mean())
