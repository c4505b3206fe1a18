"""Section `worklists` of gateway.yaml: UPS-RS managers, and the processing of their workitems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from server.gateway.config_types import AETitle, ConfigSection, Count, File, FormatName, Seconds, Url

ShortString = Annotated[str, Field(min_length=1, max_length=16)]  # VR SH
LongString = Annotated[str, Field(min_length=1, max_length=64)]  # VR LO


class CodedConcept(ConfigSection):
    """Coded concept (PS3.3 8.8).

    Attributes:
        value: Code Value.
        scheme: Coding Scheme Designator, such as DCM or 99HOSPITAL.
        meaning: Code Meaning.
    """

    value: ShortString
    scheme: ShortString
    meaning: LongString = "semiseg gateway"


class InputArchive(ConfigSection):
    """Archive from which the inputs of workitems are retrieved by WADO-RS.

    Attributes:
        url: DICOMweb root. A Retrieve URL of a workitem is used only if it is below this address.
        ae_titles: Retrieve AE Titles (0008,0054) in workitems that refer to this archive.
        token: File whose content is sent as bearer token.
    """

    url: Url
    ae_titles: tuple[AETitle, ...] = ()
    token: File | None = None


class WorklistStep(ConfigSection):
    """Workitems of one kind and their processing, given either by `rule`, or by `to` with `model` and `output_formats`.

    Attributes:
        label: Procedure Step Label (0074,1204) of the workitems, compared ignoring case; by default any label matches.
        code: Code in the Scheduled Workitem Code Sequence (0040,4018) of the workitems; by default any code matches.
        rule: Name of the rule that selects series among the inputs.
        model: Name of the server's model, for all image series among the inputs; None if a server has only one.
        output_formats: Output formats to request.
        to: Names of destinations.
    """

    former_keys: ClassVar[Mapping[str, str]] = {"forms": "output_formats"}

    label: LongString | None = None
    code: CodedConcept | None = None
    rule: str | None = None
    model: str | None = None
    output_formats: Annotated[tuple[FormatName, ...], Field(min_length=1)] = ("seg",)
    to: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.label is None and self.code is None:
            raise ValueError("give the `label` or the `code` of the workitems")
        if (self.rule is None) != bool(self.to):
            raise ValueError("give either a `rule`, or `to` (with `model` and `output_formats`)")
        if self.rule is not None and self.model is not None:
            raise ValueError("the rule determines the model; set `model` there")
        return self


class Worklist(ConfigSection):
    """UPS-RS origin server (PS3.18 11) whose workitems are claimed and performed.

    Attributes:
        name: Name that stands for a sender's AE title in rules and for the worklist in logs.
        url: Base address of the service, below which `workitems` is found.
        token: File whose content is sent as bearer token.
        headers: Additional header fields; for each one a file with its value, such as an API key.
        authority: File with the certificates of the authorities that the manager's certificate is verified against; by
            default those of the system.
        every_seconds: Time between two queries, and between two checks of a claimed workitem.
        connect_seconds: Time-out of a connection.
        answer_seconds: Time-out of a complete response.
        matching: Additional attributes that a workitem has to match, such as WorklistLabel.
        station: Code that identifies this gateway, written as the performed station. A workitem that is scheduled for
            stations is claimed only if this code is among them.
        requester: If True, the gateway's AE title is appended to `state` in the address, as dcm4chee-arc requires.
        events: If True, the gateway subscribes to the manager's events (WebSocket), so that it is notified of requests
            to cancel and of new workitems at once.
        parallel: Number of workitems that are claimed at the same time; others are left to other performers.
        fetch_hours: Time after which a workitem whose inputs cannot be retrieved is canceled.
        inputs: Archives from which inputs may be retrieved, in addition to those of `polls`.
        steps: Kinds of workitems to claim, with their processing.
    """

    name: AETitle = "WORKLIST"
    url: Url
    token: File | None = None
    headers: dict[str, File] = Field(default_factory=dict)
    authority: File | None = None
    every_seconds: Seconds = 30.0
    connect_seconds: Seconds = 10.0
    answer_seconds: Seconds = 60.0
    matching: dict[str, str] = Field(default_factory=dict)
    station: CodedConcept = CodedConcept(value="SEMISEG", scheme="99SEMISEG")
    requester: bool = False
    events: bool = False
    parallel: Count = 2
    fetch_hours: Seconds = 1.0
    inputs: tuple[InputArchive, ...] = ()
    steps: Annotated[tuple[WorklistStep, ...], Field(min_length=1)]


def worklists_error(
    worklists: Sequence[Worklist],
    rules: Sequence[str],
    destinations: Mapping[str, Sequence[FormatName]],
    *,
    archives: bool,
) -> str:
    """Validate worklists against the rest of the file.

    Args:
        worklists: Section of the file.
        rules: Names of the rules.
        destinations: Output formats that each destination accepts; empty if it accepts all.
        archives: True if there are `polls`, whose archives can provide inputs, too.

    Returns:
        Error message; "" if the worklists are valid.
    """
    names = [one.name for one in worklists]
    if twice := {name for name in names if names.count(name) > 1}:
        return f"two worklists are called {sorted(twice)[0]}; give each a `name` of its own"
    for one in worklists:
        if not one.inputs and not archives:
            return f"worklist {one.name}: list the archives of its inputs in `inputs`"
        for step in one.steps:
            if step.rule is not None and step.rule not in rules:
                return f"worklist {one.name}: there is no rule {step.rule}, only {', '.join(rules)}"
            for name in step.to:
                if name not in destinations:
                    return f"worklist {one.name}: there is no destination {name}, only {', '.join(destinations)}"
                if destinations[name] and not set(destinations[name]) & set(step.output_formats):
                    return f"worklist {one.name}: destination {name} accepts none of the `output_formats` of a step"
    return ""
