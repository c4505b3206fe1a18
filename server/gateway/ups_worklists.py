"""The gateway as a performer of worklists over UPS-RS (DICOM PS3.18 11, PS3.4 annex CC; IHE AI Workflow for Imaging).

ups_config       the section `worklists` of gateway.yaml
ups_client       the requests, and what the answers mean
ups_events       events over WebSocket
ups_workitem     a workitem as the manager tells it
ups_selection      which workitems are claimed
ups_claims       what is claimed, on the disk
ups_performer    a thread for each worklist
ups_lifecycle    a claim from stage to stage
ups_inputs       the jobs of the kind `workitem`: inputs, whole or not at all, and orders
ups_progress     how far the queue is with a workitem
ups_attributes   what is written into a workitem
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

LONG_RUNNING_SECONDS = 3600.0  # after which a workitem in progress is shown as in trouble, whatever it waits for


class Worklists:
    """All worklists of the configuration.

    Attributes:
        claims: Claimed workitems.
        inputs: The work of the jobs of the kind `workitem`.
    """

    def __init__(self, context: GatewayContext) -> None:
        """Read what a former process had claimed; nobody is asked before :meth:`begin`."""
        self._context = context
        self.claims = Claims(context.config.state)
        self.inputs = WorkitemInputs(context)
        self._performers: list[WorklistPerformer] = []

    def start(self) -> None:
        """Ask the managers."""
        for one in self._context.config.worklists:
            self._performers.append(WorklistPerformer(self._context, one, self.claims))

    def close(self, seconds: float) -> None:
        """Ask nobody any more, and wait for so many seconds at most. Claims stay, and are gone on with."""
        for one in self._performers:
            one.stop()
        until = time.monotonic() + seconds
        for one in self._performers:
            one.close(max(0.0, until - time.monotonic()))

    def status(self) -> list[dict[str, Any]]:
        """What there is to see of each worklist."""
        return [one.status() for one in self._performers]

    def workitems(self) -> list[dict[str, Any]]:
        """The claimed workitems; ``trouble`` says what is wrong with one, "" where nothing is."""
        managers = {one["name"]: one["trouble"] for one in self.status()}
        found = []
        for claim in self.claims.all():
            one = claim_record(claim)
            if claim.worklist not in managers:
                one["trouble"] = (
                    f"The configuration has no worklist {claim.worklist} any more, so nobody can end the workitem; put "
                    "the worklist back, or have the manager cancel the workitem and delete the claim's file."
                )
            elif not one["trouble"] and managers[claim.worklist]:
                one["trouble"] = managers[claim.worklist]
            elif not one["trouble"] and time.time() - claim.since > LONG_RUNNING_SECONDS:
                one["trouble"] = f"It has been in progress for more than {LONG_RUNNING_SECONDS / 3600:g} h."
            found.append(one | {"why": one["trouble"] or one["why"]})
        return found

    def collect(self) -> Iterable[Metric]:
        """For Prometheus' library."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        there = self.workitems()
        claimed = GaugeMetricFamily(
            "semiseg_gateway_workitems", "Workitems that are claimed, by worklist", labels=["worklist"]
        )
        trouble = GaugeMetricFamily(
            "semiseg_gateway_workitems_in_trouble", "Workitems that do not go on, by worklist", labels=["worklist"]
        )
        well = GaugeMetricFamily("semiseg_gateway_worklist_up", "1 while workitems can be claimed", labels=["worklist"])
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
