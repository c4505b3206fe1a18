"""`semiseg serve`: its options reach the server. What the server does is tested in tests/server."""

from __future__ import annotations

import subprocess

import nibabel as nib
import numpy as np
import pytest

from semiseg.client import Client
from tests.bundles import make_threshold_bundle, scan_array
from tests.fork_server import run_semiseg
from tests.server.harness import running_server


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_semiseg("serve", *map(str, arguments))


def test_tiling_options_reach_the_segmenter(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(scan_array((32, 16, 16)), np.eye(4)), path)
    windows = {}
    for overlap in ("0", "0.5", "0.75"):
        options = ("--overlap", overlap, "--batch", "2", "--window", "16x16x16")
        with running_server(bundle.folder, tmp_path / overlap, *options) as server, Client(server.url) as client:
            windows[overlap] = client.segment(path, "json")["windows"]
    assert windows == {"0": 2, "0.5": 3, "0.75": 5}


def test_server_says_where_it_listens_and_when_it_is_ready(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle", name="hippocampus")
    with running_server(bundle.folder, tmp_path / "process") as server:
        pass
    said = [line for line in server.lines if line.startswith("semiseg ")]
    assert "listening on http://127.0.0.1:" in said[0] and "hippocampus" in said[0]
    assert "ready" in said[1]


@pytest.mark.parametrize(
    "options",
    [("--port", "70000"), ("--threads", "0"), ("--max-upload-mb", "0"), ("--batch", "0"), ("--parallel", "0")],
)
def test_impossible_option_is_wrong_use(tmp_path, options):
    run = serve(tmp_path, *options)
    assert run.returncode == 2
    assert options[0] in run.stderr and "Traceback" not in run.stderr


def test_server_that_only_listens_to_ipv6_says_so(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with running_server(bundle.folder, tmp_path / "process", "--host", "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.get("/livez").status_code == 200
