"""Sizes and values of the training scans, which are read once, with one scan in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.dataset import Dataset, read_channels
from semiseg.errors import SemisegError
from semiseg.volumes.volume import Volume
from trainer.errors import RecipeError

# Channel names that state a modality, with its defined term (PS3.3 C.7.3.1.1.1).
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PET": "PT", "PT": "PT"}


@dataclass(frozen=True)
class ScanFacts:
    """Properties of the training scans, labelled and unlabelled ones together.

    Attributes:
        fingerprint: Ranges of sizes and values over all scans.
        thickest: For each axis, the number of scans whose voxels are longest along it.
    """

    fingerprint: Fingerprint
    thickest: Mapping[int, int]


def collect_scan_facts(
    dataset: Dataset,
    ids: tuple[str, ...],
    orientation: str,
    watch: Callable[[str, int, int], None] | None = None,
) -> ScanFacts:
    """Read the scans and collect their properties.

    Args:
        dataset: The dataset.
        ids: Names of the scans.
        orientation: Orientation of the network's grid.
        watch: Called with (activity, done, total).

    Raises:
        RecipeError: A scan cannot be read; the message names it.
    """
    thickest: Counter[int] = Counter()
    current = ""

    def scans() -> Iterator[Mapping[str, Volume]]:
        nonlocal current
        for done, case_id in enumerate(ids, start=1):
            current = case_id
            channels = read_channels(dataset.case(case_id), dataset.channels)
            yield channels
            thickest[_thickest_axis(next(iter(channels.values())), orientation)] += 1
            if watch is not None:
                watch("reading scans", done, len(ids))

    try:
        return ScanFacts(Fingerprint.collect(scans(), orientation), thickest)
    except SemisegError as error:
        raise RecipeError(f"Case {current}: {error}") from error


def _thickest_axis(volume: Volume, orientation: str) -> int:
    """Return the axis of ``orientation`` along which the voxels are longest; on a tie, the last one."""
    kinds = ["RLAPSI".index(c) // 2 for c in volume.axcodes]
    along = [volume.spacing[kinds.index("RLAPSI".index(c) // 2)] for c in orientation]
    return max(a for a in range(3) if along[a] >= max(along) - 1e-3)
