"""What the endpoints need of a training, whoever runs it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

Status = Literal["SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"]
MAX_DETAIL_LINES = 20  # lines


class TrainingTask(BaseModel):
    """One training, with the names that MONAI Label's clients know.

    Attributes:
        id: Id of the training.
        status: State of the training.
        request: What was asked for.
        start_ts, end_ts: Local time of its beginning and end, ``YYYY-MM-DD HH:MM:SS``.
        details: The last sentences about it, at least one.
        result: Sentence about its outcome; empty while it runs.
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
        """The task as JSON; ``end_ts`` and ``result`` are left out while it runs."""
        document = self.model_dump(mode="json")
        return {key: value for key, value in document.items() if value != "" or key not in ("end_ts", "result")}


class TrainingService(Protocol):
    """Something that trains the next model; its methods may block and are called in threads."""

    name: str

    def start(self, request: dict[str, Any], who: str) -> TrainingTask:
        """Start a training.

        Raises:
            ApiError: 429, one runs already; 409, there is nothing to train on.
        """
        ...

    def tasks(self) -> list[TrainingTask]:
        """All trainings, oldest first."""
        ...

    def stop(self, who: str) -> TrainingTask | None:
        """Stop the training that runs; None if none does."""
        ...

    def describe(self) -> dict[str, Any]:
        """The trainer for ``GET /info/``: ``description`` and ``config``."""
        ...

    def statistics(self) -> dict[str, Any]:
        """How far the training is: ``epoch`` of ``total_epochs`` (here steps), ``best_metric``, ``total_time``."""
        ...
