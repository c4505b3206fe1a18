"""The JSON documents of the HTTP interface, except the report, which is :class:`semiseg.outputs.report.Report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.outputs.report import ModelIdentity, ScanWarningReport
from semiseg.volumes.segmentation import Segment
from server.jobs.queue import JobState


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorResponse(_Document):
    """Error of a request.

    Attributes:
        error: Error message for the user or the operator.
    """

    error: Annotated[str, Field(min_length=1)]


class JobResponse(_Document):
    """State, progress and result values of a job.

    Attributes:
        id: Identifier of the job; the job is accessible only with a key of the owner that sent it.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        model: Name of the model.
        created: Time of acceptance, in Unix seconds.
        ahead: Number of waiting jobs that were accepted before it; clients take turns, so it may start before some of
            them.
        attempts: Number of times that it was started; more than one if the server stopped in between.
        windows_done: Number of sliding windows that are done; 0 until the first one.
        windows_total: Total number of sliding windows; 0 until the first one.
        seconds_left: Estimated seconds for the remaining windows; None unless the job is running.
        millilitres: Volume of each segment in ml, by name; None unless the job is done.
        remarks: Warnings about the scan and corrections of it; None unless the job is done.
        error: Error message of a failed job; None otherwise.
        status: HTTP status that POST /segment would have returned for the error; None otherwise.
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
    """A model of the server.

    Attributes:
        identity: Name, version and SHA-256 of the model, and how it is run.
        ready: True if the model is warmed up.
        channels: Names of the input channels, in the model's order.
        segments: Segments of the result.
        window: Size of the sliding window in voxels.
        card: Model card in Markdown.
    """

    identity: ModelIdentity
    ready: bool
    channels: list[str]
    segments: list[Segment]
    window: tuple[int, int, int]
    card: str
