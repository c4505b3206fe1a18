"""NIfTI-1 and NIfTI-2: one file, or a pair of ``.hdr`` and ``.img``, either of them gzipped or not."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import excess_data_warning
from semiseg.volumes.formats.nifti_header import NiftiHeader, parse_header
from semiseg.volumes.formats.reader import ImageFile, Reader, StoredImage
from semiseg.volumes.formats.stream import is_gzip, open_unpacked, read_start, read_voxel_bytes, to_array
from semiseg.volumes.scan_warning import ScanWarning


def is_single_nifti(start: bytes) -> bool:
    """Return True if a file with these first bytes (unpacked) is a single-file NIfTI."""
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"


def read(file: ImageFile) -> StoredImage:
    """Read a NIfTI file, or the pair that a header belongs to.

    Raises:
        VolumeError: The file is not NIfTI, is damaged or truncated, or contradicts itself so that the position of its
            voxels is unknown.
    """
    path = file.path
    try:
        with open_unpacked(path) as stream:
            header = parse_header(path, stream)
            shape, dtype = header.shape(), header.dtype()
            affine = header.affine()
            slope, intercept = header.scaling()
            wanted = math.prod(shape) * dtype.itemsize
            source = path if header.single else image_of_pair(file)
            offset, doubt = _offset(header, stream, wanted) if header.single else (int(header.raw["vox_offset"]), None)
    except (EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: the gzip stream is damaged or cut short ({error}).") from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if offset < 0:
        raise VolumeError(f"{path}: the header's vox_offset is {offset}, so the file is damaged.")
    # This refuses a file that cannot hold the voxels, before its length is compared with the header.
    data, more = read_voxel_bytes(path, source, offset, wanted)
    warnings = (*_length_remarks(header, dtype.itemsize, doubt, more), *header.warnings(shape))
    return StoredImage(to_array(data, dtype, shape), slope, intercept, affine, warnings)


def image_of_pair(file: ImageFile) -> Path:
    """Find the ``.img`` (or ``.img.gz``) of a ``.hdr``.

    Raises:
        VolumeError: The file does not exist.
    """
    name = file.name
    packed = name.lower().endswith(".gz")
    stem = Path(name[:-3] if packed else name).stem
    for suffix in (".img.gz", ".img") if packed else (".img", ".img.gz"):
        try:
            return file.find_data_file(stem + suffix)
        except VolumeError:
            continue
    raise VolumeError(f"{file.path}: this is the header of a .hdr/.img pair, but there is no .img of the same name.")


def _offset(header: NiftiHeader, file: IO[bytes], wanted: int) -> tuple[int, ScanWarning | None]:
    """Return the offset of the voxels in a single file, and a warning if the header contradicts itself.

    ``vox_offset`` is used unless it lies inside the header or inside an extension. Then the voxels begin at the end of
    the header or of one of its extensions, if the length of the file confirms this.
    """
    declared, first = int(header.raw["vox_offset"]), header.size + 4
    ends = list(_extension_ends(header, file, max(declared, first)))
    if declared >= first and ends[-1] <= declared:
        return declared, None
    path = header.path
    length = None if is_gzip(path) else path.stat().st_size
    inside = "the header itself" if declared < first else "a header extension"
    fits = [end for end in dict.fromkeys((*ends, *([declared] if declared >= first else ()))) if end + wanted == length]
    if length is None and ends == [first]:
        fits = [first]  # the unpacked length is checked when the voxels are read
    if len(fits) != 1:
        raise VolumeError(
            f"{path}: the header declares that the voxels begin at byte {declared} (vox_offset), inside {inside}, and "
            "the length of the file does not show where they begin."
        )
    text = (
        f"The header contradicts itself: vox_offset is {declared}, inside {inside}; the voxels were read from byte "
        f"{fits[0]}."
    )
    return fits[0], ScanWarning("contradictory_header", text)


def _extension_ends(header: NiftiHeader, file: IO[bytes], until: int) -> Iterator[int]:
    """Yield the ends of the header and of each extension, as far as they are plausible (nifti1.h, "extender")."""
    position = header.size + 4
    yield position
    if file.read(4)[:1] in (b"", b"\0"):
        return
    order: Literal["little", "big"] = "little" if header.raw.endianness == "<" else "big"
    room = 2**24  # larger than any real extension
    while True:
        size = int.from_bytes(file.read(4), order, signed=True)
        if size < 16 or size % 16 or size > room:
            return
        room -= size
        position += size
        yield position
        if position >= until or len(file.read(size - 4)) < size - 4:
            return


def _length_remarks(header: NiftiHeader, itemsize: int, doubt: ScanWarning | None, more: bool) -> Iterator[ScanWarning]:
    """Compare the length of the file with the header.

    Raises:
        VolumeError: The file is longer than declared, and the header contradicts itself in another way, too.
    """
    bits = int(header.raw["bitpix"])
    disagree = bits != 8 * itemsize
    if more and (doubt or disagree):
        raise VolumeError(
            f"{header.path}: the header contradicts itself (datatype {int(header.raw['datatype'])}, {bits} bits per "
            f"voxel, vox_offset {int(header.raw['vox_offset'])}), and the file holds more voxels than it declares."
        )
    if doubt:
        yield doubt
    if disagree:
        text = f"bitpix gives {bits} bits per voxel and datatype {8 * itemsize}; datatype was used."
        yield ScanWarning("contradictory_header", f"The header contradicts itself: {text}")
    if more:
        yield excess_data_warning(header.path)


def is_pair_header(start: bytes) -> bool:
    """Return True if a file with these first bytes is the header of a NIfTI pair."""
    return start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0"


def parts_of_pair(file: ImageFile) -> dict[str, Path]:
    """Return the header and the voxels of a pair by neutral names, which do not reveal their origin.

    Raises:
        VolumeError: The file with the voxels does not exist.
    """
    voxels = image_of_pair(file)
    ends = [".gz" if is_gzip(path) else "" for path in (file.path, voxels)]
    return {f"scan.hdr{ends[0]}": file.path, f"scan.img{ends[1]}": voxels}


def _parts(file: ImageFile) -> dict[str, Path]:
    return parts_of_pair(file) if is_pair_header(read_start(file.path)) else {}


def _recognises(start: bytes) -> bool:
    return is_single_nifti(start) or is_pair_header(start)


READER = Reader("NIfTI file", (".nii", ".nii.gz", ".hdr"), _recognises, read, True, _parts)
