"""The kinds of the gateway's jobs, and what their payloads hold of failures.

fetch     an archive's study into the instance store
study     which series goes where; a `segment` job for each order
segment   a scan to a server; its results to results/JOB/; a `deliver` job for each destination
deliver   results to one archive
workitem  the inputs of a workitem of a worklist, and its `segment` jobs (ups_inputs)
purge     everything of one study
"""

from __future__ import annotations

from typing import Any

from server.jobs.job import QueuedJob

RESULTS_FOLDER = "results"  # a folder for each job of the kind `segment`
JOB_KINDS = ("fetch", "workitem", "study", "segment", "deliver", "purge")
FETCH, WORKITEM, STUDY, SEGMENT, DELIVER, PURGE = JOB_KINDS
# What a job's payload holds of its failures; `held` where others of its kind fail for the same reason.
FAILURE_FIELDS = ("tries", "waited", "trouble", "held")


def without_failures(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of a job that begins anew, without what it had failed of."""
    return {name: value for name, value in payload.items() if name not in (*FAILURE_FIELDS, "refused", "refused_since")}


def repeat_field(job: QueuedJob) -> dict[str, Any]:
    """For the audit log, how often an operator had the job's work done again."""
    return {"again": job.payload["again"]} if job.payload.get("again") else {}
