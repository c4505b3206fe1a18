"""50 jobs, and 50 times SIGKILL at seeded random moments: every accepted job ends with one result, the right one.

python docs/results/server/kills.py [KILLS] [JOBS]
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time

import httpx
import nibabel as nib
import numpy as np
from started import bundle_in, folder, kill, machine, start, tell

from tests.bundles import scan_array


def main(kills: int = 50, jobs: int = 50) -> None:
    rng = np.random.default_rng(20261122)
    tell(machine=machine(), kills=kills, jobs=jobs)
    since = time.monotonic()
    with folder() as where:
        bundle = bundle_in(where, work=3)
        scans = [scan(seed) for seed in range(jobs)]
        undisturbed = {}
        server = start(bundle, where / "alone")
        for number, content in enumerate(scans):
            answer = server.segment(content, fields={"answer": "nifti"})
            undisturbed[number] = hashlib.sha256(answer.content).hexdigest()
        server.stop()
        accepted: dict[str, int] = {}
        waiting = list(range(jobs))
        options = ("--state", str(where / "state"), "--parallel", "2")
        for number in range(kills):
            server = start(bundle, where / f"p{number}", *options)
            killer = threading.Timer(float(rng.uniform(0.05, 2.5)), server.process.kill)
            killer.start()
            share = -(-jobs // kills)
            for _ in range(share):
                if waiting:
                    send(server, scans, waiting.pop(0), waiting, accepted)
            killer.join()
            kill(server)
        server = start(bundle, where / "last", *options)
        while waiting:
            send(server, scans, waiting.pop(0), waiting, accepted)
        ends = {name: end_of(server, name) for name in accepted}
        wrong = [name for name, number in accepted.items() if result_of(server, name) != undisturbed[number]]
        kept = {path.name for path in (where / "state" / "results").iterdir()}
        left = [path.name for path in (where / "state" / "uploads").iterdir()]
        tell(
            accepted=len(accepted),
            acknowledged_twice_because_the_answer_was_cut_off=len(kept) - len(accepted),
            done=sum(job["state"] == "done" for job in ends.values()),
            lost=len(set(accepted) - kept),
            wrong=len(wrong),
            uploads_left=len(left),
            begun=sorted((job["attempts"] for job in ends.values()), reverse=True),
            seconds=round(time.monotonic() - since),
        )
        server.stop()
        good = all(job["state"] == "done" for job in ends.values()) and not wrong and not left and set(accepted) <= kept
    sys.exit(0 if good and len(accepted) == jobs else 1)


def scan(seed: int) -> bytes:
    shape = (40 + 8 * (seed % 3), 40, 32 + 16 * (seed % 2))
    return nib.Nifti1Image(scan_array(shape, seed), np.eye(4)).to_bytes()


def send(server, scans: list[bytes], number: int, waiting: list[int], accepted: dict[str, int]) -> None:
    """Post a job; one that was not acknowledged is sent again later, under the same key."""
    with contextlib.suppress(httpx.TransportError):
        key = {"Idempotency-Key": f"scan {number}"}
        files = {"scan": scans[number]}
        answer = server.http.post(f"{server.url}/jobs", files=files, data={"answer": "nifti"}, headers=key)
        assert answer.status_code == 202, answer.text
        accepted[answer.json()["id"]] = number
        return
    waiting.append(number)


def end_of(server, name: str) -> dict:
    while (job := server.get(f"/jobs/{name}").json())["state"] not in ("done", "failed", "cancelled"):
        time.sleep(0.1)
    return job


def result_of(server, name: str) -> str:
    return hashlib.sha256(server.get(f"/jobs/{name}/result").content).hexdigest()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
