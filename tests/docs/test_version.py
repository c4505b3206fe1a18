"""One version, wherever it is said."""

from __future__ import annotations

import re
import tomllib

import yaml

from docs.generators.document import REPOSITORY


def said(file: str, pattern: str) -> list[str]:
    return re.findall(pattern, (REPOSITORY / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_place_names_the_same_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert said("CHANGELOG.md", r"^## (\d+\.\d+\.\d+)")[0] == version
    assert said("Dockerfile", r"^ARG VERSION=(.+)$") == [version]
    assert str(yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["version"]) == version


def test_every_version_of_the_changelog_is_kept() -> None:
    """DEP-06."""
    kept = {folder.parent.name for folder in (REPOSITORY / "tests" / "releases").glob("*/about.json")}
    assert set(said("CHANGELOG.md", r"^## (\d+\.\d+\.\d+)")) == kept
