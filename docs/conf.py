"""How Sphinx makes the documentation: the pages of the repository as they lie, read from its root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "semiseg"
copyright = "The semiseg developers. RESEARCH USE ONLY"  # noqa: A001 - Sphinx's name for it
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "*.md", "docs/*.md", "docs/**/*.md", "deploy/*.md", "deploy/**/*.md", "examples/*.md", "tests/README.md"
]  # fmt: skip
exclude_patterns = [".venv*", "build", "**/node_modules", "docs/generators"]
root_doc = "docs/index"
html_theme = "furo"
html_title = "semiseg"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
