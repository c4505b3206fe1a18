"""Studies out of an archive that gives part of them: it is asked again, and part is never taken for the whole."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from server.gateway.dicomweb import RedirectRefused, create_dicomweb_client, create_session
from tests.gateway.dicomweb_peer import (
    DicomwebRequestHandler,
    EncodedInstances,
    dicomweb_peer,
    is_element,
    multipart_body,
    send_chunked,
    send_study,
    ui_element,
)
from tests.gateway.harness import make_offline_config, running_gateway, write_study
from tests.gateway.peers import INVALID_URLS
from tests.polling import paths_in, wait_until

SLICES = 6


def half(files: EncodedInstances) -> EncodedInstances:
    return files[: len(files) // 2]


def cut(files: EncodedInstances) -> bytes:
    content = multipart_body(files)
    return content[: len(content) // 2]


def to_another_host(answer: DicomwebRequestHandler, _: EncodedInstances) -> None:
    answer.answer(b"", 302, Location=f"{ELSEWHERE}/dicom-web/studies")


def of_another_study(answer: DicomwebRequestHandler, files: EncodedInstances) -> None:
    other = next(other for other in answer.peer.studies.values() if other is not files)
    answer.answer(multipart_body([*files, other[0]]))


ELSEWHERE = "http://127.0.0.2:9"
FAULTS: dict[str, Callable[[DicomwebRequestHandler, EncodedInstances], None]] = {
    "HTTP 206": lambda answer, files: answer.answer(multipart_body(half(files)), 206),
    "fewer than counted": lambda answer, files: answer.answer(multipart_body(half(files))),
    "one twice, one not": lambda answer, files: answer.answer(multipart_body([*files[1:], files[1]])),
    "no part": lambda answer, files: answer.answer(multipart_body([])),
    "no closing boundary": lambda answer, files: answer.answer(multipart_body(files, closed=False), length=-1),
    "cut in a part": lambda answer, files: answer.answer(cut(files), length=-1),
    "shorter than its length": lambda answer, files: answer.answer(cut(files), length=len(multipart_body(files))),
    "cut in a chunk": lambda answer, files: send_chunked(answer, files, share=0.5),
    "an instance that does not parse": lambda answer, files: answer.answer(
        multipart_body([*files, b"<html>Error</html>"])
    ),
    "an instance of another study": of_another_study,
    "no multipart": lambda answer, files: answer.answer(files[0], 200, "application/dicom"),
    "no content": lambda answer, files: answer.answer(b"", 204),
    "an error": lambda answer, files: answer.answer(b"", 500),
    "redirected to another host": to_another_host,
}
WORDS = {
    "HTTP 206": "part of the study (HTTP 206)",
    "fewer than counted": f"3 of {SLICES} instances",
    "one twice, one not": f"5 of {SLICES} instances",
    "no closing boundary": "the closing boundary is missing",
    "an instance that does not parse": "is not a DICOM file",
    "an instance of another study": "an instance of another study",
    "redirected to another host": "HTTP 302 to http://127.0.0.2:9, which is not followed",
}


def config_of(tmp_path: Path, url: str, **parts: Any) -> dict[str, Any]:
    poll = {"url": url, "every_seconds": 0.3, "trouble_after": 2, "name": "PACS"}
    retry = {"first_seconds": 0.1, "longest_seconds": 0.3}
    complete = {"quiet_seconds": 0.5}
    return make_offline_config(
        tmp_path, dimse=None, polls=[poll], **({"retry": retry, "completeness": complete} | parts)
    )


def test_part_of_a_study_is_fetched_again_until_it_is_whole(tmp_path: Path) -> None:
    """GW-14. Every kind of broken answer at once, each for a study of its own; then the archive is mended."""
    with dicomweb_peer() as peer:
        uids = {}
        for kind, give in FAULTS.items():
            write_study(tmp_path / kind, kind)
            uids[kind] = peer.add(tmp_path / kind)
            peer.responders[uids[kind]] = give
        write_study(tmp_path / "good", "good")
        peer.add(tmp_path / "good")
        with running_gateway(config_of(tmp_path, peer.url), tmp_path / "gateway") as gateway:
            wait_until(
                lambda: len(gateway.status()["studies_in_trouble"]) == len(FAULTS), describe=lambda: gateway.output
            )
            (complete,) = gateway.audit("complete")
            assert complete["instances"] == SLICES
            assert len(paths_in(gateway.state / "studies", "*.dcm")) == SLICES  # nothing else came in
            told = " ".join(one["why"] for one in gateway.status()["studies_in_trouble"])
            for words in WORDS.values():
                assert words in told
            assert not any(uid in gateway.output for uid in peer.studies)
            peer.responders.clear()
            wait_until(lambda: len(gateway.audit("complete")) == len(FAULTS) + 1, describe=lambda: gateway.output)
            assert {line["instances"] for line in gateway.audit("complete")} == {SLICES}
            wait_until(lambda: gateway.status()["studies_in_trouble"] == [], describe=gateway.status)
            assert list((gateway.state / "incoming").iterdir()) == []


def test_answers_that_are_unusual_and_whole_are_taken(tmp_path: Path) -> None:
    """Chunks, an unquoted boundary, preamble and epilogue, and counts of QIDO-RS that are wrong or not there."""
    with dicomweb_peer() as peer:
        for name, count in {
            "chunks": SLICES,
            "preamble": SLICES,
            "none": None,
            "zero": 0,
            "words": "six",
            "few": 2,
        }.items():
            write_study(tmp_path / name, name)
            uid = peer.add(tmp_path / name)
            peer.rows[uid] = {
                "00201208": None if count is None else is_element(count),
                "00081190": ui_element(f"{ELSEWHERE}/dicom-web/studies/{uid}"),  # Retrieve URL: of no use to us
            }
            if name == "chunks":
                peer.responders[uid] = send_chunked
            elif name == "preamble":
                peer.responders[uid] = lambda answer, files: answer.answer(
                    b"preamble\r\n" + multipart_body(files) + b"epilogue", 200, "multipart/related; boundary=BOUND"
                )
        with running_gateway(config_of(tmp_path, peer.url), tmp_path / "gateway") as gateway:
            wait_until(lambda: len(gateway.audit("complete")) == 6, describe=lambda: gateway.output)
            assert {line["instances"] for line in gateway.audit("complete")} == {SLICES}


def test_archive_that_answers_no_queries_below_studies_is_held_to_its_count(tmp_path: Path) -> None:
    with dicomweb_peer() as peer:
        peer.below = False
        write_study(tmp_path / "counted", "counted")
        write_study(tmp_path / "part", "part")
        write_study(tmp_path / "uncounted", "uncounted")
        peer.add(tmp_path / "counted")
        part, uncounted = peer.add(tmp_path / "part"), peer.add(tmp_path / "uncounted")
        peer.responders[part] = FAULTS["fewer than counted"]
        peer.rows[uncounted] = {"00201208": None}
        with running_gateway(config_of(tmp_path, peer.url), tmp_path / "gateway") as gateway:
            wait_until(lambda: len(gateway.status()["studies_in_trouble"]) == 2, describe=lambda: gateway.output)
            wait_until(lambda: gateway.audit("complete"), describe=lambda: gateway.output[-3000:])
            assert len(gateway.audit("complete")) == 1
            told = " ".join(one["why"] for one in gateway.status()["studies_in_trouble"])
            assert "3 of 6 instances" in told and "does not report by QIDO-RS how many" in told


def test_archive_that_gives_few_rows_at_a_time_and_does_not_filter_gives_all_studies(tmp_path: Path) -> None:
    with dicomweb_peer() as peer:
        peer.page, peer.filters, peer.below = 2, False, False
        for k in range(5):
            write_study(tmp_path / f"study{k}", f"page {k}")
            peer.add(tmp_path / f"study{k}")
        with running_gateway(config_of(tmp_path, peer.url), tmp_path / "gateway") as gateway:
            wait_until(lambda: len(gateway.audit("complete")) == 5, describe=lambda: gateway.output[-3000:])
            assert gateway.status()["studies_in_trouble"] == []


def test_study_that_comes_by_itself_waits_while_an_archive_is_to_give_the_rest(
    tmp_path: Path, send: Callable[..., Any]
) -> None:
    """The quiet clock does not run while a fetch fails; an operator may decide that what is here is enough."""
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "both ways")
        uid = peer.add(tmp_path / "study")
        peer.responders[uid] = FAULTS["an error"]
        config = config_of(tmp_path, peer.url) | {"dimse": {"port": 0, "any_sender": True}}
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["studies_in_trouble"], describe=lambda: gateway.output)
            for file in sorted((tmp_path / "study").iterdir())[3:]:
                file.unlink()
            assert send(gateway, tmp_path / "study").returncode == 0
            tries = len(gateway.audit("failed"))
            wait_until(lambda: len(gateway.audit("failed")) > tries + 10, describe=lambda: gateway.output)
            assert gateway.audit("complete") == [] == gateway.audit("decided")
            (trouble,) = gateway.status()["studies_in_trouble"]
            assert "Fetching it failed" in trouble["why"] and "HTTP 500" in trouble["why"]
            assert "is taken as it is" in gateway.command("complete", trouble["study"])
            wait_until(lambda: gateway.audit("decided"), describe=lambda: gateway.output)
            assert gateway.audit("decided")[0]["instances"] == 3


def test_study_that_could_not_be_fetched_in_all_the_time_is_held(tmp_path: Path, send: Callable[..., Any]) -> None:
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "given up")
        peer.responders[peer.add(tmp_path / "study")] = FAULTS["HTTP 206"]
        config = config_of(tmp_path, peer.url, retry={"first_seconds": 0.1, "longest_seconds": 0.1, "hours": 1e-4})
        config["dimse"] = {"port": 0, "any_sender": True}
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.audit("dead letter"), describe=lambda: gateway.output)
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: gateway.status()["studies_in_trouble"], describe=lambda: gateway.output)
            assert "HTTP 206" in gateway.status()["studies_in_trouble"][0]["why"]
            assert gateway.audit("complete") == []


def test_archive_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    hang = threading.Event()
    with dicomweb_peer() as slow, dicomweb_peer() as quick:
        for k in range(3):
            write_study(tmp_path / f"slow{k}", f"slow {k}")
            slow.responders[slow.add(tmp_path / f"slow{k}")] = lambda answer, files: hang.wait(60) and None
        config = config_of(tmp_path, slow.url)
        config["polls"].append(config["polls"][0] | {"url": quick.url, "name": "QUICK"})
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(
                lambda: sum(path.count("/") == 3 for path in slow.requested_paths), describe=lambda: gateway.output
            )
            write_study(tmp_path / "quick", "quick")
            quick.add(tmp_path / "quick")
            wait_until(lambda: gateway.audit("fetched"), 30, describe=lambda: gateway.output)
            assert gateway.audit("fetched")[0]["sender"] == "QUICK"
            hang.set()


def test_instance_of_an_archive_whose_uid_breaks_the_standard_is_missed(tmp_path: Path) -> None:
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "long")
        file = sorted((tmp_path / "study").iterdir())[2]
        one = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2." + "3" * 68
            one.save_as(file)
            peer.add(tmp_path / "study")
        with running_gateway(config_of(tmp_path, peer.url), tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["studies_in_trouble"], describe=lambda: gateway.output)
            assert "72 characters" in gateway.status()["studies_in_trouble"][0]["why"]
            assert gateway.audit("complete") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_neither_token_nor_data_goes_to_another_host(tmp_path: Path, method: str) -> None:
    (tmp_path / "token").write_text("a-secret-token")
    with socket.create_server(("127.0.0.1", 0)) as other, dicomweb_peer() as peer:
        other.settimeout(0.5)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/dicom-web/studies"
        write_study(tmp_path / "study", "redirected")
        uid = peer.add(tmp_path / "study")
        peer.responders[uid] = lambda answer, files: answer.answer(b"", 307, Location=address)
        with create_session(tmp_path / "token") as session, pytest.raises(RedirectRefused, match="is not followed"):
            session.request(method, f"{peer.url}/studies/{uid}", data=b"patient" if method == "POST" else None)
        with pytest.raises(TimeoutError):
            other.accept()


@pytest.mark.parametrize("location", INVALID_URLS)
def test_redirect_to_an_address_that_cannot_be_read_is_a_failure_of_the_request(tmp_path: Path, location: str) -> None:
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "unreadable")
        uid = peer.add(tmp_path / "study")
        peer.responders[uid] = lambda answer, files: answer.answer(b"", 307, Location=location)
        with create_session(None) as session, pytest.raises(RedirectRefused, match="cannot be read"):
            session.get(f"{peer.url}/studies/{uid}")


def test_redirect_on_the_same_host_is_followed(tmp_path: Path) -> None:
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "moved")
        uid = peer.add(tmp_path / "study")
        moved = f"/dicom-web/studies/{uid}"
        peer.responders[uid] = lambda answer, files: (
            send_study(answer, files)
            if peer.requested_paths.count(moved) > 1
            else answer.answer(b"", 302, Location=moved)
        )
        assert len(list(create_dicomweb_client(peer.url, None).iter_study(uid))) == SLICES


def test_word_of_an_error_is_its_kind_alone() -> None:
    from server.gateway.dicomweb import request_error_text

    assert request_error_text(requests.ConnectionError("http://pacs/studies/1.2.3.4")) == "ConnectionError"
