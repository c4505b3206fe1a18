"""The `semiseg` command, also as `python -m semiseg`.

It starts here and not in the package `cli`, whose name another distribution may have taken: then this file says so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from semiseg.errors import SemisegError
from semiseg.own_packages import guard_imports


def main() -> None:
    """Check each of semiseg's own packages when it is imported, and run the command line."""
    guard_imports()
    try:
        # By its name: nothing else in `semiseg` may know the command line, and import-linter sees to that.
        command_line = importlib.import_module("cli.app")
    except SemisegError as error:
        sys.stderr.write(f"semiseg: {error}\n")
        sys.exit(error.exit_code)
    command_line.main()


def _search_working_folder_last() -> None:
    """Move the working folder, which `python -m` puts first, behind the installed packages.

    A file `server.py` or a folder `trainer` that a user happens to have there would hide semiseg's otherwise. It stays
    on the path for networks that a recipe takes from the user's own modules.
    """
    here = Path.cwd().resolve()
    is_first = bool(sys.path) and not sys.flags.safe_path and Path(sys.path[0]).resolve() == here
    if is_first and here != Path(__file__).resolve().parents[1]:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    _search_working_folder_last()
    main()
