"""Sources of studies in gateway.yaml: the DICOM and web listeners, and polled archives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from server.gateway.config_types import AETitle, ConfigSection, Count, File, Port, Seconds, Tls, Url


class Sender(ConfigSection):
    """Device that may send by DIMSE.

    Attributes:
        ae_title: Calling AE title of the sender.
        addresses: IP addresses or networks (10.0.1.0/24) of the sender; by default, any address is accepted.
        commitment: Address and port to which storage commitment is reported (PS3.4 J.3.3); by default, it is reported
            on the association that requested it.
    """

    ae_title: AETitle
    addresses: tuple[str, ...] = ()
    commitment: tuple[str, Port] | None = None

    @model_validator(mode="after")
    def _networks(self) -> Self:
        from ipaddress import ip_network

        for address in self.addresses:
            try:
                ip_network(address, strict=False)
            except ValueError:
                raise ValueError(f"{address} is neither an IP address nor a network such as 10.0.1.0/24") from None
        return self


class DimseListener(ConfigSection):
    """Listener for C-ECHO, C-STORE and storage commitment (SCP).

    Attributes:
        host, port: Address of the listener; port 0 selects a free port.
        senders: Devices that may send; associations of others are rejected. Empty only with ``any_sender``.
        any_sender: If True, every device may send, with any AE title.
        associations: Maximum number of simultaneous associations.
        associations_per_address: Maximum number of simultaneous associations from one address; by default four fifths
            of `associations`, so that no address can use all of them.
        pdu: Maximum size of a PDU that a sender may send, in bytes.
        acse_seconds, dimse_seconds, network_seconds: Time-outs of association negotiation, of a DIMSE response, and of
            network inactivity.
        tls: Encryption; None for an unencrypted listener.
    """

    former_keys: ClassVar[Mapping[str, str]] = {"anybody": "any_sender"}

    host: str = "127.0.0.1"
    port: Port = 11112
    senders: tuple[Sender, ...] = ()
    any_sender: bool = False
    associations: Count = 25
    associations_per_address: Count | None = None
    pdu: Annotated[int, Field(ge=4096, le=2**24)] = 2**20
    acse_seconds: Seconds = 30.0
    dimse_seconds: Seconds = 60.0
    network_seconds: Seconds = 60.0
    tls: Tls | None = None

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if bool(self.senders) == self.any_sender:
            raise ValueError("list the permitted `senders`, or set `any_sender: true`; exactly one of the two")
        if self.tls is not None and self.tls.certificate is None:
            raise ValueError("tls: a listener needs a certificate and a key")
        return self

    def max_associations_per_address(self) -> int:
        """Return the maximum number of simultaneous associations from one address."""
        return self.associations_per_address or max(1, self.associations - max(1, self.associations // 5))


class WebListener(ConfigSection):
    """Listener for STOW-RS, the status page and the metrics.

    Attributes:
        host, port: Address of the listener; port 0 selects a free port.
        keys: File of API keys, as for `semiseg serve --keys`; required on addresses other than loopback.
        hosts: Additional host names that requests may use, as for `semiseg serve --allowed-host`.
        proxies: Addresses and networks of reverse proxies, as for `semiseg serve --proxy`.
        upload_bytes: Maximum size of a request body in bytes.
        connections_per_address: Maximum number of simultaneous connections from one address, of a thousand in all.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    keys: File | None = None
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    upload_bytes: Count = 2**32
    connections_per_address: Count = 800


class PolledArchive(ConfigSection):
    """Archive that is queried for new studies by QIDO-RS, which are retrieved by WADO-RS.

    Attributes:
        url: DICOMweb root of the archive.
        name: Name that stands for a sender's AE title in rules.
        every_seconds: Time between two queries.
        days: Range of the query by Study Date, as a number of days that includes today.
        matching: Additional attributes that a study has to match (PS3.18 8.3.4), such as ModalitiesInStudy.
        token: File whose content is sent as bearer token.
        trouble_after: Number of failed fetches of a study after which it is shown as a problem; fetching is still
            retried.
    """

    url: Url
    name: AETitle = "POLL"
    every_seconds: Seconds = 60.0
    days: Count = 2
    matching: dict[str, str] = Field(default_factory=dict)
    token: File | None = None
    trouble_after: Count = 3
