"""A bundle on disk: ``manifest.json``, ``model.onnx`` and no executable code. Only a complete bundle is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from semiseg.bundle.manifest import FORMAT, Manifest
from semiseg.errors import BundleError, validation_message
from semiseg.system.durable_files import rename, replace_file

MANIFEST = "manifest.json"
MODEL = "model.onnx"
PLAN = "model.plan"
RUN = "run.json"
_AGAIN = "Export the run again (`semiseg export RUN --out FOLDER`), or install the semiseg that wrote it."


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        """The ONNX graph: float32 windows (B, C, *window) in, logits (B, outputs, *window) out."""
        return self.folder / MODEL

    @property
    def sha256(self) -> str:
        """Identity of the model: the SHA-256 of its graph."""
        return self.manifest.files[MODEL]


def open_bundle(folder: str | Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: The folder, the manifest or a file is missing, of another version, altered, or contradictory.

    Examples:
        >>> import semiseg
        >>> bundle = semiseg.open_bundle("BUNDLE")
        >>> bundle.manifest.name, [channel.name for channel in bundle.manifest.channels]
        ('tiny', ['MR'])
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"There is no bundle folder {folder}.")
    a_run = BundleError(f"{folder} holds a training run, not a bundle; make one with `semiseg export`.")
    if (folder / RUN).is_file() and not (folder / MANIFEST).exists():
        raise a_run
    manifest = read_manifest(folder / MANIFEST)
    if manifest.kind != "bundle":
        raise a_run
    if MODEL not in manifest.files:
        raise BundleError(f"The manifest of {folder} does not list {MODEL}.")
    for name, expected in manifest.files.items():
        path = _inside(folder, name)
        if not path.is_file():
            raise BundleError(f"{folder} is incomplete: {name} is missing; copy the bundle again.")
        if sha256_of(path) != expected:
            raise BundleError(f"{path} was altered after export (its SHA-256 is not the manifest's); copy it again.")
    return Bundle(folder=folder, manifest=manifest)


def read_manifest(path: Path) -> Manifest:
    """Read a ``manifest.json`` or ``run.json``.

    Raises:
        BundleError: The file is missing, is not JSON, has another format version, or does not match the schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.parent} has no {path.name}, so it is not a semiseg bundle or run.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}.") from None
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise BundleError(
            f"{path} has format version {version!r}; this semiseg reads version {FORMAT}. "
            + ("A newer semiseg wrote it; install that one." if newer else _AGAIN)
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{path} is not a valid manifest: {validation_message(error)}.") from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: a reader sees the old or the new document."""
    replace_file(path, manifest.model_dump_json(indent=2).encode())


def write_bundle(folder: Path, fill: Callable[[Path], Manifest]) -> Bundle:
    """Make a bundle: ``fill`` writes the model files into a temporary folder and returns their manifest.

    The SHA-256 sums are added to the manifest, the manifest is written, and the folder is renamed when it is complete.
    An existing bundle at ``folder`` is replaced; if anything fails, it remains unchanged.

    Raises:
        BundleError: ``folder`` exists and is not a bundle.
    """

    def fill_and_seal(scratch: Path) -> None:
        manifest = fill(scratch)
        files = {p.name: sha256_of(p) for p in sorted(scratch.iterdir())}
        complete = manifest.model_copy(update={"kind": "bundle", "files": files})
        write_manifest(scratch / MANIFEST, Manifest.model_validate(complete.model_dump()))

    return open_bundle(write_folder(folder, fill_and_seal, "a bundle", _replaceable))


def write_folder(folder: Path, fill: Callable[[Path], None], what: str, replaceable: Callable[[Path], bool]) -> Path:
    """Fill a temporary folder beside the target and rename it when it is complete; change nothing if that fails.

    Args:
        folder: The target folder; an existing one is replaced if ``replaceable`` returns True.
        fill: Function that writes the files into the folder that it is given.
        what: Kind of folder for the error message, such as "a bundle".
        replaceable: Function that returns True if an existing folder may be replaced.

    Returns:
        The folder, with links resolved.

    Raises:
        BundleError: The folder exists and may not be replaced.
    """
    if folder.exists() and not replaceable(folder):
        raise BundleError(f"{folder} exists and is not {what}; name another folder for the result.")
    target = folder.resolve()  # so that a link remains a link, and "." gets a name
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        scratch = beside / target.name  # has the permissions of the umask; the folder around it has mode 700
        scratch.mkdir()
        fill(scratch)
        _swap(scratch, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _replaceable(folder: Path) -> bool:
    """Return True if a bundle may replace this folder: it is empty, or a bundle, even a damaged one."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False  # other programs also write a manifest.json; only one with "kind": "bundle" is semiseg's
    return isinstance(document, dict) and document.get("kind") == "bundle"


def _swap(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; an existing target is deleted afterwards, or restored if the rename fails."""
    if not target.exists():
        rename(new, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    rename(target, old)
    try:
        rename(new, target)
    except BaseException:
        rename(old, target)
        raise
    shutil.rmtree(old)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``; refuse a name that is not a plain file name, and a link."""
    if PurePosixPath(name).name != name or name in ("", "..") or "\\" in name:
        raise BundleError(f"The manifest of {folder} names {name!r}, which is not a file inside the bundle.")
    path = folder / name
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds plain files only.")
    return path
