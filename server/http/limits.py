"""How much the server takes on: bytes of an upload, scans at a time, seconds of patience; and how it says no."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import SemisegError
from semiseg.system.durable_files import free_bytes
from server.http_listener import MAX_PER_ADDRESS

MEGABYTE = 2**20
RETRY_SECONDS = 5


class ApiError(SemisegError):
    """A request that is answered with ``status`` and one sentence."""

    def __init__(self, status: int, sentence: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


class Limits(BaseModel):
    """What one server process accepts.

    Attributes:
        upload_bytes: the largest request body.
        files: the most files in one upload.
        parallel: scans segmented at the same time; each holds its volume in memory.
        waiting: further requests that may be uploading or waiting their turn.
        per_client: requests that one client may have in the house at once; a client is who owns an API key, or an
            address where there are no keys. Where requests may wait, the last place is never the same client's.
        connections_per_address: open connections of one address that is no configured proxy's.
        queued: jobs that may wait.
        queued_per_client: jobs of one client that may wait.
        disk_bytes: what an upload must leave free on the volume where it is written.
        idle_seconds: how long an upload may stand still.
        request_seconds: how long a request may take from its first byte to the answer.
        stop_seconds: how long running requests may go on after the server was told to stop.
        keep_seconds: how long a job and its result are kept after its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: Annotated[int, Field(ge=1)] = 2048 * MEGABYTE
    files: Annotated[int, Field(ge=1)] = 20_000
    parallel: Annotated[int, Field(ge=1)] = 2
    waiting: Annotated[int, Field(ge=0)] = 16
    per_client: Annotated[int, Field(ge=1)] = 16
    connections_per_address: Annotated[int, Field(ge=1)] = MAX_PER_ADDRESS
    queued: Annotated[int, Field(ge=1)] = 100
    queued_per_client: Annotated[int, Field(ge=1)] = 50
    disk_bytes: Annotated[int, Field(ge=0)] = 1024 * MEGABYTE
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    request_seconds: Annotated[float, Field(gt=0)] = 3600.0
    stop_seconds: Annotated[int, Field(ge=1)] = 5
    keep_seconds: Annotated[float, Field(gt=0)] = 24 * 3600.0


class AdmissionControl:
    """Counts the requests in the house, so that a crowd, or a full disk, is turned away before it does harm."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        """Count none; ``folder`` is where uploads go."""
        self._most = limits.parallel + limits.waiting
        self._most_of_client = min(limits.per_client, self._most - 1) if limits.waiting else limits.per_client
        self._limits = limits
        self._folder = folder
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Hold a place for ``client`` while the block runs; only to be called from the event loop.

        Raises:
            ApiError: 429, the client has enough of them; 503, all places are taken; 507, the disk is nearly full.
        """
        again = {"Retry-After": str(RETRY_SECONDS)}
        if self._inside[client] >= self._most_of_client:
            raise ApiError(
                429,
                f"You have {self._inside[client]} requests here already, as many as one client may; wait for one of "
                "them.",
                headers=again,
            )
        if (inside := self._inside.total()) >= self._most:
            raise ApiError(
                503, f"The server is busy with {inside} scans; send this one again in a few seconds.", headers=again
            )
        require_disk_space(self._folder, self._limits)
        self._inside[client] += 1
        try:
            yield
        finally:
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]


def require_disk_space(folder: Path, limits: Limits) -> None:
    """Turn an upload away while the disk is nearly full.

    Raises:
        ApiError: 507.
    """
    if free_bytes(folder) < limits.disk_bytes:
        raise disk_full_error()


def disk_full_error() -> ApiError:
    """The refusal of a server whose disk is full."""
    return ApiError(
        507,
        "The server's disk is nearly full; its operator has to make room before it takes another scan.",
        headers={"Retry-After": "60"},
    )
