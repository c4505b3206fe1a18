"""The JSON documents of the HTTP interface. The answer itself is :class:`semiseg.outputs.report.Report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ErrorAnswer(BaseModel):
    """Why a request was not answered with a segmentation: one sentence for the person who can mend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: Annotated[str, Field(min_length=1)]
