"""32 clients at once with scans of mixed size: nothing lost, every mask the one computed alone, /livez within a second.

python docs/results/server/crowd.py [SECONDS] [CLIENTS]
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections import Counter

import httpx
import nibabel as nib
import numpy as np
from started import bundle_in, folder, machine, resident, start, tell

from tests.bundles import scan_array

SHAPES = [(24, 20, 16), (40, 36, 32), (64, 64, 40), (96, 80, 64), (128, 128, 48)]


def main(seconds: int = 600, clients: int = 32) -> None:
    tell(machine=machine(), seconds=seconds, clients=clients, shapes=SHAPES)
    with folder() as where:
        options = ("--parallel", "2", "--waiting", str(clients), "--per-client", str(clients))
        server = start(bundle_in(where, work=2), where, *options)
        scans = [nib.Nifti1Image(scan_array(shape, k), np.eye(4)).to_bytes() for k, shape in enumerate(SHAPES * 2)]
        alone = [digest(server.segment(scan)) for scan in scans]
        before, peak = resident(server), 0.0
        until = time.monotonic() + seconds
        outcomes: Counter[str] = Counter()
        slowest = {"livez": 0.0, "segment": 0.0}
        lock = threading.Lock()

        def one(number: int) -> None:
            rng = np.random.default_rng(number)
            with httpx.Client(timeout=600, trust_env=False) as http:
                while time.monotonic() < until:
                    k = int(rng.integers(len(scans)))
                    since = time.monotonic()
                    try:
                        answer = http.post(f"{server.url}/segment", files={"scan": scans[k]})
                        said = str(answer.status_code)
                        if answer.status_code == 200:
                            said = "right" if digest(answer) == alone[k] else "wrong"
                    except httpx.TransportError as error:
                        said = type(error).__name__
                    with lock:
                        outcomes[said] += 1
                        slowest["segment"] = max(slowest["segment"], time.monotonic() - since)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        with httpx.Client(timeout=30, trust_env=False) as http:
            while any(thread.is_alive() for thread in threads):
                since = time.monotonic()
                assert http.get(f"{server.url}/livez").status_code == 200
                slowest["livez"] = max(slowest["livez"], time.monotonic() - since)
                peak = max(peak, resident(server))
                time.sleep(0.25)
        for scan in scans:
            server.segment(scan)
        tell(
            outcomes=outcomes,
            slowest_livez_seconds=round(slowest["livez"], 3),
            slowest_answer_seconds=round(slowest["segment"], 1),
            resident_mb={"before": round(before), "peak": round(peak), "after": round(resident(server))},
            left_behind=server.leftovers(),
        )
        good = set(outcomes) == {"right"} and slowest["livez"] < 1 and not server.leftovers()
        server.stop()
    sys.exit(0 if good else 1)


def digest(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return hashlib.sha256(answer.content).hexdigest()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
