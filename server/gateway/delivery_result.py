"""Outcome of a delivery: for each instance, and for the destination as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class DeliveryResult:
    """Outcome of sending files to a destination.

    Attributes:
        confirmed: Names of the files that the destination has confirmed.
        refused: Reason for each file that was sent and not confirmed, by name; a sentence without patient data.
        trouble: Problem of the destination as a whole (it does not answer, rejects the association, does not know the
            key), as a sentence; "" if there is none. Files that were not sent because of it are not listed.
        retry_after_seconds: Delay that the destination asked for before the next attempt; 0 if it did not.
        warnings: Warnings of the destination about instances that it stored.
    """

    confirmed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    trouble: str = ""
    retry_after_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def add_confirmed(self, file: Path, remark: str = "") -> None:
        """Record that a file was confirmed, with an optional warning."""
        self.refused.pop(file.name, None)
        if file.name not in self.confirmed:
            self.confirmed.append(file.name)
        if remark and remark not in self.warnings:
            self.warnings.append(remark)

    def add_refused(self, file: Path, sentence: str) -> None:
        """Record that a file was refused, and the reason."""
        self.refused[file.name] = sentence

    def describe(self) -> str:
        """Describe why not everything was delivered; "" if everything was."""
        return " ".join(
            dict.fromkeys([self.trouble, *self.refused.values()] if self.trouble else self.refused.values())
        )
