"""A patient who was corrected, two patients under one Study Instance UID, and other contents under the same UIDs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.uid import RLELossless

from semiseg.errors import InputError
from server.gateway.conflicts import count_changes, differing_attributes, find_conflict, resolve_conflict
from server.gateway.gateway import DATABASE_FILE
from server.gateway.instance_store import InstanceStore
from server.gateway.study_search import find_studies, find_study
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.jobs.queue import Queue
from tests.gateway.harness import (
    RunningGateway,
    dimse_destination,
    make_config,
    running_gateway,
    scan_payload,
    write_study,
)
from tests.gateway.peers import FakeStorageSCP, fake_storage_scp
from tests.polling import wait_until
from tests.server.harness import RunningServer


def corrected(folder: Path, files: slice = slice(None), **attributes: str) -> None:
    """Give instances other attributes under the same UIDs, as a technologist does at a modality."""
    for file in sorted(folder.iterdir())[files]:
        one = pydicom.dcmread(file)
        for keyword, value in attributes.items():
            setattr(one, keyword, value)
        one.save_as(file)


@pytest.fixture
def archive() -> Iterator[FakeStorageSCP]:
    with fake_storage_scp() as made:
        yield made


@pytest.fixture
def gateway(server: RunningServer, archive: FakeStorageSCP, tmp_path: Path) -> Iterator[RunningGateway]:
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port))
    with running_gateway(config, tmp_path / "gateway") as running:
        yield running


def of_patients(archive: FakeStorageSCP) -> list[str]:
    return [str(one.PatientID) for one, _ in archive.received]


def held(gateway: RunningGateway) -> list[str]:
    return [one["why"] for one in gateway.status()["studies_in_trouble"]]


def test_corrected_patient_is_taken_when_an_operator_says_so(
    gateway: RunningGateway, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-15."""
    uid = write_study(tmp_path / "study", "wrong")
    assert send(gateway, tmp_path / "study").returncode == 0
    wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
    corrected(tmp_path / "study", PatientID="RIGHT-4711", PatientName="Right^Renate")
    assert send(gateway, tmp_path / "study").returncode == 0
    wait_until(lambda: held(gateway), describe=lambda: gateway.output)
    assert "two patients: Patient ID and Patient's Name differ. 6 instance(s) were received again" in held(gateway)[0]
    assert "semiseg gateway conflict" in gateway.command("status")
    told = gateway.command("conflict", uid)
    assert "--keep-old: replaces 0 and deletes 0" in told and "--take-new: replaces 6 and deletes 0" in told
    assert of_patients(archive) == ["wrong"]
    gateway.command("conflict", uid, "--take-new")
    wait_until(lambda: len(archive.received) == 2, describe=lambda: gateway.output)
    assert of_patients(archive) == ["wrong", "RIGHT-4711"]
    assert len({one.SOPInstanceUID for one, _ in archive.received}) == 2, "the archive would keep the first one"
    wait_until(lambda: not held(gateway))
    refused = gateway.try_command("conflict", uid, "--keep-old")
    assert refused.returncode == 2 and "nothing to decide" in refused.stderr
    written = gateway.output + (gateway.state / "audit.jsonl").read_text() + json.dumps(gateway.status())
    assert not re.search("RIGHT-4711|Renate|wrong", written), "nothing of a patient"


def test_old_patient_is_kept_and_what_waited_goes_on(
    gateway: RunningGateway, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    uid = write_study(tmp_path / "study", "first")
    assert send(gateway, tmp_path / "study").returncode == 0
    corrected(tmp_path / "study", slice(0, 3), PatientBirthDate="19700101")
    corrected(tmp_path / "study", slice(0, 3), PatientID="second")
    assert send(gateway, tmp_path / "study").returncode == 0  # before the study was complete
    wait_until(lambda: held(gateway), describe=lambda: gateway.output)
    assert archive.received == [] and gateway.audit("decided") == []
    gateway.command("conflict", uid, "--keep-old")
    wait_until(lambda: archive.received, describe=lambda: gateway.output)
    assert of_patients(archive) == ["first"]
    assert not list((gateway.state / "studies").glob("*/newer"))
    assert gateway.audit("conflict decided")[0]["kept"] == "earlier"


@pytest.mark.parametrize(("option", "patients"), [("--keep-old", ["waits"]), ("--take-new", ["corrected"])])
def test_result_that_was_not_delivered_waits_for_the_decision(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path, option: str, patients: list[str]
) -> None:
    answers = [0xA700]
    with fake_storage_scp(lambda *_: answers[0]) as archive:
        config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            uid = write_study(tmp_path / "study", "waits")
            assert send(gateway, tmp_path / "study").returncode == 0
            gateway.wait_for("failed")
            corrected(tmp_path / "study", PatientID="corrected")
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: held(gateway), describe=lambda: gateway.output)
            assert httpx.post(f"{gateway.web}/studies/{uid}/complete", trust_env=False).status_code == 409
            tried, answers[0] = len(archive.received), 0x0000
            wait_until(lambda: "waits for a decision" in gateway.output, describe=lambda: gateway.output)
            del archive.received[:]
            assert tried and not gateway.audit("delivered")
            gateway.command("conflict", uid, option)
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
            assert of_patients(archive) == patients


def test_study_of_two_patients_is_segmented_where_the_configuration_says_so(
    server: RunningServer, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port))
    config["completeness"]["patients"] = "segment"
    with running_gateway(config, tmp_path / "gateway") as gateway:
        write_study(tmp_path / "study", "went on")
        assert send(gateway, tmp_path / "study").returncode == 0
        corrected(tmp_path / "study", PatientID="corrected")
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: archive.received, describe=lambda: gateway.output)
        assert held(gateway) == [] and of_patients(archive) == ["went on"]
        assert "two patients" in gateway.status()["study_list"][0]["trouble"]


def test_two_patients_in_one_series_are_not_segmented(
    gateway: RunningGateway, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    write_study(tmp_path / "study", "one")
    for name in ("first", "last"):
        (tmp_path / name).mkdir()
    for number, file in enumerate(sorted((tmp_path / "study").iterdir())):
        file.rename(tmp_path / ("first" if number < 3 else "last") / file.name)
    corrected(tmp_path / "last", PatientID="other")
    for name in ("first", "last"):
        assert send(gateway, tmp_path / name).returncode == 0
    wait_until(lambda: held(gateway), describe=lambda: gateway.output)
    assert "two patients: Patient ID differ" in held(gateway)[0] and archive.received == []
    told = gateway.command("conflict", "other")
    assert "--keep-old: replaces 0 and deletes 3" in told and "--take-new: replaces 0 and deletes 3" in told
    assert "All is well" not in gateway.command("status")
    gateway.command("conflict", "one", "--take-new")
    wait_until(lambda: archive.received, describe=lambda: gateway.output)
    assert of_patients(archive) == ["other"]


def test_another_description_is_shown_and_holds_up_nothing(
    gateway: RunningGateway, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    write_study(tmp_path / "study", "described")
    assert send(gateway, tmp_path / "study").returncode == 0
    corrected(tmp_path / "study", SeriesDescription="T1 corrected")
    assert send(gateway, tmp_path / "study").returncode == 0
    wait_until(lambda: archive.received, describe=lambda: gateway.output)
    (one,) = gateway.status()["study_list"]
    assert "were received again with different content (SeriesDescription)" in one["trouble"]
    assert one["do"] == f"semiseg gateway conflict {one['study']}"
    assert {tuple(line["attributes"]) for line in gateway.audit("conflict")} == {("SeriesDescription",)}


def test_decision_for_what_is_being_worked_on_is_refused(tmp_path: Path) -> None:
    from cli.gateway import app
    from typer.testing import CliRunner  # isort: skip

    config = tmp_path / "gateway.yaml"
    config.write_text(json.dumps(make_config(tmp_path, "http://127.0.0.1:9", destinations=dimse_destination(9))))
    uid, instance_store = stored(tmp_path, ["a"])
    take(instance_store, tmp_path / "a", PatientID="b")
    queue = Queue(tmp_path / "state" / DATABASE_FILE)
    (study,) = instance_store.study_names()
    queue.put("segment", scan_payload(study, "x"), owner=study)
    assert queue.lease("segment", 60) is not None
    answer = CliRunner().invoke(app, ["--config", str(config), "conflict", uid, "--take-new"])
    assert isinstance(answer.exception, InputError) and "is being worked on" in str(answer.exception)


def stored(folder: Path, patients: list[str]) -> tuple[str, InstanceStore]:
    """An instance store with a study of each patient; the UID of the last one."""
    (folder / "state").mkdir(exist_ok=True)
    instance_store, uid = InstanceStore(folder / "state", UidHasher(folder / "state" / KEY_FILE), 0), ""
    for patient in patients:
        uid = write_study(folder / patient, patient)
        take(instance_store, folder / patient)
    return uid, instance_store


def take(instance_store: InstanceStore, folder: Path, **attributes: str) -> list[bool]:
    """Whether each instance of a folder is another one than what is there."""
    told = []
    for file in sorted(folder.iterdir()):
        one = pydicom.dcmread(file)
        for keyword, value in attributes.items():
            setattr(one, keyword, value)
        copy = instance_store.incoming / file.name
        one.save_as(copy)
        told.append(instance_store.add(copy, "CT").differs)
    return told


def test_every_version_is_kept_once_until_it_is_decided(tmp_path: Path) -> None:
    _, instance_store = stored(tmp_path, ["kept"])
    (study,) = instance_store.study_names()
    folder = instance_store.studies / study
    assert take(instance_store, tmp_path / "kept") == [False] * 6
    for patient in ("second", "third", "second"):
        assert take(instance_store, tmp_path / "kept", PatientID=patient) == [True] * 6
    assert len(list(folder.glob("newer/*/*.dcm"))) == 12
    found = find_conflict(folder)
    assert found is not None and (found.versions, found.attributes, found.patients) == (
        6,
        ("PatientID",),
        ("Patient ID",),
    )
    hasher = UidHasher(instance_store.studies.parent / KEY_FILE)
    assert count_changes(folder, hasher, "new") == (6, 0) and count_changes(folder, hasher, "old") == (0, 0)
    resolve_conflict(folder, hasher, "new")
    assert {str(pydicom.dcmread(file).PatientID) for file in folder.glob("*.dcm")} == {"third"}
    assert find_conflict(folder) is None
    resolve_conflict(folder, hasher, "new")  # begun again
    assert len(list(folder.glob("*.dcm"))) == 6


def test_the_same_in_another_transfer_syntax_or_character_set_is_no_conflict(tmp_path: Path) -> None:
    write_study(tmp_path / "study", "same")
    file = sorted((tmp_path / "study").iterdir())[0]
    one = pydicom.dcmread(file)
    one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Hans"
    one.save_as(file)
    for name in ("packed", "utf", "pixels", "word"):
        other = pydicom.dcmread(file)
        if name == "packed":
            other.compress(RLELossless, generate_instance_uid=False)
        elif name == "utf":
            told = str(other.PatientName)
            other.SpecificCharacterSet, other.PatientName = "ISO_IR 192", told
        elif name == "pixels":
            other.PixelData = bytes(reversed(other.PixelData))
        else:
            other.PatientName = "Mueller^Hans"
        other.save_as(tmp_path / name)
    assert differing_attributes(file, tmp_path / "packed") == differing_attributes(file, tmp_path / "utf") == []
    assert differing_attributes(file, tmp_path / "pixels") == ["PixelData"]
    assert differing_attributes(file, tmp_path / "word") == ["PatientName"]


def test_study_is_found_by_what_is_typed(tmp_path: Path) -> None:
    uid, instance_store = stored(tmp_path, ["alpha", "beta"])
    state = instance_store.studies.parent
    queue = Queue(state / DATABASE_FILE)
    for file in sorted((tmp_path / "alpha").iterdir()):
        one = pydicom.dcmread(file)
        one.AccessionNumber, one.SOPInstanceUID = "ACC-1", f"{one.SOPInstanceUID}.1"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.save_as(instance_store.incoming / "x")
        instance_store.add(instance_store.incoming / "x", "CT")
    hasher = UidHasher(state / KEY_FILE)
    beta = hasher.hash(uid)
    (alpha,) = set(instance_store.study_names()) - {beta}
    for typed, name in (
        (uid, beta),
        (f" {uid} ", beta),
        ("beta", beta),
        (beta, beta),
        ("alpha", alpha),
        ("ACC-1", alpha),
    ):
        assert find_study(queue, state, typed) == name
    take(instance_store, tmp_path / "beta", StudyInstanceUID="1.2.4", PatientID="A\\B")
    assert find_study(queue, state, "A\\B") == hasher.hash("1.2.4")
    for typed in ("gamma", "", "ALPHA", "../studies", "0" * 32):
        assert find_studies(queue, state, typed) == []
        with pytest.raises(InputError) as caught:
            find_study(queue, state, typed)
        assert not typed or typed not in str(caught.value)
    take(instance_store, tmp_path / "alpha", StudyInstanceUID="1.2.3")
    with pytest.raises(InputError, match="2 studies match"):
        find_study(queue, state, "alpha")
    for mark in [*instance_store.studies.glob("*/patient-*"), *instance_store.studies.glob("*/accession-*")]:
        assert "alpha" not in mark.name and "ACC" not in mark.name
        mark.unlink()  # as an earlier version left them
    assert find_study(queue, state, "beta") == beta
