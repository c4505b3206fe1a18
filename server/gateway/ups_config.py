"""The section `worklists` of gateway.yaml: UPS-RS managers, and what is done for which of their workitems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from server.gateway.config_types import AETitle, ConfigSection, Count, File, OutputFormat, Seconds, Url

ShortString = Annotated[str, Field(min_length=1, max_length=16)]  # VR SH
LongString = Annotated[str, Field(min_length=1, max_length=64)]  # VR LO


class CodedConcept(ConfigSection):
    """A coded concept (PS3.3 8.8).

    Attributes:
        value: Code Value.
        scheme: Coding Scheme Designator, such as DCM or 99HOSPITAL.
        meaning: Code Meaning.
    """

    value: ShortString
    scheme: ShortString
    meaning: LongString = "semiseg gateway"


class InputArchive(ConfigSection):
    """An archive from which the inputs of workitems are fetched by WADO-RS.

    Attributes:
        url: DICOMweb root. A Retrieve URL of a workitem is used only if it lies below this address.
        ae_titles: Retrieve AE Titles (0008,0054) in workitems that stand for this archive.
        token: File whose content is sent as bearer token.
    """

    url: Url
    ae_titles: tuple[AETitle, ...] = ()
    token: File | None = None


class WorklistStep(ConfigSection):
    """Workitems of one kind, and what is done for them. Either `rule`, or `to` with `model` and `forms`.

    Attributes:
        label: Procedure Step Label (0074,1204) of the workitems, compared without regard to case; any when it is not
            given.
        code: Code in the Scheduled Workitem Code Sequence (0040,4018) of the workitems; any when it is not given.
        rule: Name of the rule by which series among the inputs are chosen.
        model: Name of the server's model, for all image series among the inputs; None where a server has only one.
        forms: Output formats.
        to: Names of destinations.
    """

    label: LongString | None = None
    code: CodedConcept | None = None
    rule: str | None = None
    model: str | None = None
    forms: Annotated[tuple[OutputFormat, ...], Field(min_length=1)] = ("seg",)
    to: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.label is None and self.code is None:
            raise ValueError("name the `label` or the `code` of the workitems")
        if (self.rule is None) != bool(self.to):
            raise ValueError("name a `rule`, or say `to` (and `model`, `forms`); one of the two")
        if self.rule is not None and self.model is not None:
            raise ValueError("the rule names the model; write `model` there")
        return self


class Worklist(ConfigSection):
    """A UPS-RS origin server (PS3.18 11) whose workitems are claimed and performed.

    Attributes:
        name: Name that stands for a sender's AE title in rules and for the worklist in logs.
        url: Address below which `workitems` lies.
        token: File whose content is sent as bearer token.
        headers: Further header fields; for each one a file with its value, such as an API key.
        authority: File with the certificates against which the manager's is checked; those of the system when it is
            not given.
        every_seconds: Time from one query to the next; claimed workitems are looked at as often.
        connect_seconds: Time-out of a connection.
        answer_seconds: Time-out of a whole answer.
        matching: Further attributes that a workitem has to match, such as WorklistLabel.
        station: Code that names this gateway: written as the performed station. A workitem that is scheduled for
            stations is claimed only if it names this one.
        requester: True: the gateway's AE title follows `state` in the address, as dcm4chee-arc wants it.
        events: True: the gateway subscribes to the manager's events (WebSocket), so that it hears of requests to cancel
            and of new workitems at once.
        parallel: Number of workitems that are claimed at the same time; others are left to other performers.
        fetch_hours: Time after which a workitem whose inputs cannot be fetched is canceled.
        inputs: Archives from which inputs may be fetched, beside those of `polls`.
        steps: Kinds of workitems that are claimed, and the work that is done for each.
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
    destinations: Mapping[str, Sequence[OutputFormat]],
    *,
    archives: bool,
) -> str:
    """What is wrong with worklists in relation to the rest of the file; "" where nothing is.

    Args:
        worklists: The section.
        rules: Names of the rules.
        destinations: Output formats that each destination takes; none for all.
        archives: True if there are `polls`, whose archives give inputs, too.
    """
    names = [one.name for one in worklists]
    if twice := {name for name in names if names.count(name) > 1}:
        return f"two worklists are called {sorted(twice)[0]}; give each a `name` of its own"
    for one in worklists:
        if not one.inputs and not archives:
            return f"worklist {one.name}: name the archives of its inputs in `inputs`"
        for step in one.steps:
            if step.rule is not None and step.rule not in rules:
                return f"worklist {one.name}: there is no rule {step.rule}, only {', '.join(rules)}"
            for name in step.to:
                if name not in destinations:
                    return f"worklist {one.name}: there is no destination {name}, only {', '.join(destinations)}"
                if destinations[name] and not set(destinations[name]) & set(step.forms):
                    return f"worklist {one.name}: destination {name} takes none of the forms of a step"
    return ""
