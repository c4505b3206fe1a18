"""A real Orthanc on a free port of this machine, asked over DICOMweb."""

from __future__ import annotations

import contextlib
import email
import email.policy
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pydicom

from tests.polling import wait_until
from tests.ports import free_port

PLUGINS = Path("/usr/share/orthanc/plugins")
START_SECONDS = 60.0


class Orthanc:
    """STOW-RS (PS3.18 10.5) and WADO-RS (PS3.18 10.4) as a workstation uses them."""

    def __init__(self, url: str, dicom_port: int) -> None:
        self.url = f"{url}/dicom-web"
        self.dicom_port = dicom_port
        self.http = httpx.Client(timeout=60, trust_env=False)

    def store(self, objects: Sequence[pydicom.Dataset]) -> list[str]:
        """Store objects; the SOP Instance UIDs that were taken."""
        parts = []
        for one in objects:
            content = io.BytesIO()
            one.save_as(content, enforce_file_format=True)
            parts.append(b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + content.getvalue() + b"\r\n")
        answer = self.http.post(
            f"{self.url}/studies",
            content=b"".join(parts) + b"--cut--\r\n",
            headers={
                "Content-Type": 'multipart/related; type="application/dicom"; boundary=cut',
                "Accept": "application/dicom+json",
            },
        )
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        failed = document.get("00081198", {}).get("Value")
        assert not failed, f"refused: {failed}"
        return [item["00081155"]["Value"][0] for item in document["00081199"]["Value"]]

    def fetch(self, one: pydicom.Dataset) -> pydicom.Dataset:
        """An object as the archive gives it back."""
        (content,) = self._parts(one, "", 'type="application/dicom"; transfer-syntax=*')
        return pydicom.dcmread(io.BytesIO(content))

    def frames(self, one: pydicom.Dataset, numbers: Sequence[int]) -> list[bytes]:
        """Single frames of an object, uncompressed; Orthanc answers 400 for those of one bit a pixel."""
        return self._parts(one, f"/frames/{','.join(map(str, numbers))}", 'type="application/octet-stream"')

    def _parts(self, one: pydicom.Dataset, below: str, accept: str) -> list[bytes]:
        path = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}{below}"
        answer = self.http.get(f"{self.url}/{path}", headers={"Accept": f"multipart/related; {accept}"})
        assert answer.status_code == 200, answer.text
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
        return [part.get_payload(decode=True) for part in message.iter_parts()]

    def instances(self, study: str, modality: str | None = None) -> list[dict[str, Any]]:
        """A study's instances, by QIDO-RS."""
        query = {"Modality": modality} if modality else {}
        answer = self.http.get(
            f"{self.url}/studies/{study}/instances", params=query, headers={"Accept": "application/dicom+json"}
        )
        found: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
        return [one for one in found if modality is None or one["00080060"]["Value"] == [modality]]

    def fetch_first(self, study: str, modality: str) -> pydicom.Dataset:
        """The study's first instance of a modality."""
        told = self.instances(study, modality)[0]
        one = pydicom.Dataset()
        one.StudyInstanceUID, one.SeriesInstanceUID = study, told["0020000E"]["Value"][0]
        one.SOPInstanceUID = told["00080018"]["Value"][0]
        return self.fetch(one)

    def modalities(self, study: str) -> set[str]:
        """The modalities of a study's series, by QIDO-RS."""
        answer = self.http.get(f"{self.url}/studies/{study}/series", headers={"Accept": "application/dicom+json"})
        return {one["00080060"]["Value"][0] for one in answer.json()}


@contextmanager
def running_orthanc(
    program: str, folder: Path, *, ports: tuple[int, int] | None = None, more: dict[str, Any] | None = None
) -> Iterator[Orthanc]:
    """Orthanc as long as the block lasts: with an empty store, or what it kept in ``folder``.

    Args:
        program: Orthanc.
        folder: for its store and its log.
        ports: of HTTP and DICOM; free ones otherwise.
        more: further settings.
    """
    web, dicom = ports or (free_port(), free_port())
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "HttpPort": web,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **(more or {}),
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{web}"

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/system", trust_env=False).status_code == 200
            return False

        wait_until(answers, START_SECONDS, (folder / "log").read_text)
        archive = Orthanc(url, dicom)
        try:
            yield archive
        finally:
            archive.http.close()  # Orthanc waits for open connections when it stops
    finally:
        process.terminate()
        process.wait(90)
