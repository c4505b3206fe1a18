"""A zip gives numbered files within limits, or a sentence; never a path of its own choosing."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from semiseg.errors import VolumeError
from semiseg.volumes.archives import UnpackLimits, is_zip, unpack_zip

LIMITS = UnpackLimits()


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_member_names_never_become_paths(tmp_path: Path, into: Path) -> None:
    """VOL-07."""
    names = ["../../evil", "/etc/cron.d/evil", "a/b/../../../c", "C:\\evil", "ok.dcm", "a" * 400, "con\u0000trol"]
    path = packed(tmp_path / "scan.zip", {name: str(k).encode() for k, name in enumerate(names)})
    files = unpack_zip(path, into, LIMITS)
    assert [f.relative_to(into).as_posix() for f in files] == [f"{k:05d}" for k in range(1, 8)]
    assert [f.read_bytes() for f in files] == [str(k).encode() for k in range(7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["into", "scan.zip"]


def test_folders_in_the_archive_are_no_files(tmp_path: Path, into: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.mkdir("series")
        archive.writestr("series/1.dcm", b"one")
    assert len(unpack_zip(tmp_path / "scan.zip", into, LIMITS)) == 1


def test_the_number_of_members_is_limited(tmp_path: Path, into: Path) -> None:
    """VOL-07."""
    path = packed(tmp_path / "scan.zip", {str(k): b"x" for k in range(11)})
    with pytest.raises(VolumeError, match="holds 11 files; the limit is 10"):
        unpack_zip(path, into, UnpackLimits(members=10))


def test_the_declared_size_is_limited_before_anything_is_written(tmp_path: Path, into: Path) -> None:
    path = packed(tmp_path / "scan.zip", {"a": bytes(600), "b": bytes(600)}, zipfile.ZIP_STORED)
    with pytest.raises(VolumeError, match="declares 1200 unpacked bytes; 1000 are allowed"):
        unpack_zip(path, into, UnpackLimits(total_bytes=1000))
    assert list(into.iterdir()) == []


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, into: Path) -> None:
    """VOL-07."""
    path = packed(tmp_path / "scan.zip", {str(k): bytes(2**24) for k in range(3)})
    assert path.stat().st_size < 2**17
    with pytest.raises(VolumeError, match="declares 50331648 unpacked bytes"):
        unpack_zip(path, into, LIMITS)
    assert len(unpack_zip(path, into, UnpackLimits(ratio=2000))) == 3


def test_an_archive_that_lies_about_its_size_is_stopped_and_removed(tmp_path: Path, into: Path) -> None:
    path = packed(tmp_path / "scan.zip", {"first": b"fine", "liar": bytes(5000)}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    lie = content.replace(struct.pack("<II", 5000, 5000), struct.pack("<II", 5000, 10))
    assert lie != content
    path.write_bytes(lie)
    with pytest.raises(VolumeError, match=r"scan\.zip: "):
        unpack_zip(path, into, UnpackLimits(total_bytes=1000))
    assert list(into.iterdir()) == []


def test_links_and_special_files_are_refused(tmp_path: Path, into: Path) -> None:
    """VOL-07."""
    for kind, words in ((stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "special file")):
        member = zipfile.ZipInfo("link")
        member.create_system = 3
        member.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
            archive.writestr(member, "/etc/passwd")
        with pytest.raises(VolumeError, match=f"member 1 of the zip archive is a {words}"):
            unpack_zip(tmp_path / "scan.zip", into, LIMITS)


def test_encrypted_members_are_refused(tmp_path: Path, into: Path) -> None:
    """VOL-07."""
    path = packed(tmp_path / "scan.zip", {"a": b"secret"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(VolumeError, match="is encrypted"):
        unpack_zip(path, into, LIMITS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(compression: int, tmp_path: Path, into: Path) -> None:
    path = packed(tmp_path / "scan.zip", {"a": b"a" * 100}, compression)
    with pytest.raises(VolumeError, match="other than deflate"):
        unpack_zip(path, into, LIMITS)


@pytest.mark.parametrize(
    "start", [b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"BZh9", bytes(257) + b"ustar"]
)
def test_nested_archives_are_refused_by_content_whatever_they_are_called(
    start: bytes, tmp_path: Path, into: Path
) -> None:
    """VOL-07."""
    path = packed(tmp_path / "scan.zip", {"1.dcm": b"fine", "2.dcm": start + bytes(300)})
    with pytest.raises(VolumeError, match="holds another archive"):
        unpack_zip(path, into, LIMITS)
    assert list(into.iterdir()) == []


def test_an_empty_archive_is_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(VolumeError, match="is empty"):
        unpack_zip(packed(tmp_path / "scan.zip", {}), into, LIMITS)


def test_a_dicom_file_whose_preamble_looks_like_a_zip_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(b"PK\x03\x04" + bytes(124) + b"DICM" + bytes(64))
    assert not is_zip(path)
    assert is_zip(packed(tmp_path / "scan.zip", {"a": b"b"}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
@example(place=3226, value=0, cut=False)  # the name of a member becomes empty
def test_a_damaged_archive_is_unpacked_or_refused_and_leaves_nothing_when_refused(
    place: int, value: int, cut: bool, tmp_path: Path, into: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", b"slice one " * 40)
        archive.writestr("2.dcm", bytes(range(256)))
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = value
    path = tmp_path / "scan.zip"
    path.write_bytes(bytes(content[: place % len(content)] if cut else content))
    try:
        files = unpack_zip(path, into, LIMITS)
    except VolumeError as error:
        assert "\n" not in str(error)
        files = []
    assert sorted(into.iterdir()) == files
    for file in files:
        file.unlink()
