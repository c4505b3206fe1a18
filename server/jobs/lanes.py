"""Selection of the jobs that a worker takes, and fair scheduling among their owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_OWNERS = 10_000  # owners whose last start is remembered


@dataclass(frozen=True)
class Lane:
    """The jobs of one kind that concern one resource, such as one archive; they have a worker of their own.

    Attributes:
        field: Field of the payload that names the resource.
        names: Values of the field.
        others: If True, the lane holds the jobs whose field has none of these values.
    """

    field: str
    names: tuple[str, ...]
    others: bool = False

    def condition(self) -> tuple[str, dict[str, Any]]:
        """The SQL condition on a row of jobs, and the values of its parameters."""
        values = {f"lane{number}": name for number, name in enumerate(self.names)}
        listed = ", ".join(f":{name}" for name in values)
        if not values:
            return ("1" if self.others else "0"), {}
        found = f"COALESCE(json_extract(payload, '$.{self.field}'), '')"
        return f"{found} {'NOT IN' if self.others else 'IN'} ({listed})", values


class OwnerScheduler:
    """Start-time fair queueing of owners: an owner with many jobs lets another one go first after each job.

    Time is counted in job numbers: it is the largest number in the queue, and advances by one with each started job. An
    owner's key is the number of its first free job, or the time of its last start if that is later; the owner with the
    smallest key is next. A new owner therefore waits for at most about one job of each owner that waits already, and a
    stream of new owners cannot keep an earlier owner waiting for ever, since their keys grow and its key does not.
    """

    def __init__(self) -> None:
        self._served: dict[tuple[str, str], int] = {}
        self._time: dict[str, int] = {}

    def next_job_number(self, queue: str, firsts: Mapping[str, int]) -> int:
        """Choose the job to start next and return its number.

        Args:
            queue: Kind of work.
            firsts: Number of the first free job of each owner.
        """
        keys = {owner: max(number, self._served.get((queue, owner), 0)) for owner, number in firsts.items()}
        return firsts[min(keys, key=lambda owner: (keys[owner], firsts[owner]))]

    def record_turn(self, queue: str, owner: str, newest: int) -> None:
        """Record that a job of an owner was started when ``newest`` was the largest number in the queue."""
        self._time[queue] = max(newest, self._time.get(queue, 0)) + 1
        self._served.pop((queue, owner), None)
        self._served[queue, owner] = self._time[queue]
        while len(self._served) > MAX_OWNERS:
            self._served.pop(next(iter(self._served)))


def make_lanes(field: str, names: Sequence[str]) -> list[tuple[str | None, Lane]]:
    """Make a lane for each name and, as last entry with the name None, one for all other jobs."""
    different = tuple(dict.fromkeys(names))
    return [*((name, Lane(field, (name,))) for name in different), (None, Lane(field, different, others=True))]
