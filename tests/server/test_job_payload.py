"""Payloads of jobs: what the queue stores, and what earlier versions stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semiseg.predicting.segmentation_options import SegmentationOptions
from semiseg.renamed_keys import RenamedKeyWarning
from server.http.job_payload import JobPayload
from server.http.uploads import Upload
from server.jobs.job import QueuedJob


def job(payload: dict[str, Any]) -> QueuedJob:
    empty: dict[str, Any] = {}
    return QueuedJob("1", "segment", None, "", "waiting", payload, 0.0, 0.0, 0, None, False, empty, empty)


def test_an_upload_comes_back_with_the_model_that_was_selected(tmp_path: Path) -> None:
    files = (tmp_path / "scan-00001", tmp_path / "scan-00002")
    upload = Upload(files, {"T1": files[:1], "T2": files[1:]}, {"strict": "true", "model": ""}, 12, dicom=True)
    payload = JobPayload.from_upload(upload, accept="application/dicom", model="liver")
    stored = payload.to_json()
    assert "address" not in stored and "digest" not in stored
    again = JobPayload.from_job(job(stored))
    assert again == payload
    elsewhere = again.upload(tmp_path / "elsewhere")
    assert [file.parent.name for file in elsewhere.files] == ["elsewhere", "elsewhere"]
    assert elsewhere.channels == {"T1": elsewhere.files[:1], "T2": elsewhere.files[1:]}
    assert elsewhere.fields["model"] == "liver" and elsewhere.dicom
    assert again.options == SegmentationOptions(strict=True, output_formats=("seg",))


def test_a_payload_of_version_0_1_is_read() -> None:
    stored = {"files": ["a"], "channels": {}, "fields": {"answer": "case"}, "received": 3, "accept": "", "model": "m"}
    payload = JobPayload.from_job(job(stored))
    assert payload.output_format == "viewer-bundle"
    assert (payload.dicom, payload.digest, payload.address) == (False, None, None)
    with pytest.warns(RenamedKeyWarning, match="viewer-bundle"):
        assert payload.options.output_formats == ("viewer-bundle",)


def test_fields_of_later_versions_are_ignored() -> None:
    stored = {"files": ["a"], "channels": {}, "fields": {}, "received": 3, "model": "m", "colour": "red"}
    assert JobPayload.from_job(job(stored)).model == "m"
