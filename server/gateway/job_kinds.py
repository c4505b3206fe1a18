"""Kinds of the gateway's jobs, and the fields of their payloads that describe failures.

fetch     retrieves a study from an archive into the instance store
study     applies the rules to a study and creates a `segment` job for each routed series
segment   sends a scan to a server, writes its results to results/JOB/ and creates a `deliver` job for each destination
deliver   sends results to one archive
workitem  retrieves the inputs of a workitem of a worklist and creates its `segment` jobs (ups_inputs)
purge     deletes everything of one study
"""

from __future__ import annotations

from typing import Any

from server.jobs.job import QueuedJob

RESULTS_FOLDER = "results"  # a folder for each job of the kind `segment`
JOB_KINDS = ("fetch", "workitem", "study", "segment", "deliver", "purge")
FETCH, WORKITEM, STUDY, SEGMENT, DELIVER, PURGE = JOB_KINDS
# Fields of a job's payload that describe its failures; `held` is set if other jobs of its kind fail for the same
# reason.
FAILURE_FIELDS = ("tries", "waited", "trouble", "held")


def without_failures(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of a job that is restarted, without the fields that describe its failures."""
    return {name: value for name, value in payload.items() if name not in (*FAILURE_FIELDS, "refused", "refused_since")}


def repeat_field(job: QueuedJob) -> dict[str, Any]:
    """Return a field for the audit log: the number of times that an operator had the job's work repeated."""
    return {"again": job.payload["again"]} if job.payload.get("again") else {}
