"""Damage compressed pixel data, and see whether the product refuses it or its process is ended by a decoder.

    python -m docs.readers.damage FOLDER... --rounds 50 --keep KEPT

Each FOLDER holds one small series. A round changes bytes of one frame's stream, cuts it, or changes Rows, Columns, Bits
Allocated or Samples per Pixel beside it. Series that end the process, hold it for a minute or raise what is no refusal
are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames

from docs.readers.product_reader import read_series
from semiseg.volumes.dicom_index import index_files
from semiseg.volumes.series_rules import group_by_series

SECONDS = 60


def write_damaged(path: Path, out: Path, rng: np.random.Generator) -> str:
    """Write a damaged copy, and say in a word what was done."""
    dataset = pydicom.dcmread(path)
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [bytearray(frame) for frame in generate_frames(dataset.PixelData, number_of_frames=count)]
    stream = frames[int(rng.integers(count))]
    kind = str(rng.choice(["bytes", "head", "cut", "header", "swap"]))
    if kind == "bytes":
        for at in rng.integers(0, len(stream), int(rng.integers(1, 8))):
            stream[at] = int(rng.integers(256))
    elif kind == "head":
        for at in rng.integers(0, min(len(stream), 120), int(rng.integers(1, 4))):
            stream[at] = int(rng.integers(256))
    elif kind == "cut":
        del stream[int(rng.integers(1, len(stream))) :]
    elif kind == "swap":
        a, b = sorted(rng.integers(0, len(stream), 2))
        stream[a:b] = bytes(rng.integers(0, 256, b - a, dtype=np.uint8))
    else:
        keyword = str(rng.choice(["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"]))
        choices = {"BitsAllocated": [8, 16, 32], "BitsStored": [1, 8, 12, 16, 32], "PixelRepresentation": [0, 1]}
        value = int(rng.choice(choices.get(keyword, [1, 2, 10, 14, 100, 2000])))
        setattr(dataset, keyword, value)
        kind = f"{keyword} {value}"
    dataset.PixelData = encapsulate([bytes(frame) for frame in frames])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(out)
    return kind


def read_outcome(files: list[Path]) -> str:
    """What the product does, in one word."""
    try:
        reads = [read_series(found) for found in group_by_series(index_files(files)[0]) if found.images]
    except BaseException as error:  # noqa: BLE001 - a panic of a decoder written in Rust is no Exception
        return type(error).__name__
    faults = [read.fault for read in reads if read.fault]
    return faults[0].partition(":")[0] if faults else "read" if any(read.grid for read in reads) else "refused"


def main() -> int:
    """Damage and read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--keep", type=Path, required=True)
    options = parser.parse_args()
    rng, pool, outcomes = np.random.default_rng(0), ProcessPoolExecutor(1), Counter[str]()
    for folder in options.folders:
        files = sorted(folder.glob("*.dcm"))
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                copies = [Path(shutil.copy(path, scratch)) for path in files]
                kind = write_damaged(files[0], copies[0], rng)
                try:
                    said = pool.submit(read_outcome, copies).result(timeout=SECONDS)
                except BrokenProcessPool:
                    said, pool = "ENDED", ProcessPoolExecutor(1)
                except Late:
                    said = f"longer than {SECONDS} s"
                    for process in list(pool._processes.values()):
                        process.kill()
                    pool = ProcessPoolExecutor(1)
                outcomes[said] += 1
                if said not in ("read", "refused"):
                    print(folder.name, number, kind, said, flush=True)
                    kept = options.keep / f"{said.replace(' ', '_')}-{folder.name[:60]}-{number}"
                    shutil.copytree(scratch, kept, dirs_exist_ok=True)
    print(dict(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
