"""What a person says about a scan besides its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ReadOptions:
    """Which series is meant, and what to refuse or to trust.

    Attributes:
        series: DICOM series to take: a Series Instance UID, or ``NAME=UID,NAME=UID`` for several channels.
        strict: true refuses a series whose slices would have to be corrected, files that would be left out, and a
            volume whose header contradicts itself or does not tell left from right; false reads them with warnings.
        aligned: true for channels that lie in one space although nothing in them says so.
    """

    series: str | None = None
    strict: bool = False
    aligned: bool = False
