"""Options for reading a scan, which the user gives besides its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a scan.

    Attributes:
        series: DICOM series to read: a Series Instance UID, or ``NAME=UID,NAME=UID`` for several channels.
        strict: If True, a scan is refused if slices would have to be corrected or files left out, or if the header of a
            volume contradicts itself or does not tell left from right. If False, it is read with warnings.
        aligned: If True, the user states that all channels lie in one space although the files do not say so.
    """

    series: str | None = None
    strict: bool = False
    aligned: bool = False
