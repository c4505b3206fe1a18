"""A verdict on a server is not one on the scan: another server is asked, or the scan waits and the operator is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semiseg.errors import Cancelled, InputError
from server.gateway.config import Servers
from server.gateway.inference_client import InferenceClient, ServersUnavailable
from server.gateway.server_pool import ServerPool
from tests.bundles import make_threshold_bundle
from tests.gateway.harness import dimse_destination, make_config, running_gateway, write_study
from tests.gateway.peers import HttpExchange, fake_storage_scp, http_peer, silent_port
from tests.polling import wait_until
from tests.server.harness import RunningServer, running_server

OWN = "The upload is no scan."


class Asked:
    """The gateway's side of servers, asked for one scan."""

    def __init__(self, folder: Path, *urls: str, key: Path | None = None, **more: Any) -> None:
        write_study(folder / "study", "verdicts")
        (folder / "results").mkdir()
        self._files, self._folder = sorted((folder / "study").iterdir()), folder / "results"
        servers = Servers(urls=urls, key=key, **more)
        self.replicas = ServerPool(servers)
        self._segmenting = InferenceClient(servers, self.replicas)

    def __call__(self, model: str | None = None, stopped: Callable[[], bool] = lambda: False) -> str:
        return self._segmenting.segment(self._files, ("seg",), model, self._folder, stopped).server


@pytest.fixture
def good(server: RunningServer) -> str:
    return server.url.replace("localhost", "127.0.0.1")


def refusing(status: int, body: Any = b"<html>Mueller^Hans</html>", media_type: str = "text/html", **more: str) -> Any:
    return http_peer(lambda e: e.reply(status, body, media_type, **more))


VERDICTS_ON_THE_SERVER = [301, 302, 307, 401, 403, 404, 405, 408, 413, 421, 429, 431, 500, 502, 503, 504, 507]


@pytest.mark.parametrize("status", VERDICTS_ON_THE_SERVER)
@pytest.mark.parametrize("words", ["own", "of a proxy"])
def test_another_server_is_asked_and_without_one_the_scan_waits(
    good: str, tmp_path: Path, status: int, words: str
) -> None:
    own: dict[str, Any] = {"body": {"error": "Mueller^Hans"}, "media_type": "application/json"}
    with refusing(status, **(own if words == "own" else {})) as (bad, _):
        alone = Asked(tmp_path / "alone", bad)
        with pytest.raises(ServersUnavailable) as error:
            alone()
        told = str(error.value)
        assert bad in told and f"HTTP {status}" in told and "Mueller" not in told
        assert len(told.split(f"HTTP {status}")[1]) > 30, "what is to be done"
        assert any(f"HTTP {status}" in why for why in alone.replicas.troubles().values()) == (
            status not in (408, 413, 500)
        )
        asked = Asked(tmp_path / "both", bad, good)
        assert {asked() for _ in range(2)} == {good}


@pytest.mark.parametrize("status", [400, 415, 422])
def test_own_sentence_of_a_server_is_a_verdict_on_the_scan(tmp_path: Path, status: int) -> None:
    with refusing(status, {"error": OWN}, "application/json") as (url, _), pytest.raises(InputError, match=OWN):
        Asked(tmp_path, url)()


@pytest.mark.parametrize("status", [400, 415, 422])
def test_page_of_a_proxy_is_no_verdict_on_the_scan(good: str, tmp_path: Path, status: int) -> None:
    with refusing(status) as (bad, _):
        assert Asked(tmp_path, bad, good)() == good


def test_page_that_answers_everything_is_no_server(good: str, tmp_path: Path) -> None:
    with refusing(200) as (bad, _):
        asked = Asked(tmp_path, bad, good)
        assert asked() == good and asked() == good
    (told,) = [why for url, why in asked.replicas.troubles().items() if url == bad]
    assert "not a semiseg server" in told


def test_certificate_that_is_not_trusted_is_a_verdict_on_the_server(good: str, tmp_path: Path) -> None:
    tls = good.replace("http:", "https:")  # speaks no TLS at all
    asked = Asked(tmp_path, tls, good)
    assert asked() == good and asked() == good


@pytest.mark.parametrize("value", ["2", "Wed, 21 Oct 2015 07:28:00 GMT", "nonsense", "99999999999999"])
def test_time_that_a_server_asks_for_is_kept_as_far_as_it_makes_sense(tmp_path: Path, value: str) -> None:
    with refusing(503, Retry_After=value) as (url, _), pytest.raises(ServersUnavailable) as error:
        Asked(tmp_path, url)()
    assert error.value.seconds == {"2": 2.0, "nonsense": 1.0, "99999999999999": 999999999.0}.get(value, 0.0)
    assert error.value.of_servers


def test_key_is_read_anew_for_each_scan(tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    old, new = "o" * 40, "n" * 40
    seen: list[str] = []

    def answer(exchange: HttpExchange) -> None:
        seen.append(exchange.headers["Authorization"])
        exchange.reply(401, {"error": "no"}, "application/json")

    key.write_text(old)
    with http_peer(answer) as (url, _):
        asked = Asked(tmp_path, url, key=key)
        for one in (old, new):
            key.write_text(one + "\n")
            seen.clear()
            with pytest.raises(ServersUnavailable, match="read again"):
                asked()
            assert f"Bearer {one}" in seen and len(set(seen) - {None}) == 1
        key.unlink()
        with pytest.raises(ServersUnavailable, match="cannot be read"):
            asked()
    assert not keys.exists()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with another model."""
    folder = tmp_path_factory.mktemp("other")
    bundle = make_threshold_bundle(folder / "bundle", name="other")
    with running_server(bundle.folder, folder / "process") as server:
        yield server


def test_model_that_one_of_several_servers_has_is_asked_there(good: str, other: RunningServer, tmp_path: Path) -> None:
    asked = Asked(tmp_path, good, other.url)
    assert {asked("other") for _ in range(3)} == {other.url}
    assert {asked("threshold") for _ in range(3)} == {good}
    with pytest.raises(ServersUnavailable) as error:
        asked("third")
    assert "has no model third, only other" in str(error.value) and "only threshold" in str(error.value)


def test_server_that_hangs_is_left_for_another_and_rests(good: str, tmp_path: Path) -> None:
    """One that accepts connections and never answers."""
    with silent_port() as port:
        asked = Asked(tmp_path, f"http://127.0.0.1:{port}", good)
        since = time.monotonic()
        assert {asked() for _ in range(2)} == {good} and time.monotonic() - since < 25
        since = time.monotonic()
        assert {asked() for _ in range(3)} == {good} and time.monotonic() - since < 8


def test_server_that_begins_to_hang_during_a_scan_is_given_up(tmp_path: Path) -> None:
    hanging = threading.Event()

    def answer(exchange: HttpExchange) -> None:
        if exchange.method == "POST":
            hanging.set()
        if hanging.is_set():
            time.sleep(12)
        exchange.reply(200, [], "application/json")

    with http_peer(answer) as (url, _):
        since = time.monotonic()
        with pytest.raises(ServersUnavailable, match="it hangs"):
            Asked(tmp_path, url, silence_seconds=2.0)()
        assert time.monotonic() - since < 9


def test_server_that_works_for_long_and_lives_is_not_given_up(tmp_path: Path) -> None:
    def answer(exchange: HttpExchange) -> None:
        if exchange.method == "POST":
            time.sleep(4)
            exchange.reply(422, {"error": OWN}, "application/json")
        else:
            exchange.reply(200, [], "application/json")

    with http_peer(answer) as (url, _), pytest.raises(InputError, match=OWN):
        Asked(tmp_path, url, silence_seconds=1.0)()


def test_scan_is_given_up_at_once_when_its_job_is_stopped(tmp_path: Path) -> None:
    posted = threading.Event()

    def answer(exchange: HttpExchange) -> None:
        if exchange.method == "POST":
            posted.set()
            time.sleep(6)
        exchange.reply(200, [], "application/json")

    with http_peer(answer) as (url, _):
        since = time.monotonic()
        with pytest.raises(Cancelled):
            Asked(tmp_path, url)(stopped=posted.is_set)
        assert time.monotonic() - since < 5


def test_name_that_nobody_knows_is_told_and_does_not_keep_others_waiting(good: str, tmp_path: Path) -> None:
    assert Asked(tmp_path / "one", "http://server.invalid:3000", good)() == good
    with pytest.raises(ServersUnavailable, match="the name cannot be resolved"):
        Asked(tmp_path / "two", "http://server.invalid:3000")()


def test_changed_key_makes_no_dead_letter_and_is_mended_without_a_restart(
    send: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("gateway " + "n" * 40 + "\n")
    key.write_text("o" * 40)
    write_study(tmp_path / "study", "key")
    with (
        running_server(bundle, tmp_path / "server", "--keys", str(keys)) as server,
        fake_storage_scp() as archive,
    ):
        servers = {"urls": [server.url], "key": str(key)}
        config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port), servers=servers)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            gateway.wait_for("failed", 2)
            status = gateway.status()
            assert status["dead_letters"] == [] and "HTTP 401" in status["held_up"][0]["error"]
            assert "HTTP 401" in status["servers"][0]["trouble"]
            key.write_text("n" * 40)
            wait_until(lambda: archive.received, 60, describe=lambda: gateway.output)
            assert gateway.status()["servers"][0]["trouble"] == ""
