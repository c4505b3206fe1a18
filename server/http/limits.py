"""How much the server takes on: bytes of an upload, scans at a time, seconds of patience; and how it says no."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import SemisegError

MEGABYTE = 2**20
RETRY_SECONDS = 5


class Refusal(SemisegError):  # noqa: N818 - a refusal is an answer like others
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
        idle_seconds: how long an upload may stand still.
        request_seconds: how long a request may take from its first byte to the answer.
        stop_seconds: how long running requests may go on after the server was told to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: Annotated[int, Field(ge=1)] = 2048 * MEGABYTE
    files: Annotated[int, Field(ge=1)] = 20_000
    parallel: Annotated[int, Field(ge=1)] = 2
    waiting: Annotated[int, Field(ge=0)] = 16
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    request_seconds: Annotated[float, Field(gt=0)] = 3600.0
    stop_seconds: Annotated[int, Field(ge=1)] = 5


class Admission:
    """Counts the requests in the house, so that a crowd is turned away before it fills the disk."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.parallel + limits.waiting
        self._inside = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place while the block runs; only to be called from the event loop.

        Raises:
            Refusal: 503, all places are taken.
        """
        if self._inside >= self._most:
            raise Refusal(
                503,
                f"The server is busy with {self._inside} scans; send this one again in a few seconds.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
