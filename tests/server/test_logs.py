"""The log says what happened, of whom and with what status, and quotes nothing that a scan or its sender wrote."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from server.logs import JsonFormatter, RepeatFilter
from tests.bundles import make_threshold_bundle, scan_array
from tests.polling import wait_until
from tests.server.harness import FORM_TYPE, running_server

MARK = "QZMARKQZ"


@pytest.fixture
def lines() -> list[dict]:
    """What a handler with our formatter wrote."""
    found: list[dict] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    handler = Keep()
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    yield found
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)


def test_message_of_another_package_says_where_it_comes_from_and_not_what_it_quotes(lines):
    logging.getLogger("pydicom.made_up").warning(f"The value {MARK} is no date")
    logging.getLogger("pynetdicom").error("Refused by %s", MARK)
    try:
        raise ValueError(MARK)
    except ValueError:
        logging.getLogger("highdicom").exception(MARK)
    assert MARK not in json.dumps(lines)
    for line, package, level in zip(
        lines, ("pydicom", "pynetdicom", "highdicom"), ("warning", "error", "error"), strict=True
    ):
        assert f"level {level} from {package} at tests/server/test_logs.py:" in line["message"].replace("\\", "/")
        assert (line["level"], line["logger"].split(".")[0]) == (level, package)
    assert lines[2]["kind"] == "ValueError" and "test_logs.py" in lines[2]["frames"][0]
    places = {line["message"] for line in lines}
    assert len(places) == 3  # two events are two lines that differ


def test_warning_of_python_says_its_category_and_place(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn(f"{MARK}: 1: UserWarning: {MARK}", RuntimeWarning, stacklevel=1)
    (line,) = lines
    assert MARK not in json.dumps(line)
    assert "RuntimeWarning" in line["message"] and "test_logs.py:" in line["message"]


def test_our_own_sentences_are_kept(lines):
    logging.getLogger("semiseg.server").warning("The disk is full")
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\nValueError: QZ")
    assert [line["message"] for line in lines] == ["The disk is full", "Exception in ASGI application"]


def test_nothing_that_a_request_says_of_itself_is_in_the_log(tmp_path: Path):
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    scan = nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4)).to_bytes()
    options = ("--state", str(tmp_path / "s"), "--proxy", "127.0.0.1")
    with running_server(bundle, tmp_path / "p", *options) as server:
        marked = dict.fromkeys(
            ("Accept", "User-Agent", "Referer", "Idempotency-Key", "X-Request-ID", "Cookie", "Authorization"),
            f"{MARK}/1",
        ) | {"X-Forwarded-For": MARK, "X-Forwarded-Prefix": f"/{MARK}", f"X-{MARK}": MARK}
        answers = []
        for name in ("scan", f"channel:{MARK}", f"field{MARK}", f'series"; filename="{MARK}'):
            for path in ("segment", "jobs", f"segment?patient={MARK}", f"jobs?{MARK}"):
                parts = {name: (f"{MARK}^{MARK}.dcm", scan, f"image/{MARK}")}
                answers.append(server.http.post(f"{server.url}/{path}", files=parts, headers=marked))
        body = f'--b\r\nContent-Disposition: {MARK}; name="{MARK}"\r\n{MARK}\r\n\r\n--b{MARK}'.encode()
        answers.append(
            server.http.post(f"{server.url}/segment", content=body, headers=marked | {"Content-Type": FORM_TYPE})
        )
        for path in (
            f"jobs/{MARK}",
            f"jobs/{MARK}/result?output_format={MARK}",
            f"models?{MARK}",
            f"page/{MARK}",
            f"{MARK}?{MARK}",
        ):
            answers.append(server.http.get(f"{server.url}/{path}", headers=marked))
        answers.append(server.http.request("GET", f"{server.url}/", headers={"Host": f"{MARK}.example"}))
        answers.append(server.http.request(MARK, f"{server.url}/segment"))
        assert {answer.status_code for answer in answers} >= {200, 202, 400, 404, 403}
        assert all(answer.status_code < 500 for answer in answers), [a.text for a in answers if a.status_code >= 500]
        wait_until(lambda: server.output.count('"Request"') >= len([a for a in answers if "/page/" not in str(a.url)]))
        metrics = server.get("/metrics").text
    assert MARK not in server.output.replace(str(tmp_path), "") and MARK not in metrics
    requests = [json.loads(line) for line in server.lines if '"Request"' in line]
    for line in requests:
        assert line["status"] >= 200 and line["route"] and line["client"] == "127.0.0.1"
    assert "not shown" not in server.output


def test_error_that_ends_a_thread_is_told_without_its_words(tmp_path):
    program = f"""
import sys, threading
from server.logs import configure_logging
class Ends:
    def __del__(self): raise ValueError("{MARK}")
def run(): raise KeyError("{MARK}")
configure_logging()
for target in (run, sys.exit):  # the latter is how a thread may end
    one = threading.Thread(target=target)
    one.start(); one.join()
    del one
Ends()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [one["kind"] for one in told] == ["KeyError", "ValueError"]
    assert MARK not in done.stderr and all(one["frames"] for one in told)


def test_same_message_of_another_package_is_written_once_in_a_while(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("server.logs.time.monotonic", lambda: now[0])
    repeats = RepeatFilter()

    def written(name: str, line: int = 1, thread: str = "worker") -> bool:
        record = logging.LogRecord(name, logging.WARNING, "/x/package/a.py", line, MARK, (), None)
        record.threadName = thread
        kept = repeats.filter(record)
        if kept and name != "semiseg":
            counts.append(getattr(record, "fields", {}).get("repeated", 0))
        return kept

    counts: list[int] = []
    assert [written("pydicom") for _ in range(5)] == [True, False, False, False, False]
    assert written("pydicom", line=2) and written("pydicom", thread="DUL@10.0.0.1")
    assert all(written("semiseg") for _ in range(5))
    now[0] += 61
    assert written("pydicom") and counts == [0, 0, 0, 4]
