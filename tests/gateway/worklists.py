"""What the tests of worklists share: configurations, inputs in the archive, and the end of a workitem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from tests.gateway.stand import RunningGateway, configuration, write_study
from tests.gateway.ups_manager import PATIENT, Manager
from tests.outputs.archive import Archive
from tests.waiting import until

STEP = {"label": "Segment", "forms": ["seg", "sr"], "to": ["archive"]}


def worklist(manager: Manager, *archives: str, **more: Any) -> dict[str, Any]:
    inputs = [{"url": url, "ae_titles": ["PACS"]} for url in archives]
    return {"url": manager.url, "every_seconds": 0.4, "inputs": inputs, "steps": [STEP], **more}


def gateway_config(
    folder: Path, server: str, archive: str, manager: Manager, *, to: str = "", more: dict[str, Any] | None = None
) -> dict[str, Any]:
    return configuration(
        folder,
        server,
        dimse=None,
        worklists=[worklist(manager, archive, **(more or {}))],
        destinations={"archive": {"web": {"url": to or archive}}},
    )


def stored(archive: Archive, folder: Path, name: str, **options: Any) -> list[pydicom.Dataset]:
    write_study(folder, name, **options)
    objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    archive.store(objects)
    return objects


def ended(manager: Manager, uid: str, state: str, gateway: RunningGateway) -> Dataset:
    until(
        lambda: manager.state(uid) == state,
        told=lambda: (manager.history, gateway.status()["workitems"], gateway.output),
    )
    until(lambda: not gateway.status()["workitems"], told=lambda: gateway.output)
    return manager.items[uid]


def assert_nothing_of_the_patient(gateway: RunningGateway) -> None:
    status = gateway.status()
    told = (
        gateway.output + (gateway.state / "audit.jsonl").read_text() + str((status["worklists"], status["workitems"]))
    )
    assert PATIENT not in told and "SECRET-ID" not in told and "Nobody" not in told
