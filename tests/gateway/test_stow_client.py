"""Results by STOW-RS: every form of success, refusals by instance, and nothing sent to another host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from server.gateway.commitment_scu import CommitmentReports
from server.gateway.delivery_result import DeliveryResult
from server.gateway.destinations import DicomwebDestination
from server.gateway.destinations.destination import Delivery
from tests.gateway.peers import INVALID_URLS, HttpExchange, http_peer, make_result_file, silent_port, stow_response

JSON = "application/dicom+json"
XML = (
    '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">{}'
    "</NativeDicomModel>"
)
SEQUENCE = '<DicomAttribute tag="{}" vr="SQ">{}</DicomAttribute>'
ITEM = (
    '<Item number="1"><DicomAttribute tag="00081155" vr="UI"><Value number="1">{}</Value></DicomAttribute>'
    '<DicomAttribute tag="{}" vr="US"><Value number="1">{}</Value></DicomAttribute></Item>'
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "results").mkdir()
    return [make_result_file(tmp_path / "results", form) for form in ("seg", "sr", "rtstruct")]


DELIVERY = Delivery("SEMISEG", CommitmentReports())


def send(files: Sequence[Path], url: str, **more: Any) -> DeliveryResult:
    to = DicomwebDestination(url=f"{url}/dicom-web", **more)
    return to.deliver(files, DELIVERY)


def uids(exchange: HttpExchange) -> list[str]:
    return [str(one.SOPInstanceUID) for one in exchange.objects]


def xml(exchange: HttpExchange, sequence: str, tag: str, reason: int) -> bytes:
    items = "".join(ITEM.format(uid, tag, reason) for uid in uids(exchange))
    return XML.format(SEQUENCE.format(sequence, items)).encode()


SUCCESSES: dict[str, Callable[[HttpExchange], None]] = {
    "200": lambda e: e.reply(200, stow_response(e.objects), JSON),
    "charset": lambda e: e.reply(200, stow_response(e.objects), "application/dicom+json; charset=utf-8"),
    "case and quotes": lambda e: e.reply(200, stow_response(e.objects), 'Application/DICOM+JSON;charset="UTF-8"'),
    "plain JSON": lambda e: e.reply(200, stow_response(e.objects), "application/json"),
    "no type": lambda e: e.reply(200, stow_response(e.objects)),
    "list of one": lambda e: e.reply(200, [stow_response(e.objects)], JSON),
    "200 with warnings": lambda e: e.reply(200, stow_response(e.objects, warning=0xB000), JSON),
    "202 with warnings": lambda e: e.reply(202, stow_response(e.objects, warning=0xB007), JSON),
    "empty": lambda e: e.reply(200),
    "empty document": lambda e: e.reply(200, {}, JSON),
    "204": lambda e: e.reply(204),
    "409 duplicate": lambda e: e.reply(409, stow_response(failed=dict.fromkeys(uids(e), 0x0111)), JSON),
    "409 with 45070": lambda e: e.reply(409, stow_response(failed=dict.fromkeys(uids(e), 45070)), JSON),
    "202 with 45070": lambda e: e.reply(202, stow_response(failed=dict.fromkeys(uids(e), 45070)), JSON),
    "XML": lambda e: e.reply(200, xml(e, "00081199", "00081196", 0xB000), "application/dicom+xml; charset=utf-8"),
    "XML 45070": lambda e: e.reply(409, xml(e, "00081198", "00081197", 45070), "application/dicom+xml"),
    "empty XML": lambda e: e.reply(200, XML.format("").encode(), "application/dicom+xml"),
}


@pytest.mark.parametrize("name", SUCCESSES)
def test_success_in_each_of_its_forms(files: list[Path], name: str) -> None:
    with http_peer(SUCCESSES[name]) as (url, seen):
        outcome = send(files, url)
    assert sorted(outcome.confirmed) == sorted(file.name for file in files), outcome
    assert not outcome.describe() and [one.method for one in seen] == ["POST"]
    assert seen[0].path == "/dicom-web/studies" and seen[0].headers["Content-Length"]


def test_what_was_refused_by_instance_is_told_with_its_reason_and_the_rest_is_taken(files: list[Path]) -> None:
    def answer(exchange: HttpExchange) -> None:
        first, *others = exchange.objects
        failed = {str(one.SOPInstanceUID): 0x0122 for one in others}
        exchange.reply(202, stow_response([first], failed), JSON)

    with http_peer(answer) as (url, _):
        outcome = send(files, url)
    assert outcome.confirmed == [files[0].name] and set(outcome.refused) == {files[1].name, files[2].name}
    assert "0x0122 (Refused: SOP Class Not Supported)" in outcome.describe() and not outcome.trouble


@pytest.mark.parametrize("status", [400, 409, 413, 500])
def test_refusal_of_a_whole_request_is_found_out_instance_by_instance(files: list[Path], status: int) -> None:
    def answer(exchange: HttpExchange) -> None:
        objects = exchange.objects
        if any("Segmentation" in one.SOPClassUID.name for one in objects) or len(objects) > 1:
            exchange.reply(status, b"<html>no</html>", "text/html")
        else:
            exchange.reply(200, stow_response(objects), JSON)

    with http_peer(answer) as (url, _):
        outcome = send(files, url)
    assert sorted(outcome.confirmed) == [files[2].name, files[1].name], outcome
    assert f"HTTP {status}" in outcome.refused[files[0].name] and "<html>" not in outcome.describe()
    assert not outcome.trouble


@pytest.mark.parametrize("by", ["415", "reason"])
def test_archive_of_one_transfer_syntax_gets_it(files: list[Path], by: str) -> None:
    def answer(exchange: HttpExchange) -> None:
        objects = exchange.objects
        if all(one.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian for one in objects):
            exchange.reply(200, stow_response(objects), JSON)
        elif by == "415":
            exchange.reply(415)
        else:
            failed = {
                str(one.SOPInstanceUID): 0xC122
                for one in objects
                if one.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            }
            stored = [one for one in objects if str(one.SOPInstanceUID) not in failed]
            exchange.reply(202, stow_response(stored, failed), JSON)

    with http_peer(answer) as (url, _):
        outcome = send(files, url)
    assert len(outcome.confirmed) == 3 and not outcome.describe(), outcome


def test_conflict_without_a_word_is_success_where_the_archive_has_the_instance(files: list[Path]) -> None:
    """As archives answer that have it already and do not say so by instance."""

    def answer(exchange: HttpExchange) -> None:
        if exchange.method == "POST":
            exchange.reply(409)
        elif f"SOPInstanceUID={there}" in exchange.path:
            exchange.reply(200, [{"00080018": {"vr": "UI", "Value": [there]}}], JSON)
        else:
            exchange.reply(204)

    from server.gateway.transfer_syntaxes import read_header

    there = str(read_header(files[0]).SOPInstanceUID)
    with http_peer(answer) as (url, _):
        outcome = send(files, url)
    assert outcome.confirmed == [files[0].name] and len(outcome.refused) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_to_another_host_is_not_followed(files: list[Path], status: int) -> None:
    with (
        http_peer(lambda e: e.reply(200, stow_response(e.objects), JSON)) as (other, elsewhere),
        http_peer(lambda e: e.reply(status, Location=f"{other}/dicom-web/studies")) as (url, _),
    ):
        outcome = send(files, url)
    assert not outcome.confirmed and elsewhere == []
    assert f"HTTP {status}" in outcome.trouble and "final address" in outcome.trouble


@pytest.mark.parametrize("location", INVALID_URLS)
def test_redirect_to_an_address_that_cannot_be_read_is_trouble_of_the_destination(
    files: list[Path], location: str
) -> None:
    with http_peer(lambda e: e.reply(307, Location=location)) as (url, seen):
        outcome = send(files, url)
    assert outcome.trouble.startswith(url) and len(seen) == 1
    assert "final address" in outcome.trouble or "no readable response" in outcome.trouble


@pytest.mark.parametrize("status", [307, 308])
def test_redirect_on_the_same_host_that_keeps_the_method_is_followed(files: list[Path], status: int) -> None:
    def answer(exchange: HttpExchange) -> None:
        if exchange.path == "/elsewhere/studies":
            exchange.reply(200, stow_response(exchange.objects), JSON)
        else:
            exchange.reply(status, Location="/elsewhere/studies")

    with http_peer(answer) as (url, seen):
        assert len(send(files, url).confirmed) == 3 and len(seen) == 2
    with http_peer(lambda e: e.reply(status, Location=e.path)) as (url, seen):
        assert f"HTTP {status}" in send(files, url).trouble and len(seen) == 4, "not for ever"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 421, 429, 502, 503, 504, 507])
def test_verdict_on_the_archive_is_trouble_of_the_destination_with_what_to_do(files: list[Path], status: int) -> None:
    with http_peer(lambda e: e.reply(status, b"Mueller", "text/plain", Retry_After="7")) as (url, seen):
        outcome = send(files, url)
    assert len(seen) == 1 and not outcome.refused and f"HTTP {status}" in outcome.trouble
    assert "Mueller" not in outcome.trouble and len(outcome.trouble) > 60 and outcome.retry_after_seconds == 7


def test_login_page_is_no_archive(files: list[Path]) -> None:
    with http_peer(lambda e: e.reply(200, b"<html>log in</html>", "text/html")) as (url, _):
        outcome = send(files, url)
    assert not outcome.confirmed and "login page" in outcome.trouble


def test_token_is_read_for_each_delivery(files: list[Path], tmp_path: Path) -> None:
    token = tmp_path / "token"

    def answer(exchange: HttpExchange) -> None:
        good = exchange.headers["Authorization"] == "Bearer new"
        exchange.reply(200 if good else 401)

    with http_peer(answer) as (url, _):
        to = DicomwebDestination(url=url, token=token)
        token.write_text("old\n")
        assert "401" in to.deliver(files, DELIVERY).trouble
        token.write_text("new\n")
        assert len(to.deliver(files, DELIVERY).confirmed) == 3


def test_archive_that_never_answers_costs_the_time_of_its_configuration(files: list[Path]) -> None:
    with silent_port() as port:
        outcome = send(files, f"http://127.0.0.1:{port}", answer_seconds=1.0)
    assert "did not answer in time" in outcome.trouble
    assert "does not answer" in send(files, "http://archive.invalid").trouble
