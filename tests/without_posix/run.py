"""The suite without POSIX's names: `python -m tests.without_posix.run [ARGUMENTS OF PYTEST]`.

The PACS service needs Linux, packaging proves environments of Linux, conditions is a tool for Linux: they are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = ("gateway", "packaging", "conditions", "releases", "docs", "__pycache__", HERE.name)


def environment() -> dict[str, str]:
    """The environment of a process that, with all that it starts, lacks POSIX's names."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "SEMISEG_TESTS_FORK": "0"}


def folders() -> list[str]:
    """The folders of tests that can run so."""
    found = sorted(path for path in HERE.parent.iterdir() if path.is_dir() and path.name not in LEFT_OUT)
    return [str(path) for path in found]


def main(arguments: list[str]) -> int:
    """Run pytest; its exit code."""
    asked = arguments if any(not argument.startswith("-") for argument in arguments) else [*arguments, *folders()]
    return subprocess.run([sys.executable, "-m", "pytest", *asked], env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
