"""The interface between the endpoints and the training service."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

Status = Literal["SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"]
MAX_DETAIL_LINES = 20


class TrainingTask(BaseModel):
    """One training, with the field names of MONAI Label.

    Attributes:
        id: Id of the training.
        status: State of the training.
        request: Request with which the training was started.
        start_ts, end_ts: Local times of its start and end, ``YYYY-MM-DD HH:MM:SS``.
        details: Last sentences about its progress, at least one.
        result: Sentence about its result; empty while it runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    status: Status
    request: dict[str, Any]
    start_ts: str
    end_ts: str = ""
    details: tuple[str, ...]
    result: str = ""

    def document(self) -> dict[str, Any]:
        """Convert the task to a JSON document; ``end_ts`` and ``result`` are omitted while it runs."""
        document = self.model_dump(mode="json")
        return {key: value for key, value in document.items() if value != "" or key not in ("end_ts", "result")}


class TrainingService(Protocol):
    """A service that trains the next model; its methods may block and are called in threads."""

    name: str

    def start(self, request: dict[str, Any], who: str) -> TrainingTask:
        """Start a training.

        Raises:
            ApiError: 429, a training is already running; 409, there is no label to train on.
        """
        ...

    def tasks(self) -> list[TrainingTask]:
        """All trainings, oldest first."""
        ...

    def stop(self, who: str) -> TrainingTask | None:
        """Stop the running training; return None if there is none."""
        ...

    def describe(self) -> dict[str, Any]:
        """The document about the trainer for ``GET /info/``: ``description`` and ``config``."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Progress of the training: ``epoch`` of ``total_epochs`` (here updates), ``best_metric``, ``total_time``."""
        ...
