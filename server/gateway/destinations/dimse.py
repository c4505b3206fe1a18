"""Destinations that accept results by C-STORE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from server.gateway.config_types import DimseNode, FormatName, Seconds
from server.gateway.destinations.destination import Delivery, DestinationBase

if TYPE_CHECKING:
    from server.gateway.check_result import CheckResult
    from server.gateway.delivery_result import DeliveryResult


class DimseDestination(DimseNode, DestinationBase):
    """Archive that accepts results by C-STORE.

    Attributes:
        type: Name of the type.
        commitment: If True, storage commitment is requested for stored results (PS3.4 Annex J).
        commitment_seconds: Time-out of the report, in seconds.
    """

    type: Literal["dimse"] = "dimse"
    commitment: bool = False
    commitment_seconds: Seconds = 30.0

    def deliver(self, files: Sequence[Path], delivery: Delivery) -> DeliveryResult:
        """See :meth:`DestinationBase.deliver`."""
        from server.gateway import storage_scu

        return storage_scu.send(files, self, delivery.title, delivery.commitments, delivery.stopped)

    def check(self, name: str, output_formats: Sequence[FormatName], title: str) -> Iterator[CheckResult]:
        """See :meth:`DestinationBase.check`."""
        from server.gateway.dimse_check import check_dimse_destination

        yield from check_dimse_destination(name, self, output_formats, title)
