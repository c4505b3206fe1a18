"""Output of `semiseg gateway status` and `semiseg gateway show`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from server.gateway.job_kinds import STUDY, WORKITEM
from server.gateway.status_document import job_record
from server.gateway.status_page import result_line
from server.gateway.ups_claims import claim_line
from server.jobs.queue import QueuedJob


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the lines of `status`: problems first, then studies, peers and jobs."""
    problems = document["problems"]
    found = [f"{len(problems)} thing(s) need an operator:"] if problems else ["All is well."]
    for one in problems:
        found += [f"  {one['what']}", f"    {one['do']}"]
    found.append(f"{document['studies']} studies are stored; {document['open_studies']} of them are arriving:")
    for study in document["study_list"]:
        found += [f"  {line}" for line in study_lines(study)]
    for kind, key in (
        ("server", "servers"),
        ("destination", "destinations"),
        ("archive", "polls"),
        ("worklist", "worklists"),
    ):
        found += [
            f"{kind} {one.get('name') or one['url']}: {one['trouble'] or 'no known problem'}" for one in document[key]
        ]
    if document["workitems"]:
        found.append(f"{len(document['workitems'])} claimed workitem(s):")
        found += [f"  {claim_line(one)}" for one in document["workitems"]]
    for one in document["worklists"]:
        found += [f"  workitem {item['workitem']} is not claimed: {item['why']}" for item in one["passed_over"]]
    for kind, states in document["jobs"].items():
        found.append(f"{kind:8} " + "  ".join(f"{state} {count}" for state, count in states.items()))
    for what, jobs in (
        ("job(s) to be retried", document["held_up"]),
        ("dead letter(s)", document["dead_letters"]),
    ):
        found.append(f"{len(jobs)} {what}" + (":" if jobs else ""))
        for one in jobs:
            since = f"refused since {_day(one['refused_since'])}: " if one["refused_since"] else ""
            found.append(f"  {one['id']}  {one['kind']:8} study {one['study']}  {since}{one['error']}")
    return found


def study_lines(study: Mapping[str, Any]) -> list[str]:
    """Return the lines of a study: instances, decision, results and problem."""
    senders = ", ".join(study["from"]) or "no sender"
    came = f", the last one at {_day(study['came'])}" if study["came"] else ""
    found = [f"Study {study['study']}: {study['stage']}"]
    found.append(f"  {study['instances']} instances in {study['series']} series from {senders}{came}")
    if study["decided"]:
        found.append(f"  {study['decided']}")
        found += [f"    {reason}" for reason in study["reasons"]]
    found += [f"  {result_line(result)}" for result in study["results"]]
    if study["trouble"]:
        found += [f"  ! {study['trouble']}", f"    {study['do']}"]
    return found


def decision_lines(jobs: Sequence[QueuedJob]) -> list[str]:
    """Return the last decision of the rules on each series, with the full reasons."""
    ended = [job for job in jobs if job.queue in (STUDY, WORKITEM) and "decisions" in job.result]
    if not ended:
        return []
    return [
        f"  {'+' if one['fits'] else '-'} series {one['series']}, rule {one['rule']}: {one['reason']}"
        for one in ended[-1].result["decisions"]
    ]


def job_line(job: QueuedJob) -> str:
    """Return one line for a job."""
    one = job_record(job)
    error = f"  {one['error']}" if one["error"] else ""
    return f"{_day(job.created)}  {job.id}  {job.queue:8} {job.state:9} {one['rule']} {', '.join(one['to'])}{error}"


def job_text(job: QueuedJob) -> str:
    """Return everything about a job, as JSON."""
    one: dict[str, Any] = job_record(job)
    one["created"], one["changed"] = _day(job.created), _day(job.changed)
    one["result"] = job.result
    return json.dumps(one, indent=2)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
