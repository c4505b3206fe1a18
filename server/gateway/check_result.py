"""Result of contacting a server, an archive or a worklist."""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        subject: Name of the checked object.
        error: Problem and advice, as a sentence; "" if there is no problem.
        success: Text that is shown if there is no problem.
    """

    subject: str
    error: str
    success: str = "answers"
