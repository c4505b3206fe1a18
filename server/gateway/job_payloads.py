"""Payloads of the gateway's jobs, which the queue stores as JSON and every module reads and writes as these types.

Fields have defaults where the queue of an earlier version may lack them. Fields of later versions are ignored.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from semiseg.errors import SemisegError
from server.gateway.conflicts import ConflictChoice
from server.gateway.job_kinds import DELIVER, FETCH, PURGE, SEGMENT, STUDY, WORKITEM
from server.jobs.job import QueuedJob


class UnreadablePayload(SemisegError):  # noqa: N818 - a state of a job
    """A payload lacks a field without which the job cannot be done."""


@dataclass(frozen=True, kw_only=True)
class JobPayload:
    """Fields that the payloads of all kinds have.

    Attributes:
        study: Name of the study, or of the claim of a workitem.
        tries: Number of failed attempts.
        waited: Sum of the delays after failed attempts, in seconds.
        trouble: Reason of the last failure, as a sentence; "" if there is none.
        held: True if other jobs of the kind fail for the same reason, and all wait for its end.
        again: Number of times that an operator had the work repeated.
    """

    study: str = ""
    tries: int = 0
    waited: float = 0.0
    trouble: str = ""
    held: bool = False
    again: int = 0

    @classmethod
    def from_job(cls, job: QueuedJob) -> Self:
        """Read the payload of a job.

        Raises:
            UnreadablePayload: A field without a default is missing.
        """
        try:
            return cls(**{name: value for name, value in job.payload.items() if name in cls.__dataclass_fields__})
        except TypeError:
            raise UnreadablePayload(
                f"The data of job {job.id} cannot be read; delete its study and send it again."
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the payload for the queue: the fields without a default, and those that differ from it."""
        values = ((one.name, getattr(self, one.name), one.default) for one in dataclasses.fields(self))
        return {name: value for name, value, default in values if default is dataclasses.MISSING or value != default}

    def after_failure(self, sentence: str, delay: float, *, held: bool | None = None) -> Self:
        """Return the payload of the next attempt.

        Delays are added up instead of comparing times, because the clock may be set and the gateway may be stopped.

        Args:
            sentence: Reason of the failure.
            delay: Delay of the next attempt in seconds.
            held: New value of :attr:`held`; None to keep it.
        """
        return dataclasses.replace(
            self,
            tries=self.tries + 1,
            waited=self.waited + delay,
            trouble=sentence,
            held=self.held if held is None else held,
        )

    def without_failures(self) -> Self:
        """Return the payload of a job that is restarted, without what describes its failures."""
        return dataclasses.replace(self, tries=0, waited=0.0, trouble="", held=False)

    def audit_fields(self) -> dict[str, Any]:
        """Return the fields for the audit log that say how often an operator had the work repeated."""
        return {"again": self.again} if self.again else {}


@dataclass(frozen=True, kw_only=True)
class FetchPayload(JobPayload):
    """A study to retrieve from a polled archive.

    Attributes:
        url: Address of the archive.
        uid: Study Instance UID.
    """

    url: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class StudyPayload(JobPayload):
    """A study to which the rules are applied.

    Attributes:
        why: Reason why the study is complete.
        decided: True if an operator decided that series with late instances are segmented.
        conflict: Decision of an operator on a conflict, which is carried out instead; None if there is none.
    """

    why: str = ""
    decided: bool = False
    conflict: ConflictChoice | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentPayload(JobPayload):
    """A scan to segment.

    Attributes:
        rule: Name of the rule that selected the scan.
        series: Name of the series, or of the study for a rule of whole studies.
        model: Name of the server's model; None for its only one.
        files: Names of the instances in the folder of the study.
        forms: Output formats to request.
        to: Output formats for each destination.
    """

    rule: str
    series: str
    model: str | None
    files: Sequence[str]
    forms: Sequence[str]
    to: Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class DeliverPayload(JobPayload):
    """A result to send to one destination.

    Attributes:
        rule: Name of the rule that selected the scan.
        of: Identifier of the `segment` job.
        files: Names of the result's files.
        to: Name of the destination.
        taken: Names of the files that the destination has confirmed.
        refused: Names of the files that it refused at the last attempt.
        refused_since: Time since when it has refused files, in Unix seconds; None if it has not.
    """

    rule: str = ""
    of: str
    files: Sequence[str]
    to: str
    taken: Sequence[str] = ()
    refused: Sequence[str] = ()
    refused_since: float | None = None

    def refused_text(self) -> str:
        """Return a sentence that says since when files have been refused; "" if none is refused."""
        if not self.refused_since or not self.refused:
            return ""
        return f"Refused since {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.refused_since))}. "

    def without_failures(self) -> Self:
        """Return the payload of a delivery that is restarted; confirmed files are not sent again."""
        return dataclasses.replace(super().without_failures(), refused=(), refused_since=None)


@dataclass(frozen=True, kw_only=True)
class WorkitemPayload(JobPayload):
    """A workitem whose inputs are retrieved.

    Attributes:
        worklist: Name of the worklist.
        step: Step of the worklist, as JSON.
        transaction: Transaction UID of the claim.
        inputs: Inputs, each as the fields of :class:`server.gateway.ups_workitem.WorkitemInput`.
        outputs: Names of the configured destinations that the workitem requests.
        outputs_elsewhere: True if the workitem also requests a destination that is not configured.
    """

    worklist: str
    step: str
    transaction: str
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[str] = ()
    outputs_elsewhere: bool = False


@dataclass(frozen=True, kw_only=True)
class PurgePayload(JobPayload):
    """A study to delete.

    Attributes:
        why: Reason for the deletion.
        fetch_again: True if the study's `fetch` jobs are deleted, too, so that an archive that still lists the study is
            asked for it again.
    """

    why: str
    fetch_again: bool = False


_TYPES: dict[str, type[JobPayload]] = {
    FETCH: FetchPayload,
    WORKITEM: WorkitemPayload,
    STUDY: StudyPayload,
    SEGMENT: SegmentPayload,
    DELIVER: DeliverPayload,
    PURGE: PurgePayload,
}


def payload_of(job: QueuedJob) -> JobPayload:
    """Read the payload of a job of any kind.

    Raises:
        UnreadablePayload: See :meth:`JobPayload.from_job`.
    """
    return _TYPES.get(job.queue, JobPayload).from_job(job)


def readable_payload_of(job: QueuedJob) -> JobPayload:
    """Read the payload of a job for the status; of one that cannot be read, only the fields that all payloads have."""
    try:
        return payload_of(job)
    except UnreadablePayload:
        return JobPayload.from_job(job)
