"""Warnings for scans that are out of the distribution of the training scans; no scan is refused here.

The ranges are those of the fingerprint, widened, so that a scan slightly outside the training range gets no warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from semiseg.bundle.fingerprint import Fingerprint, Range, axis_order, format_range, percentiles_of
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.volume import Volume

LENGTH_FACTOR = 1.25
"""Factor by which lengths may be smaller or larger than the extremes of the training scans."""
INTENSITY_MARGIN = 0.5
"""Distance by which intensities may lie outside the training range, as a share of that range."""
MINIMUM_INTENSITY_MARGIN = 0.1
"""Least such distance, as a share of the grey values from the darkest to the brightest of all training scans.

It applies if the training scans were very similar to each other.
"""
COARSE_PASS_VETOES = {
    "unfamiliar_spacing": "voxel spacing",
    "unfamiliar_orientation": "orientation of the slices",
    "unfamiliar_intensity": "grey values",
}
"""Properties, by code of the warning, whose unusual values exclude a scan from the coarse pass.

The field of view is not among them, because the coarse pass is intended for scans that are much larger than the organ.
"""
_AXES = {"R": "left-right", "L": "left-right", "A": "front-back", "P": "front-back", "S": "head-foot", "I": "head-foot"}
_PLANES = {"left-right": "sagittal", "front-back": "coronal", "head-foot": "axial"}
_SHARES = ("darkest", "median", "brightest")


def out_of_distribution_warnings(
    fingerprint: Fingerprint, channels: Mapping[str, Volume], orientation: str
) -> tuple[ScanWarning, ...]:
    """Return a warning for each property of a scan that is outside the ranges of the training scans.

    Args:
        fingerprint: Fingerprint of the training scans.
        channels: Channels of the scan; the first one defines the grid.
        orientation: Axis codes of the axes that the fingerprint's shapes and spacings refer to.
    """
    first = next(iter(channels.values()))
    order = axis_order(first.axcodes, orientation)
    axes = [_AXES[code] for code in orientation]
    spacing = [first.spacing[a] for a in order]
    extent = [first.shape[a] * first.spacing[a] for a in order]
    found = [
        *_lengths("unfamiliar_spacing", "The voxels measure", axes, spacing, fingerprint.spacing),
        *_lengths("unfamiliar_field_of_view", "The scan covers", axes, extent, fingerprint.extent),
    ]
    plane = _plane(first.axcodes)
    planes = sorted({_plane(codes) for codes in fingerprint.orientations})
    if plane not in planes:
        text = f"The slices are {plane}; those of the training scans were {' or '.join(planes)}."
        found.append(ScanWarning("unfamiliar_orientation", text))
    for name, volume in channels.items():
        found += _intensities(name, volume, fingerprint.intensity.get(name), several=len(channels) > 1)
    return tuple(found)


def full_pass_reason(warnings: Iterable[ScanWarning]) -> str:
    """Return a sentence that says why the coarse pass is not used on a scan with these warnings; empty if it is."""
    names = [COARSE_PASS_VETOES[warning.code] for warning in warnings if warning.code in COARSE_PASS_VETOES]
    if not names:
        return ""
    return f"All windows were run because the scan differs from the training scans ({', '.join(names)})."


def _lengths(code: str, words: str, axes: list[str], values: list[float], seen: Range | None) -> list[ScanWarning]:
    if seen is None:
        return []
    odd = [
        f"{value:.3g} mm {axis} ({format_range(low, high)} mm in the training scans)"
        for axis, value, low, high in zip(axes, values, seen.minimum, seen.maximum, strict=True)
        if not low / LENGTH_FACTOR <= value <= high * LENGTH_FACTOR
    ]
    return [ScanWarning(code, f"{words} {', '.join(odd)}.")] if odd else []


def _intensities(name: str, volume: Volume, seen: Range | None, *, several: bool) -> list[ScanWarning]:
    if seen is None:
        return []
    of = f" of channel '{name}'" if several else ""
    out = []
    for word, value, low, high in zip(_SHARES, percentiles_of(volume), seen.minimum, seen.maximum, strict=True):
        margin = max(INTENSITY_MARGIN * (high - low), MINIMUM_INTENSITY_MARGIN * (seen.maximum[-1] - seen.minimum[0]))
        if not low - margin <= value <= high + margin:
            out.append(f"the {word} voxels{of} have {value:.4g}, in the training scans {format_range(low, high)}")
    return (
        [ScanWarning("unfamiliar_intensity", f"The grey values have another range: {'; '.join(out)}.")] if out else []
    )


def _plane(axcodes: str) -> str:
    """Return the anatomical plane of slices along the third axis."""
    return _PLANES[_AXES[axcodes[2]]]
