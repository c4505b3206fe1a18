"""Compressed DICOM with some decoders missing, as on a Python for which a package has no wheel.

The child process does not find the named modules: ``None`` in ``sys.modules`` marks a module that cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

READ = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))
import numpy as np
from io import BytesIO
from pathlib import Path
from semiseg.errors import SemisegError
from semiseg.volumes.scan import open_scan
try:
    scan = open_scan(Path(sys.argv[1]))
except SemisegError as error:
    sys.exit(str(error))
packed = BytesIO()
np.save(packed, scan.grid.array)  # not into the pipe: NumPy asks a file for its position, which a pipe does not have
sys.stdout.buffer.write(packed.getvalue())
"""


def series_of(folder: Path, name: str) -> Path:
    """Writes three slices that all hold the picture of one of the files that pydicom brings along."""
    folder.mkdir()
    for z in range(3):
        image = pydicom.dcmread(str(get_testdata_file(name, download=False)))
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.{z}"
        image.InstanceNumber = z + 1
        x, y, _ = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, 2.0 * z]
        image.save_as(folder / f"{z}.dcm")
    return folder


def read(folder: Path, *missing: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", READ, str(folder), *missing], capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        pytest.param("MR_small_jpeg_ls_lossless.dcm", ("jpeg_ls",), id="JPEG-LS without pyjpegls"),
        pytest.param("MR_small_jp2klossless.dcm", ("gdcm",), id="JPEG 2000 without python-gdcm"),
        pytest.param("MR_small_RLE.dcm", ("gdcm", "pylibjpeg"), id="RLE without python-gdcm and pylibjpeg"),
    ],
)
def test_a_decoder_that_is_missing_is_replaced_by_another(tmp_path: Path, name: str, missing: tuple[str, ...]) -> None:
    compressed = read(series_of(tmp_path / "compressed", name), *missing)
    plain = read(series_of(tmp_path / "plain", "MR_small.dcm"))
    assert compressed.returncode == 0, compressed.stderr.decode()
    assert plain.returncode == 0, plain.stderr.decode()
    np.testing.assert_array_equal(np.load(BytesIO(compressed.stdout)), np.load(BytesIO(plain.stdout)))


def test_a_scan_that_no_installed_decoder_reads_is_refused_with_the_packages_that_would(tmp_path: Path) -> None:
    answer = read(series_of(tmp_path / "series", "MR_small_jpeg_ls_lossless.dcm"), "jpeg_ls", "gdcm")
    assert answer.returncode == 1
    told = answer.stderr.decode()
    assert "cannot be decoded" in told and "; install one of python-gdcm, pylibjpeg-libjpeg, pyjpegls)" in told, told
