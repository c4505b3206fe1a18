"""gateway.yaml: which doors there are, what happens to which series, and where its segmentation goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from semiseg.errors import InputError, sentence_of
from semiseg.volumes.series_rules import SeriesRule
from server.gateway.uids import UidRule

_VISIBLE = re.compile(r"[ -\[\]-~]+")
Form = Literal["seg", "seg-labelmap", "seg-fractional", "rtstruct", "sr", "overlay"]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _ae_title(title: str) -> str:
    stripped = title.strip(" ")
    if not 0 < len(stripped) <= 16 or not _VISIBLE.fullmatch(stripped):
        raise ValueError("an AE title has 1 to 16 characters of ASCII, no backslash and no control character")
    return stripped


def _beside(path: Path, info: ValidationInfo) -> Path:
    return (info.context or {}).get("folder", Path()) / path


def _url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
        raise ValueError("write it like http://server:3000, without a user, a query or a fragment")
    return url.rstrip("/")


AETitle = Annotated[str, AfterValidator(_ae_title)]
Url = Annotated[str, AfterValidator(_url)]
File = Annotated[Path, AfterValidator(_beside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Part):
    """Encryption of DIMSE (PS3.15 B.9), by files in PEM form.

    Attributes:
        certificate, key: our own.
        authority: whose certificates the other side's are checked against; a door with one lets in nobody without a
            certificate of it (mutual authentication).
    """

    certificate: File | None = None
    key: File | None = None
    authority: File | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class Sender(_Part):
    """Who may send by DIMSE.

    Attributes:
        ae_title: what it calls itself.
        addresses: IP addresses or networks (10.0.1.0/24) from which it may come; all of them when none is given.
        commitment: (address, port) to which storage commitment is reported (PS3.4 J.3.3); on the association that asked
            for it when none is given.
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


class DimseDoor(_Part):
    """C-ECHO, C-STORE and storage commitment, as their provider.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        senders: who may send; nobody else is let in. Empty only with ``anybody``.
        anybody: let everybody send, whatever they call themselves.
        associations: how many at the same time.
        associations_per_address: how many of them from one address; four fifths of `associations` when it is not given,
            so that no address can take them all.
        pdu: largest PDU that a sender may send, in bytes.
        acse_seconds, dimse_seconds, network_seconds: patience with the beginning of an association, with an answer,
            and with silence in between.
        tls: None for an unencrypted door.
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

    def most_of_one_address(self) -> int:
        """How many associations one address may have."""
        return self.associations_per_address or max(1, self.associations - max(1, self.associations // 5))


class WebDoor(_Part):
    """STOW-RS, the status page and the metrics.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        keys: a file of API keys, as of `semiseg serve --keys`; needed on other addresses than loopback.
        hosts: Further names by which it may be called, as of `semiseg serve --allowed-host`.
        proxies: Addresses and networks of proxies in front, as of `semiseg serve --proxy`.
        upload_bytes: the largest request body.
        connections_per_address: Number of connections that one address may have at the same time, of a thousand in all.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    keys: File | None = None
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    upload_bytes: Count = 2**32
    connections_per_address: Count = 800


class Poll(_Part):
    """An archive that is asked for new studies by QIDO-RS and that gives them by WADO-RS.

    Attributes:
        url: its DICOMweb root.
        name: stands for a sender's AE title in rules.
        every_seconds: from one look to the next.
        days: how far back by Study Date, today included.
        matching: further attributes that a study has to match (PS3.18 8.3.4), such as ModalitiesInStudy.
        token: a file whose content is sent as bearer token.
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


class Completeness(_Part):
    """When a study is taken to be complete.

    Attributes:
        quiet_seconds: nothing more has come for so long. Null: quiet completes no study, so that there is no result
            before a count, a poll or somebody's word says that the study is complete.
        believe_counts: also when exactly as many instances are there as they themselves announce (Number of Study
            Related Instances, (0020,1208)), which few modalities fill in. A number that more instances came than it
            says, or that differs from instance to instance, is not believed.
        counted_seconds: Seconds without a further instance, after the end of the sender's association, before such a
            number is believed; never longer than `quiet_seconds`.
        interrupted_seconds: Seconds for which the sender of an association or request that broke off is waited for, in
            the place of `quiet_seconds`; five times `quiet_seconds` when it is not given.
        incomplete: What happens to a study that is known not to be whole (an instance of it was refused or broke off,
            an archive would not give all of it) when nothing more comes: `hold` it until an operator says
            `complete STUDY`, or `segment` what is there.
        late: What happens to a series that got more instances after its result was made: `supersede` makes another
            result, which says so; `hold` holds the study until an operator says `complete STUDY`.
        patients: What happens to a study whose instances name different patients (Patient ID, Patient's Name or
            Patient's Birth Date), as after a correction: `hold` it until an operator decides by `conflict STUDY`, or
            `segment` it.
    """

    quiet_seconds: Seconds | None = 60.0
    believe_counts: bool = True
    counted_seconds: Seconds = 5.0
    interrupted_seconds: Seconds | None = None
    incomplete: Literal["hold", "segment"] = "hold"
    late: Literal["supersede", "hold"] = "supersede"
    patients: Literal["hold", "segment"] = "hold"

    def patience_after_break(self) -> float:
        """Seconds for which a sender that broke off is waited for."""
        quiet = self.quiet_seconds or 60.0
        return max(quiet, 5 * quiet if self.interrupted_seconds is None else self.interrupted_seconds)


class Rule(SeriesRule):
    """What happens to which series: all rules that fit one are followed.

    Attributes:
        name: for people and for the audit log.
        senders: AE titles one of which has sent the study; all when none is given.
        whole_study: send all image series of a study in which one fits as one scan: for models of several channels,
            whose bundle says which series serves which.
        model: name of the server's model; None where it has only one.
        forms: what is made.
        to: names of destinations.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    senders: tuple[AETitle, ...] = ()
    whole_study: bool = False
    model: str | None = None
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("seg",)
    to: Annotated[tuple[str, ...], Field(min_length=1)]


class DimseDestination(_Part):
    """An archive that takes results by C-STORE.

    Attributes:
        ae_title, host, port: the archive.
        commitment: whether it is asked to commit itself to what it took (PS3.4 Annex J).
        commitment_seconds: how long its report is waited for.
        tls: None for an unencrypted connection.
    """

    ae_title: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    commitment: bool = False
    commitment_seconds: Seconds = 30.0
    tls: Tls | None = None


class WebDestination(_Part):
    """An archive that takes results by STOW-RS.

    Attributes:
        url: its DICOMweb root.
        token: a file whose content is sent as bearer token.
    """

    url: Url
    token: File | None = None


class Retry(_Part):
    """How often something is tried that others do not let happen.

    Attributes:
        first_seconds: delay after the first failure; each further one waits twice as long, give or take a quarter.
        longest_seconds: but no longer than this.
        hours: after so many it is a dead letter, which an operator can look at and send once more.
    """

    first_seconds: Seconds = 5.0
    longest_seconds: Seconds = 600.0
    hours: Seconds = 72.0


class Destination(_Part):
    """Where results go: exactly one of the two kinds.

    Each destination has a queue, workers and a delay after failures of its own, so that one that hangs holds up nothing
    that goes to another.

    Attributes:
        dimse, web: how they are sent.
        forms: the only forms that it is sent; all of a rule's when none is given.
        parallel: Number of results that are sent at the same time.
        connect_seconds: Time-out of a connection.
        answer_seconds: Time-out of an answer, to an association, a C-STORE or a STOW-RS request.
        retry: Delays after failures of this destination; those of the whole file when none are given.
    """

    dimse: DimseDestination | None = None
    web: WebDestination | None = None
    forms: tuple[Form, ...] = ()
    parallel: Annotated[int, Field(ge=1, le=16)] = 2
    connect_seconds: Seconds = 10.0
    answer_seconds: Seconds = 120.0
    retry: Retry | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.dimse is None) == (self.web is None):
            raise ValueError("say `dimse` or `web`, one of the two")
        return self


class Servers(_Part):
    """The servers that segment.

    Attributes:
        urls: of `semiseg serve`; a name with several addresses stands for several servers.
        key: a file with the API key.
        parallel: scans that one server is given at the same time.
        timeout_seconds: for one scan.
        silence_seconds: A server that answers nothing at all for so long, not even whether it lives, is taken to hang:
            its scans go to others.
    """

    urls: Annotated[tuple[Url, ...], Field(min_length=1)]
    key: File | None = None
    parallel: Count = 2
    timeout_seconds: Seconds = 3600.0
    silence_seconds: Annotated[float, Field(ge=1)] = 60.0


class Keep(_Part):
    """What stays how long, and how it goes.

    Attributes:
        hours: a study and its results after everything of it was delivered, or nothing was to be done.
        failed_days: a study of which something is a dead letter.
        free_bytes: instances are refused (0xA700) while less is free on the state folder's volume.
        overwrite: write zeros over files before they are deleted; of use on disks that write in place.
    """

    hours: Seconds = 24.0
    failed_days: Seconds = 14.0
    free_bytes: Annotated[int, Field(ge=0)] = 2**31
    overwrite: bool = False


class GatewayConfig(_Part):
    """The whole file.

    Attributes:
        state: the folder of everything that must not be lost.
        ae_title: ours, which senders have to call.
        dimse, web, polls: the doors; None and none for those that are shut.
        complete: when a study is.
        servers: which segment.
        rules: what happens to which series.
        destinations: by name.
        retry, keep: patience and retention.
        reveal_uids: write UIDs into the audit log; otherwise a keyed hash of them.
        uids: Which UIDs are refused: `strict` those that break PS3.5 9.1; `lenient` lets components begin with a zero.
    """

    state: File
    ae_title: AETitle = "SEMISEG"
    dimse: DimseDoor | None = None
    web: WebDoor | None = WebDoor()
    polls: tuple[Poll, ...] = ()
    complete: Completeness = Completeness()
    servers: Servers
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    destinations: Annotated[dict[str, Destination], Field(min_length=1)]
    retry: Retry = Retry()
    keep: Keep = Keep()
    reveal_uids: bool = False
    uids: UidRule = "strict"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dimse is None and self.web is None and not self.polls:
            raise ValueError("there is no door: give `dimse`, `web` or `polls`")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules are called {sorted(twice)[0]}")
        for rule in self.rules:
            for name in rule.to:
                if name not in self.destinations:
                    known = ", ".join(self.destinations)
                    raise ValueError(f"rule {rule.name}: there is no destination {name}, only {known}")
                if not forms_for(rule, self.destinations[name]):
                    raise ValueError(f"rule {rule.name}: destination {name} takes none of its forms")
        return self


def forms_for(rule: Rule, destination: Destination) -> tuple[Form, ...]:
    """What a rule makes that a destination takes."""
    return tuple(form for form in rule.forms if not destination.forms or form in destination.forms)


def read_config(file: Path) -> GatewayConfig:
    """Read and check the file; paths in it are relative to its folder.

    Raises:
        InputError: it cannot be read, is no YAML, or says something that cannot be; with the place.
    """
    try:
        found: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {file} cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise InputError(f"The configuration {file} is no YAML{line}: {getattr(error, 'problem', error)}.") from None
    if not isinstance(found, dict):
        raise InputError(f"The configuration {file} is not a mapping of names to values.")
    try:
        return GatewayConfig.model_validate(found, context={"folder": file.parent.absolute()})
    except ValidationError as error:
        raise InputError(f"{file}: {sentence_of(error)}.") from None
