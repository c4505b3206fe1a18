"""How soon a healthy archive has its results beside a peer that is not well, and a small study beside a large one.

python docs/results/gateway/starve.py [STUDIES] [SECONDS] [SCENARIO ...]

Each scenario starts a gateway with the retry defaults, sends it STUDIES studies of one MR series (or one study of many
series and then a small one), and prints how many results the healthy archive has after which time, until it has all of
them or SECONDS are over. Archives are storage SCPs of pynetdicom in this process; the server is `semiseg serve`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import pydicom
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import MRImageStorage

from tests.bundles import make_threshold_bundle
from tests.gateway.harness import RunningGateway, make_config, running_gateway, write_study
from tests.server.harness import running_server

SERIES = 150  # of the large study
SCENARIOS = (
    "alone",
    "hanging archive",
    "slow archive",
    "archive without a name",
    "hanging server",
    "large study",
    "large study, one place",
)


def main(studies: int, seconds: float, scenarios: list[str]) -> None:
    tell(machine=platform.processor() or platform.machine(), processors=os.cpu_count(), studies=studies)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(studies):
            write_study(folder / "studies" / str(k), f"starve-{k}")
        bundle = make_threshold_bundle(folder / "bundle").folder
        with running_server(bundle, folder / "server") as server:
            for number, scenario in enumerate(scenarios):
                try_one(scenario, server.url, folder, folder / f"try{number}", seconds)


def try_one(scenario: str, server: str, folder: Path, own: Path, seconds: float) -> None:
    own.mkdir()
    with contextlib.ExitStack() as stack:
        got, port = stack.enter_context(archive())
        good = {"dimse": {"ae_title": "GOOD", "host": "127.0.0.1", "port": port}}
        destinations, servers = {"good": good}, {"urls": [server]}
        if scenario == "hanging archive":
            destinations["other"] = dimse("127.0.0.1", stack.enter_context(silent()))
        elif scenario == "slow archive":
            destinations["other"] = dimse("127.0.0.1", stack.enter_context(archive(delay=20.0))[1])
        elif scenario == "archive without a name":
            destinations["other"] = dimse("archive.invalid", 104)
        elif scenario == "hanging server":
            servers = {"urls": [f"http://127.0.0.1:{stack.enter_context(silent())}", server]}
        elif scenario == "large study, one place":
            servers["parallel"] = 1
        rule = {"name": "all MR", "modality": "MR", "to": [*reversed(destinations)]}
        config = make_config(
            own, server, destinations=destinations, servers=servers, rules=[rule], retry={}, keep={"free_bytes": 1000}
        )
        gateway = stack.enter_context(running_gateway(config, own / "gateway"))
        if scenario.startswith("large study"):
            send(gateway, many_series(folder / "studies" / "0", SERIES))
            while not got and not gateway.audit("segmented"):
                time.sleep(0.1)
            since, before = time.monotonic(), len(got)
            files = sorted((folder / "studies" / "1").iterdir())
            send(gateway, [pydicom.dcmread(file) for file in files])
            small = pydicom.dcmread(files[0]).StudyInstanceUID
            while small not in got and time.monotonic() - since < seconds:
                time.sleep(0.05)
            tell(
                scenario=scenario,
                series_of_the_large_study=SERIES,
                its_results_before=before,
                small_study_after_s=round(time.monotonic() - since, 1) if small in got else None,
                results_of_the_large_one_meanwhile=len(got) - before - (small in got),
            )
            return
        wanted = sorted((folder / "studies").iterdir())
        since = time.monotonic()
        for study in wanted:
            send(gateway, [pydicom.dcmread(file) for file in sorted(study.iterdir())])
        sent, steps = time.monotonic() - since, [0]
        while len(got) < len(wanted) and time.monotonic() - since < seconds:
            time.sleep(0.2)
            if len(got) != steps[-1]:
                steps.append(len(got))
        tell(
            scenario=scenario,
            sent_in_s=round(sent, 1),
            healthy_archive_has=len(got),
            of=len(wanted),
            after_s=round(time.monotonic() - since, 1),
        )


def dimse(host: str, port: int) -> dict[str, Any]:
    return {"dimse": {"ae_title": "OTHER", "host": host, "port": port}}


@contextlib.contextmanager
def archive(delay: float = 0.0) -> Iterator[tuple[list[str], int]]:
    """A storage SCP; the Study Instance UIDs of what it got, and its port."""
    got: list[str] = []

    def store(event: evt.Event) -> int:
        time.sleep(delay)
        got.append(str(event.dataset.StudyInstanceUID))
        return 0x0000

    entity = AE(ae_title="GOOD")
    entity.maximum_associations = 100
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield got, server.server_address[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never answers, as a process that hangs or a firewall in between."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1000)
        yield listener.getsockname()[1]


def many_series(folder: Path, count: int) -> list[pydicom.Dataset]:
    made = []
    for _ in range(count):
        series = generate_uid()
        for file in sorted(folder.iterdir())[:4]:
            one = pydicom.dcmread(file)
            one.SeriesInstanceUID, one.SOPInstanceUID = series, generate_uid()
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            made.append(one)
    return made


def send(gateway: RunningGateway, objects: list[pydicom.Dataset]) -> None:
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(MRImageStorage, objects[0].file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
    assert association.is_established
    for one in objects:
        assert association.send_c_store(one).Status == 0
    association.release()


def tell(**told: object) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int((arguments[:1] or ["40"])[0]), float((arguments[1:2] or ["600"])[0]), arguments[2:] or list(SCENARIOS))
