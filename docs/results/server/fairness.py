"""Waiting times of short requests while a long request and a queue of jobs keep a server busy.

python docs/results/server/fairness.py [REQUESTS]

The server has two places. One is held for about 40 s by one request, the other is wanted by a queue of jobs of about
3 s each; meanwhile short requests come from other callers. What a request waits is what it takes from its last byte
sent to its answer, without the stages that the server names in Server-Timing.
"""

from __future__ import annotations

import sys
import threading
import time

import httpx
import nibabel as nib
import numpy as np
from started import bundle_in, folder, machine, start, tell

from tests.bundles import scan_array, scan_without_air

PLACES, JOB, LONG = 2, 3.0, 40.0  # places, and seconds of a job and of the long request
WINDOW, HALF = 32, 16  # the sliding window's edge and step in voxels


def main(requests: int = 20) -> None:
    tell(machine=machine(), places=PLACES, job_seconds=JOB, long_request_seconds=LONG, requests=requests)
    with folder() as where:
        keys = {"SEMISEG_API_KEYS": ",".join(f"{name} {key_of(name)}" for name in ("long", "queue", "short"))}
        server = start(
            bundle_in(where, work=6),
            where,
            *("--state", str(where / "state"), "--parallel", str(PLACES), "--per-client", "32", "--waiting", "32"),
            environ=keys,
        )
        http = httpx.Client(timeout=600, trust_env=False)
        with http:
            each = window_seconds(http, server.url)
            jobs = [
                post(http, server.url, "jobs", scan_of(JOB / each), "queue").json()["id"]
                for _ in range(int(LONG / JOB * 2))
            ]
            long = threading.Thread(
                target=lambda: post(http, server.url, "segment", scan_of(LONG / each), "long"), daemon=True
            )
            long.start()
            time.sleep(JOB)
            since, waited = time.monotonic(), []
            short = nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4)).to_bytes()
            gaps = np.random.default_rng(0).uniform(0.2, 1.8, requests)
            threads = [
                threading.Thread(target=lambda: waited.append(waiting_of(http, server.url, short)))
                for _ in range(requests)
            ]
            for thread, gap in zip(threads, gaps, strict=True):
                time.sleep(float(gap))
                thread.start()
            for thread in threads:
                thread.join()
            alive = long.is_alive()
            ended = sum(
                http.get(f"{server.url}/jobs/{job}", headers=key("queue")).json()["state"] == "done" for job in jobs
            )
            tell(
                window_seconds=round(each, 3),
                seconds=round(time.monotonic() - since, 1),
                long_request_still_ran=alive,
                jobs_done_meanwhile=ended,
                waited_seconds={f"p{q}": round(float(np.percentile(waited, q)), 1) for q in (10, 50, 90, 100)},
            )
        server.stop()


def key_of(name: str) -> str:
    return f"{name}-0123456789-abcdefghij"


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_of(name)}"}


def post(http: httpx.Client, url: str, path: str, scan: bytes, name: str) -> httpx.Response:
    answer = http.post(f"{url}/{path}", files={"scan": scan}, headers=key(name))
    assert answer.status_code in (200, 202), answer.text
    return answer


def scan_of(windows: float) -> bytes:
    """A scan without air that takes about so many windows: one of them wide, and as long as it has to be."""
    length = WINDOW + HALF * max(0, round(windows) - 1)
    return nib.Nifti1Image(scan_without_air((WINDOW, WINDOW, length)), np.eye(4)).to_bytes()


def window_seconds(http: httpx.Client, url: str) -> float:
    """Seconds of a window while both places are taken, as they are in what follows."""
    seconds: list[float] = []

    def one() -> None:
        answer = post(http, url, "segment", scan_of(20), "long")
        seconds.append(stages(answer)["network"] / int(answer.headers["x-semiseg-windows"]))

    threads = [threading.Thread(target=one) for _ in range(PLACES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(np.mean(seconds))


def waiting_of(http: httpx.Client, url: str, scan: bytes) -> float:
    since = time.monotonic()
    answer = post(http, url, "segment", scan, "short")
    return time.monotonic() - since - sum(stages(answer).values())


def stages(answer: httpx.Response) -> dict[str, float]:
    parts = (part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    return {name: float(milliseconds) / 1000 for name, milliseconds in parts}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
