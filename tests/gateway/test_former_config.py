"""A gateway.yaml of an earlier version: former keys are read with a warning, and mean what they meant."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg.errors import InputError
from semiseg.renamed_keys import RenamedKeyWarning
from server.gateway.config import GatewayConfig, read_config
from server.gateway.destinations import DicomwebDestination, DimseDestination
from server.gateway.ups_inputs import step_index

STEP = {"label": "Segment", "forms": ["seg", "sr"], "to": ["pacs"]}
FORMER: dict[str, Any] = {
    "state": "state",
    "dimse": {"anybody": True},
    "complete": {"quiet_seconds": 5},
    "keep": {"hours": 1},
    "servers": {"urls": ["http://server:3000"]},
    "rules": [{"name": "all", "forms": ["seg", "sr"], "to": ["pacs", "viewer"]}],
    "worklists": [{"url": "http://manager", "inputs": [{"url": "http://archive"}], "steps": [STEP]}],
    "destinations": {
        "pacs": {"dimse": {"ae_title": "PACS", "host": "pacs", "port": 104, "commitment": True}, "parallel": 3},
        "viewer": {"web": {"url": "http://viewer/dicom-web"}, "forms": ["seg"]},
    },
}
PRESENT: dict[str, Any] = {
    "state": "state",
    "dimse": {"any_sender": True},
    "completeness": {"quiet_seconds": 5},
    "retention": {"hours": 1},
    "servers": {"urls": ["http://server:3000"]},
    "rules": [{"name": "all", "output_formats": ["seg", "sr"], "to": ["pacs", "viewer"]}],
    "worklists": [
        {
            "url": "http://manager",
            "inputs": [{"url": "http://archive"}],
            "steps": [{"label": "Segment", "output_formats": ["seg", "sr"], "to": ["pacs"]}],
        }
    ],
    "destinations": {
        "pacs": {"type": "dimse", "ae_title": "PACS", "host": "pacs", "port": 104, "commitment": True, "parallel": 3},
        "viewer": {"type": "dicomweb", "url": "http://viewer/dicom-web", "output_formats": ["seg"]},
    },
}


def read(folder: Path, parts: dict[str, Any]) -> GatewayConfig:
    (folder / "gateway.yaml").write_text(yaml.safe_dump(parts), encoding="utf-8")
    return read_config(folder / "gateway.yaml")


def test_former_file_is_read_as_the_present_one_with_a_warning_for_each_name(tmp_path: Path) -> None:
    with pytest.warns(RenamedKeyWarning) as warned:
        former = read(tmp_path, FORMER)
    assert former == read(tmp_path, PRESENT)
    assert isinstance(former.destinations["pacs"], DimseDestination)
    assert isinstance(former.destinations["viewer"], DicomwebDestination)
    sentences = {str(one.message) for one in warned}
    assert len(sentences) == 6, sentences
    assert "In a destination, write `type: dicomweb` and the keys of the section `web` beside it." in sentences


@pytest.mark.parametrize(
    ("destination", "complaint"),
    [
        ({}, "type"),
        ({"dimse": {"ae_title": "A", "host": "h", "port": 1}, "web": {"url": "http://a"}}, "type"),
        ({"dimse": {"ae_title": "A", "host": "h", "port": 1}, "web": "http://a"}, "type"),
        ({"web": {"url": "http://a", "parallel": 3}, "parallel": 2}, "type"),
        ({"type": "ftp", "url": "http://a"}, "dicomweb"),
        ({"type": "dicomweb", "ae_title": "A"}, "url"),
    ],
)
def test_destination_of_no_known_type_is_refused(tmp_path: Path, destination: Any, complaint: str) -> None:
    parts = PRESENT | {"destinations": PRESENT["destinations"] | {"viewer": destination}}
    with pytest.raises(InputError, match=complaint):
        read(tmp_path, parts)


def test_key_under_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`keep` is the former name of `retention`"):
        read(tmp_path, PRESENT | {"keep": {"hours": 2}})


def test_workitem_that_was_claimed_before_the_upgrade_keeps_its_step(tmp_path: Path) -> None:
    worklist = read(tmp_path, PRESENT).worklists[0]
    written = json.dumps({"label": "Segment", "code": None, "rule": None, "model": None} | STEP)
    assert step_index(worklist, worklist.steps[0].model_dump_json()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file that the operator can change has the present name
        assert step_index(worklist, written) == 0
        assert step_index(worklist, json.dumps(STEP | {"label": "Other"})) is None
