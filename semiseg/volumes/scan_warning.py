"""What was noticed about a scan or done to it, for the answer that is made from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScanWarning:
    """One thing that the reader of an answer has to know.

    Attributes:
        code: its name for machines, such as ``gantry_tilt``.
        text: whole sentences, with figures.
    """

    code: str
    text: str
