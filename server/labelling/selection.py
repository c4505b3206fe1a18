"""Selection of the image that is offered to an annotator next."""

from __future__ import annotations

import csv
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError

SUGGESTIONS_FILE = "suggestions.csv"
RESERVED_SECONDS = 1800.0
"""Seconds for which an image that was offered to an annotator is not offered again, unless there are no others."""


@dataclass(frozen=True)
class Strategy:
    """An order in which images are offered.

    Attributes:
        name: Name of the strategy in requests.
        description: Description for the annotator.
        order: Function that sorts the ids of unlabelled images into the order of the offers.
    """

    name: str
    description: str
    order: Callable[[Sequence[str]], list[str]]


def _shuffled(images: Sequence[str]) -> list[str]:
    found = sorted(images)
    random.Random(0).shuffle(found)
    return found


def make_strategies(suggestions: Path | None = None) -> Mapping[str, Strategy]:
    """Make the strategies of a server, by name.

    Args:
        suggestions: File that `semiseg suggest` wrote, or its folder; it is read again for each offer, so that it may
            be written anew after each training. None for a server without the strategy `suggested`.

    Raises:
        InputError: The file cannot be read.
    """
    found = [
        Strategy("random", "The unlabelled images in a random order, which is the same each time.", _shuffled),
        Strategy("first", "The unlabelled images in the order of the dataset.", list),
    ]
    if suggestions is not None:
        read_suggestions(suggestions)
        words = "The unlabelled images in the order of `semiseg suggest`; then those that it did not rank, at random."
        found.append(Strategy("suggested", words, lambda images: _as_suggested(images, suggestions)))
    return {one.name: one for one in found}


def read_suggestions(path: Path) -> list[str]:
    """Return the ids of the ranked scans, best first, of a table that `semiseg suggest` wrote.

    Args:
        path: The table, or the folder that contains it as ``suggestions.csv``.

    Raises:
        InputError: The file cannot be read, or lacks the columns `rank` and `scan`.
    """
    file = path / SUGGESTIONS_FILE if path.is_dir() else path
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        ranked = [(int(row["rank"]), row["scan"]) for row in rows if row["rank"]]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError):
        raise InputError(f"{file} is not a table that `semiseg suggest` wrote (columns rank and scan).") from None
    return [scan for _, scan in sorted(ranked)]


def _as_suggested(images: Sequence[str], suggestions: Path) -> list[str]:
    place = {scan: number for number, scan in enumerate(read_suggestions(suggestions))}
    return sorted(_shuffled(images), key=lambda image: place.get(image, len(place)))


class ImageReservations:
    """The images that were recently offered, so that two annotators do not label the same one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without offers; ``clock`` returns the time in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._offered: dict[str, float] = {}

    def next(self, images: Sequence[str], strategy: Strategy) -> str | None:
        """Offer one of the unlabelled images; None if there is none.

        An image that was offered within :data:`RESERVED_SECONDS` is offered again only if all others were offered, too;
        the one offered longest ago comes first.
        """
        with self._lock:
            now = self._clock()
            self._offered = {image: at for image, at in self._offered.items() if now - at < RESERVED_SECONDS}
            ordered = strategy.order(images)
            if not ordered:
                return None
            chosen = min(ordered, key=lambda image: self._offered.get(image, -1.0))
            self._offered[chosen] = now
            return chosen
