"""What has changed since constraints.txt was written: `python -m deploy.update_constraints`, and with --write take it.

Asks pip what it would install today for everything in pyproject.toml. A pin with a comment above it has a reason and is
held; drop the comment to let it go. A pin with a marker moves only where the marker holds: run this with each Python
that has pins of its own. Afterwards: `make test`, and deploy/lock.py for the images.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.markers import Marker

from deploy.lock import REPOSITORY, ask_pip

FILE = REPOSITORY / "constraints.txt"
EXTRAS = "train,export,serve,gateway,ray,dev"
LEFT_OUT = re.compile(r"(flatbuffers|tensorrt|nvidia-.*|triton|pip|setuptools|semiseg)")  # the file's head says why
SAME_VERSION = {"onnxruntime-gpu": "onnxruntime"}  # one version of both builds


@dataclass(frozen=True)
class Pin:
    """A line of the file and the comment above it.

    Attributes:
        name: Name of the package, as it is written.
        version: Pinned version.
        reason: Lines of the comment; () where there is none.
        marker: Environment marker, such as ``python_version < "3.14"``; "" where the pin holds everywhere.
    """

    name: str
    version: str
    reason: tuple[str, ...] = ()
    marker: str = ""

    @property
    def key(self) -> str:
        return re.sub(r"[-_.]+", "-", self.name).lower()

    @property
    def line(self) -> str:
        return f"{self.name}=={self.version}" + (f"; {self.marker}" if self.marker else "")

    @property
    def holds_here(self) -> bool:
        return not self.marker or Marker(self.marker).evaluate()


def parse_constraints(text: str) -> tuple[str, list[Pin]]:
    """The head of the file, to its first empty line, and its pins."""
    head, _, body = text.partition("\n\n")
    pins: list[Pin] = []
    reason: list[str] = []
    for line in body.splitlines():
        if line.startswith("#"):
            reason.append(line)
        elif line:
            pin, _, marker = line.partition(";")
            name, _, version = pin.strip().partition("==")
            pins.append(Pin(name, version, tuple(reason), marker.strip()))
            reason = []
    return head, pins


def update_pins(pins: list[Pin], found: dict[str, str]) -> tuple[list[Pin], list[str]]:
    """The pins as ``found`` (version by name) has them, and a line for each change.

    Pins that nothing asks for any more are named and kept: another platform or extra may.
    """
    told, out = [], []
    have = {pin.key for pin in pins}
    for pin in pins:
        if not pin.holds_here:
            out.append(pin)
            continue
        version = pin.version if pin.reason else found.get(SAME_VERSION.get(pin.key, pin.key))
        if version is None:
            told.append(f"not asked for here: {pin.name} {pin.version}")
        elif version != pin.version:
            told.append(f"{pin.name}: {pin.version} -> {version}")
        out.append(replace(pin, version=version or pin.version))
    for name, version in found.items():
        if name not in have and not LEFT_OUT.fullmatch(name):
            told.append(f"new: {name} {version}")
            out.append(Pin(name, version))
    return sorted(out, key=lambda pin: pin.key), told


def format_constraints(head: str, pins: list[Pin]) -> str:
    lines = [line for pin in pins for line in (*pin.reason, pin.line)]
    return head + "\n\n" + "\n".join(lines) + "\n"


def resolve_versions(held: list[Pin]) -> dict[str, str]:
    """What pip would install within the ``held`` pins, version by name."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "held.txt"
        constraints.write_text("".join(f"{pin.line}\n" for pin in held))
        packages = [one["metadata"] for one in ask_pip(EXTRAS, constraints)]
    return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in packages}


def main(write: bool) -> None:
    head, pins = parse_constraints(FILE.read_text())
    pins, told = update_pins(pins, resolve_versions([pin for pin in pins if pin.reason]))
    print("\n".join(told) or "Nothing has changed.")
    if write:
        FILE.write_text(format_constraints(head, pins))


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
