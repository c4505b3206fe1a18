"""What every release left on a disk still opens, and its unfinished work is finished (keep.py says how it was made)."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from cli.models import open_model
from semiseg.bundle.bundle import open_bundle
from semiseg.inference.segmenter import SlidingWindowOptions
from server.gateway.uid_hasher import UidHasher
from tests.gateway.harness import UNREACHABLE_DESTINATIONS, make_config, running_gateway
from tests.polling import wait_until
from tests.releases.keep import RELEASES
from tests.server.harness import running_server

# The jobs of a release ended when it was made. A server deletes a job when it has been kept for so long, by the time of
# day, so one that is to finish what it finds keeps jobs for longer than any release is old.
FOR_EVER = ("--keep-hours", "1e9")

KEPT = sorted(folder.parent for folder in RELEASES.glob("*/about.json"))


@pytest.fixture(params=KEPT, ids=lambda folder: folder.name)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, since what is opened is written to."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


@pytest.fixture
def about(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "about.json").read_text())
    return found


def labels(file: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(file).dataobj).astype(np.uint8)


def dice(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(2 * np.count_nonzero((a == b) & (a > 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))


def test_every_version_has_left_something() -> None:
    """DEP-06. Whoever raises the version runs keep.py before."""
    assert version("semiseg") in [folder.name for folder in KEPT]


def test_bundle_opens_and_draws_what_it_drew(release: Path, tmp_path: Path) -> None:
    """DEP-06, INF-01."""
    bundle = open_bundle(release / "bundle")
    assert {variant.precision for variant in bundle.manifest.variants} == {"fp32", "fp16"}
    assert labels(release / "mask.nii.gz").any()
    model = open_model(release / "bundle", SlidingWindowOptions(), threads=1, precision="fp32")
    model.predict(release / "scan.nii.gz").save(tmp_path / "mask.nii.gz")
    assert dice(labels(tmp_path / "mask.nii.gz"), labels(release / "mask.nii.gz")) > 0.99


def test_server_finishes_the_jobs_that_it_finds(release: Path, about: dict[str, Any], tmp_path: Path) -> None:
    """DEP-06, SRV-03."""
    with running_server(
        release / "bundle", tmp_path / "process", "--state", str(release / "server"), *FOR_EVER
    ) as server:
        states: dict[str, str] = {}

        def ended() -> bool:
            for name in ("done", "failed", "begun", "beside", "waiting"):
                states[name] = server.get(f"/jobs/{about[name]}").json()["state"]
            return set(states.values()) <= {"done", "failed"}

        wait_until(ended, describe=lambda: states)
        assert states == {"done": "done", "failed": "failed", "begun": "done", "beside": "done", "waiting": "done"}
        for name in ("done", "waiting"):
            (tmp_path / "mask.nii.gz").write_bytes(server.get(f"/jobs/{about[name]}/result").content)
            assert dice(labels(tmp_path / "mask.nii.gz"), labels(release / "mask.nii.gz")) > 0.99
        assert "error" in server.get(f"/jobs/{about['failed']}/result").json()


def test_gateway_goes_on_with_the_study_that_it_finds(release: Path, about: dict[str, Any], tmp_path: Path) -> None:
    """DEP-06, GW-02."""
    with running_server(release / "bundle", tmp_path / "process") as server:
        config = make_config(
            tmp_path, server.url, state=str(release / "gateway"), destinations=UNREACHABLE_DESTINATIONS
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["jobs"]["deliver"]["waiting"], describe=lambda: gateway.output)
            (segmented,) = gateway.audit("segmented")
            study = UidHasher(release / "gateway" / "names.key").hash(about["study"])
            assert segmented["study"] == study
            assert "deliver" in gateway.command("show", study)
