"""Rules: what they take, what they leave, and that the command that explains them says what would happen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml

from semiseg.errors import InputError
from semiseg.volumes.dicom_index import index_files
from server.gateway.config import GatewayConfig, read_config
from server.gateway.routing import apply_rules, route_series
from tests.gateway.harness import RunningGateway, make_config, write_study

DESTINATIONS = {
    "pacs": {"type": "dimse", "ae_title": "PACS", "host": "pacs", "port": 104, "output_formats": ["seg", "sr"]},
    "viewer": {"type": "dicomweb", "url": "http://viewer/dicom-web"},
}


def made(folder: Path, *rules: dict[str, Any], **parts: Any) -> GatewayConfig:
    return GatewayConfig.model_validate(
        make_config(folder, "http://server:3000", rules=list(rules), destinations=DESTINATIONS, **parts)
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of an MR series and a localizer of it."""
    write_study(tmp_path / "study", "routed", description="T1 axial")
    write_study(tmp_path / "other", "routed", description="Localizer", shape=(20, 18, 4))
    first = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    for file in (tmp_path / "other").iterdir():
        one = pydicom.dcmread(file)
        one.StudyInstanceUID, one.ImageType = first.StudyInstanceUID, ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        one.save_as(tmp_path / "study" / f"other-{file.name}")
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("rule", "sender", "files", "reason"),
    [
        ({"modality": "MR"}, "MR1", 6, "Image Type says LOCALIZER"),
        ({"modality": "CT"}, "MR1", 0, "its modality is MR and not CT"),
        ({"senders": ["MR1", "MR2"]}, "MR1", 6, "Image Type says LOCALIZER"),
        ({"senders": ["MR2"]}, "MR1", 0, "it came from MR1 and not from MR2"),
        ({"body_part": ["ABD*"]}, "MR1", 6, "LOCALIZER"),
        ({"body_part": ["HEAD"]}, "MR1", 0, "its body part is 'ABDOMEN'"),
        ({"description": ["*axial*"]}, "MR1", 6, "its description 'Localizer' matches none"),
        ({"least_slices": 5, "not_image_type": []}, "MR1", 6, "it has 4 slice(s) and not at least 5"),
        ({"most_slices": 5, "not_image_type": []}, "MR1", 4, "it has 6 slices and not at most 5"),
        ({"slice_gap": [4, 9]}, "MR1", 0, "its slices lie 3 mm apart"),
        ({"whole_study": True, "description": ["T1*"]}, "MR1", 10, "its description 'Localizer'"),
    ],
)
def test_rule_takes_what_fits_and_says_why_not_the_rest(
    study: Path, tmp_path: Path, rule: dict[str, Any], sender: str, files: int, reason: str
) -> None:
    """GW-04."""
    config = made(tmp_path, {"name": "rule", "to": ["pacs"], **rule})
    objects, _ = index_files(sorted(study.iterdir()))
    decisions = apply_rules(objects, [sender], config.rules)
    assert sum(len(order.files) for order in route_series(decisions, config)) == files
    assert any(reason in one.reason for one in decisions if not one.fits)
    assert len(decisions) == 2


@pytest.mark.parametrize("whole_study", [False, True])
def test_a_series_that_is_in_two_studies_is_sent_by_no_rule(study: Path, tmp_path: Path, whole_study: bool) -> None:
    config = made(tmp_path, {"name": "rule", "to": ["pacs"], "not_image_type": [], "whole_study": whole_study})
    objects, _ = index_files(sorted(study.iterdir()))
    torn = objects[0].series
    decisions = apply_rules(objects, [], config.rules, lambda series: series == torn)
    (sent,) = route_series(decisions, config)
    assert len(sent.files) == sum(one.series != torn for one in objects) > 0
    assert any("its Series Instance UID is also in another study" in one.reason for one in decisions if not one.fits)


def test_each_destination_gets_the_forms_that_it_takes(study: Path, tmp_path: Path) -> None:
    rule = {"name": "rule", "to": ["pacs", "viewer"], "output_formats": ["seg", "rtstruct"], "model": "liver"}
    config = made(tmp_path, rule)
    objects, _ = index_files(sorted(study.iterdir()))
    (order,) = route_series(apply_rules(objects, [], config.rules), config)
    assert order.forms == ("seg", "rtstruct")
    assert order.to == {"pacs": ("seg",), "viewer": ("seg", "rtstruct")}
    assert order.key("study") == order.key("study") != order.key("other study")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rules": []}, "rules"),
        ({"rules": [{"name": "a", "to": ["nowhere"]}]}, "there is no destination nowhere, only pacs, viewer"),
        ({"rules": [{"name": "a", "to": ["pacs"]}] * 2}, "two rules are called a"),
        (
            {"rules": [{"name": "a", "to": ["pacs"], "output_formats": ["rtstruct"]}]},
            "accepts none of its `output_formats`",
        ),
        ({"rules": [{"name": "a", "to": ["pacs"], "modalty": "CT"}]}, "rules.0.modalty"),
        ({"dimse": {"port": 1}}, "list the permitted `senders`"),
        ({"dimse": {"any_sender": True, "tls": {}}}, "a listener needs a certificate"),
        ({"dimse": None, "web": None}, "there is no source of studies"),
        ({"dimse": {"senders": [{"ae_title": "A" * 17}]}}, "1 to 16 characters"),
        ({"dimse": {"senders": [{"ae_title": "A", "addresses": ["ten"]}]}}, "ten is neither an IP address"),
        ({"destinations": {"pacs": {}}}, "give the `type` of the destination: dimse or dicomweb"),
        ({"servers": {"urls": ["server"]}}, "write it like http://server:3000"),
    ],
)
def test_configuration_that_cannot_be_is_refused_with_the_place(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    rules = [{"name": "rule", "to": ["pacs"]}]
    parts = make_config(tmp_path, "http://server:3000", **({"rules": rules, "destinations": DESTINATIONS} | change))
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(parts))
    with pytest.raises(InputError, match=r"gateway\.yaml") as error:
        read_config(file)
    assert sentence in str(error.value)


def test_paths_are_meant_from_the_configurations_own_folder(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    parts = make_config(
        tmp_path, "http://server:3000", rules=[{"name": "a", "to": ["pacs"]}], destinations=DESTINATIONS
    )
    file.write_text(yaml.safe_dump(parts | {"state": "here", "servers": {"urls": ["http://a"], "key": "/else/key"}}))
    config = read_config(file)
    assert config.state == tmp_path / "here"
    assert config.servers.key == Path("/else/key")


def test_explain_says_what_would_happen_and_sends_nothing(study: Path, tmp_path: Path) -> None:
    """GW-04."""
    rules = [
        {"name": "axial", "description": ["*axial*"], "to": ["pacs", "viewer"]},
        {"name": "CT", "modality": "CT", "to": ["pacs"]},
    ]
    (tmp_path / "notes.txt").write_text("no DICOM")
    (study / "notes.txt").write_text("no DICOM")
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(make_config(tmp_path, "http://server:3000", rules=rules, destinations=DESTINATIONS)))
    gateway = RunningGateway.__new__(RunningGateway)
    gateway.file = file
    told = gateway.command("explain", str(study), "--from", "MR1")
    assert "+ rule axial: It matches: it is sent, and its results (seg) to pacs and viewer." in told
    assert "- rule CT: Not sent: its modality is MR and not CT." in told
    assert "=> 6 files by rule axial: seg to pacs; seg to viewer" in told
    assert "1 file(s) left out" in told
    assert not (tmp_path / "state").exists()
    refused = gateway.try_command("explain", str(tmp_path / "nothing"))
    assert refused.returncode == 2 and "There is no folder" in refused.stderr
