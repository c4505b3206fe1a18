"""A real `semiseg serve` process for tests: started on a free port, in a temporary folder of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.polling import wait_until
from tests.processes import START_SECONDS, RunningProcess

PART_HEADER = (
    b'--b\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
)
CLOSING_BOUNDARY = b"\r\n--b--\r\n"
FORM_TYPE = "multipart/form-data; boundary=b"


class RunningServer(RunningProcess):
    """A server, its address, and the folder that holds all it may write."""

    def __init__(
        self, bundle: Path, folder: Path, *options: str, port: str = "0", environ: dict[str, str] | None = None
    ) -> None:
        self.temporary = folder / "tmp"
        self.home = folder / "home"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)
        self.state = Path(options[options.index("--state") + 1]) if "--state" in options else self.temporary
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("BENTOML", "PROMETHEUS"))}
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.temporary))
        environment |= dict.fromkeys(("HOME", "USERPROFILE"), str(self.home)) | (environ or {})
        self.http = httpx.Client(timeout=120, trust_env=False)
        self.url = ""
        self._listening = threading.Event()
        super().__init__(["serve", str(bundle), "--port", port, "--threads", "1", *options], environment)

    def wait_until_listening(self) -> None:
        assert self._listening.wait(START_SECONDS) and self.url, self.output

    def wait_until_ready(self) -> None:
        self.wait_until_listening()
        wait_until(self._is_ready, START_SECONDS, lambda: self.output)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        return self.get("/readyz").status_code == 200

    def get(self, path: str) -> httpx.Response:
        return self.http.get(self.url + path)

    def segment(
        self,
        *files: bytes | Path,
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        names: list[str] | None = None,
    ) -> httpx.Response:
        contents = [f.read_bytes() if isinstance(f, Path) else f for f in files]
        named = names or [f"file{k}" for k in range(len(contents))]
        parts = [("scan", (name, content)) for name, content in zip(named, contents, strict=True)]
        return self.http.post(f"{self.url}/segment", files=parts, data=fields or {}, headers=headers)

    def leftovers(self) -> list[str]:
        """Files and folders that the process has on disk, besides its lock and BentoML's own folder."""
        own = ("lock", "bentoml")
        inside = [p for folder in self.temporary.glob("semiseg-serve-*") for p in folder.iterdir()]
        beside = [p for p in self.temporary.iterdir() if not p.name.startswith("semiseg-serve-")]
        return [str(p) for p in (*inside, *beside) if not p.name.startswith(own)]

    def request_folders(self) -> list[Path]:
        """The folders of the requests that were let in and are not answered yet."""
        return list(self.state.glob("**/scan-*"))

    def _end(self, end: Callable[[], None]) -> int:
        self.http.close()
        return super()._end(end)

    def on_line(self, line: str) -> None:
        if "listening on " in line:
            self.url = line.split("listening on ")[1].split(",")[0]
            self._listening.set()

    def on_exit(self) -> None:
        self._listening.set()


@contextlib.contextmanager
def running_server(
    bundle: Path, folder: Path, *options: str, environ: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """A server that is ready; stopped at the end of the block."""
    server = RunningServer(bundle, folder, *options, environ=environ)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def send_raw(server: RunningServer, head: str, *pieces: bytes) -> socket.socket:
    """A connection over which a request with these header lines and these pieces of a body was sent."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=120)
    connection.sendall(
        f"POST /segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM_TYPE}\r\n{head}\r\n\r\n".encode()
    )
    for piece in pieces:
        connection.sendall(piece)
    return connection


@contextlib.contextmanager
def busy_server(server: RunningServer, scan: bytes, *header: str) -> Iterator[socket.socket]:
    """While the block runs, the server has let a client in, who waits for ``scan``; it takes seconds to segment."""
    wait_until(lambda: not server.request_folders())
    body = PART_HEADER + scan + CLOSING_BOUNDARY
    with send_raw(server, "\r\n".join((f"Content-Length: {len(body)}", *header)), body) as connection:
        wait_until(server.request_folders)
        yield connection
