"""Entry point of the `semiseg` command and of `python -m semiseg`.

The entry point is not in the package `cli`, because another distribution may have overwritten a package of that generic
name; this module then reports it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from semiseg.errors import SemisegError
from semiseg.own_packages import guard_imports


def main() -> None:
    """Install the import guard for semiseg's own packages and run the command line."""
    guard_imports()
    try:
        # Imported by name, because the import contracts forbid `semiseg` to import the command line.
        command_line = importlib.import_module("cli.app")
    except SemisegError as error:
        sys.stderr.write(f"semiseg: {error}\n")
        sys.exit(error.exit_code)
    command_line.main()


def _search_working_folder_last() -> None:
    """Move the working folder, which `python -m` puts first on the path, behind the installed packages.

    Otherwise a file `server.py` or a folder `trainer` in the working folder would hide semiseg's package. The folder
    stays on the path, so that recipes can name networks in the user's own modules.
    """
    here = Path.cwd().resolve()
    is_first = bool(sys.path) and not sys.flags.safe_path and Path(sys.path[0]).resolve() == here
    if is_first and here != Path(__file__).resolve().parents[1]:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    _search_working_folder_last()
    main()
