"""Who may change labels, how much a request may bring, and that the log holds nothing of a patient."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from server.http.access_options import AccessOptions
from server.http.limits import Limits
from tests.server.labelling.datasets import write_labelled_dataset
from tests.server.labelling.harness import label_server
from tests.server.test_guard import LAB, WARD, with_key


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"ward {WARD}\nlab {LAB}\n", encoding="utf-8")
    return path


def test_without_a_good_key_nothing_of_the_dataset_is_told(tmp_path: Path, keys: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data"), keys=keys) as server:
        for path in ("/info/", "/datastore/", "/datastore/image?image=s5", "/train/", "/logs/", "/auth/token/valid"):
            assert server.get(path).status_code == 401, path
            assert server.get(path, headers=with_key("wrong-" * 5)).status_code == 401, path
        assert server.save("s5", 50).status_code == 401
        assert server.http.delete("/datastore/label?id=s5&tag=final").status_code == 401
        assert {server.get(path).status_code for path in ("/", "/livez", "/readyz", "/auth/")} == {200}
        assert server.get("/info/", headers=with_key(WARD)).status_code == 200


def test_clients_log_in_with_the_owner_and_the_key(tmp_path: Path, keys: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data"), keys=keys) as server:
        assert server.get("/auth/").json()["enabled"] is True
        form = {"username": "lab", "password": LAB, "grant_type": "password"}
        token = server.http.post("/auth/token", data=form).json()
        assert token == {"access_token": LAB, "token_type": "bearer"}
        header = {"Authorization": f"{token['token_type']} {token['access_token']}"}
        assert server.get("/auth/token/valid", headers=header).json()["username"] == "lab"
        for wrong in ({"password": "x"}, {"username": "ward"}):
            assert server.http.post("/auth/token", data={**form, **wrong}).status_code == 401
    with label_server(tmp_path / "data") as server:
        assert server.get("/auth/").json()["enabled"] is False
        assert server.http.post("/auth/token", data=form).json() == {"access_token": None, "token_type": None}


def test_the_owner_of_the_key_is_who_drew_whatever_the_client_says(tmp_path: Path, keys: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data"), keys=keys) as server:
        server.save("s5", 50, params={"client_id": "somebody else"}, headers=with_key(LAB))
        (record,) = server.datastore.store.history("s5")
        assert record.who == "lab" and record.info["client_id"] == "somebody else"


def test_a_body_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=0, upload_bytes=10_000, files=1)
    with label_server(write_labelled_dataset(tmp_path / "data"), limits=limits) as server:
        assert server.save("s5", 0, content=b"x" * 20_000).status_code == 413
        two = [("files", ("a", b"a")), ("files", ("b", b"b"))]
        assert server.http.put("/session/", files=two).status_code == 413
        long = {"params": (None, "x" * 2**20)}
        assert server.http.put("/datastore/label?image=s5", files=long).status_code == 413
        assert server.http.post("/activelearning/first", content=b" " * 2**21).status_code == 413
    with label_server(tmp_path / "data", limits=Limits(disk_bytes=2**62)) as server:
        assert server.save("s5", 50).status_code == 507


def test_answers_have_security_headers_and_pages_of_others_are_kept_out(tmp_path: Path) -> None:
    access = AccessOptions(bind_host="127.0.0.1", origins=("https://viewer.example",))
    with label_server(write_labelled_dataset(tmp_path / "data"), access=access) as server:
        for answer in (server.get("/info/"), server.get("/nothing"), server.get("/datastore/image?image=s5")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store" and "server" not in answer.headers
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert server.save("s5", 50, headers=evil).status_code == 403
        assert server.http.delete("/datastore/label?id=s5&tag=final", headers=evil).status_code == 403
        assert server.get("/info/", headers={"Host": "evil.example"}).status_code == 403
        assert server.datastore.store.images() == []

        ours = {"Origin": "https://viewer.example", "Sec-Fetch-Site": "cross-site"}
        asked = {**ours, "Access-Control-Request-Method": "PUT"}
        allowed = server.http.options("/datastore/label", headers=asked)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://viewer.example"
        assert server.save("s5", 50, headers=ours).status_code == 200
        assert "access-control-allow-origin" not in server.get("/info/", headers=evil).headers


def test_the_log_names_routes_and_people_and_no_image(tmp_path: Path) -> None:
    from server.labelling.middleware import RecentLog, route_name

    assert route_name("/datastore/label") == "/datastore/label"
    assert route_name("/session/0123") == "/session/{name}" and route_name("/infer/liver") == "/infer/{name}"
    assert route_name("/patient/MUSTER") == route_name("/datastore/MUSTER") == "other"

    import logging

    log = RecentLog()
    logger = logging.getLogger("semiseg")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        with label_server(write_labelled_dataset(tmp_path / "data")) as server:
            server.save("s5", 50, params={"client_id": "QZMARKQZ"})
            server.get("/QZMARKQZ")
            server.get("/datastore/image", params={"image": "QZMARKQZ"})
            server.infer("QZMARKQZ", image="QZMARKQZ")
    finally:
        logger.removeHandler(log)
    lines = [json.loads(line) for line in log.last(0)]
    told = [line for line in lines if line["message"] == "Request"]
    routes = [line["route"] for line in told]
    assert routes == ["/datastore/label", "other", "/datastore/image", "/infer/{name}"]
    assert "QZMARKQZ" not in json.dumps(lines) and "s5" not in json.dumps(told)
    assert [json.loads(line) for line in log.last(1)] == lines[-1:]


def test_the_log_is_sent_as_text(tmp_path: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data")) as server:
        answer = server.get("/logs/", params={"lines": "10"})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
        assert server.get("/logs/", params={"lines": "x"}).status_code == 400


def test_a_body_left_out_by_a_client_that_keeps_old_headers_is_not_waited_for(tmp_path: Path, keys: Path) -> None:
    """MONAI Label's client sends the Content-Length of its last upload with later requests once it has logged in."""
    import socket
    from urllib.parse import urlsplit

    with label_server(write_labelled_dataset(tmp_path / "data"), keys=keys) as server:
        address = urlsplit(server.url)
        for request in ("GET /info/", "DELETE /datastore/label?id=s5&tag=final"):
            with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
                head = (
                    f"{request} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {LAB}\r\nContent-Length: 4711\r\n"
                )
                connection.sendall(f"{head}\r\n".encode())
                assert connection.recv(100).split()[1] in (b"200", b"404")


def test_keys_are_taken_back_without_a_restart(tmp_path: Path, keys: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data"), keys=keys) as server:
        assert httpx.get(f"{server.url}/info/", headers=with_key(LAB), trust_env=False).status_code == 200
        keys.write_text(f"ward {WARD}\n", encoding="utf-8")
        assert server.get("/info/", headers=with_key(LAB)).status_code == 401


def test_a_form_is_received_although_its_header_is_that_of_an_earlier_request(tmp_path: Path) -> None:
    """MONAI Label's client also keeps the Content-Type: of a form with another boundary, or of JSON."""
    content = b'--own\r\nContent-Disposition: form-data; name="files"; filename="own.nii.gz"\r\n\r\nscan\r\n--own--\r\n'
    with label_server(write_labelled_dataset(tmp_path / "data")) as server:
        for kept in ("multipart/form-data; boundary=--other", "application/json"):
            answer = server.http.put("/session/", content=content, headers={"Content-Type": kept})
            assert answer.status_code == 200, answer.text
            name = answer.json()["session_id"]
            assert server.get(f"/session/{name}", params={"image": "true"}).content == b"scan"
        for other in (b"{}", b"", b"scan"):
            answer = server.http.put("/session/", content=other, headers={"Content-Type": "application/json"})
            assert answer.status_code == 415


def test_odd_names_and_notes_are_cleaned_or_refused_and_leave_nothing(tmp_path: Path) -> None:
    with label_server(write_labelled_dataset(tmp_path / "data")) as server:
        odd = {"client_id": "an\x00na\n\ud800" + "x" * 200, "model": ["liver"]}
        assert server.save("s5", 50, params=odd).status_code == 422  # a lone surrogate is not text
        odd["client_id"] = "an\x00na\n" + "x" * 200
        assert server.save("s5", 50, params=odd).status_code == 200
        (record,) = server.datastore.store.history("s5")
        assert record.who == "anna" + "x" * 76 and record.model == ""
        assert server.save("s5", 51, params={"a": float("nan")}).status_code == 422
        assert server.save("s5", 51, tag="dataset").status_code == 422
        assert len(server.datastore.store.history("s5")) == 1 and server.datastore.store.check() == []


def test_the_server_imports_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys; from server.labelling import startup, training, training_round; startup.can_train()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'monai', 'trainer', 'exporter')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
