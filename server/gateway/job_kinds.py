"""Kinds of the gateway's jobs; their payloads are in :mod:`server.gateway.job_payloads`.

fetch     retrieves a study from an archive into the instance store
study     applies the rules to a study and creates a `segment` job for each routed series
segment   sends a scan to a server, writes its results to results/JOB/ and creates a `deliver` job for each destination
deliver   sends results to one archive
workitem  retrieves the inputs of a workitem of a worklist and creates its `segment` jobs (ups_inputs)
purge     deletes everything of one study
"""

from __future__ import annotations

RESULTS_FOLDER = "results"  # a folder for each job of the kind `segment`
JOB_KINDS = ("fetch", "workitem", "study", "segment", "deliver", "purge")
FETCH, WORKITEM, STUDY, SEGMENT, DELIVER, PURGE = JOB_KINDS
