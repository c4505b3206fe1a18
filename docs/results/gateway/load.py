"""Instances a second into the gateway, into Orthanc and into DCMTK's storescp: the same files, senders and machine.

python docs/results/gateway/load.py [INSTANCES] [ASSOCIATIONS] [ROUNDS]

CT images of 512x512 voxels (0.5 MB), sent by DCMTK's storescu, a process for each association. The receivers take
turns, each begins with an empty store. The gateway syncs every instance before it acknowledges it, and so does Orthanc
(SyncStorageArea); storescp does not sync at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.gateway.harness import make_config, running_gateway
from tests.outputs.orthanc import running_orthanc
from tests.ports import free_port

BIN = Path("/usr/bin")


def main(instances: int = 400, associations: int = 4, rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("LOAD_FOLDER")) as name:
        folder = Path(name)
        megabytes = written(folder / "files", instances, associations)
        tell(
            machine=platform.processor() or platform.machine(),
            processors=os.cpu_count(),
            instances=instances,
            megabytes=round(megabytes),
            associations=associations,
            fsync_ms=round(fsync_ms(folder), 2),
        )
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            for what, receiver in RECEIVERS.items():
                where = folder / f"{what}{number}"
                where.mkdir()
                with receiver(where) as (port, count):
                    since = time.monotonic()
                    senders = [
                        subprocess.Popen(
                            [BIN / "storescu", "-aec", "SEMISEG", "+sd", "127.0.0.1", str(port), part],
                            stdout=subprocess.DEVNULL,
                        )
                        for part in sorted((folder / "files").iterdir())
                    ]
                    assert all(sender.wait() == 0 for sender in senders), what
                    seconds = time.monotonic() - since
                    assert count() == instances, (what, count())
                shutil.rmtree(where)
                rates.setdefault(what, []).append(instances / seconds)
                tell(round=number + 1, receiver=what, instances_a_second=round(instances / seconds, 1),
                     megabytes_a_second=round(megabytes / seconds, 1))  # fmt: skip
        for what, found in rates.items():
            ratios = [a / b for a, b in zip(rates["gateway"], found, strict=True)]
            tell(
                receiver=what,
                median_instances_a_second=round(statistics.median(found), 1),
                median_megabytes_a_second=round(statistics.median(found) * megabytes / instances, 1),
                gateway_is_times_as_fast=round(statistics.median(ratios), 2),
            )


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    config = make_config(
        folder,
        "http://127.0.0.1:9",
        dimse={"port": 0, "anybody": True},
        complete={"quiet_seconds": 3600.0},
        destinations={"archive": {"web": {"url": "http://127.0.0.1:9"}}},
    )
    with running_gateway(config, folder / "gateway") as running:
        yield running.dicom_port, lambda: len(list((running.state / "studies").rglob("*.dcm")))


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert program is not None, "This needs Debian's package orthanc."
    settings = {"SyncStorageArea": True, "DicomThreadsCount": 4}
    with running_orthanc(program, folder, more=settings) as archive:
        url = archive.url.removesuffix("/dicom-web")
        yield archive.dicom_port, lambda: archive.http.get(f"{url}/statistics").json()["CountInstances"]


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    port = free_port()
    process = subprocess.Popen([BIN / "storescp", "--fork", "-od", folder, "+xa", str(port)], stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port, lambda: len(list(folder.iterdir()))
    finally:
        process.terminate()
        process.wait()


RECEIVERS: dict[str, Any] = {"gateway": gateway, "orthanc": orthanc, "storescp": storescp}


def written(folder: Path, instances: int, associations: int) -> float:
    """The files, in a folder for each association; megabytes in all."""
    rng = np.random.default_rng(0)
    total = 0
    for part in range(associations):
        shape = (512, 512, len(range(part, instances, associations)))
        volume = Volume(rng.integers(-1000, 1000, shape, dtype=np.int16), np.diag([0.8, 0.8, 2.0, 1.0]))
        files = write_dicom_series(folder / str(part), volume, patient_id=f"load {part}", modality="CT")
        total += sum(file.stat().st_size for file in files)
    return total / 1e6


def fsync_ms(folder: Path) -> float:
    """What syncing 0.5 MB costs here."""
    times = []
    for _ in range(50):
        with (folder / "probe").open("wb") as stream:
            stream.write(bytes(2**19))
            since = time.perf_counter()
            os.fsync(stream.fileno())
            times.append(time.perf_counter() - since)
    return statistics.median(times) * 1000


def tell(**told: Any) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
