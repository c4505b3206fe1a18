"""The JSON documents of the HTTP interface. A segmentation's is :class:`semiseg.outputs.report.Report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.outputs.report import ModelIdentity, ScanWarningReport
from semiseg.volumes.segmentation import Segment
from server.jobs.queue import JobState


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorAnswer(_Document):
    """Why a request was not answered as asked.

    Attributes:
        error: one sentence for the person who can mend it.
    """

    error: Annotated[str, Field(min_length=1)]


class JobAnswer(_Document):
    """A job.

    Attributes:
        id: its name here; only the owner of the key that sent it may ask for it.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        model: the model that is to segment.
        created: when it was accepted, in Unix seconds.
        ahead: Number of waiting jobs that came before it; clients take turns, so it may begin before some of them.
        attempts: how often it was begun; more than once when the server stopped in between.
        windows_done, windows_total: of the sliding window; both 0 until it begins.
        seconds_left: for the windows that are left, at the speed of those that are done; None before and after.
        millilitres: Volume of each segment in ml, by name, once it is done.
        remarks: Observations and corrections of the scan, once it is done.
        error: why it failed.
        status: of an answer of POST /segment that would have failed so.
    """

    id: str
    state: JobState
    model: str
    created: float
    ahead: int
    attempts: int
    windows_done: int
    windows_total: int
    seconds_left: float | None
    millilitres: dict[str, float] | None
    remarks: list[ScanWarningReport] | None
    error: str | None
    status: int | None


class ModelEntry(_Document):
    """A model.

    Attributes:
        identity: which one it is.
        ready: whether it is warm.
        channels: what it takes, by name, in its order.
        segments: what it outlines.
        window: of the sliding window, in voxels.
        card: what is known of it, as Markdown.
    """

    identity: ModelIdentity
    ready: bool
    channels: list[str]
    segments: list[Segment]
    window: tuple[int, int, int]
    card: str
