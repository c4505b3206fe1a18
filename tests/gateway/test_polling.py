"""A gateway that asks an archive for new studies, fetches them, and brings their results back."""

from __future__ import annotations

import datetime
from pathlib import Path

import pydicom

from tests.gateway.harness import make_config, running_gateway, write_study
from tests.outputs.orthanc import Orthanc
from tests.polling import wait_until
from tests.server.harness import RunningServer


def stored(archive: Orthanc, folder: Path, name: str, day: datetime.date) -> str:
    """A study of ``day`` in the archive."""
    study = write_study(folder, name)
    objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    for one in objects:
        one.StudyDate = f"{day:%Y%m%d}"
    archive.store(objects)
    return study


def test_new_study_of_an_archive_is_fetched_and_comes_back_once(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    today = datetime.date.today()
    new = stored(archive, tmp_path / "new", "polled today", today)
    old = stored(archive, tmp_path / "old", "polled last month", today - datetime.timedelta(days=30))
    config = make_config(
        tmp_path,
        server.url,
        dimse=None,
        polls=[{"url": archive.url, "every_seconds": 0.5, "days": 2, "name": "PACS"}],
        rules=[{"name": "all MR", "modality": "MR", "senders": ["PACS"], "to": ["web"]}],
        destinations={"web": {"type": "dicomweb", "url": archive.url}},
    )
    with running_gateway(config, tmp_path / "gateway") as gateway:
        wait_until(lambda: archive.instances(new, "SEG"), describe=lambda: gateway.output)
        # The result is an instance more, so the study is fetched once more, and found to be done with.
        wait_until(lambda: len(gateway.audit("fetched")) == 2, describe=lambda: gateway.output)
        wait_until(lambda: not gateway.status()["open_studies"], describe=lambda: gateway.output)
        wait_until(lambda: len(gateway.audit("decided")) == 2, describe=lambda: gateway.output)
        assert len(gateway.audit("segmented")) == len(gateway.audit("delivered")) == 1
        assert len(archive.instances(new, "SEG")) == 1
        assert archive.instances(old, "SEG") == []
        assert gateway.audit("complete")[0]["why"] == "all 6 instances at PACS were fetched"


def test_archive_that_does_not_answer_is_asked_again(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        server.url,
        polls=[{"url": "http://127.0.0.1:9/dicom-web", "every_seconds": 0.3}],
        destinations={"archive": {"type": "dicomweb", "url": "http://127.0.0.1:9/dicom-web"}},
    )
    with running_gateway(config, tmp_path / "gateway") as gateway:
        wait_until(lambda: gateway.output.count("failed: ConnectionError") > 2, describe=lambda: gateway.output)
        assert gateway.status()["trouble"] == ""
