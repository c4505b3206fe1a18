"""A CT of 512x512x200 as DICOM: what is not engine time between the last byte sent and the first of the answer.

    python docs/results/server/overhead.py [--j2k] [OPTION OF semiseg serve ...]

The series is made here (a smooth body in air, 200 files of 0.5 MB; with --j2k in JPEG 2000 lossless) and sent as 200
parts; so is the model: the UNet with channels 16 to 256 in three classes and windows of 96x96x96, with random weights.
Times are the server's own (the header Server-Timing), besides the client's from the last byte sent; engine time is that
of the network and of the blending, which is what an engine does (`run` and `accumulate`).
"""

from __future__ import annotations

import io
import socket
import sys
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
import openjpeg.utils
import pydicom
from scipy import ndimage
from started import folder, machine, start, tell

from exporter.bench.benchmark_case import BenchmarkCase, write_graph
from semiseg.bundle.bundle import MODEL, write_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Parity, Variant
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import make_threshold_bundle

ROUNDS = 3
WINDOW = (96, 96, 96)


def main(*options: str) -> None:
    with folder() as where:
        bundle = unet_in(where)
        series = ct(where / "series")
        if "--j2k" in options:
            for file in series:
                compress(file)
        body = form([file.read_bytes() for file in series])
        server = start(bundle, where, *[o for o in options if o != "--j2k"])
        metrics = server.get("/metrics").text
        engine = [line for line in metrics.splitlines() if line.startswith("semiseg_model_info")]
        window = server.get("/models").json()[0]["window"]
        tell(machine=machine(), engine=engine, window=window, upload_mb=round(len(body) / 1e6), options=options)
        shares = []
        for _ in range(ROUNDS):
            seconds, stages = post(server.url, body)
            engine = stages["network"] + stages["blending"]
            shares.append((seconds - engine) / engine)
            alone = round((seconds - stages["network"]) / stages["network"], 4)
            tell(seconds=round(seconds, 2), share=round(shares[-1], 4), share_of_the_network_alone=alone, stages=stages)
        tell(median_share_of_engine_time=round(median(shares), 4))
        server.stop()
    sys.exit(0 if median(shares) < 0.15 else 1)


def unet_in(where: Path) -> Path:
    plain = make_threshold_bundle(where / "plain", window=WINDOW).manifest
    case = BenchmarkCase("unet", len(plain.segments) + 1, WINDOW, WINDOW)

    def fill(scratch: Path) -> Manifest:
        write_graph(case, where, "fp32").rename(scratch / MODEL)
        # Nothing is proved here: it is said so that OpenVINO runs it, as it runs a bundle that was exported.
        proof = {"window": WINDOW, "windows": 1, "largest_difference": 0.0, "dice": {}}
        told = [Parity(engine=name, **proof) for name in ("openvino", "onnxruntime")]
        variant = Variant(precision="fp32", file=MODEL, parity=tuple(told))
        return plain.model_copy(update={"name": "unet", "variants": (variant,), "files": {}})

    return write_bundle(where / "unet", fill).folder


def ct(where: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    where.mkdir()
    coarse = ndimage.zoom(rng.standard_normal((32, 32, 25)), (16, 16, 8), order=1) * 60
    grid = np.ogrid[-1:1:512j, -1:1:512j, -1:1:200j]
    body = (grid[0] / 0.8) ** 2 + (grid[1] / 0.6) ** 2 + 0 * grid[2] < 1
    values = np.where(body, coarse + 40, -1000) + rng.normal(0, 12, coarse.shape)
    volume = Volume(np.clip(values, -1024, 3000).astype(np.int16), np.diag([-0.8, -0.8, 1.5, 1.0]))
    return write_dicom_series(where, volume, patient_id="phantom", description="a phantom", modality="CT")


def compress(file: Path) -> None:
    image = pydicom.dcmread(file)
    stream = openjpeg.utils.encode_array(image.pixel_array, bits_stored=image.BitsStored)
    image.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    image.save_as(file)


def form(files: list[bytes]) -> bytes:
    out = io.BytesIO()
    for number, content in enumerate(files):
        head = f'--b\r\nContent-Disposition: form-data; name="scan"; filename="{number}"\r\n\r\n'
        out.write(head.encode() + content + b"\r\n")
    out.write(b'--b\r\nContent-Disposition: form-data; name="answer"\r\n\r\nseg\r\n--b--\r\n')
    return out.getvalue()


def post(url: str, body: bytes) -> tuple[float, dict[str, float]]:
    """Seconds from the last byte sent to the first received, and the server's own seconds per stage."""
    address = urlsplit(url)
    head = "POST /segment HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=3600) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        since = time.perf_counter()
        received = connection.recv(1)
        seconds = time.perf_counter() - since
        while chunk := connection.recv(2**20):
            received += chunk
    headers = received.partition(b"\r\n\r\n")[0].decode("latin-1").splitlines()
    assert headers[0].split()[1] == "200", received[:500]
    timing = next(line.split(":", 1)[1] for line in headers if line.lower().startswith("server-timing:"))
    stages = dict(part.strip().split(";dur=") for part in timing.split(","))
    return seconds, {name: round(float(value) / 1000, 3) for name, value in stages.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
