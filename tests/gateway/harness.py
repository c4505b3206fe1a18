"""What the gateway's tests stand on: a real gateway process, studies of phantoms, and DCMTK as the modality."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import httpx
import numpy as np
import pydicom
import yaml
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.volume import Volume
from server.gateway.job_payloads import SegmentPayload
from tests.bundles import expected_mask, scan_array
from tests.fork_server import run_semiseg
from tests.gateway.dicomweb_peer import BOUNDARY, multipart_body
from tests.polling import wait_until
from tests.processes import START_SECONDS, RunningProcess

UNREACHABLE_DESTINATIONS = {"archive": {"type": "dicomweb", "url": "http://127.0.0.1:9/dicom-web"}}
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])


def scan_payload(study: str, series: str, *files: str) -> dict[str, Any]:
    """The payload of a `segment` job."""
    forms = ("seg",)
    scan = SegmentPayload(
        study=study, rule="r", series=series, model=None, files=files, forms=forms, to={"archive": forms}
    )
    return scan.to_json()


def write_study(folder: Path, name: str, *, shape: tuple[int, int, int] = (20, 18, 6), description: str = "T1") -> str:
    """A study of one MR series; its Study Instance UID."""
    volume = Volume(scan_array(shape, seed=sum(name.encode())), AFFINE)
    files = write_dicom_series(folder, volume, patient_id=name, description=description)
    return str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def make_config(folder: Path, server: str, **parts: Any) -> dict[str, Any]:
    """A configuration whose parts may be replaced; the doors are on loopback, on ports that are free."""
    return {
        "state": str(folder / "state"),
        "dimse": {"port": 0, "any_sender": True},
        "web": {"port": 0},
        "completeness": {"quiet_seconds": 1.0},
        "servers": {"urls": [server]},
        "rules": [{"name": "all MR", "modality": "MR", "to": ["archive"]}],
        "retry": {"first_seconds": 0.2, "longest_seconds": 2.0},
        "retention": {"free_bytes": 1000},
        **parts,
    }


def make_offline_config(folder: Path, **parts: Any) -> dict[str, Any]:
    """One whose server and archive are nowhere."""
    return make_config(folder, "http://127.0.0.1:9", destinations=UNREACHABLE_DESTINATIONS, **parts)


def dimse_destination(port: int, **more: Any) -> dict[str, Any]:
    """An archive by DIMSE."""
    return {"archive": {"type": "dimse", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, **more}}


class RunningGateway(RunningProcess):
    """A gateway and its doors."""

    def __init__(
        self, config: dict[str, Any], folder: Path, *, before: Sequence[str] = (), environ: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "gateway.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.state = Path(config["state"])
        self.dicom_port, self.web, self._ready = 0, "", threading.Event()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SEMISEG_")}
        super().__init__(["gateway", "--config", str(self.file)], environment | (environ or {}), before)

    def wait_until_ready(self) -> None:
        assert self._ready.wait(START_SECONDS), self.output
        assert self.process.poll() is None, self.output

    def command(self, *arguments: str) -> str:
        """A command that looks after it; what it prints."""
        run = self.try_command(*arguments)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def try_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_semiseg("gateway", "--config", self.file, *arguments, timeout=START_SECONDS)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.web}/status", trust_env=False, timeout=120).json()
        return found

    def audit(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        file = self.state / "audit.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if event is None or line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the audit log has an event so often and no job runs: a job writes the log before it has ended."""
        wait_until(lambda: len(self.audit(event)) >= count, describe=lambda: self.output[-3000:])
        wait_until(lambda: not any(jobs["running"] for jobs in self.status()["jobs"].values()))
        return self.audit(event)

    def complete_another_study(self, folder: Path) -> None:
        """Send a study of four instances by STOW-RS and wait until it is complete.

        What arrived before it and waited for as long is complete by then, too, unless something else holds it back.
        """
        write_study(folder, "witness", shape=(20, 18, 4))
        content = multipart_body([file.read_bytes() for file in sorted(folder.iterdir())])
        headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'}
        answer = httpx.post(f"{self.web}/dicom-web/studies", content=content, headers=headers, trust_env=False)
        assert answer.status_code == 200, answer.text
        wait_until(
            lambda: 4 in [line["instances"] for line in self.audit("complete")], describe=lambda: self.output[-3000:]
        )

    def on_line(self, line: str) -> None:
        if line.startswith("DICOM: "):
            self.dicom_port = int(line.rsplit(":", 1)[1])
        elif line.startswith("web: "):
            self.web = line.split("web: ")[1].strip()
        elif line.startswith("ready"):
            self._ready.set()

    def on_exit(self) -> None:
        self._ready.set()


def associate(gateway: RunningGateway, calling: str, called: str = "SEMISEG") -> Any:
    """An association for C-ECHO, established or not."""
    entity = AE(ae_title=calling)
    entity.add_requested_context(Verification)
    return entity.associate("127.0.0.1", gateway.dicom_port, ae_title=called)


@contextlib.contextmanager
def running_gateway(config: dict[str, Any], folder: Path, **options: Any) -> Iterator[RunningGateway]:
    """A gateway that is ready; stopped at the end of the block."""
    gateway = RunningGateway(config, folder, **options)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        gateway.stop()


def assert_expected_segments(seg: pydicom.Dataset, folder: Path) -> None:
    """The segments are those that the network gives, voxel by voxel of the source."""
    series = read_series(sorted(folder.iterdir()))
    found = hd.seg.Segmentation.from_dataset(seg)
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(np.transpose(pixels, (2, 1, 0)), series.on_slices(expected_mask(series.volume.array)))


def dcmtk_program(require_program: Callable[[str], str], name: str) -> str:
    """A program of DCMTK; pynetdicom brings others of the same names into the environment."""
    return str(Path(require_program("dcmodify")).with_name(name))


def storescu(
    program: str, port: int, folder: Path, *, calling: str = "SCANNER", called: str = "SEMISEG"
) -> subprocess.CompletedProcess[str]:
    """Send a folder as a modality does, with DCMTK's ``program``."""
    return subprocess.run(
        [program, "-aet", calling, "-aec", called, "+sd", "+r", "127.0.0.1", str(port), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
