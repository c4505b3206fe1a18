"""What a release leaves on a disk, kept for the tests of every later one: `python -m tests.releases.keep`.

VERSION/bundle       a tiny network, exported in fp32 and fp16
VERSION/scan.nii.gz  a phantom, and mask.nii.gz, what that bundle made of it
VERSION/server       the state folder of a server that was killed: a job that is done, one that failed, three not ended
VERSION/gateway      the state folder of a gateway that was killed: a study that waits for a server
VERSION/about.json   names of the jobs and of the study

To be run once, before a release, by the release itself; the folder of a version that is out is never made anew.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.nifti import read_nifti
from server.jobs.deletion import remove
from tests.bundles import scan_without_air
from tests.gateway.harness import UNREACHABLE_DESTINATIONS, RunningGateway, make_config
from tests.polling import wait_until
from tests.runs import make_tiny_run
from tests.server.harness import RunningServer

RELEASES = Path(__file__).parent


def main() -> None:
    target = RELEASES / version("semiseg")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        run = make_tiny_run(Path(folder) / "run")
        _semiseg("export", run.folder, "--data", run.data, "--precision", "fp16", "--out", made / "bundle")
        scan = sorted((run.data / "imagesTr").iterdir())[-1]
        shutil.copy(scan, made / "scan.nii.gz")
        _semiseg("predict", made / "bundle", made / "scan.nii.gz", "--out", made / "mask.nii.gz", "--precision", "fp32")
        about: dict[str, Any] = {"version": version("semiseg")}
        about |= _leave_jobs(made, Path(folder))
        about |= _leave_study(made, Path(folder))
        (made / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        for pattern in ("*/lock", "*/*-shm", "*/work", "*/incoming"):  # of processes that are no more
            for path in made.glob(pattern):
                remove(path)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


def _semiseg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "cli.app", *map(str, arguments)], check=True)


def _leave_jobs(made: Path, folder: Path) -> dict[str, str]:
    server = RunningServer(made / "bundle", folder / "process", "--state", str(made / "server"))
    try:
        server.wait_until_ready()

        def put(scan: bytes) -> str:
            answer = server.http.post(f"{server.url}/jobs", files={"scan": scan})
            answer.raise_for_status()
            return str(answer.json()["id"])

        whole = (made / "scan.nii.gz").read_bytes()
        plain = nib.load(made / "scan.nii.gz").to_bytes()
        jobs = {"done": put(whole), "failed": put(plain[:-100])}
        for name in jobs.values():
            wait_until(lambda name=name: server.get(f"/jobs/{name}").json()["state"] in ("done", "failed"))
        large = nib.Nifti1Image(scan_without_air((128, 128, 96)), np.diag([5.0, 5.0, 8.0, 1.0]))
        packed = gzip.compress(large.to_bytes())
        jobs |= {"begun": put(packed), "beside": put(packed), "waiting": put(whole)}
        states = [server.get(f"/jobs/{name}").json()["state"] for name in jobs.values()]
        assert states == ["done", "failed", "running", "running", "waiting"], states
    finally:
        server.kill()
    return jobs


def _leave_study(made: Path, folder: Path) -> dict[str, str]:
    files = write_dicom_series(folder / "study", read_nifti(made / "scan.nii.gz"), patient_id="KEPT", description="T1")
    config = make_config(
        folder, "http://127.0.0.1:9", state=str(made / "gateway"), destinations=UNREACHABLE_DESTINATIONS
    )
    gateway = RunningGateway(config, folder / "gateway")
    try:
        gateway.wait_until_ready()
        modality = AE(ae_title="SCANNER")
        modality.add_requested_context(MRImageStorage)
        association = modality.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
        for file in files:
            assert association.send_c_store(file).Status == 0
        association.release()
        wait_until(lambda: gateway.status()["held_up"])
    finally:
        gateway.kill()
    return {"study": str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)}


if __name__ == "__main__":
    main()
