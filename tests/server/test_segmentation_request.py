"""What is seen of an upload while it comes in is not looked for again in its files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.requests import Request

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from server.http.body import RequestBody
from server.http.limits import ApiError, Limits
from server.http.model import ModelSettings
from server.http.models import ServedModels
from server.http.segmentation_request import SegmentationRequest
from server.http.uploads import Upload, receive_upload
from tests.bundles import make_threshold_bundle, scan_array


def form(*contents: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--b--\r\n"


def received(folder: Path, body: bytes, chunk: int) -> Upload:
    """The upload of a body that comes in pieces of so many bytes."""
    pieces = [body[k : k + chunk] for k in range(0, len(body), chunk)]
    messages = iter(
        {"type": "http.request", "body": piece, "more_body": k + 1 < len(pieces)} for k, piece in enumerate(pieces)
    )

    async def receive() -> dict:
        return next(messages)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "path": "/segment", "headers": headers}, receive)
    folder.mkdir()
    limits = Limits(disk_bytes=0)
    return asyncio.run(receive_upload(request, RequestBody(request, limits), folder, limits))


@pytest.mark.parametrize("chunk", [1, 7, 100, 2**20])
def test_dicom_is_known_by_its_first_bytes_and_its_files_are_not_opened_for_that(tmp_path, chunk):
    models = ServedModels.open([ModelSettings(bundle=make_threshold_bundle(tmp_path / "b").folder, threads=1)])
    files = write_dicom_series(tmp_path / "series", Volume(scan_array((8, 6, 3)), np.eye(4)))
    image = nib.Nifti1Image(scan_array((8, 6, 3)), np.eye(4)).to_bytes()
    contents = [b"a text", *(file.read_bytes()[:2000] for file in files)]
    upload = received(tmp_path / "dicom", form(*contents), chunk)
    assert upload.dicom and [file.read_bytes() for file in upload.files] == contents
    for file in upload.files:
        file.unlink()  # whoever opened one now would fail
    assert SegmentationRequest.from_upload(upload, "", models).upload is upload
    assert not received(tmp_path / "nifti", form(b"DICM", image), chunk).dicom
    text = received(tmp_path / "text", form(b"DICM" * 30), chunk)
    assert not text.dicom
    with pytest.raises(ApiError, match="neither"):
        SegmentationRequest.from_upload(text, "", models)
