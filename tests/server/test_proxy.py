"""Behind a real nginx and a real Caddy: default buffers, the files of deploy/proxies, a path before all others."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest

from semiseg.bundle.bundle import Bundle
from semiseg.client import Client
from semiseg.errors import InputError, SemisegError
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import make_threshold_bundle, scan_array
from tests.polling import wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer, running_server
from tests.server.test_answer_headers import many_segments
from tests.server.test_jobs import nifti, post, wait
from tests.server.test_page import browser, wait_for  # noqa: F401 - a fixture

PROXIES = Path(__file__).parents[2] / "deploy" / "proxies"
DEFAULT = """
daemon off; pid nginx.pid; error_log nginx.err;
events {{}}
http {{
    access_log off;
    client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; {more} }} }}
}}
"""


class Proxy:
    """A proxy server in a folder of its own."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.process = subprocess.Popen(command, cwd=folder, stderr=(folder / "stderr").open("w"))
        self.folder = folder

    def wait(self, port: int) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, (self.folder / "stderr").read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/nothing", trust_env=False).status_code > 0
            except httpx.TransportError:
                return False

        wait_until(answers)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def nginx_command(program: str, folder: Path, configuration: str) -> list[str]:
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(configuration, encoding="utf-8")
    return [program, "-p", str(folder), "-c", "nginx.conf", "-e", "nginx.err", "-g", "user root; "]


def caddy_command(program: str, folder: Path, configuration: str) -> list[str]:
    (folder / "Caddyfile").write_text(configuration, encoding="utf-8")
    own = [f"{name}={folder}" for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")]
    return ["env", *own, program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


COMMANDS = {"nginx": nginx_command, "caddy": caddy_command}


@pytest.fixture(scope="module")
def start_proxy(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    started: list[Proxy] = []

    def start(name: str, configuration: Callable[[int], str]) -> str:
        port, folder = free_port(), tmp_path_factory.mktemp(name)
        started.append(Proxy(COMMANDS[name](require_program(name), folder, configuration(port)), folder))
        started[-1].wait(port)
        return f"http://127.0.0.1:{port}"

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def start_nginx(start_proxy: Callable) -> Callable[[Callable[[int], str]], str]:
    return partial(start_proxy, "nginx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle: Path = many_segments(folder)
    options = ("--state", str(folder / "state"), "--proxy", "127.0.0.1", "--allowed-host", "scans.example.org")
    with running_server(bundle, folder / "p", *options) as server:
        yield server


def nginx_of_the_documents(port: int, server: str) -> str:
    text = (PROXIES / "nginx.conf").read_text(encoding="utf-8")
    assert "listen 8443;" in text and "http://127.0.0.1:3000/;" in text
    text = text.replace("listen 8443;", f"listen 127.0.0.1:{port};")
    return "daemon off;\n" + text.replace("http://127.0.0.1:3000/;", f"{server}/;")


def caddy_of_the_documents(port: int, server: str) -> str:
    text = (PROXIES / "Caddyfile").read_text(encoding="utf-8")
    assert "\nscans.example.org {" in text and "reverse_proxy 127.0.0.1:3000 {" in text
    text = text.replace("\nscans.example.org {", f"\nhttp://127.0.0.1:{port} {{")
    return "{\n\tadmin off\n}\n" + text.replace("127.0.0.1:3000", server.removeprefix("http://"))


DOCUMENTED = {"nginx": nginx_of_the_documents, "caddy": caddy_of_the_documents}


@pytest.fixture(scope="module", params=DOCUMENTED)
def below(request, start_proxy, server) -> str:
    """The address below which a proxy with the configuration of the documents shows the server."""
    return f"{start_proxy(request.param, lambda port: DOCUMENTED[request.param](port, server.url))}/semiseg"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, Volume(scan_array((16, 14, 9), 3), np.diag([-1.5, -1.5, 3.0, 1.0])))
    return folder


def test_answer_with_fourteen_segments_comes_through_the_default_buffers(start_nginx, server, series):
    url = start_nginx(lambda port: DEFAULT.format(port=port, url=server.url, more=""))
    files = [("scan", (str(k), file.read_bytes())) for k, file in enumerate(sorted(series.iterdir()))]
    answer = httpx.post(f"{url}/segment", files=files, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    with Client(url) as client:
        found = client.ask(series)
        assert len(found.millilitres) == 14 and found.remarks
        job = client.wait(client.submit(series).id)
        assert client.result(job.id).remarks == found.remarks


def test_everything_works_below_a_path(below, server, series):
    url = below
    with httpx.Client(trust_env=False, timeout=60) as http:
        page = http.get(f"{url}/")
        assert page.status_code == 200
        for link in ("page/app.js", "page/page.css", "models", "docs.json"):  # as the page has them
            assert http.get(urljoin(f"{url}/", link)).status_code == 200, link
        assert 'src="/' not in page.text and 'href="/' not in page.text
        document = http.get(f"{url}/docs.json").json()
        described = urljoin(f"{url}/docs.json", document["servers"][0]["url"])
        assert http.get(f"{described.rstrip('/')}/models").status_code == 200
        accepted = http.post(f"{url}/jobs", files={"scan": nifti()})
        assert accepted.status_code == 202
        location = accepted.headers["location"]
        assert location == f"/semiseg/jobs/{accepted.json()['id']}"
        wait_until(lambda: http.get(urljoin(url, location)).json()["state"] == "done")
        assert http.get(urljoin(url, f"{location}/result")).status_code == 200
        with http.stream("GET", urljoin(url, f"{location}/events")) as events:
            assert any(line.startswith("data: ") for line in events.iter_lines())
    with Client(url) as client:
        assert client.ready() and client.keeps_jobs()
        assert client.wait(client.submit(series, "seg").id).state == "done"


def test_page_below_a_path_sends_and_shows_a_case(below, server, browser, tmp_path):  # noqa: F811
    url = below
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti(5))
    browser.get(f"{url}/")
    wait_for(browser, "#form")
    browser.find_element("id", "scan").send_keys(str(scan))
    wait_for(browser, "#viewer[data-shown]")


def test_large_upload_is_refused_by_the_servers_own_sentence(below, server):
    url = below
    answer = httpx.post(f"{url}/segment", files={"scan": bytes(3 * 2**20)}, timeout=60, trust_env=False)
    assert answer.status_code == 415 and answer.json()["error"]  # nginx alone would have said 413 at 1 MB


def test_upload_that_the_proxy_will_not_take_is_said_to_be_no_fault_of_the_scan(start_nginx, server, tmp_path):
    url = start_nginx(lambda port: DEFAULT.format(port=port, url=server.url, more="client_max_body_size 1k;"))
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti())
    with Client(url) as client, pytest.raises(InputError, match="HTTP 413") as caught:
        client.ask(scan)
    assert (caught.value.status, caught.value.is_server_message) == (413, False)


def test_client_behind_the_proxy_is_known_by_its_own_address(below, server):
    url = below
    before = len(server.lines)
    httpx.get(f"{url}/models", headers={"X-Forwarded-For": "6.6.6.6"}, trust_env=False)

    def clients() -> list[str]:
        lines = [json.loads(line) for line in server.lines[before:] if line.startswith("{")]
        return [line["client"] for line in lines if line.get("route") == "/models"]

    wait_until(clients)
    assert clients() == ["127.0.0.1"]  # what the client wrote down itself, nginx has thrown away
    # Who asks the server itself is the configured proxy here, and is believed.
    server.http.get(f"{server.url}/models", headers={"X-Forwarded-For": "6.6.6.6"})
    wait_until(lambda: len(clients()) == 2)
    assert clients()[-1] == "6.6.6.6"


def test_forwarded_headers_of_others_are_not_believed(tmp_path):
    bundle: Bundle = make_threshold_bundle(tmp_path / "b")
    with running_server(bundle.folder, tmp_path / "p", "--state", str(tmp_path / "s")) as server:
        forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Prefix": "/evil", "X-Forwarded-Host": "evil.example"}
        accepted = post(server, nifti(), forged)
        assert accepted.headers["location"] == f"/jobs/{accepted.json()['id']}"
        wait(server, accepted.json()["id"])
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [line["client"] for line in lines if line.get("method") == "POST"] == ["127.0.0.1"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_scan_is_not_sent_where_a_redirect_points(start_nginx, server, tmp_path, status):
    before = len(server.lines)
    more = f"return {status} {server.url}$request_uri;"
    url = start_nginx(lambda port: DEFAULT.format(port=port, url=server.url, more=more))
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti())
    with Client(url, key="a key that is for the first server only") as client:
        for ask in (lambda: client.ask(scan), lambda: client.submit(scan), lambda: client.job("0" * 32), client.models):
            with pytest.raises(SemisegError, match=f"redirects to {server.url}"):
                ask()
    time.sleep(0.3)
    assert [line for line in server.lines[before:] if '"Request"' in line] == []


def test_address_of_a_job_on_another_server_is_not_asked(start_nginx, server, tmp_path):
    more = "proxy_redirect / http://elsewhere.example/;"
    url = start_nginx(lambda port: DEFAULT.format(port=port, url=server.url, more=more))
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti())
    with Client(url) as client:
        with pytest.raises(SemisegError, match=r"http://elsewhere\.example for the next request"):
            client.submit(scan)
        for name in ("../models", "a/b", "//elsewhere.example", "a?b", "", "x" * 200):
            with pytest.raises(InputError, match="name of a job"):
                client.job(name)
