"""Results by C-STORE: every form of success, refusals by instance, and a transfer syntax that the archive takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom.sop_class import SegmentationStorage  # type: ignore[attr-defined]

from server.gateway.commitment_scu import CommitmentReports
from server.gateway.delivery_result import DeliveryResult
from server.gateway.destinations import DimseDestination
from server.gateway.destinations.destination import Delivery
from tests.gateway.peers import ALL_CONTEXTS, PATIENT, fake_storage_scp, make_result_file, silent_port


def send(files: Sequence[Path], port: int, **more: Any) -> DeliveryResult:
    to = DimseDestination(ae_title="ARCHIVE", host="127.0.0.1", port=port, **more)
    return to.deliver(files, Delivery("SEMISEG", CommitmentReports()))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "results").mkdir()
    return [make_result_file(tmp_path / "results", form) for form in ("seg", "sr", "rtstruct")]


@pytest.mark.parametrize(
    "status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007, 0xB008, 0x0107, 0x0116, 0x0001], ids=lambda one: f"{one:04X}"
)
def test_success_warning_and_duplicate_are_delivered_in_one_association(files: list[Path], status: int) -> None:
    """PS3.4 table B.2-1, PS3.7 Annex C."""
    with fake_storage_scp(lambda *_: status) as archive:
        outcome = send(files, archive.port)
        assert archive.associations == 1 and len(archive.received) == 3
    assert sorted(outcome.confirmed) == sorted(file.name for file in files) and not outcome.describe()
    assert bool(outcome.warnings) == (status != 0)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0xA700, "Out of Resources"),
        (0xA900, "Does Not Match SOP Class"),
        (0xC123, "Cannot Understand"),
        (0x0122, "SOP Class Not Supported"),
        (0x0124, "Not Authorized"),
        (0x0110, "Processing Failure"),
        (0x0117, "Invalid SOP Instance"),
        (0xFF00, "not defined by the standard"),
    ],
)
def test_refusal_is_told_with_the_name_of_its_status_and_the_archive(files: list[Path], status: int, name: str) -> None:
    with fake_storage_scp(lambda *_: status) as archive:
        outcome = send(files, archive.port)
    assert not outcome.confirmed and len(outcome.refused) == 3 and not outcome.trouble
    assert f"0x{status:04X}" in outcome.describe() and name in outcome.describe()
    assert f"ARCHIVE at 127.0.0.1:{archive.port}" in outcome.describe()


def test_what_an_archive_refuses_does_not_hold_up_what_it_takes(files: list[Path]) -> None:
    refuse_seg = lambda event, _: 0xA900 if event.request.AffectedSOPClassUID == SegmentationStorage else 0  # noqa: E731
    with fake_storage_scp(refuse_seg) as archive:
        outcome = send(files, archive.port)
    assert sorted(outcome.confirmed) == [files[2].name, files[1].name] and list(outcome.refused) == [files[0].name]


def test_archive_without_the_sop_class_takes_the_others(files: list[Path]) -> None:
    without = {sop_class: syntaxes for sop_class, syntaxes in ALL_CONTEXTS.items() if sop_class != SegmentationStorage}
    with fake_storage_scp(accepted=without) as archive:
        outcome = send(files, archive.port)
        assert send(files[:1], archive.port).trouble == "", "it is the instance and not the archive"
    assert len(outcome.confirmed) == 2
    assert "does not accept Segmentation Storage" in outcome.refused[files[0].name]
    assert "Implicit VR Little Endian" in outcome.refused[files[0].name]


@pytest.mark.parametrize("taken", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=["implicit", "explicit"])
@pytest.mark.parametrize(
    "made", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless], ids=["implicit", "explicit", "rle"]
)
def test_archive_of_one_transfer_syntax_gets_the_same_object_in_it(tmp_path: Path, made: UID, taken: UID) -> None:
    """PS3.5 10.1."""
    source = make_result_file(tmp_path, "seg")
    whole = pydicom.dcmread(source)
    if made == RLELossless:
        whole.compress(RLELossless, generate_instance_uid=False)
    whole.file_meta.TransferSyntaxUID = made
    pydicom.dcmwrite(source, whole, implicit_vr=made.is_implicit_VR, little_endian=True, enforce_file_format=True)
    with fake_storage_scp(accepted={SegmentationStorage: [taken]}) as archive:
        outcome = send([source], archive.port)
    assert outcome.confirmed == [source.name], outcome
    ((got, _),) = archive.received
    assert got.file_meta.TransferSyntaxUID == taken
    for name in ("SOPInstanceUID", "PatientName", "SeriesDescription", "ImagePositionPatient", "SegmentSequence"):
        assert got[name].value == whole[name].value
    assert got.PixelData == bytes(range(48))


def test_each_class_is_offered_in_several_contexts_of_one_association(files: list[Path]) -> None:
    offered: list[tuple[str, tuple[str, ...]]] = []

    def status(event: Any, _: int) -> int:
        if not offered:
            asked = event.assoc.requestor.requested_contexts
            offered.extend((str(one.abstract_syntax), tuple(one.transfer_syntax)) for one in asked)
        return 0

    with fake_storage_scp(status) as archive:
        send(files, archive.port)
    assert len(offered) == 6
    for sop_class in {one for one, _ in offered}:
        syntaxes = [of for one, of in offered if one == sop_class]
        assert (ImplicitVRLittleEndian,) in syntaxes and all(len(one) == 1 for one in syntaxes)


def test_words_of_the_archive_are_nowhere(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xA900, f"Patient {PATIENT} unknown"
        answer.OffendingElement = [0x00100010]
        return answer

    caplog.set_level(logging.DEBUG, logger="semiseg")
    with fake_storage_scp(refuse) as archive:
        outcome = send(files, archive.port)
    assert "Mueller" not in outcome.describe() + caplog.text and "0xA900" in outcome.describe()


def test_archive_that_breaks_off_at_one_instance_gets_the_others(files: list[Path]) -> None:
    def status(event: Any, _: int) -> int:
        if event.request.AffectedSOPClassUID == SegmentationStorage:
            event.assoc.abort()
        return 0

    with fake_storage_scp(status) as archive:
        outcome = send(files, archive.port)
    assert len(outcome.confirmed) == 2 and "ended the association early" in outcome.refused[files[0].name]
    assert outcome.trouble == ""


def test_archive_that_does_not_answer_is_in_trouble_within_the_times_of_its_configuration(files: list[Path]) -> None:
    with silent_port() as port:
        since = time.monotonic()
        outcome = send(files, port, connect_seconds=1.0, answer_seconds=1.0)
    assert "does not answer in DICOM" in outcome.trouble and not outcome.refused and time.monotonic() - since < 10
    with fake_storage_scp(lambda *_: time.sleep(4) or 0) as archive:  # type: ignore[func-returns-value]
        outcome = send(files, archive.port, answer_seconds=1.0)
        assert "did not answer in 1 s to a C-STORE" in outcome.trouble


def test_name_that_nobody_knows_is_trouble(files: list[Path]) -> None:
    to = DimseDestination(ae_title="ARCHIVE", host="archive.invalid", port=104)
    assert "does not answer" in to.deliver(files, Delivery("SEMISEG", CommitmentReports())).trouble


def test_answer_that_cannot_be_decoded_ends_the_association_at_once(
    files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Any, number: int) -> int:
        # A P-DATA-TF with one presentation data value: a whole command, which is empty (PS3.8 9.3.5, PS3.7 6.3.1).
        event.assoc.dul.socket.send(bytes.fromhex("0400000000060000000201") + b"\x03")
        return 0

    began = time.monotonic()
    with fake_storage_scp(broken) as archive:
        outcome = send(files, archive.port)
    assert time.monotonic() - began < 20, "the time-out of an answer is 60 s"
    assert not outcome.confirmed and "ended the association early" in outcome.describe()
    assert any("violates PS3.7" in record.getMessage() for record in caplog.records)
