"""Configuration file gateway.yaml: listeners, completeness, routing rules, servers, destinations and retention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from semiseg.errors import InputError, validation_message
from semiseg.volumes.series_rules import SeriesRule
from server.gateway.config_sources import DimseListener as DimseListener
from server.gateway.config_sources import PolledArchive as PolledArchive
from server.gateway.config_sources import Sender as Sender
from server.gateway.config_sources import WebListener as WebListener
from server.gateway.config_types import AETitle, ConfigSection, Count, File, FormerKeys, Retry, Seconds, Url
from server.gateway.config_types import FormatName as FormatName
from server.gateway.config_types import Tls as Tls
from server.gateway.destinations import Destination, DestinationBase
from server.gateway.uids import UidRule
from server.gateway.ups_config import Worklist, worklists_error


class Completeness(ConfigSection):
    """Rules by which a study is considered complete.

    Attributes:
        quiet_seconds: Seconds without a further instance after which a study is complete. If null, a study is complete
            only by its count, by a poll, or when an operator or program declares it complete.
        believe_counts: If True, a study is also complete when it has exactly as many instances as they announce (Number
            of Study Related Instances, (0020,1208)), which few modalities fill in. The number is ignored if more
            instances have arrived or if it differs between instances.
        counted_seconds: Seconds without a further instance, after the end of the sender's association, before such a
            number is used; never longer than `quiet_seconds`.
        interrupted_seconds: Seconds without a further instance, used instead of `quiet_seconds` after an association or
            request was interrupted; by default five times `quiet_seconds`.
        incomplete: Treatment of a study that is known to be incomplete (an instance was refused or its transfer was
            interrupted, or an archive did not return everything) when no more instances arrive: `hold` it until an
            operator runs `complete STUDY`, or `segment` the instances that are stored.
        late: Treatment of a series that got more instances after its result was made: `supersede` makes another result,
            which refers to the first one; `hold` holds the study until an operator runs `complete STUDY`.
        patients: Treatment of a study whose instances name different patients (Patient ID, Patient's Name or Patient's
            Birth Date), as after a correction: `hold` it until an operator decides with `conflict STUDY`, or `segment`
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
        """Return the seconds to wait for further instances after an interrupted transfer."""
        quiet = self.quiet_seconds or 60.0
        return max(quiet, 5 * quiet if self.interrupted_seconds is None else self.interrupted_seconds)


class RoutingRule(FormerKeys, SeriesRule):
    """Rule that sends matching series to a model and the results to destinations; all rules that match are applied.

    Attributes:
        name: Name of the rule, shown to operators and in the audit log.
        senders: AE titles of which one has to be a sender of the study; by default any sender matches.
        whole_study: If True, all image series of a study in which one series matches are sent as one scan, for models
            with several channels; the model's bundle assigns the series to channels.
        model: Name of the server's model; None if the server has only one.
        output_formats: Output formats to request.
        to: Names of destinations.
    """

    former_keys: ClassVar[Mapping[str, str]] = {"forms": "output_formats"}

    name: Annotated[str, Field(min_length=1, max_length=64)]
    senders: tuple[AETitle, ...] = ()
    whole_study: bool = False
    model: str | None = None
    output_formats: Annotated[tuple[FormatName, ...], Field(min_length=1)] = ("seg",)
    to: Annotated[tuple[str, ...], Field(min_length=1)]


class Servers(ConfigSection):
    """Servers that segment.

    Attributes:
        urls: Addresses of `semiseg serve`; a name with several addresses stands for several servers.
        key: File with the API key.
        parallel: Number of scans that are sent to one server at the same time.
        timeout_seconds: Time-out of one scan.
        silence_seconds: Seconds without any response, including to liveness checks, after which a server is considered
            hung and its scans are sent to others.
    """

    urls: Annotated[tuple[Url, ...], Field(min_length=1)]
    key: File | None = None
    parallel: Count = 2
    timeout_seconds: Seconds = 3600.0
    silence_seconds: Annotated[float, Field(ge=1)] = 60.0


class RetentionPolicy(ConfigSection):
    """Retention times and deletion of studies and results.

    Attributes:
        hours: Hours for which a study and its results are kept after all results were delivered, or if there was
            nothing to do.
        failed_days: Days for which a study is kept that is held, has an undecided conflict, or has a dead letter.
        free_bytes: Free bytes of the state folder's volume below which instances are refused (0xA700).
        overwrite: If True, files are overwritten with zeros before they are deleted; effective on disks that write in
            place.
    """

    hours: Seconds = 24.0
    failed_days: Seconds = 14.0
    free_bytes: Annotated[int, Field(ge=0)] = 2**31
    overwrite: bool = False


class GatewayConfig(ConfigSection):
    """Top level of gateway.yaml.

    Attributes:
        state: Folder of all data that must not be lost.
        ae_title: AE title of the gateway, which senders have to use as called AE title.
        dimse: Listener for studies by DIMSE; None disables it.
        web: Listener for STOW-RS, the status page and the metrics; None disables it.
        polls: Archives that are polled for new studies.
        worklists: UPS-RS managers whose workitems are performed.
        completeness: Rules by which a study is considered complete.
        servers: Servers that segment.
        rules: Rules that select the series to segment and the destinations of the results.
        destinations: Archives that results are sent to, by name.
        retry: Delays after failures, for destinations without delays of their own and for everything except deliveries.
        retention: Retention times of studies and results, and the disk space that stays free.
        reveal_uids: If True, the audit log contains UIDs of series instead of their keyed hashes.
        uids: Rule by which UIDs are validated: `strict` refuses those that violate PS3.5 9.1; `lenient` accepts
            components that begin with a zero.
    """

    former_keys: ClassVar[Mapping[str, str]] = {"complete": "completeness", "keep": "retention"}

    state: File
    ae_title: AETitle = "SEMISEG"
    dimse: DimseListener | None = None
    web: WebListener | None = WebListener()
    polls: tuple[PolledArchive, ...] = ()
    worklists: tuple[Worklist, ...] = ()
    completeness: Completeness = Completeness()
    servers: Servers
    rules: Annotated[tuple[RoutingRule, ...], Field(min_length=1)]
    destinations: Annotated[dict[str, Destination], Field(min_length=1)]
    retry: Retry = Retry()
    retention: RetentionPolicy = RetentionPolicy()
    reveal_uids: bool = False
    uids: UidRule = "strict"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dimse is None and self.web is None and not self.polls and not self.worklists:
            raise ValueError("there is no source of studies: give `dimse`, `web`, `polls` or `worklists`")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules are called {sorted(twice)[0]}")
        for rule in self.rules:
            for name in rule.to:
                if name not in self.destinations:
                    known = ", ".join(self.destinations)
                    raise ValueError(f"rule {rule.name}: there is no destination {name}, only {known}")
                if not formats_for(rule, self.destinations[name]):
                    raise ValueError(f"rule {rule.name}: destination {name} accepts none of its `output_formats`")
        taken = {name: one.output_formats for name, one in self.destinations.items()}
        if wrong := worklists_error(self.worklists, names, taken, archives=bool(self.polls)):
            raise ValueError(wrong)
        return self


def formats_for(rule: RoutingRule, destination: DestinationBase) -> tuple[FormatName, ...]:
    """Return the output formats of a rule that a destination accepts."""
    accepted = destination.output_formats
    return tuple(form for form in rule.output_formats if not accepted or form in accepted)


def read_config(file: Path) -> GatewayConfig:
    """Read and check the file; paths in it are relative to its folder.

    Raises:
        InputError: The file cannot be read, is not YAML, or has an invalid value; the message names the place.
    """
    try:
        found: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {file} cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise InputError(
            f"The configuration {file} is not valid YAML{line}: {getattr(error, 'problem', error)}."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"The configuration {file} is not a mapping of names to values.")
    try:
        return GatewayConfig.model_validate(found, context={"folder": file.parent.absolute()})
    except ValidationError as error:
        raise InputError(f"{file}: {validation_message(error)}.") from None
