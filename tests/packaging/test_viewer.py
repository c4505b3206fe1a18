"""What brings the page's viewer: npm, or PyPI where npm is missing; where neither works, nothing is left half done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy import viewer
from docs.generators.document import DocumentError
from docs.generators.licences import VIEWER_LICENCES, viewer_components

LICENCES = VIEWER_LICENCES.read_text(encoding="utf-8")


def exports(module: str) -> set[str]:
    """The names that a page can import from a module."""
    (listed,) = re.findall(r"export\s*\{([^}]*)\}", module)
    return {name.split(" as ")[-1].strip() for name in listed.split(",")}


@pytest.fixture(scope="module")
def from_npm(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return viewer.from_npm(tmp_path_factory.mktemp("npm"))[0]
    except viewer.ViewerUnavailable as problem:
        pytest.skip(f"npm does not bring the viewer: {problem}")


def test_npm_brings_a_module_with_the_names_that_the_page_imports(from_npm: str) -> None:
    assert {"Niivue", "NVImage"} <= exports(from_npm)
    assert "sourceMappingURL" not in from_npm


def test_without_npm_pypi_brings_a_module_with_the_same_names(
    package_index: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["viewer", "--into", str(tmp_path)])
    assert viewer.main() == 0, capsys.readouterr().err
    module = (tmp_path / "niivue.js").read_text(encoding="utf-8")
    assert exports(module) == {"Niivue", "NVImage"}
    assert module.startswith("/*! NiiVue from pkg:pypi/ipyniivue@")
    assert [path.name for path in tmp_path.iterdir()] == ["niivue.js"]


def test_another_file_than_the_pinned_one_is_refused(
    package_index: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(viewer, "WHEEL", re.sub(r"[0-9a-f]{64}", "0" * 64, viewer.WHEEL))
    with pytest.raises(viewer.ViewerUnavailable, match="pip failed"):
        viewer.from_pypi(tmp_path)


def test_where_nothing_brings_it_the_old_one_stays_and_the_reasons_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    monkeypatch.setattr(viewer, "WHEEL", f"{tmp_path}/no-such-wheel.whl --hash=sha256:{'0' * 64}")
    monkeypatch.setattr("sys.argv", ["viewer", "--into", str(tmp_path)])
    (tmp_path / "niivue.js").write_text("old")
    assert viewer.main() == 1
    said = capsys.readouterr().err
    assert "npm is not installed" in said and "pip failed" in said and "will show pictures" in said
    assert (tmp_path / "niivue.js").read_text() == "old"


def test_every_library_in_the_viewer_has_its_licence_listed(from_npm: str) -> None:
    """DEP-01."""
    bundled = set(re.findall(r"^// .*node_modules/((?:@[^/]+/)?[^/]+)/", from_npm, re.MULTILINE))
    assert len(bundled) > 5
    assert bundled - {name for name, _, _ in viewer_components(LICENCES)} == set()


def test_a_licence_without_its_text_or_under_the_gpl_is_refused() -> None:
    with pytest.raises(DocumentError, match="does not have its text"):
        viewer_components("thing | MIT | Copyright somebody\n")
    with pytest.raises(DocumentError, match="must not come into an image"):
        viewer_components("thing | GPL-3.0-only | Copyright somebody\n\nGPL-3.0-only\n")
