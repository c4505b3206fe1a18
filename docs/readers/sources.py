"""Take the DICOM and NIfTI files out of clones of public repositories, as far as their objects are there.

    python -m docs.readers.sources CLONE... --into FOLDER --list sources.csv

A CLONE may lack large objects (a partial clone). Zip and tar.gz archives are unpacked, gzipped DICOM files gunzipped;
references made by another converter (NIfTI files in folders named Ref) are left out. The list names each repository's
commit, and how many files were taken, and how many are absent.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.nifti import is_nifti

_CODE = frozenset(
    ("py", "js", "ts", "tsx", "md", "json", "png", "jpg", "cs", "cpp", "h", "c", "html", "css", "txt", "bval", "bvec")
)
MOST_ARCHIVES = 2
"""Archives within archives are opened this often."""


def blobs(clone: Path) -> Iterator[tuple[str, bytes | None]]:
    """The paths and contents of a clone's newest commit; None where an object is absent."""
    tree = subprocess.run(["git", "-C", clone, "ls-tree", "-r", "-z", "HEAD"], capture_output=True, check=True).stdout
    with subprocess.Popen(
        ["git", "-C", clone, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as git:
        assert git.stdin is not None and git.stdout is not None
        for line in filter(None, tree.split(b"\0")):
            about, name = line.split(b"\t", 1)
            mode, kind, sha = about.split()
            path = name.decode("utf-8", "replace")
            if kind != b"blob" or mode == b"120000" or path.rpartition(".")[2].lower() in _CODE:
                continue
            if path.endswith((".nii", ".nii.gz")) and "Ref" in PurePosixPath(path).parts:
                continue
            git.stdin.write(sha + b"\n")
            git.stdin.flush()
            answer = git.stdout.readline().split()
            if answer[1] == b"missing":
                yield path, None
            else:
                yield path, git.stdout.read(int(answer[2]))
                git.stdout.read(1)
        git.stdin.close()


def unpack(path: str, data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """A file itself, or what an archive holds."""
    if data[:2] == b"\x1f\x8b" and not path.endswith(".nii.gz"):
        inner = gzip.decompress(data)
        if inner[257:262] == b"ustar" and depth < MOST_ARCHIVES:
            with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None:
                        yield from unpack(f"{path}.d/{member.name}", file.read(), depth + 1)
        else:
            yield f"{path}.dcm", inner
    elif data[:4] == b"PK\x03\x04" and data[128:132] != b"DICM":
        if depth < MOST_ARCHIVES:
            with zipfile.ZipFile(io.BytesIO(data)) as bundle:
                for info in bundle.infolist():
                    if not info.is_dir() and "__MACOSX" not in info.filename:
                        yield from unpack(f"{path}.d/{info.filename}", bundle.read(info), depth + 1)
    else:
        yield path, data


def extract_files(clone: Path, into: Path) -> tuple[int, int]:
    """Write a clone's files; returns the numbers of files that were written and that are absent."""
    count = absent = 0
    for path, data in blobs(clone):
        if data is None:
            absent += 1
            continue
        try:
            parts = list(unpack(path, data))
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError):
            continue
        for name, content in parts:
            target = into / name
            if ".." in target.parts:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            if is_dicom(target) or is_nifti(target):
                count += 1
            else:
                target.unlink()
    return count, absent


def main() -> int:
    """Take them out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", nargs="+", type=Path, help="folders named OWNER+NAME, bare or not")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--list", type=Path, required=True)
    options = parser.parse_args()
    with options.list.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["repository", "commit", "files", "absent"])
        for clone in options.clones:
            head = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
            count, absent = extract_files(clone, options.into / clone.name)
            writer.writerow([clone.name.replace("+", "/"), head.stdout.strip(), count, absent])
    return 0


if __name__ == "__main__":
    sys.exit(main())
