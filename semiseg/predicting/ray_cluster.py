"""Segmentation of many scans at a time on a Ray cluster, with one model per worker; workers that die are restarted.

Every node needs the same semiseg, and the scans, the bundle and the output folder under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from semiseg.errors import InputError
from semiseg.predicting.predictor import Predictor
from semiseg.predicting.scan_list import ScanItem, segment_item

RETRIES = 3  # retries of a scan whose worker died; limited, because the scan itself may be the reason


def segment_on_cluster(
    open_model: Callable[[], Predictor],
    items: Sequence[ScanItem],
    *,
    address: str | None,
    workers: int | None,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Segment scans on a Ray cluster and yield the outcome of each, in the order in which they end.

    Args:
        open_model: Function that opens the model; called once on each worker.
        items: Scans to segment.
        address: Address of a running cluster (``auto`` finds the one of this machine); with None a temporary cluster of
            this machine's processors is started.
        workers: Number of scans at a time; by default as many as the cluster has processors for.
        threads: Number of processors per worker.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or it has too few processors for a worker.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    try:
        import ray
    except ImportError:
        raise InputError("Predicting on a cluster needs Ray, which is missing: install the `ray` extra.") from None
    try:
        ray.init(address=address, include_dashboard=False if address is None else None, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"There is no Ray cluster at {address} ({str(error).splitlines()[0]}).") from None
    try:
        places = int(ray.cluster_resources().get("CPU", 0)) // threads
        if places < 1:
            raise InputError(f"The cluster has no worker with {threads} processors; use fewer --threads.")
        worker = ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=RETRIES)(_Worker)
        crew = [worker.remote(open_model) for _ in range(min(workers or places, len(items)))]
        waiting = list(reversed(items))
        running = {one.segment.remote(waiting.pop()): one for one in crew}
        asked = dict(zip(running, items, strict=False))
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            one, item = running.pop(ended), asked.pop(ended)
            try:
                yield ray.get(ended)
            except ray.exceptions.RayError as error:
                told = f"The worker died {RETRIES + 1} times during this scan ({type(error).__name__})."
                yield {"scan": str(item.scan), "out": item.out.name, "state": "failed", "error": told}
            if waiting:
                following = waiting.pop()
                promise = one.segment.remote(following)
                running[promise], asked[promise] = one, following
    finally:
        ray.shutdown()


class _Worker:
    """Ray actor that keeps the model open."""

    def __init__(self, open_model: Callable[[], Predictor]) -> None:
        self._model = open_model()

    def segment(self, item: ScanItem) -> dict[str, Any]:
        return segment_item(self._model, item) | {"worker": os.getpid()}
