"""Bring the viewer of the server's page, NiiVue, before semiseg is installed or built: `python -m deploy.viewer`.

NiiVue's own npm package is used where npm is installed. Elsewhere the same viewer comes from PyPI, inside the wheel of
ipyniivue (a Jupyter widget of NiiVue's authors), which pip downloads without installing it. Both are pinned with their
hashes. Without the viewer the page shows pictures that the server draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "server" / "http" / "page"
NAME = "niivue.js"

# The wheel's module exports the widget alone. `t2` and `VA` are what the minifier made of the names of NiiVue's classes
# in exactly this file, which the hash names. For another version: `t2` is the class that has `attachToCanvas`, `VA` the
# first one that has a static `loadFromFile`; tests/server/test_page.py draws with them.
WHEEL = "ipyniivue==2.4.4 --hash=sha256:5e42b192a607b398c900a1e66d18aab1b41da4653a7e1641c18959bf1873cadc"
MODULE = "ipyniivue/static/widget.js"
EXPORTED, WANTED = "export{Ih as default};", "export{t2 as Niivue,VA as NVImage};"


class ViewerUnavailable(Exception):  # noqa: N818 - a sentence, printed as it is
    """A source has no viewer; the message says why."""


def from_npm(folder: Path) -> tuple[str, str]:
    """The module of NiiVue's npm package, of the version and hash in package-lock.json, and that package's URL (purl).

    Raises:
        DownloadError: No npm is installed, or npm fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ViewerUnavailable("npm is not installed")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PAGE / name, folder / name)
    _run([npm, "ci", "--silent", "--ignore-scripts", "--omit=optional"], folder)
    package = folder / "node_modules" / "@niivue" / "niivue"
    version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    lines = (package / "dist" / "index.js").read_text(encoding="utf-8").splitlines(keepends=True)
    module = "".join(line for line in lines if not line.startswith("//# sourceMappingURL"))
    return module, f"pkg:npm/%40niivue/niivue@{version}"


def from_pypi(folder: Path) -> tuple[str, str]:
    """The module in ipyniivue's wheel, with NiiVue's own classes exported from it, and that package's URL (purl).

    Raises:
        DownloadError: The wheel cannot be downloaded.
    """
    (folder / "requirements.txt").write_text(WHEEL + "\n", encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    _run([sys.executable, "-m", "pip", "download", *options, "-r", "requirements.txt", "-d", "."], folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        module = archive.read(MODULE).decode("utf-8")
    if module.count(EXPORTED) != 1:
        raise ViewerUnavailable(f"{MODULE} of {wheel.name} does not have the export that is expected")
    name, version = WHEEL.partition(" ")[0].split("==")
    return module.replace(EXPORTED, WANTED), f"pkg:pypi/{name}@{version}"


SOURCES = {"npm": from_npm, "pypi": from_pypi}


def fetch_viewer(target: Path, sources: list[str]) -> str:
    """Write the viewer to ``target`` from the first of ``sources`` that has it; returns the URL of its package.

    Raises:
        DownloadError: None of the sources has it; ``target`` is as it was.
    """
    problems = []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            try:
                module, package = SOURCES[source](Path(folder))
            except ViewerUnavailable as problem:
                problems.append(f"{source}: {problem}")
                continue
        unfinished = target.with_name(target.name + ".unfinished")
        header = f"/*! NiiVue from {package}; licences: niivue.licences.txt */\n"
        unfinished.write_text(header + module, encoding="utf-8", newline="\n")
        unfinished.replace(target)
        return package
    raise ViewerUnavailable("; ".join(problems))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ViewerUnavailable(f"{'pip' if 'pip' in command else 'npm'} failed: {last}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", choices=SOURCES, help="Use this source only; by default npm, then pypi."
    )
    parser.add_argument("--into", type=Path, default=PAGE, metavar="FOLDER", help=f"the folder for {NAME}")
    asked = parser.parse_args()
    try:
        package = fetch_viewer(asked.into / NAME, [asked.source] if asked.source else list(SOURCES))
    except ViewerUnavailable as problem:
        print(f"The viewer was not brought ({problem}); the server's page will show pictures instead.", file=sys.stderr)
        return 1
    print(f"{asked.into / NAME}: NiiVue from {package}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
