"""How Sphinx makes the documentation: the pages of the repository as they lie, read from its root."""

project = "semiseg"
copyright = "The semiseg developers. RESEARCH USE ONLY"  # noqa: A001 - Sphinx's name for it
extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md", "deploy/*.md", "deploy/**/*.md", "tests/README.md"]
exclude_patterns = [".venv*", "build", "**/node_modules", "docs/generators"]
root_doc = "docs/index"
html_theme = "furo"
html_title = "semiseg"
myst_heading_anchors = 3
