"""Many scans at a time on a Ray cluster: a model on each worker, and a worker that dies is made anew.

Every node has the same semiseg installed and sees the scans, the bundle and the output folder under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from semiseg.errors import InputError
from semiseg.predicting.predictor import Predictor
from semiseg.predicting.scan_list import ScanItem, segment_item

RETRIES = 3  # of a scan whose worker died; it may be what kills it


def segment_on_cluster(
    open_model: Callable[[], Predictor],
    items: Sequence[ScanItem],
    *,
    address: str | None,
    workers: int | None,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """The outcome of each scan, in the order in which they end.

    Args:
        open_model: opens the model; called once on each worker.
        items: the scans.
        address: of a cluster that runs (``auto`` finds the one of this machine); None makes one of this machine's
            processors, for as long as it is needed.
        workers: how many scans at a time; as many as the cluster has processors for by default.
        threads: processors that each worker takes.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or it has not a single place.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to Ray's makers
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
            raise InputError(f"The cluster has no worker with {threads} processors; ask for fewer --threads.")
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
                told = f"Its worker died {RETRIES + 1} times on it ({type(error).__name__})."
                yield {"scan": str(item.scan), "out": item.out.name, "state": "failed", "error": told}
            if waiting:
                following = waiting.pop()
                promise = one.segment.remote(following)
                running[promise], asked[promise] = one, following
    finally:
        ray.shutdown()


class _Worker:
    """Has the model open."""

    def __init__(self, open_model: Callable[[], Predictor]) -> None:
        self._model = open_model()

    def segment(self, item: ScanItem) -> dict[str, Any]:
        return segment_item(self._model, item) | {"worker": os.getpid()}
