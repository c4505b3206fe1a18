"""`semiseg bento`: BentoML's own launcher serves the bundle, in a folder where nothing of ours is importable else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import psutil
import pytest

from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.polling import wait_until
from tests.ports import free_port

KEY = "ward-0123456789-abcdefghij"


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "SEMISEG_", "PYTHON"))}
    return kept | {"BENTOML_HOME": str(folder / "home"), "HOME": str(folder), "TMPDIR": str(folder)} | more


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of BentoML's store, and the tag of the Bento in it."""
    folder = tmp_path_factory.mktemp("bento")
    bundle = make_threshold_bundle(folder / "bundle", name="Left kidney").folder
    run = subprocess.run(
        [sys.executable, "-m", "cli.app", "bento", str(bundle), "--out", str(folder / "kidney.bento")],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert run.returncode == 0, run.stderr
    assert (folder / "kidney.bento").stat().st_size > 10_000
    return folder, run.stdout.split(":", 1)[0] + ":" + run.stdout.split(":", 2)[1].split()[0]


def test_bento_holds_the_bundle_and_what_serves_it_and_no_torch(built):
    folder, tag = built
    name, version = tag.split(":")
    assert name == "semiseg-left-kidney"
    bento = folder / "home" / "bentos" / name / version
    assert (bento / "src" / "bundle" / "manifest.json").is_file()
    assert (bento / "src" / "server" / "http" / "page" / "index.html").is_file()
    wanted = (bento / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime==" in wanted and "torch" not in wanted and "pytest" not in wanted


def test_bentoml_serves_it_and_asks_for_a_key(built, tmp_path):
    folder, tag = built
    command = [sys.executable, "-m", "bentoml", "serve", tag, "--port", "0", "--host", "127.0.0.1"]
    refused = subprocess.run(
        command, cwd=tmp_path, env=environment(folder), capture_output=True, text=True, timeout=120
    )
    assert refused.returncode != 0
    assert "SEMISEG_NO_KEYS" in refused.stdout + refused.stderr
    port = free_port()
    command[command.index("0")] = str(port)
    log = (tmp_path / "log").open("w")
    with log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(folder, SEMISEG_API_KEYS=f"ward {KEY}", SEMISEG_STATE=str(tmp_path / "state")),
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url) or process.poll() is not None, 180, (tmp_path / "log").read_text)
        assert process.poll() is None, (tmp_path / "log").read_text()
        array = scan_array((12, 10, 8))
        files = {"scan": nib.Nifti1Image(array, np.eye(4)).to_bytes()}
        assert httpx.post(f"{url}/segment", files=files, timeout=60).status_code == 401
        key = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(
            f"{url}/segment", files=files, data={"output_format": "json"}, headers=key, timeout=60
        ).json()
        voxels = {s["name"]: round(s["ml"] * 1000) for s in answer["segments"]}
        labels = expected_mask(array)
        assert voxels == {"low": int(np.sum(labels == 1)), "high": int(np.sum(labels == 2))}
        assert httpx.post(f"{url}/jobs", files=files, headers=key, timeout=60).status_code == 202
        assert "semiseg_jobs" in httpx.get(f"{url}/metrics", headers=key, timeout=60).text
    finally:
        whole = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in whole:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        process.wait(60)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
