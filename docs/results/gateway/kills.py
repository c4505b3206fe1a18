"""30 studies arrive while the gateway is killed 50 times at seeded random moments: none is lost, none is there twice.

python docs/results/gateway/kills.py [KILLS] [STUDIES]

A study is lost when each of its instances was acknowledged with 0x0000 and its segmentation is not in the archive at
the end, and doubled when two are there. The sender is a modality that sends again at once what was not acknowledged.
"""

from __future__ import annotations

import collections
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import pydicom

from tests.bundles import make_threshold_bundle
from tests.gateway.harness import RunningGateway, assert_expected_segments, make_config, storescu, write_study
from tests.outputs.orthanc import Orthanc, running_orthanc
from tests.ports import free_port
from tests.server.harness import running_server

SLICES = 6


def main(kills: int = 50, studies: int = 30) -> None:
    rng = random.Random(20261122)
    tell(machine=platform.processor() or platform.machine(), processors=os.cpu_count(), kills=kills, studies=studies)
    since = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uids = [announced(folder / f"study{k}", f"patient {k}") for k in range(studies)]
        bundle = make_threshold_bundle(folder / "bundle", work=2)
        (folder / "orthanc").mkdir()
        orthanc = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert orthanc is not None, "This needs Debian's package orthanc."
        with (
            running_server(bundle.folder, folder / "server") as server,
            running_orthanc(orthanc, folder / "orthanc") as archive,
        ):
            port = free_port()
            config = make_config(
                folder,
                server.url,
                dimse={"port": port, "anybody": True},
                web=None,
                complete={"quiet_seconds": 30.0},
                destinations={
                    "archive": {"dimse": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.dicom_port}}
                },
            )
            sender = threading.Thread(target=send_all, args=(folder, studies, port), daemon=True)
            sender.start()
            for number in range(kills):
                gateway = RunningGateway(config, folder / "gateway")
                gateway.wait_until_ready()
                time.sleep(rng.uniform(0.02, 1.5))
                gateway.stop(signal.SIGKILL)
                if number % 10 == 9:
                    tell(killed=number + 1, acknowledged=len(ACKNOWLEDGED), seconds=round(time.monotonic() - since))
            gateway = RunningGateway(config, folder / "gateway")
            gateway.wait_until_ready()
            sender.join()
            until = time.monotonic() + 600
            while time.monotonic() < until and not all(archive.instances(uid, "SEG") for uid in uids):
                time.sleep(0.5)
            time.sleep(5)
            counts = {uid: len(archive.instances(uid, "SEG")) for uid in uids}
            lost = [uid for uid, count in counts.items() if count == 0]
            doubled = [uid for uid, count in counts.items() if count > 1]
            wrong = sum(
                not overlays(archive, uid, folder / f"study{k}") for k, uid in enumerate(uids) if counts[uid] == 1
            )
            events = collections.Counter(line["event"] for line in gateway.audit())
            left = len(list((gateway.state / "incoming").iterdir()))
            gateway.stop()
            tell(
                acknowledged=len(ACKNOWLEDGED),
                lost=len(lost),
                doubled=len(doubled),
                wrong_masks=wrong,
                left_in_incoming=left,
                sent_again=SENT_AGAIN[0],
                audit=dict(events),
                seconds=round(time.monotonic() - since),
            )
    sys.exit(1 if lost or doubled or wrong or left or len(ACKNOWLEDGED) != studies else 0)


ACKNOWLEDGED: list[int] = []
SENT_AGAIN = [0]


def send_all(folder: Path, studies: int, port: int) -> None:
    """DCMTK's storescu, again and again until it reports success, which means 0x0000 for each instance."""
    for number in range(studies):
        while storescu("/usr/bin/storescu", port, folder / f"study{number}").returncode != 0:
            SENT_AGAIN[0] += 1
            time.sleep(0.05)
        ACKNOWLEDGED.append(number)
        time.sleep(1.0)


def announced(folder: Path, name: str) -> str:
    """A study whose instances say how many there are, so that it is complete as soon as they are here."""
    uid = write_study(folder, name, shape=(24, 20, SLICES))
    for file in folder.iterdir():
        one = pydicom.dcmread(file)
        one.NumberOfStudyRelatedInstances = SLICES
        one.save_as(file)
    return uid


def overlays(archive: Orthanc, uid: str, folder: Path) -> bool:
    try:
        assert_expected_segments(archive.fetch_first(uid, "SEG"), folder)
    except AssertionError:
        return False
    return True


def tell(**told: Any) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
