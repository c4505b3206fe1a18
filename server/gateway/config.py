"""gateway.yaml: which doors there are, what happens to which series, and where its segmentation goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from semiseg.errors import InputError, validation_message
from semiseg.volumes.series_rules import SeriesRule
from server.gateway.config_sources import DimseListener as DimseListener
from server.gateway.config_sources import PolledArchive as PolledArchive
from server.gateway.config_sources import Sender as Sender
from server.gateway.config_sources import WebListener as WebListener
from server.gateway.config_types import AETitle, ConfigSection, Count, File, Seconds, Url
from server.gateway.config_types import OutputFormat as OutputFormat
from server.gateway.config_types import Tls as Tls
from server.gateway.uids import UidRule
from server.gateway.ups_config import Worklist, worklists_error


class Completeness(ConfigSection):
    """When a study is taken to be complete.

    Attributes:
        quiet_seconds: Seconds without a further instance after which a study is complete. Null: quiet completes no
            study, so that there is no result before a count, a poll or somebody's word says that the study is complete.
        believe_counts: True: a study is also complete when exactly as many instances are there as they themselves
            announce (Number of Study Related Instances, (0020,1208)), which few modalities fill in. A number that more
            instances came than it says, or that differs from instance to instance, is not believed.
        counted_seconds: Seconds without a further instance, after the end of the sender's association, before such a
            number is believed; never longer than `quiet_seconds`.
        interrupted_seconds: Seconds for which the sender of an association or request that broke off is waited for, in
            the place of `quiet_seconds`; five times `quiet_seconds` when it is not given.
        incomplete: Treatment of a study that is known not to be whole (an instance of it was refused or broke off, an
            archive would not give all of it) when nothing more comes: `hold` it until an operator says `complete
            STUDY`, or `segment` what is there.
        late: Treatment of a series that got more instances after its result was made: `supersede` makes another result,
            which says so; `hold` holds the study until an operator says `complete STUDY`.
        patients: Treatment of a study whose instances name different patients (Patient ID, Patient's Name or Patient's
            Birth Date), as after a correction: `hold` it until an operator decides by `conflict STUDY`, or `segment`
            it.
    """

    quiet_seconds: Seconds | None = 60.0
    believe_counts: bool = True
    counted_seconds: Seconds = 5.0
    interrupted_seconds: Seconds | None = None
    incomplete: Literal["hold", "segment"] = "hold"
    late: Literal["supersede", "hold"] = "supersede"
    patients: Literal["hold", "segment"] = "hold"

    def interrupted_timeout(self) -> float:
        """Seconds for which a sender that broke off is waited for."""
        quiet = self.quiet_seconds or 60.0
        return max(quiet, 5 * quiet if self.interrupted_seconds is None else self.interrupted_seconds)


class RoutingRule(SeriesRule):
    """What happens to which series: all rules that fit one are followed.

    Attributes:
        name: Name of the rule, for people and for the audit log.
        senders: AE titles, one of which has sent the study; all when none is given.
        whole_study: True: all image series of a study in which one fits are sent as one scan, for models of several
            channels, whose bundle says which series serves which.
        model: Name of the server's model; None where it has only one.
        forms: Output formats that are made.
        to: Names of destinations.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    senders: tuple[AETitle, ...] = ()
    whole_study: bool = False
    model: str | None = None
    forms: Annotated[tuple[OutputFormat, ...], Field(min_length=1)] = ("seg",)
    to: Annotated[tuple[str, ...], Field(min_length=1)]


class DimseDestination(ConfigSection):
    """An archive that takes results by C-STORE.

    Attributes:
        ae_title, host, port: AE title and address of the archive.
        commitment: True: the archive is asked to commit itself to what it took (PS3.4 Annex J).
        commitment_seconds: Seconds for which its report is waited for.
        tls: Encryption; None for an unencrypted connection.
    """

    ae_title: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    commitment: bool = False
    commitment_seconds: Seconds = 30.0
    tls: Tls | None = None


class WebDestination(ConfigSection):
    """An archive that takes results by STOW-RS.

    Attributes:
        url: DICOMweb root of the archive.
        token: File whose content is sent as bearer token.
    """

    url: Url
    token: File | None = None


class Retry(ConfigSection):
    """How often something is tried that others do not let happen.

    Attributes:
        first_seconds: Delay after the first failure; each further one waits twice as long, give or take a quarter.
        longest_seconds: Longest delay.
        hours: Hours of waiting after which a job is a dead letter, which an operator can look at and send once more.
    """

    first_seconds: Seconds = 5.0
    longest_seconds: Seconds = 600.0
    hours: Seconds = 72.0


class Destination(ConfigSection):
    """Where results go: exactly one of the two kinds.

    Each destination has a queue, workers and a delay after failures of its own, so that one that hangs holds up nothing
    that goes to another.

    Attributes:
        dimse, web: Address of the archive, by C-STORE or STOW-RS.
        forms: Output formats that it is sent; all of a rule's when none is given.
        parallel: Number of results that are sent at the same time.
        connect_seconds: Time-out of a connection.
        answer_seconds: Time-out of an answer, to an association, a C-STORE or a STOW-RS request.
        retry: Delays after failures of this destination; those of the whole file when none are given.
    """

    dimse: DimseDestination | None = None
    web: WebDestination | None = None
    forms: tuple[OutputFormat, ...] = ()
    parallel: Annotated[int, Field(ge=1, le=16)] = 2
    connect_seconds: Seconds = 10.0
    answer_seconds: Seconds = 120.0
    retry: Retry | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.dimse is None) == (self.web is None):
            raise ValueError("say `dimse` or `web`, one of the two")
        return self


class Servers(ConfigSection):
    """The servers that segment.

    Attributes:
        urls: Addresses of `semiseg serve`; a name with several addresses stands for several servers.
        key: File with the API key.
        parallel: Number of scans that one server is given at the same time.
        timeout_seconds: Time-out of one scan.
        silence_seconds: Seconds without any answer, not even whether it lives, after which a server is taken to hang:
            its scans go to others.
    """

    urls: Annotated[tuple[Url, ...], Field(min_length=1)]
    key: File | None = None
    parallel: Count = 2
    timeout_seconds: Seconds = 3600.0
    silence_seconds: Annotated[float, Field(ge=1)] = 60.0


class RetentionPolicy(ConfigSection):
    """What stays how long, and how it goes.

    Attributes:
        hours: Hours for which a study and its results are kept after everything of it was delivered, or nothing was to
            be done.
        failed_days: Days for which a study is kept that is held or undecided, or of which something is a dead letter.
        free_bytes: Free bytes of the state folder's volume, below which instances are refused (0xA700).
        overwrite: True: zeros are written over files before they are deleted; of use on disks that write in place.
    """

    hours: Seconds = 24.0
    failed_days: Seconds = 14.0
    free_bytes: Annotated[int, Field(ge=0)] = 2**31
    overwrite: bool = False


class GatewayConfig(ConfigSection):
    """The whole file.

    Attributes:
        state: Folder of everything that must not be lost.
        ae_title: The gateway's AE title, which senders have to call.
        dimse: Listener for studies by DIMSE; None where there is none.
        web: Listener for STOW-RS, the status page and the metrics; None where there is none.
        polls: Archives that are asked for new studies.
        worklists: UPS-RS managers whose workitems are performed.
        complete: Rules for when a study is complete.
        servers: Servers that segment.
        rules: Rules that say which series are segmented, and where the results go.
        destinations: Archives that results are sent to, by name.
        retry: Delays after failures, for destinations without delays of their own and for all that is no delivery.
        keep: Times for which studies and results are kept, and the room that stays free.
        reveal_uids: True: UIDs of series are written into the audit log, in the place of keyed hashes of them.
        uids: Rule by which UIDs are refused: `strict` refuses those that break PS3.5 9.1; `lenient` lets components
            begin with a zero.
    """

    state: File
    ae_title: AETitle = "SEMISEG"
    dimse: DimseListener | None = None
    web: WebListener | None = WebListener()
    polls: tuple[PolledArchive, ...] = ()
    worklists: tuple[Worklist, ...] = ()
    complete: Completeness = Completeness()
    servers: Servers
    rules: Annotated[tuple[RoutingRule, ...], Field(min_length=1)]
    destinations: Annotated[dict[str, Destination], Field(min_length=1)]
    retry: Retry = Retry()
    keep: RetentionPolicy = RetentionPolicy()
    reveal_uids: bool = False
    uids: UidRule = "strict"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dimse is None and self.web is None and not self.polls and not self.worklists:
            raise ValueError("there is no door: give `dimse`, `web`, `polls` or `worklists`")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules are called {sorted(twice)[0]}")
        for rule in self.rules:
            for name in rule.to:
                if name not in self.destinations:
                    known = ", ".join(self.destinations)
                    raise ValueError(f"rule {rule.name}: there is no destination {name}, only {known}")
                if not formats_for(rule, self.destinations[name]):
                    raise ValueError(f"rule {rule.name}: destination {name} takes none of its forms")
        taken = {name: one.forms for name, one in self.destinations.items()}
        if wrong := worklists_error(self.worklists, names, taken, archives=bool(self.polls)):
            raise ValueError(wrong)
        return self


def formats_for(rule: RoutingRule, destination: Destination) -> tuple[OutputFormat, ...]:
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
        raise InputError(f"{file}: {validation_message(error)}.") from None
