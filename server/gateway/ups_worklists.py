"""The gateway as a performer of worklists over UPS-RS (DICOM PS3.18 11, PS3.4 Annex CC; IHE AI Workflow for Imaging).

ups_config       section `worklists` of gateway.yaml
ups_client       requests to the manager and their responses
ups_events       events over WebSocket
ups_workitem     a workitem as the manager describes it
ups_selection    selection of the workitems to claim
ups_claims       claims on the disk
ups_performer    the thread of a worklist
ups_lifecycle    stages of a claim
ups_inputs       jobs of the kind `workitem`: retrieve all inputs and create `segment` jobs
ups_progress     progress of a workitem's jobs in the queue
ups_attributes   attributes that are written into a workitem
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from server.gateway.context import GatewayContext
from server.gateway.ups_claims import Claims, claim_record
from server.gateway.ups_inputs import WorkitemInputs
from server.gateway.ups_performer import WorklistPerformer

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

LONG_RUNNING_SECONDS = 3600.0  # after this time, a workitem in progress is shown as a problem


class Worklists:
    """All worklists of the configuration.

    Attributes:
        claims: Claimed workitems.
        inputs: Handler of the jobs of the kind `workitem`.
    """

    def __init__(self, context: GatewayContext) -> None:
        """Read the claims of a former process; no manager is contacted before :meth:`start`."""
        self._context = context
        self.claims = Claims(context.config.state)
        self.inputs = WorkitemInputs(context)
        self._performers: list[WorklistPerformer] = []

    def start(self) -> None:
        """Start a performer for each worklist."""
        for one in self._context.config.worklists:
            self._performers.append(WorklistPerformer(self._context, one, self.claims))

    def close(self, seconds: float) -> None:
        """Stop the performers, and wait for at most ``seconds``. Claims stay and are continued after the next start."""
        for one in self._performers:
            one.stop()
        until = time.monotonic() + seconds
        for one in self._performers:
            one.close(max(0.0, until - time.monotonic()))

    def status(self) -> list[dict[str, Any]]:
        """Return the status of each worklist."""
        return [one.status() for one in self._performers]

    def workitems(self) -> list[dict[str, Any]]:
        """Return the claimed workitems; ``trouble`` describes the problem of each one, "" if there is none."""
        managers = {one["name"]: one["trouble"] for one in self.status()}
        found = []
        for claim in self.claims.all():
            one = claim_record(claim)
            if claim.worklist not in managers:
                one["trouble"] = (
                    f"The configuration has no worklist {claim.worklist} any more, so the workitem cannot be ended; "
                    "restore the worklist, or have the manager cancel the workitem and delete the file of the claim."
                )
            elif not one["trouble"] and managers[claim.worklist]:
                one["trouble"] = managers[claim.worklist]
            elif not one["trouble"] and time.time() - claim.since > LONG_RUNNING_SECONDS:
                one["trouble"] = f"It has been in progress for more than {LONG_RUNNING_SECONDS / 3600:g} h."
            found.append(one | {"why": one["trouble"] or one["why"]})
        return found

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of the worklists; called by the Prometheus client library."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        there = self.workitems()
        claimed = GaugeMetricFamily(
            "semiseg_gateway_workitems", "Workitems that are claimed, by worklist", labels=["worklist"]
        )
        trouble = GaugeMetricFamily(
            "semiseg_gateway_workitems_in_trouble", "Claimed workitems with a problem, by worklist", labels=["worklist"]
        )
        well = GaugeMetricFamily(
            "semiseg_gateway_worklist_up", "1 if workitems can be claimed, otherwise 0", labels=["worklist"]
        )
        ends = CounterMetricFamily(
            "semiseg_gateway_workitems_ended", "Workitems by worklist and end", labels=["worklist", "end"]
        )
        for one in self.status():
            mine = [item for item in there if item["worklist"] == one["name"]]
            claimed.add_metric([one["name"]], float(len(mine)))
            trouble.add_metric([one["name"]], float(sum(bool(item["trouble"]) for item in mine)))
            well.add_metric([one["name"]], float(not one["trouble"]))
            for end, count in sorted(one["ends"].items()):
                ends.add_metric([one["name"], end], float(count))
        return (claimed, trouble, well, ends)
