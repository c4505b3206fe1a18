"""What became of a delivery: instance by instance, and of the destination as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class DeliveryResult:
    """What a destination did with the files that it was sent.

    Attributes:
        confirmed: Names of the files that it has confirmed.
        refused: Sentence for each of the other files that it has seen, without anything of a patient, by name.
        trouble: Sentence where the destination as a whole is not well (it does not answer, rejects the association,
            does not know the key); "" otherwise. Nothing is said of the files that it has not seen.
        retry_after_seconds: Time after which the destination asked to be tried again; 0 where it did not.
        warnings: Warnings of the destination about instances that it took.
    """

    confirmed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    trouble: str = ""
    retry_after_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def add_confirmed(self, file: Path, remark: str = "") -> None:
        """A file was confirmed."""
        self.refused.pop(file.name, None)
        if file.name not in self.confirmed:
            self.confirmed.append(file.name)
        if remark and remark not in self.warnings:
            self.warnings.append(remark)

    def add_refused(self, file: Path, sentence: str) -> None:
        """A file was not taken."""
        self.refused[file.name] = sentence

    def describe(self) -> str:
        """Why not everything was delivered; "" where nothing is missing."""
        return " ".join(
            dict.fromkeys([self.trouble, *self.refused.values()] if self.trouble else self.refused.values())
        )


def refused_since(payload: Mapping[str, Any]) -> str:
    """The beginning of a sentence, of a delivery of which something is refused again and again; "" of another one."""
    since = payload.get("refused_since")
    if not since or not payload.get("refused"):
        return ""
    return f"Refused since {time.strftime('%Y-%m-%d %H:%M', time.localtime(since))}. "
