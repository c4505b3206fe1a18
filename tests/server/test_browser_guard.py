"""By which names a server may be called, and what pages of other servers may make a browser send: nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from semiseg.errors import InputError
from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies
from tests.bundles import make_threshold_bundle
from tests.gateway.harness import make_offline_config, running_gateway
from tests.server.harness import RunningServer, running_server
from tests.server.test_guard import WARD, nifti, with_key

EVIL = {"Host": "rebound.example:3000"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b").folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--state", str(folder / "state"), "--allowed-host", "scans.example", "--allowed-host", "*.ward.example")
    with running_server(bundle, folder, *options, "--origin", "https://viewer.example") as server:
        yield server


def test_server_is_not_called_by_a_name_that_nobody_gave_it(server):
    for path in ("/", "/models", "/jobs/none", "/docs.json", "/metrics", "/page/app.js"):
        refused = server.http.get(server.url + path, headers=EVIL)
        assert refused.status_code == 403, path
        assert "rebound.example" in refused.json()["error"] and "--allowed-host" in refused.json()["error"]
        assert refused.headers["x-content-type-options"] == "nosniff"
    assert server.segment(nifti(), headers=EVIL).status_code == 403
    assert server.http.delete(f"{server.url}/jobs/none", headers=EVIL).status_code == 403
    assert server.http.get(f"{server.url}/readyz", headers=EVIL).status_code == 200  # an orchestrator's own name
    assert server.leftovers() == [] and server.request_folders() == []


def test_names_that_are_the_servers_own_or_were_given_are_good(server):
    port = server.url.rsplit(":", 1)[1]
    names = (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", "a.localhost", f"[::1]:{port}", "10.1.2.3:80")
    for host in (*names, socket.gethostname(), "scans.example", "Scans.Example:443", "a.b.ward.example."):
        assert server.http.get(f"{server.url}/models", headers={"Host": host}).status_code == 200, host
    for host in (
        "ward.example",
        "xscans.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "<b>",
        "a" * 400,
    ):
        refused = server.http.get(f"{server.url}/models", headers={"Host": host})
        assert refused.status_code == 403, host
        assert "<" not in refused.text and "aaaa" not in refused.text


def test_server_with_keys_is_called_as_colleagues_call_it_unless_names_are_given(bundle, tmp_path):
    environ = {"SEMISEG_API_KEYS": f"ward {WARD}"}
    with running_server(bundle, tmp_path / "1", environ=environ) as server:
        named = {"Host": "scans.hospital.example"}
        assert server.segment(nifti(), headers=with_key(WARD) | named).status_code == 200
        assert server.segment(nifti(), headers=named).status_code == 401
    environ["SEMISEG_ALLOWED_HOSTS"] = "scans.hospital.example other.example"
    with running_server(bundle, tmp_path / "2", environ=environ) as server:
        assert server.segment(nifti(), headers=with_key(WARD) | named).status_code == 200
        assert server.segment(nifti(), headers=with_key(WARD) | EVIL).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy.example"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "made up"}, 403),
        # Browsers send no Sec-Fetch-Site to plain HTTP on another machine.
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://scans.example", "Host": "scans.example:80"}, 200),
        ({"Origin": "https://scans.example", "Host": "scans.example"}, 200),
        ({"Origin": "https://scans.example:8443", "Host": "scans.example"}, 403),
        ({"Origin": "https://viewer.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://viewer.example"}, 200),
        ({"Origin": "https://viewer.example.evil.example"}, 403),
    ],
)
def test_pages_of_other_servers_change_nothing(server, headers, status):
    assert server.segment(nifti(), headers=headers).status_code == status
    job = server.http.post(f"{server.url}/jobs", files={"scan": nifti()}, headers=headers)
    assert job.status_code == (202 if status == 200 else status)
    deleted = server.http.delete(f"{server.url}/jobs/{'0' * 32}", headers=headers)
    assert deleted.status_code == (404 if status == 200 else status)
    if status == 403:
        assert "another server" in deleted.json()["error"]


def test_gateways_door_is_guarded_in_the_same_way(tmp_path):
    config = make_offline_config(tmp_path, dimse=None, web={"port": 0, "hosts": ["gateway.example"]})
    with running_gateway(config, tmp_path / "g") as gateway, httpx.Client(trust_env=False) as http:
        for path in ("/", "/status", "/metrics"):
            refused = http.get(gateway.web + path, headers=EVIL)
            assert refused.status_code == 403 and "hosts" in refused.json()["error"]
            assert http.get(gateway.web + path, headers={"Host": "gateway.example"}).status_code == 200
        assert http.get(f"{gateway.web}/livez", headers=EVIL).status_code == 200
        for path in ("/dicom-web/studies", "/studies/1.2.3/complete"):
            for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
                assert http.post(gateway.web + path, headers=headers).status_code == 403
            assert http.post(gateway.web + path, headers={"Origin": gateway.web}).status_code in (404, 415)


@pytest.mark.parametrize("name", ["http://scans.example", "scans.example:3000", "a b", "*", ""])
def test_names_that_are_none_are_refused_at_the_start(name):
    if name == "*":
        assert BrowserGuard(hosts=[name]).check({"headers": [(b"host", b"x.example")], "method": "GET"}) is None
    else:
        with pytest.raises(InputError, match="not a host name"):
            BrowserGuard(hosts=[name])


def scope(client: str, path: str = "/jobs", **headers: str) -> dict:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": (client, 5), "path": path, "headers": [*lines, (b"host", b"inside:3000")]}


def test_forwarded_headers_are_believed_of_configured_proxies_only():
    proxies = TrustedProxies(["10.0.0.1", "172.16.0.0/12"], "/below")
    said = {"x_forwarded_for": "6.6.6.6, 9.9.9.9, 172.17.0.3", "x_forwarded_host": "evil.example, out.example"}
    believed = scope("10.0.0.1", **said, x_forwarded_prefix="/other/")
    proxies.apply(believed)
    # The nearest address that no proxy of ours has: what stands before it the client may have made up.
    assert believed["client"] == ("9.9.9.9", 0)
    assert (believed["semiseg.host"], believed["semiseg.prefix"]) == ("out.example", "/other")
    stranger = scope("8.8.8.8", **said, x_forwarded_prefix="/other")
    proxies.apply(stranger)
    assert stranger["client"] == ("8.8.8.8", 5)
    assert (stranger["semiseg.host"], stranger["semiseg.prefix"]) == ("inside:3000", "/below")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("QZMARKQZ", "10.0.0.1"),
        ("5.5.5.5, QZMARKQZ", "10.0.0.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("5.5.5.5:123", "5.5.5.5"),
        ("10.0.0.1", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_forwarded_address_is_an_address_or_nothing(forwarded, client):
    found = scope("10.0.0.1", x_forwarded_for=forwarded)
    TrustedProxies(["10.0.0.1"]).apply(found)
    assert found["client"][0] == client


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a\r\nX: y", "/a/../b?x", "https://evil.example", "/" + "a" * 70]
)
def test_prefix_that_is_no_path_is_not_believed(prefix):
    found = scope("10.0.0.1", x_forwarded_prefix=prefix)
    TrustedProxies(["10.0.0.1"], "/ours").apply(found)
    assert found["semiseg.prefix"] == "/ours"
    with pytest.raises(InputError):
        TrustedProxies([], prefix)


def test_path_is_the_same_whether_a_proxy_takes_the_prefix_away_or_not():
    for path in ("/semiseg/jobs", "/jobs"):
        found = scope("127.0.0.1", path)
        TrustedProxies([], "/semiseg/").apply(found)
        assert (found["path"], found["semiseg.prefix"]) == ("/jobs", "/semiseg")


def test_addresses_of_proxies_that_are_none_are_refused_at_the_start(bundle, tmp_path):
    server = RunningServer(bundle, tmp_path, "--proxy", "proxy.example")
    assert server.process.wait(60) == 2
    server.stop()
    assert "proxy.example" in server.output and "10.1.0.0/16" in server.output
