"""500 hostile uploads: a correct mask or a 4xx with a sentence; nothing left behind, memory back where it was.

    SEMISEG_DATA=DATA python docs/results/server/hostile.py [COUNT]

The odd files of DATA/dicom_odd, each as it is, truncated and with bytes changed; NIfTI headers that lie; bombs in zip
and gzip; wrong types; forms that are none. Every fifth goes to /jobs too.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
from started import bundle_in, folder, machine, resident, start, tell

from semiseg.errors import InputError
from semiseg.volumes.scan import open_scan
from semiseg.volumes.series_rules import SeriesRule
from tests.bundles import expected_mask, scan_array

RULES = {"image": SeriesRule()}
WARM = 20


def main(count: int = 500) -> None:
    odd = sorted(p for p in (Path(os.environ["SEMISEG_DATA"]) / "dicom_odd").rglob("*") if p.is_file())
    uploads = list(every(odd, np.random.default_rng(20261122), count))
    tell(machine=machine(), uploads=len(uploads), kinds=Counter(kind for kind, _ in uploads))
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    with folder() as where:
        server = start(bundle_in(where), where, "--state", str(where / "state"), "--max-upload-mb", "64")
        good = nib.Nifti1Image(scan_array((96, 80, 64)), np.eye(4)).to_bytes()
        ordinary(server, good, odd)
        before = resident(server)
        grown: dict[str, int] = {}
        for number, (kind, content) in enumerate(uploads):
            if kind == "form":
                status, body = raw(server.url, content)
            else:
                answer = server.segment(content, fields={"answer": "nifti"})
                status, body = answer.status_code, answer.content
            outcomes[f"{kind} {status}"] += 1
            grown[kind] = round(resident(server))
            if status == 200:
                if not right(content, body, where):
                    bad.append(f"{number} {kind}: another mask")
            elif not (400 <= status < 500 and sentence_in(body)):
                bad.append(f"{number} {kind}: {status} {body[:200]!r}")
            if kind != "form" and number % 5 == 0:
                job = server.http.post(f"{server.url}/jobs", files={"scan": content}, data={"answer": "nifti"})
                outcomes[f"job {job.status_code}"] += 1
                if job.status_code == 202:
                    end = ended(server, job.json()["id"])
                    outcomes[f"job {end['state']}"] += 1
                    if (end["state"] == "done") != (status == 200):
                        bad.append(f"{number} {kind}: the job ended {end['state']} and the request {status}")
                    server.http.delete(f"{server.url}/jobs/{job.json()['id']}")
        ordinary(server, good, odd)
        after = resident(server)
        state = [str(p.relative_to(where / "state")) for p in (where / "state").rglob("*") if p.is_file()]
        left = [name for name in state if not name.startswith(("jobs.sqlite3", "lock", "work/bentoml"))]
        alive = server.get("/livez").status_code == 200 and server.process.poll() is None
        server.stop()
    tell(outcomes=dict(sorted(outcomes.items())))
    tell(resident_mb_after_the_last_of=grown)
    tell(bad=bad, left_behind=left, alive=alive, resident_mb={"before": round(before), "after": round(after)})
    sys.exit(0 if alive and not bad and not left and after < 1.1 * before else 1)


def ordinary(server, good: bytes, odd: list[Path]) -> None:
    """What a server is there for: scans, and a series in each compressed transfer syntax, whose decoders it loads."""
    for _ in range(WARM):
        assert server.segment(good).status_code == 200
    for name in sorted({file.parent for file in odd}):
        series = [file for file in odd if file.parent == name]
        if len(series) > 2:
            server.segment(*series)


def every(odd: list[Path], rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """Kinds and contents, ``count`` of them."""
    fixed = [*(("odd", file.read_bytes()) for file in odd), *lying_headers(), *bombs(), *wrong_types(rng), *forms()]
    yield from fixed[:count]
    for number in range(count - len(fixed)):
        content = bytearray(odd[int(rng.integers(len(odd)))].read_bytes())
        if number % 2:
            yield "truncated", bytes(content[: int(rng.integers(1, max(2, len(content))))])
            continue
        for _ in range(int(rng.integers(1, 40))):
            where = rng.integers(min(len(content), 3000)) if rng.random() < 0.7 else rng.integers(len(content))
            content[int(where)] = int(rng.integers(256))
        yield "changed", bytes(content)


def lying_headers() -> Iterator[tuple[str, bytes]]:
    """NIfTI headers that promise what is not there; offsets are those of nifti1.h."""
    whole = nib.Nifti1Image(scan_array((24, 20, 16)), np.eye(4)).to_bytes()
    lies: list[tuple[int, str, tuple]] = [
        (40, "<8h", (3, 32767, 32767, 32767, 1, 1, 1, 1)),
        (40, "<8h", (3, -1, 20, 16, 1, 1, 1, 1)),
        (40, "<8h", (3, 0, 20, 16, 1, 1, 1, 1)),
        (40, "<8h", (7, 24, 20, 16, 100, 100, 100, 100)),
        (40, "<8h", (0, 24, 20, 16, 1, 1, 1, 1)),
        (40, "<8h", (9, 24, 20, 16, 1, 1, 1, 1)),
        (40, "<8h", (3, 1, 1, 1, 1, 1, 1, 1)),
        (70, "<h", (0,)),
        (70, "<h", (2048,)),
        (70, "<h", (32,)),
        (70, "<h", (128,)),
        (70, "<h", (9999,)),
        (72, "<h", (1,)),
        (76, "<4f", (np.nan, np.nan, np.nan, np.nan)),
        (76, "<4f", (1, 0, 0, 0)),
        (76, "<4f", (1, 1e30, 1e-30, 1)),
        (108, "<f", (1e9,)),
        (108, "<f", (-352,)),
        (108, "<f", (np.nan,)),
        (112, "<2f", (np.inf, np.nan)),
        (112, "<2f", (1e38, 1e38)),
        (280, "<12f", (np.nan,) * 12),
        (280, "<12f", (0,) * 12),
        (280, "<12f", (1e20,) * 12),
        (252, "<2h", (-5, 77)),
        (344, "<4s", (b"ni1\0",)),
        (0, "<i", (540,)),
        (0, "<i", (-1,)),
    ]
    for offset, form, values in lies:
        for packed in (False, True):
            content = bytearray(whole)
            struct.pack_into(form, content, offset, *values)
            yield "lying header", gzip.compress(bytes(content)) if packed else bytes(content)
    for end in (0, 1, 100, 347, 348, 351, 352, 400, len(whole) - 1):
        yield "lying header", whole[:end]


def bombs() -> Iterator[tuple[str, bytes]]:
    whole = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes()
    header = bytearray(whole[:352])
    struct.pack_into("<8h", header, 40, 3, 2000, 2000, 2000, 1, 1, 1, 1)
    yield "bomb", gzip.compress(bytes(header) + bytes(300 * 2**20), 1)
    yield "bomb", gzip.compress(gzip.compress(bytes(200 * 2**20), 1), 1)
    yield "bomb", zipped({"a": bytes(300 * 2**20)})
    yield "bomb", zipped({str(k): bytes(2**20) for k in range(300)})
    yield "bomb", zipped({f"{k}": b"" for k in range(30_000)})
    inner = zipped({"a": bytes(2**24)})
    for _ in range(4):
        inner = zipped({"a": inner, "b": inner})
    yield "bomb", inner
    for name in ("../../../etc/cron.d/x", "/etc/passwd", "C:\\\\windows\\\\x", "a/" * 2000 + "x", "x\0y"):
        yield "bomb", zipped({name: whole})
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    yield "bomb", zipped({link: b"/etc/passwd"})
    declared = bytearray(zipped({"a": whole}))
    place = declared.rindex(b"PK\x01\x02")
    struct.pack_into("<I", declared, place + 24, 2**32 - 2)
    yield "bomb", bytes(declared)
    locked = bytearray(zipped({"a": whole}))
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    locked[6] |= 1
    yield "bomb", bytes(locked)
    yield "bomb", zipped({"a": whole})[:-8]
    yield "bomb", zipped({})


def zipped(members: dict) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def wrong_types(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for start_ in (
        b"", b"\0", b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06", b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff",
        b"\x7fELF", b"GIF89a", b"<html><script>", b"{\"a\": 1}", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a", b"BZh9",
        b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\0" * 128 + b"DICM", b"NRRD0005\n", b"SIMPLE  =", b"MThd",
    ):  # fmt: skip
        yield "wrong type", start_
        yield "wrong type", start_ + rng.bytes(5000)


def forms() -> Iterator[tuple[str, bytes]]:
    """Whole HTTP requests."""
    kind = "Content-Type: multipart/form-data; boundary=b\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n\r\n'

    def request(head: str, body: bytes = b"", length: int | None = None) -> tuple[str, bytes]:
        length = len(body) if length is None else length
        head = (
            f"POST /segment HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n"
        )
        return "form", head.encode("latin-1") + body

    yield request("")
    yield request(kind)
    yield request("Content-Type: multipart/form-data\r\n", b"x")
    yield request("Content-Type: application/json\r\n", b"{}")
    yield request(kind, b"--b--\r\n")
    yield request(kind, (part + "x").encode())
    yield request(kind, b"\0" * 1000)
    yield request(kind, (part * 3000 + "\r\n--b--\r\n").encode())
    yield request(kind, ('--b\r\nContent-Disposition: form-data; name="answer"\r\n\r\n' + "x" * 10**6).encode())
    yield request(kind, ("--b\r\n" + "X: y\r\n" * 5000 + "\r\n\r\n--b--\r\n").encode())
    yield request(
        kind, ('--b\r\nContent-Disposition: form-data; name="' + "n" * 10**5 + '"\r\n\r\nx\r\n--b--\r\n').encode()
    )
    yield request(kind, b"", 10**12)
    yield request(f"{kind.strip()}{'b' * 500}\r\n", b"x")


def raw(url: str, request: bytes) -> tuple[int, bytes]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(2**16):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def right(content: bytes, mask: bytes, where: Path) -> bool:
    """Whether a mask is the one of the scan, as the library reads it."""
    file = where / "one"
    file.write_bytes(content)
    try:
        scan = open_scan([file], RULES)
    except InputError:
        return False
    found = nib.Nifti1Image.from_bytes(gzip.decompress(mask))
    values = np.asanyarray(found.dataobj).reshape(scan.grid.shape)
    close = np.allclose(found.affine, scan.grid.affine, rtol=1e-4, atol=1e-3 * np.abs(scan.grid.affine).max())
    return close and bool(np.array_equal(values, expected_mask(scan.grid.array)))


def sentence_in(body: bytes) -> bool:
    try:
        sentence = json.loads(body)["error"]
    except (ValueError, KeyError):
        return False
    return len(sentence) > 10 and sentence.strip()[-1] in ".:;" and "Traceback" not in sentence


def ended(server, name: str) -> dict:
    until = time.monotonic() + 300
    while (job := server.get(f"/jobs/{name}").json())["state"] not in ("done", "failed", "cancelled"):
        assert time.monotonic() < until
        time.sleep(0.05)
    return job


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
