"""Selection of the image that is offered to an annotator next."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


STRATEGIES = {
    one.name: one
    for one in (
        Strategy("random", "The unlabelled images in a random order, which is the same each time.", _shuffled),
        Strategy("first", "The unlabelled images in the order of the dataset.", list),
    )
}


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
