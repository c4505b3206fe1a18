"""Import guard that refuses packages named `cli`, `server`, `trainer` or `exporter` which are not semiseg's.

These names are generic: other distributions contain packages of the same names, and so may the user's working folder.
Python imports the first one on its path, and if two distributions in one environment contain the same package, the one
that was installed last has overwritten the files of the other. Each of semiseg's packages therefore contains a mark and
must lie beside `semiseg`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from semiseg.errors import SemisegError

PACKAGES = ("cli", "server", "trainer", "exporter")
_ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r'^PART_OF = "semiseg"$', re.MULTILINE)
_REINSTALL = "Install semiseg again: pip install --force-reinstall --no-deps semiseg"


class ForeignPackageError(SemisegError):
    """A package that semiseg needs is missing or belongs to another distribution."""


def guard_imports() -> None:
    """Install the guard: later imports of a foreign package of these names raise :class:`ForeignPackageError`.

    Call this only in semiseg's own processes, such as the command line. A program that uses `semiseg` as a library may
    import another distribution's `trainer`.
    """
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def require(name: str) -> None:
    """Check that the package ``name`` is semiseg's, without importing it.

    Raises:
        ForeignPackageError: The package is missing or foreign; the message names its owner and the remedy.
    """
    found = _found(name)
    if found is None:
        raise ForeignPackageError(f"semiseg's package `{name}` is missing in {_ROOT}. {_REINSTALL}")
    if found.parent.parent == _ROOT and found.name == "__init__.py" and _MARK.search(found.read_text(encoding="utf-8")):
        return
    problem = f"semiseg needs its own package `{name}`, but Python finds {found}."
    raise ForeignPackageError(f"{problem} {_remedy(name, found)}")


class _Guard(MetaPathFinder):
    """Finder that only checks semiseg's packages; the finders after it import them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname in PACKAGES:
            require(fullname)
        return None


def _found(name: str) -> Path | None:
    """Return the file that ``import name`` would run; None if there is none, or a folder without ``__init__.py``."""
    for finder in sys.meta_path:
        if isinstance(finder, _Guard) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(name, None)
        if spec is not None:
            return Path(spec.origin).resolve() if spec.has_location and spec.origin else None
    return None


def _remedy(name: str, found: Path) -> str:
    """Return one sentence about the origin of the file and one about the remedy."""
    owners = [one for one in metadata.distributions() if one.name != "semiseg" and _brought(one, name, found)]
    if owners:
        named = ", ".join(f"{owner.name} {owner.version}" for owner in owners)
        names = " ".join(owner.name for owner in owners)
        return (
            f"It was installed by {named}. Install semiseg into an environment of its own, or remove the "
            f"other (pip uninstall {names}) and then install semiseg again "
            "(pip install --force-reinstall --no-deps semiseg)."
        )
    if found.parent.parent == _ROOT:
        return f"It is not the file that semiseg was installed with. {_REINSTALL}"
    folder = found.parent.parent if found.name == "__init__.py" else found.parent
    return (
        f"It belongs to no installed distribution. Start semiseg from another folder, remove {folder} from PYTHONPATH, "
        f"or rename {found.parent if found.name == '__init__.py' else found}."
    )


def _brought(distribution: metadata.Distribution, name: str, file: Path) -> bool:
    paths = (path for path in distribution.files or () if path.as_posix() in (f"{name}/__init__.py", f"{name}.py"))
    return any(Path(str(distribution.locate_file(path))).resolve() == file for path in paths)
