"""A bundle loads whole or not at all, with a sentence that says why; and it is replaced whole or not at all."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semiseg.bundle.bundle import (
    MANIFEST,
    MODEL,
    open_bundle,
    read_manifest,
    sha256_of,
    write_bundle,
    write_manifest,
)
from semiseg.bundle.manifest import Manifest
from semiseg.errors import BundleError
from semiseg.system.durable_files import replace_file
from tests.bundles import make_threshold_bundle

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound bundle."""
    return make_threshold_bundle(tmp_path / "models" / "bundle").folder


def rewrite(folder: Path, change: Change) -> None:
    """Change the manifest by hand."""
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sentence(folder: Path) -> str:
    """What opening the bundle is refused with: sentences on one line, without a traceback's or pydantic's noise."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and "pydantic" not in text and str(folder) in text
    return text


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_sound_bundle_opens_and_knows_its_model(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.model == folder / MODEL
    assert bundle.sha256 == hashlib.sha256(bundle.model.read_bytes()).hexdigest()
    assert bundle.manifest.kind == "bundle" and bundle.manifest.channel_names == ("image",)
    assert bundle.manifest.outputs == 3


def test_a_manifest_survives_json(folder: Path, tmp_path: Path) -> None:
    manifest = open_bundle(folder).manifest
    write_manifest(tmp_path / "copy.json", manifest)
    assert read_manifest(tmp_path / "copy.json") == manifest


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert sentence(tmp_path / "nowhere").startswith("There is no bundle folder")


def test_a_file_is_not_a_bundle_folder(folder: Path) -> None:
    assert sentence(folder / MODEL).startswith("There is no bundle folder")


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert "has no manifest.json, so it is not a semiseg bundle" in sentence(folder)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe\x00", b"no json"])
def test_a_manifest_that_is_not_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "cannot be read as JSON" in sentence(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused_with_what_to_do(folder: Path, version: object) -> None:
    rewrite(folder, lambda d: d.update(format=version))
    found = sentence(folder)
    assert f"has format version {version!r}; this semiseg reads version 1" in found
    assert ("install that one" if version == 2 else "`semiseg export RUN --out FOLDER`") in found


@pytest.mark.parametrize("document", ["[]", "3", '"manifest"', "null", "{}"])
def test_json_of_another_kind_is_refused(folder: Path, document: str) -> None:
    (folder / MANIFEST).write_text(document, encoding="utf-8")
    assert "has format version None" in sentence(folder)


@pytest.mark.parametrize("position", [0, -1])
def test_a_single_changed_byte_of_the_graph_is_noticed(folder: Path, position: int) -> None:
    """MOD-01."""
    data = bytearray((folder / MODEL).read_bytes())
    data[position] ^= 1
    (folder / MODEL).write_bytes(data)
    assert f"{MODEL} was altered after export" in sentence(folder)


def test_a_missing_graph_is_named(folder: Path) -> None:
    (folder / MODEL).unlink()
    assert "is incomplete: model.onnx is missing" in sentence(folder)


def test_every_listed_file_has_to_be_there(folder: Path) -> None:
    """MOD-01."""
    rewrite(folder, lambda d: d["files"].update({"model.plan": "0" * 64}))
    assert "is incomplete: model.plan is missing" in sentence(folder)


def test_a_manifest_that_does_not_list_the_graph_is_refused(folder: Path) -> None:
    rewrite(folder, lambda d: d["files"].clear())
    assert "does not list model.onnx" in sentence(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "a\\b", "..", ".", "", "/", "a/", "./a", "a/.."])
def test_a_path_that_leaves_the_folder_is_refused_before_it_is_read(folder: Path, name: str) -> None:
    """MOD-01."""
    outside = folder.parent / "secret"
    outside.write_bytes(b"not yours")
    rewrite(folder, lambda d: d["files"].update({name: sha256_of(outside)}))
    assert f"names {name!r}, which is not a file inside the bundle" in sentence(folder)


def test_a_link_is_refused_even_when_it_leads_to_the_right_bytes(folder: Path) -> None:
    moved = (folder / MODEL).rename(folder.parent / "elsewhere.onnx")
    (folder / MODEL).symlink_to(moved)
    assert "is a link; a bundle holds plain files only" in sentence(folder)


def test_a_training_run_is_told_to_be_exported(folder: Path) -> None:
    (folder / MANIFEST).rename(folder / "run.json")
    assert "holds a training run, not a bundle; make one with `semiseg export`" in sentence(folder)


def test_a_manifest_that_says_run_is_told_to_be_exported(folder: Path) -> None:
    rewrite(folder, lambda d: d.update(kind="run"))
    assert "holds a training run, not a bundle; make one with `semiseg export`" in sentence(folder)


def second(document: dict[str, Any], key: str, **changes: Any) -> None:
    document[key].append({**document[key][0], **changes})


CONTRADICTIONS: list[tuple[str, Change, str]] = [
    ("window", lambda d: d.update(divisor=[3, 3, 3]), "window [16, 16, 16] is not a multiple of the divisor [3, 3, 3]"),
    ("default", lambda d: d.update(window=[8, 8, 8]), "the default window [8, 8, 8] is not among the allowed windows"),
    ("windows", lambda d: d.update(windows=[]), "is not among the allowed windows"),
    ("empty window", lambda d: d.update(window=[0, 16, 16]), "greater than or equal to 1"),
    ("label", lambda d: second(d, "segments", name="third"), "two segments share a name or a label"),
    ("name", lambda d: second(d, "segments", label=9), "two segments share a name or a label"),
    ("no segment", lambda d: d.update(segments=[]), "segments: "),
    ("channel", lambda d: second(d, "channels"), "two channels share a name"),
    ("intensity", lambda d: second(d, "channels", name="t2"), "2 channels need as many intensity entries"),
    ("activation", lambda d: d.update(activation="relu"), "activation: "),
    ("overlap", lambda d: d.update(overlap=1.0), "overlap: "),
    ("key", lambda d: d.update(surprise=1), "surprise: "),
    ("missing", lambda d: d.pop("preprocessing"), "preprocessing: Field required"),
    ("sum", lambda d: d["files"].update({MODEL: "beef"}), "files.model.onnx: "),
    ("intensity", lambda d: d["preprocessing"]["intensity"][0].pop("clip"), "needs `clip`"),
    (
        "cleaning",
        lambda d: d["postprocessing"]["segments"].update(tumour={}),
        "postprocessing names segments that do not exist: tumour",
    ),
]


@pytest.mark.parametrize(("change", "reason"), [c[1:] for c in CONTRADICTIONS], ids=[c[0] for c in CONTRADICTIONS])
def test_a_manifest_that_contradicts_itself_is_refused(folder: Path, change: Change, reason: str) -> None:
    rewrite(folder, change)
    found = sentence(folder)
    assert "is not a valid manifest: " in found and reason in found


# --- writing ---------------------------------------------------------------------------------------------------------


def filling(manifest: Manifest, content: bytes) -> Callable[[Path], Manifest]:
    def fill(scratch: Path) -> Manifest:
        (scratch / MODEL).write_bytes(content)
        return manifest

    return fill


def failing(scratch: Path) -> Manifest:
    (scratch / MODEL).write_bytes(b"half of it")
    raise RuntimeError("the graph is wrong")


def test_a_new_bundle_lists_the_sums_of_its_files_and_leaves_nothing_beside_it(folder: Path) -> None:
    manifest = open_bundle(folder).manifest.model_copy(update={"kind": "run", "files": {}})
    target = folder.parent / "deeper" / "new"

    def fill(scratch: Path) -> Manifest:
        (scratch / "notes.txt").write_text("by hand")
        return filling(manifest, b"graph")(scratch)

    bundle = write_bundle(target, fill)
    assert bundle.manifest.kind == "bundle"
    assert bundle.manifest.files == {MODEL: sha256_of(target / MODEL), "notes.txt": sha256_of(target / "notes.txt")}
    assert [p.name for p in target.parent.iterdir()] == ["new"]
    assert sorted(p.name for p in target.iterdir()) == [MANIFEST, MODEL, "notes.txt"]


def test_the_folder_and_its_files_have_the_permissions_of_ordinary_new_ones(folder: Path, tmp_path: Path) -> None:
    """So the server's user can read them wherever the umask lets anybody read what this user makes."""
    (tmp_path / "ordinary").mkdir()
    (tmp_path / "ordinary" / "file").touch()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary" / "file").stat().st_mode)


def test_a_bundle_is_replaced_whole(folder: Path) -> None:
    """MOD-06."""
    manifest = open_bundle(folder).manifest
    (folder / "left over").write_bytes(b"from an earlier export")
    bundle = write_bundle(folder, filling(manifest, b"another graph"))
    assert bundle.model.read_bytes() == b"another graph" and not (folder / "left over").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_damaged_bundle_is_replaced_too(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    (folder / MODEL).unlink()
    rewrite(folder, lambda d: d.update(format=0))
    assert write_bundle(folder, filling(manifest, b"graph")).model.read_bytes() == b"graph"


def test_an_empty_folder_becomes_the_bundle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = open_bundle(folder).manifest
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    write_bundle(Path(), filling(manifest, b"graph"))
    assert open_bundle(empty).model.read_bytes() == b"graph"


def test_a_failure_while_filling_leaves_the_old_bundle_and_no_temporary_folder(folder: Path) -> None:
    """MOD-06."""
    before = contents(folder.parent)
    with pytest.raises(RuntimeError, match="the graph is wrong"):
        write_bundle(folder, failing)
    assert contents(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_failure_while_filling_leaves_no_new_bundle(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the graph is wrong"):
        write_bundle(tmp_path / "new", failing)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_puts_the_old_bundle_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, manifest = contents(folder.parent), open_bundle(folder).manifest
    rename = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if (self / MODEL).is_file() and (self / MODEL).read_bytes() == b"another graph":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(PermissionError):
        write_bundle(folder, filling(manifest, b"another graph"))
    assert contents(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_link_to_a_bundle_stays_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    write_bundle(link, filling(open_bundle(folder).manifest, b"another graph"))
    assert link.is_symlink() and open_bundle(folder).model.read_bytes() == b"another graph"


@pytest.mark.parametrize(
    "stranger",
    [
        {"thesis.docx": "years of work"},
        {"manifest.json": '{"name": "a browser extension"}', "code.js": ""},
        {"manifest.json": "no json"},
        {"manifest.json": "[1]"},
    ],
)
def test_a_folder_that_is_not_a_bundle_is_never_replaced(folder: Path, stranger: dict[str, str]) -> None:
    target = folder.parent / "papers"
    target.mkdir()
    for name, text in stranger.items():
        (target / name).write_text(text)
    before = contents(target)
    with pytest.raises(BundleError, match="papers exists and is not a bundle; name another folder"):
        write_bundle(target, filling(open_bundle(folder).manifest, b"graph"))
    assert contents(target) == before


def test_a_file_in_the_bundles_place_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_text("mine")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write_bundle(file, filling(open_bundle(folder).manifest, b"graph"))
    assert file.read_text() == "mine"


def test_a_replaced_file_is_complete_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
