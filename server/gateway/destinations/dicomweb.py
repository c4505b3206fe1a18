"""Destinations that accept results by STOW-RS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from server.gateway.config_types import File, FormatName, Url
from server.gateway.destinations.destination import Delivery, DestinationBase

if TYPE_CHECKING:
    from server.gateway.check_result import CheckResult
    from server.gateway.delivery_result import DeliveryResult


class DicomwebDestination(DestinationBase):
    """Archive that accepts results by STOW-RS.

    Attributes:
        type: Name of the type.
        url: DICOMweb root of the archive.
        token: File whose content is sent as bearer token.
    """

    type: Literal["dicomweb"] = "dicomweb"
    url: Url
    token: File | None = None

    def deliver(self, files: Sequence[Path], delivery: Delivery) -> DeliveryResult:
        """See :meth:`DestinationBase.deliver`."""
        from server.gateway import stow_client

        return stow_client.send(files, self, delivery.stopped)

    def check(self, name: str, output_formats: Sequence[FormatName], title: str) -> Iterator[CheckResult]:
        """See :meth:`DestinationBase.check`."""
        from server.gateway.dicomweb_check import check_dicomweb_destination

        yield from check_dicomweb_destination(name, self)
