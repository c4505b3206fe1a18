"""Documents that are made from the code: they are up to date, and what they must not say stops them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from docs.generators import __main__ as generators
from docs.generators import licences, trace
from docs.generators.document import Document, DocumentError


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="licences are those of installed packages: pyjpegls has no 3.14"
)
def test_generated_documents_are_those_that_the_code_makes(capsys: pytest.CaptureFixture[str]) -> None:
    """DEP-05."""
    assert generators.main(check=True) == 0, capsys.readouterr().err


def test_document_that_is_old_is_named_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("docs.generators.document.REPOSITORY", tmp_path)
    monkeypatch.setattr(generators, "documents", lambda: [Document("some.md", "text\n")])
    assert generators.main(check=True) == 1
    assert "some.md is not what the code says" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert generators.main(check=False) == 0
    assert (tmp_path / "some.md").read_text(encoding="utf-8") == "text\n"
    assert generators.main(check=True) == 0


@pytest.mark.parametrize(
    ("required", "proved", "risk", "words"),
    [
        ("- **AB-01** One.\n- **AB-02** Two.\n", "AB-01", "", "No test names the requirement(s) AB-02"),
        ("- **AB-01** One.\n", "AB-01, AB-09", "", "test_some.py::test_it names the requirement AB-09"),
        ("- **AB-01** One.\n- **AB-01** Two.\n", "AB-01", "", "gives AB-01 twice"),
        ("- **AB-01** One.\n", "AB-01", "| fire | AB-07 |", "risks.md names the requirement AB-07"),
    ],
)
def test_requirements_without_proof_and_proofs_of_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: str, proved: str, risk: str, words: str
) -> None:
    """DEP-05."""
    monkeypatch.setattr(trace, "REPOSITORY", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs" / "requirements.md").write_text(required)
    (tmp_path / "docs" / "risks.md").write_text(risk)
    (tmp_path / "tests" / "test_some.py").write_text(f'def test_it():\n    """{proved}."""\n')
    with pytest.raises(DocumentError) as refused:
        trace.document()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-or-later",
        "LGPL-2.1-only",
        "AGPL-3.0",
        "MPL-2.0",
        "MIT AND GPL-2.0-only",
        "CC-BY-SA-4.0",
        "Proprietary",
        "",
    ],
)
def test_copyleft_and_unknown_licences_stop_the_list(licence: str) -> None:
    """DEP-01."""
    with pytest.raises(DocumentError, match="must not come into an image unseen"):
        licences.require_allowed("some-package", licence)


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0 AND MIT", "GPL-2.0-only OR MIT"])
def test_permissive_licences_pass(licence: str) -> None:
    assert licences.require_allowed("some-package", licence) == licence


def test_licences_are_those_that_packages_tell() -> None:
    assert licences.licence_of(metadata.metadata("nibabel")) == "MIT"
    assert licences.licence_of(metadata.metadata("certifi")) == "MPL-2.0"
    with pytest.raises(DocumentError, match="Nobody has said"):
        licences.licence_of_library("libnew-1.so")
