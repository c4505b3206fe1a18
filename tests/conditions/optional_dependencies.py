"""Optional programs, files and packages, absent and present, in all pairs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from tests.conditions.condition import INTERPRETER, TREE, Condition, Launcher, copy_environ, copy_tree
from tests.conditions.pairwise import Row, pairwise

PROGRAMS = {
    "orthanc": ("Orthanc",),
    "dcmtk": (
        "dcmodify",
        "dcmdump",
        "dump2dcm",
        "dsrdump",
        "echoscu",
        "storescu",
        "storescp",
        "movescu",
        "findscu",
        "getscu",
    ),
    "dciodvfy": ("dciodvfy",),
    "dcm2niix": ("dcm2niix",),
    "chromium": ("chromium", "chromedriver"),
    "openssl": ("openssl",),
    "buildah": ("buildah",),
    "curl": ("curl",),
    "make": ("make", "gmake"),
    "npm": ("npm", "npx", "node", "nodejs"),
}
"""Name of what Debian's packages bring: names of its programs."""
PACKAGES = {
    "ray": ("ray",),
    "openvino": ("openvino", "openvino_telemetry"),
    "selenium": ("selenium",),
    "schemathesis": ("schemathesis",),
    "tensorrt": ("tensorrt",),
}
"""Name of an optional package: its modules and distributions."""
DATA = "data"
VIEWER = "viewer"
_VIEWER_FILE = "server/http/page/niivue.js"
_SBIN = ("/usr/sbin", "/sbin")


def search_path() -> list[Path]:
    """The folders in which the suite looks for programs."""
    named = [*os.environ.get("PATH", os.defpath).split(os.pathsep), *_SBIN]
    return [Path(name) for name in dict.fromkeys(named) if name]


def present() -> list[str]:
    """Which of all these this machine has; what it lacks is absent in every row."""
    found = [name for name, programs in PROGRAMS.items() if any((f / programs[0]).exists() for f in search_path())]
    found += [name for name, modules in PACKAGES.items() if importlib.util.find_spec(modules[0]) is not None]
    if os.environ.get("SEMISEG_DATA"):
        found.append(DATA)
    if (TREE / _VIEWER_FILE).is_file():
        found.append(VIEWER)
    return found


def pairs() -> list[Condition]:
    """A condition for each row but the first, in which everything is there: that is the plain suite."""
    factors = present()
    if len(factors) < 2:
        return []
    return [_condition(number, row) for number, row in enumerate(pairwise(factors)[1:], 1)]


def _condition(number: int, row: Row) -> Condition:
    absent = [name for name, present in row.items() if not present]
    return Condition(f"pairs-{number}", f"without {', '.join(absent)}", lambda folder: launcher_without(absent, folder))


def launcher_without(absent: list[str], folder: Path) -> Launcher:
    """How to start as if these were not installed, or not there."""
    programs = {program for name in absent for program in PROGRAMS.get(name, ())}
    modules = [module for name in absent for module in PACKAGES.get(name, ())]
    environ: dict[str, str | None] = {
        "PATH": os.pathsep.join(map(str, _path_without(programs, folder))),
        "SEMISEG_TESTS_NEED_ALL": None,
        "SEMISEG_TESTS_WITHOUT": ",".join(sorted(programs)),
    }
    if DATA in absent:
        environ["SEMISEG_DATA"] = None
    tree = TREE
    if VIEWER in absent:
        tree = copy_tree(folder / "tree", without=(_VIEWER_FILE,))
        environ |= copy_environ(tree)
    if modules:
        environ["TESTS_CONDITION_WITHOUT"] = ",".join(modules)
        environ["PYTHONPATH"] = os.pathsep.join([str(INTERPRETER), *filter(None, [environ.get("PYTHONPATH")])])
    return Launcher(environ=environ, tree=tree)


def _path_without(programs: set[str], folder: Path) -> list[Path]:
    """The folders of programs; instead of one that holds any of ``programs``, links to all others in it."""
    out = []
    for number, place in enumerate(search_path()):
        if not any((place / name).exists() for name in programs):
            out.append(place)
            continue
        links = folder / "programs" / str(number)
        links.mkdir(parents=True)
        for file in place.iterdir():
            if file.name not in programs:
                (links / file.name).symlink_to(file)
        out.append(links)
    return out
