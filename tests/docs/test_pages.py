"""The documentation becomes pages without a warning: no link that leads nowhere, no page that nobody finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from docs.generators.document import REPOSITORY


def test_documentation_becomes_pages_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", tmp_path / "trees"]
    built = subprocess.run(
        [*map(str, command), ".", str(tmp_path / "pages")], cwd=REPOSITORY, capture_output=True, text=True, timeout=540
    )
    assert built.returncode == 0, built.stderr
    assert "The gateway" in (tmp_path / "pages" / "docs" / "reference" / "gateway.html").read_text(encoding="utf-8")
