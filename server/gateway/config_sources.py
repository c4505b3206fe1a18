"""Where studies come from, in gateway.yaml: the DICOM and web listeners, and archives that are polled."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from server.gateway.config_types import AETitle, ConfigSection, Count, File, Port, Seconds, Tls, Url


class Sender(ConfigSection):
    """Who may send by DIMSE.

    Attributes:
        ae_title: AE title by which the sender calls itself.
        addresses: IP addresses or networks (10.0.1.0/24) from which it may come; all of them when none is given.
        commitment: Address and port to which storage commitment is reported (PS3.4 J.3.3); when they are not given, it
            is reported on the association that asked for it.
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
                raise ValueError(f"{address} is no IP address and no network such as 10.0.1.0/24") from None
        return self


class DimseListener(ConfigSection):
    """C-ECHO, C-STORE and storage commitment, as their provider.

    Attributes:
        host, port: Address of the listener; port 0 takes a free one.
        senders: Devices that may send; nobody else is let in. Empty only with ``anybody``.
        anybody: True: everybody may send, whatever they call themselves.
        associations: Number of associations at the same time.
        associations_per_address: Number of them from one address; four fifths of `associations` when it is not given,
            so that no address can take them all.
        pdu: Largest PDU that a sender may send, in bytes.
        acse_seconds, dimse_seconds, network_seconds: Time-outs of the beginning of an association, of an answer, and of
            silence in between.
        tls: Encryption; None for an unencrypted listener.
    """

    host: str = "127.0.0.1"
    port: Port = 11112
    senders: tuple[Sender, ...] = ()
    anybody: bool = False
    associations: Count = 25
    associations_per_address: Count | None = None
    pdu: Annotated[int, Field(ge=4096, le=2**24)] = 2**20
    acse_seconds: Seconds = 30.0
    dimse_seconds: Seconds = 60.0
    network_seconds: Seconds = 60.0
    tls: Tls | None = None

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if bool(self.senders) == self.anybody:
            raise ValueError("name the `senders` that may send, or say `anybody: true`; one of the two")
        if self.tls is not None and self.tls.certificate is None:
            raise ValueError("tls: a door needs a certificate and a key")
        return self

    def max_associations_per_address(self) -> int:
        """How many associations one address may have."""
        return self.associations_per_address or max(1, self.associations - max(1, self.associations // 5))


class WebListener(ConfigSection):
    """STOW-RS, the status page and the metrics.

    Attributes:
        host, port: Address of the listener; port 0 takes a free one.
        keys: File of API keys, as of `semiseg serve --keys`; needed on other addresses than loopback.
        hosts: Further names by which it may be called, as of `semiseg serve --allowed-host`.
        proxies: Addresses and networks of proxies in front, as of `semiseg serve --proxy`.
        upload_bytes: Largest request body.
        connections_per_address: Number of connections that one address may have at the same time, of a thousand in all.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    keys: File | None = None
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    upload_bytes: Count = 2**32
    connections_per_address: Count = 800


class PolledArchive(ConfigSection):
    """An archive that is asked for new studies by QIDO-RS and that gives them by WADO-RS.

    Attributes:
        url: DICOMweb root of the archive.
        name: Name that stands for a sender's AE title in rules.
        every_seconds: Time from one look to the next.
        days: Number of days back by Study Date, today included.
        matching: Further attributes that a study has to match (PS3.18 8.3.4), such as ModalitiesInStudy.
        token: File whose content is sent as bearer token.
        trouble_after: Number of failed fetches of a study after which it is shown as in trouble; it is fetched again
            all the same.
    """

    url: Url
    name: AETitle = "POLL"
    every_seconds: Seconds = 60.0
    days: Count = 2
    matching: dict[str, str] = Field(default_factory=dict)
    token: File | None = None
    trouble_after: Count = 3
