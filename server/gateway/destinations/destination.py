"""Base of all destinations: the keys that they share, the delivery of files, and the check of the connection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from server.gateway.config_types import ConfigSection, FormatName, Retry, Seconds

if TYPE_CHECKING:
    from server.gateway.check_result import CheckResult
    from server.gateway.commitment_scu import CommitmentReports
    from server.gateway.delivery_result import DeliveryResult


@dataclass(frozen=True)
class Delivery:
    """What a destination needs to know of a delivery, beside its files.

    Attributes:
        title: AE title of the gateway.
        commitments: Reports of storage commitment from archives.
        stopped: Function that returns True once the delivery is to stop; called repeatedly.
    """

    title: str
    commitments: CommitmentReports
    stopped: Callable[[], bool] = lambda: False


class DestinationBase(ConfigSection):
    """Archive that results are sent to.

    Each destination has a queue, workers and a delay after failures of its own, so that one that hangs does not delay
    deliveries to others.

    Attributes:
        output_formats: Output formats to send; by default all formats of a rule.
        parallel: Number of results that are sent at the same time.
        connect_seconds: Time-out of a connection.
        answer_seconds: Time-out of a response, to an association, a C-STORE or a STOW-RS request.
        retry: Delays after failures of this destination; by default those of the top level of the file.
    """

    former_keys: ClassVar[Mapping[str, str]] = {"forms": "output_formats"}

    output_formats: tuple[FormatName, ...] = ()
    parallel: Annotated[int, Field(ge=1, le=16)] = 2
    connect_seconds: Seconds = 10.0
    answer_seconds: Seconds = 120.0
    retry: Retry | None = None

    @abstractmethod
    def deliver(self, files: Sequence[Path], delivery: Delivery) -> DeliveryResult:
        """Send DICOM files; sending them again is harmless, because each file has a UID of its own.

        A file that the destination refuses does not prevent the delivery of the others.

        Returns:
            The confirmed files, the refused files, and the problem of the destination as a whole, if any.

        Raises:
            InputError: A token or a certificate of the gateway cannot be used.
            Cancelled: The delivery was stopped.
        """

    @abstractmethod
    def check(self, name: str, output_formats: Sequence[FormatName], title: str) -> Iterator[CheckResult]:
        """Contact the destination; nothing is stored.

        Args:
            name: Name of the destination in the configuration.
            output_formats: Output formats that it is to receive.
            title: AE title of the gateway.
        """
