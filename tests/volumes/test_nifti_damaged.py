"""Damaged NIfTI files are refused with a sentence that names them, and cannot ask for much memory."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semiseg.errors import VolumeError
from semiseg.volumes.nifti import (
    read_labels,
    read_nifti,
)
from semiseg.volumes.volume import Volume
from tests.volumes.volume_files import numbered_array


def lying_header(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + bytes(600)
    path = tmp_path / "liar.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(3000, 3000, 3000), (32767, 32767, 32767), (200, 200, 100)])
def test_a_small_file_cannot_ask_for_much_memory(shape: tuple[int, ...], packed: bool, tmp_path: Path) -> None:
    """VOL-06."""
    path = lying_header(tmp_path, shape, packed)
    assert path.stat().st_size < 1100
    with pytest.raises(VolumeError, match=r"liar\.nii: the header declares"):
        read_nifti(path)


def damaged_files() -> dict[str, bytes]:
    image = nib.Nifti1Image(numbered_array((8, 8, 8)), np.eye(4))
    whole = image.to_bytes()
    packed = gzip.compress(whole)
    dims = bytearray(whole)
    dims[40:44] = struct.pack("<hh", 3, -4)
    pair = bytearray(whole)
    pair[344:348] = b"ni1\0"
    analyze = bytearray(whole)
    analyze[344:348] = bytes(4)
    code = bytearray(whole)
    code[70:72] = struct.pack("<h", 999)
    offset = bytearray(whole)
    offset[108:112] = struct.pack("<f", float("nan"))
    flat = bytearray(whole)
    flat[280:296] = bytes(16)
    unit = bytearray(whole)
    unit[123] = 7
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    five = nib.Nifti1Image(numbered_array((2, 2, 2, 3, 2)), np.eye(4)).to_bytes()
    rgb = nib.Nifti1Image(np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)).to_bytes()
    return {
        "empty": b"",
        "text": b"this is not a scan\n" * 40,
        "only the first half of the header": whole[:200],
        "header without voxels": whole[:352],
        "voxels cut short": whole[:-100],
        "gzip cut short": packed[: len(packed) // 2],
        "gzip with a flipped byte": bytes(flipped),
        "gzip garbage": b"\x1f\x8b" + bytes(range(256)),
        "gzip of nothing": gzip.compress(b""),
        "negative dimension": bytes(dims),
        "half of a pair": bytes(pair),
        "ANALYZE": bytes(analyze),
        "unknown data type": bytes(code),
        "offset that is no number": bytes(offset),
        "unknown unit": bytes(unit),
        "sform without extent": bytes(flat),
        "five dimensions": five,
        "colour": rgb,
        "complex": nib.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)).to_bytes(),
        "2D": nib.Nifti1Image(numbered_array((8, 8)), np.eye(4)).to_bytes(),
    }


@pytest.mark.parametrize("what", list(damaged_files()))
def test_damaged_files_are_refused_with_a_sentence_that_names_them(what: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.nii"
    path.write_bytes(damaged_files()[what])
    for reader in (read_nifti, read_labels):
        with pytest.raises(VolumeError, match=r"broken\.nii: .*\.$") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(place=st.integers(0, 351), value=st.integers(0, 255))
def test_any_changed_header_byte_gives_a_volume_or_a_volume_error(place: int, value: int, tmp_path: Path) -> None:
    """VOL-06."""
    content = bytearray(nib.Nifti1Image(numbered_array(), np.eye(4)).to_bytes())
    content[place] = value
    path = tmp_path / "changed.nii"
    path.write_bytes(bytes(content))
    try:
        volume = read_nifti(path)
    except VolumeError:
        return
    assert isinstance(volume, Volume)
    assert np.isfinite(volume.affine).all()
