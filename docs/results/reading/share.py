"""How much of the way from files to a SEG is reading: a CT of 512x512x200, uncompressed and as JPEG 2000.

python docs/results/reading/share.py BUNDLE [SLICES]

BUNDLE is a model for one channel; any network will do, since the share is that of the pass with this one. The scan is
made here, with noise as scans have it, so that it does not compress unusually well.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

import semiseg
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume

SIDE = 512


def series(folder: Path, slices: int, modality: str) -> Path:
    """Write the scan, a phantom enlarged by repeating its voxels, with noise."""
    small = make_phantom(7, (SIDE // 8, SIDE // 8, slices // 4), (5.6, 5.6, 10.0), modality=modality).image
    large = small.array.repeat(8, axis=0).repeat(8, axis=1).repeat(4, axis=2)
    noise = np.random.default_rng(0).normal(0, 12, large.shape)
    affine = small.affine @ np.diag([1 / 8, 1 / 8, 1 / 4, 1])
    image = Volume(np.clip(large + noise, -1024, 3071).astype(np.int16), affine)
    write_dicom_series(folder, image, modality=modality)
    return folder


def compress(plain: Path, folder: Path) -> Path:
    """The same series in JPEG 2000, lossless."""
    folder.mkdir()
    for path in sorted(plain.iterdir()):
        dataset = pydicom.dcmread(path)
        stream = encode_array(dataset.pixel_array, photometric_interpretation=2, use_mct=False)
        dataset.PixelData = encapsulate([bytes(stream)])
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.save_as(folder / path.name)
    return folder


def main(bundle: str, slices: int = 200) -> None:
    """Print seconds and the share of reading, in two rounds."""
    model = semiseg.load_model(bundle)
    modality = "CT" if "CT" in str(model.manifest.channels) else "MR"
    with tempfile.TemporaryDirectory() as scratch:
        plain = series(Path(scratch, "plain"), slices, modality)
        folders = {"uncompressed": plain, "JPEG 2000": compress(plain, Path(scratch, "packed"))}
        for number in (1, 2):
            for name, folder in folders.items():
                started = time.perf_counter()
                scan = model.open(folder)
                opened = time.perf_counter()
                model.predict_scan(scan).save(Path(scratch, "seg.dcm"))
                done = time.perf_counter()
                share = (opened - started) / (done - started)
                print(
                    f"round {number}, {name}: reading {opened - started:.2f} s of {done - started:.2f} s, {share:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
