"""Warnings about a scan: faults that were found in it and corrections that were made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScanWarning:
    """One fact about a scan that a user of the result has to know.

    Attributes:
        code: Code for programs, such as ``gantry_tilt``.
        text: Description in whole sentences, with figures.
    """

    code: str
    text: str
