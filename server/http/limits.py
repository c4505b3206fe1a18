"""Limits of a server process: upload sizes, concurrent requests and times; and the error of a rejected request."""

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
    """An error response with a status and one sentence."""

    def __init__(self, status: int, sentence: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


class Limits(BaseModel):
    """Limits of one server process.

    Attributes:
        upload_bytes: Maximum size of a request body in bytes.
        files: Maximum number of files in one upload.
        parallel: Number of scans that are segmented at the same time; each holds its volume in memory.
        waiting: Number of further requests that may upload or wait for a slot.
        per_client: Maximum number of concurrent requests of one client, which is the owner of an API key or, on a
            server without keys, an address. Unless ``waiting`` is 0, one client may have at most ``parallel`` +
            ``waiting`` - 1 requests, so that others are admitted, too.
        connections_per_address: Maximum number of open connections of one address that is not a trusted proxy.
        queued: Maximum number of waiting jobs.
        queued_per_client: Maximum number of waiting jobs of one client.
        disk_bytes: Bytes that an upload must leave free on the volume on which it is written.
        idle_seconds: Time in seconds for which an upload may stall.
        request_seconds: Time in seconds that a request may take from its first byte to the response.
        stop_seconds: Time in seconds that running requests have to end after the server was asked to stop.
        keep_seconds: Time in seconds for which a job and its result are kept after its end.
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
    """Admits requests within the concurrency limits while the disk has enough free space."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        """Start without requests; ``folder`` is the folder of the uploads."""
        self._most = limits.parallel + limits.waiting
        self._most_of_client = min(limits.per_client, self._most - 1) if limits.waiting else limits.per_client
        self._limits = limits
        self._folder = folder
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Count a request of ``client`` while the block runs; only to be called from the event loop.

        Raises:
            ApiError: 429, the client has reached its limit; 503, the server has; 507, the disk is nearly full.
        """
        again = {"Retry-After": str(RETRY_SECONDS)}
        if self._inside[client] >= self._most_of_client:
            raise ApiError(
                429,
                f"You have {self._inside[client]} requests running already, which is the limit for one client; wait "
                "until one of them ends.",
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
    """Raise an error if the disk is nearly full.

    Raises:
        ApiError: 507, fewer than ``limits.disk_bytes`` are free.
    """
    if free_bytes(folder) < limits.disk_bytes:
        raise disk_full_error()


def disk_full_error() -> ApiError:
    """Make the error of a server whose disk is full."""
    return ApiError(
        507,
        "The server's disk is nearly full; its operator has to free space before it accepts another scan.",
        headers={"Retry-After": "60"},
    )
