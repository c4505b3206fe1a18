"""Inputs of a claimed workitem: retrieved completely or not at all, with a `segment` job for each series that matches.

They are stored in a folder of their own among the studies, named after the claim. The rules for studies that are sent
are not applied to them, and storage commitment ignores them. Retention and `purge` treat the folder as a study.

    studies/CLAIM/workitem           an empty file: the folder holds inputs of a workitem
    studies/CLAIM/in-INSTANCE.dcm    INSTANCE is a keyed hash of the UID
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiseg.system.durable_files import sync
from semiseg.volumes.dicom_index import index_files
from server.gateway.backoff import retry_delay
from server.gateway.config import GatewayConfig, PolledArchive, RoutingRule
from server.gateway.context import GatewayContext
from server.gateway.dicomweb import create_dicomweb_client
from server.gateway.instance_store import InstanceIdentity
from server.gateway.job_kinds import SEGMENT
from server.gateway.job_payloads import WorkitemPayload
from server.gateway.retrieval import (
    ExpectedInstances,
    FetchError,
    ReceivingFolder,
    fetch_errors,
    identify_part,
    query_expected_instances,
    retrieve_parts,
)
from server.gateway.routing import apply_rules, route_series
from server.gateway.stages.route import decision_records
from server.gateway.ups_attributes import BAD_TYPE, INCOMPLETE, UNSPECIFIED
from server.gateway.ups_claims import WORKITEM_MARK
from server.gateway.ups_config import Worklist, WorklistStep
from server.gateway.ups_workitem import WorkitemInput, input_archives
from server.jobs.worker import JobFailed, JobPostponed, RunningJob

_PREFIX = "in-"


class WorkitemInputs:
    """Handles the jobs of the kind `workitem`."""

    def __init__(self, context: GatewayContext) -> None:
        """Configure the handler; nothing is retrieved."""
        self._context = context
        self._config, self._instance_store, self._audit = context.config, context.instance_store, context.audit

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Retrieve the inputs, and add a `segment` job for each series that matches to the queue."""
        item = WorkitemPayload.from_job(task.job)
        worklist = next((one for one in self._config.worklists if one.name == item.worklist), None)
        if worklist is None or step_index(worklist, item.step) is None:
            raise JobFailed("The configuration does not have this step of the worklist any more.", code=UNSPECIFIED)
        try:
            self._fetch(task, item, worklist)
        except FetchError as error:
            raise self._again(task, item, worklist, str(error)) from None
        return self._decide(item, worklist)

    def _fetch(self, task: RunningJob, item: WorkitemPayload, worklist: Worklist) -> None:
        archives = {poll.url: poll for poll, _ in input_archives(self._config, worklist)}
        folder = self._instance_store.studies / item.study
        folder.mkdir(exist_ok=True)
        (folder / WORKITEM_MARK).touch()
        count = 0
        for number, given in enumerate(item.inputs):
            one = WorkitemInput(given["archive"], given["study"], given["series"], tuple(given["instances"]))
            if one.archive not in archives:
                raise JobFailed("The configuration does not have the archive of the inputs any more.", code=UNSPECIFIED)
            task.progress = {"inputs": number, "of": len(item.inputs)}
            if one.instances and all((folder / self._file_of(uid)).exists() for uid in one.instances):
                count += len(one.instances)
                continue
            count += self._fetch_one(archives[one.archive], one, folder, task.cancelled)
        sync(folder)
        self._audit.record("inputs fetched", workitem=item.study, job=task.job.id, instances=count)

    def _fetch_one(self, poll: PolledArchive, one: WorkitemInput, folder: Path, cancelled: Callable[[], bool]) -> int:
        """Retrieve and store the instances of one input.

        Returns:
            Number of instances.

        Raises:
            FetchError: The archive does not return all instances, or the disk is full.
        """
        wanted = frozenset(one.instances)
        with fetch_errors(poll.url, "inputs"):
            # The expected instances are those that the workitem lists, or otherwise those that the archive reports.
            announced = (
                ExpectedInstances(None, {}, wanted)
                if wanted
                else query_expected_instances(create_dicomweb_client(poll.url, poll.token), one.study, one.series)
            )
            place = ReceivingFolder.of_store(self._instance_store, cancelled)
            with retrieve_parts(poll.url, poll.token, one.study, place, one.series) as files:
                found = [(file, *identify_part(self._instance_store, file, one.study, poll)) for file in files]
                found = [row for row in found if not wanted or row[1].instance in wanted]
                if missing := announced.missing({identity.instance: identity.series for _, identity, _ in found}):
                    raise FetchError(f"{poll.url} returned only part of the inputs: {missing}")
                for file, identity, wrong in found:
                    if wrong:
                        raise FetchError(f"An input from {poll.url} was refused: {wrong}")
                    self._keep(file, identity, folder)
        return len(found)

    def _keep(self, file: Path, identity: InstanceIdentity, folder: Path) -> None:
        sync(file)
        with suppress(FileExistsError):
            os.link(file, folder / self._file_of(identity.instance))

    def _file_of(self, uid: str) -> str:
        return f"{_PREFIX}{self._context.hasher.hash(uid)}.dcm"

    def _decide(self, item: WorkitemPayload, worklist: Worklist) -> dict[str, Any]:
        name, number = item.study, step_index(worklist, item.step)
        assert number is not None
        rule = self._rule(item, worklist, number)
        objects, _ = index_files(self._instance_store.instances(name))
        decisions = apply_rules(objects, [worklist.name], [rule])
        put = []
        for order in route_series(decisions, self._config.model_copy(update={"rules": (rule,)})):
            payload = order.payload(name, self._context.series_name(order.series))
            # A workitem that is scheduled again under the same UID is performed again.
            key = f"{order.key(name)} {item.transaction}"
            put.append(self._context.queue.put(SEGMENT, payload.to_json(), key=key, owner=name).id)
        told, quiet = decision_records(decisions, self._context.series_name)
        self._audit.record("decided", workitem=name, instances=len(objects), decisions=quiet, jobs=put)
        if not put:
            raise JobFailed(
                f"None of the {len(decisions)} series among the inputs matches the rule {rule.name}.",
                code=BAD_TYPE,
                decisions=told,
            )
        self._context.wake(SEGMENT)
        return {"instances": len(objects), "decisions": told, "jobs": put}

    def _rule(self, item: WorkitemPayload, worklist: Worklist, number: int) -> RoutingRule:
        """Return the step's rule with the requested destinations of the workitem that are configured.

        The destinations of the step are added if the workitem also requests one that is not configured (PS3.3 table
        C.30.2-1 allows a default).
        """
        rule = rule_for_step(self._config, worklist, number)
        asked = [name for name in item.outputs if name in self._config.destinations]
        if not asked:
            return rule
        more = rule.to if item.outputs_elsewhere else ()
        return rule.model_copy(update={"to": tuple(dict.fromkeys((*asked, *more)))})

    def _again(
        self, task: RunningJob, item: WorkitemPayload, worklist: Worklist, sentence: str
    ) -> JobPostponed | JobFailed:
        tries, seconds = item.tries + 1, worklist.fetch_hours * 3600
        if item.waited >= seconds:
            return JobFailed(f"The inputs could not be retrieved in {tries} attempts. {sentence}", code=INCOMPLETE)
        # The last attempt is made when the time has elapsed, and not before.
        delay = min(retry_delay(tries, self._config.retry), max(1.0, seconds - item.waited))
        fields = {"workitem": item.study, "job": task.job.id, "kind": task.job.queue, "tries": tries}
        self._audit.record("failed", **fields, why=sentence, again_in=round(delay, 1))
        return JobPostponed(sentence, after=delay, payload=item.after_failure(sentence, delay).to_json())


def step_index(worklist: Worklist, written: str) -> int | None:
    """Return the index of a step that is given as JSON; None if the configuration does not have it any more."""
    try:
        # An earlier version may have written it: no warning, since the operator cannot change it.
        present = {WorklistStep.former_keys.get(key, key): value for key, value in json.loads(written).items()}
        wanted = WorklistStep.model_validate(present)
    except (ValueError, AttributeError):  # pydantic's error is a ValueError
        return None
    return next((number for number, step in enumerate(worklist.steps) if step == wanted), None)


def rule_for_step(config: GatewayConfig, worklist: Worklist, number: int) -> RoutingRule:
    """Return the rule of a step: the one that it names, or one that matches every image series among the inputs."""
    step = worklist.steps[number]
    if step.rule is not None:
        return next(rule for rule in config.rules if rule.name == step.rule)
    return RoutingRule(
        name=f"{worklist.name} step {number + 1}", model=step.model, output_formats=step.output_formats, to=step.to
    )
