"""Brings the channels of a scan onto the grid of the first one, resampling them where their positions are comparable.

Positions of two DICOM series can be compared when they share a Frame of Reference UID (PS3.3 C.7.4.1.1.1). Series with
different frames of reference, and NIfTI files with different grids, are taken to lie in one space only if the user
says so.
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
    """Bring every channel onto the grid of the first one.

    Args:
        volumes: Channels by name; the first one defines the grid.
        frames: Frame of Reference UID of each channel; "" for none.
        aligned: If True, the user states that all channels lie in one space.

    Returns:
        The channels on the common grid, and a warning for each one that was resampled.

    Raises:
        VolumeError: A channel lies on another grid and its position cannot be compared, or it does not overlap the
            first one.
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
                f"The channels '{first}' and '{name}' {why}, so nothing shows that they lie in one space. If they "
                "do, declare it (`--aligned`, over HTTP `aligned=true`)."
            )
        if one_grid:
            out[name] = volume
            continue
        out[name], covered = _onto(volume, reference)
        if not covered:
            raise VolumeError(f"The channels '{first}' and '{name}' do not overlap anywhere.")
        why = "they share the frame of reference" if comparable else "the user declared that they lie in one space"
        text = f"Channel '{name}' was resampled onto the grid of '{first}' ({why}); it covers {covered:.0%} of it."
        warnings.append(ScanWarning("resampled_channel", text))
    return out, tuple(warnings)


def _onto(volume: Volume, reference: Volume) -> tuple[Volume, float]:
    """Resample ``volume`` trilinearly onto the grid of ``reference``.

    Voxels outside ``volume`` get its smallest value.

    Returns:
        The resampled volume, and the share of the grid that ``volume`` covers.
    """
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
