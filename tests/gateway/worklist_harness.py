"""What the tests of worklists share: configurations, inputs in the archive, and the end of a workitem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from tests.gateway.harness import RunningGateway, make_config, write_study
from tests.gateway.ups_manager import PATIENT, UpsManager
from tests.outputs.orthanc import Orthanc
from tests.polling import wait_until

STEP = {"label": "Segment", "output_formats": ["seg", "sr"], "to": ["archive"]}


def worklist_config(manager: UpsManager, *archives: str, **more: Any) -> dict[str, Any]:
    inputs = [{"url": url, "ae_titles": ["PACS"]} for url in archives]
    return {"url": manager.url, "every_seconds": 0.4, "inputs": inputs, "steps": [STEP], **more}


def make_worklist_config(
    folder: Path, server: str, archive: str, manager: UpsManager, *, to: str = "", more: dict[str, Any] | None = None
) -> dict[str, Any]:
    return make_config(
        folder,
        server,
        dimse=None,
        worklists=[worklist_config(manager, archive, **(more or {}))],
        destinations={"archive": {"type": "dicomweb", "url": to or archive}},
    )


def store_study(archive: Orthanc, folder: Path, name: str, **options: Any) -> list[pydicom.Dataset]:
    write_study(folder, name, **options)
    objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    archive.store(objects)
    return objects


def wait_until_ended(manager: UpsManager, uid: str, state: str, gateway: RunningGateway) -> Dataset:
    wait_until(
        lambda: manager.state(uid) == state,
        describe=lambda: (manager.history, gateway.status()["workitems"], gateway.output),
    )
    wait_until(lambda: not gateway.status()["workitems"], describe=lambda: gateway.output)
    return manager.items[uid]


def assert_no_patient_data(gateway: RunningGateway) -> None:
    status = gateway.status()
    told = (
        gateway.output + (gateway.state / "audit.jsonl").read_text() + str((status["worklists"], status["workitems"]))
    )
    assert PATIENT not in told and "SECRET-ID" not in told and "Nobody" not in told
