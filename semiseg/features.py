"""Features of semiseg with their operating systems and packages: the tables of the README and of `semiseg doctor`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from semiseg.system.nvidia import nvidia_driver

SYSTEMS = {"Linux": "Linux", "Darwin": "macOS (Apple silicon)", "Windows": "Windows"}
"""Names of operating systems as :func:`platform.system` returns them, and as people know them."""

EVERYWHERE = tuple(SYSTEMS)


@dataclass(frozen=True)
class Feature:
    """A part of semiseg that a user can install separately.

    Attributes:
        name: Name of the feature.
        extra: Extra of the installation that contains its packages.
        modules: Python modules that it imports; all are required.
        one_of: Python modules of which it needs at least one.
        distribution: Distribution that it needs, if another distribution has modules of the same names.
        nvidia: True if it needs an NVIDIA GPU and its driver.
        systems: Operating systems on which it runs.
        tried: Operating systems on which it was tried.
        elsewhere: Advice for other systems.
    """

    name: str
    extra: str
    modules: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    distribution: str = ""
    nvidia: bool = False
    systems: tuple[str, ...] = EVERYWHERE
    tried: tuple[str, ...] = ("Linux",)
    elsewhere: str = "no"


FEATURES = (
    Feature(
        "Segment scans, evaluate, collect",
        "serve",
        ("nibabel", "scipy", "PIL"),
        one_of=("openvino", "onnxruntime"),
    ),
    Feature("Write DICOM SEG and SR", "serve", ("highdicom",)),
    Feature("Serve over HTTP", "serve", ("bentoml", "httpx", "python_multipart")),
    Feature("Label (browser, MONAI Label)", "serve", ("nibabel", "starlette", "uvicorn", "python_multipart")),
    Feature(
        "Train, compare, suggest",
        "train",
        ("torch", "monai", "transformers", "peft", "accelerate", "safetensors", "matplotlib", "SimpleITK"),
    ),
    Feature("Export", "export", ("torch", "monai", "onnx", "onnxscript")),
    Feature(
        "Connect a PACS (gateway)",
        "gateway",
        ("pynetdicom", "dicomweb_client", "starlette", "uvicorn", "httpx", "prometheus_client", "websocket"),
        systems=("Linux",),
        elsewhere="in a container",
    ),
    Feature("Segment lists on a Ray cluster", "ray", ("ray",)),
    Feature(
        "NVIDIA GPU: segment and train",
        "gpu",
        ("onnxruntime",),
        distribution="onnxruntime-gpu",
        nvidia=True,
        systems=("Linux", "Windows"),
        tried=(),
    ),
    Feature(
        "NVIDIA GPU: TensorRT",
        "trt",
        ("tensorrt",),
        nvidia=True,
        systems=("Linux", "Windows"),
        tried=(),
    ),
)

PYTHONS = {
    "3.11": "Debian 12: the whole test suite, the demo, the images",
    "3.12": "not tried on a system of its own",
    "3.13": "Debian 13: the whole test suite and the demo",
    "3.14": "Debian testing: the whole test suite and the demo",
}
"""Versions of Python, and the systems on which each was tried."""


@dataclass(frozen=True)
class Availability:
    """Availability of a feature on this machine.

    Attributes:
        feature: The feature.
        reason: Reason why it is not available, and the remedy, as a sentence; empty if it is available.
    """

    feature: Feature
    reason: str = ""

    @property
    def available(self) -> bool:
        """True if the feature can be used."""
        return not self.reason


def availabilities(
    system: str | None = None, installed: Callable[[str], bool] | None = None, driver: str | None = None
) -> tuple[Availability, ...]:
    """Determine which features are available.

    Args:
        system: Operating system as :func:`platform.system` names it; this machine's by default.
        installed: Function that returns True if a Python module is installed; it checks this environment by default.
        driver: Name of the NVIDIA driver; by default the one of this machine, if any.
    """
    driver = nvidia_driver() if driver is None else driver
    system = platform.system() if system is None else system
    installed = _installed if installed is None else installed
    return tuple(Availability(feature, _reason(feature, system, installed, driver)) for feature in FEATURES)


def support_table() -> str:
    """Return the table of features by operating system in Markdown."""
    rows = [
        ["", *SYSTEMS.values(), "extra"],
        ["---"] * (len(SYSTEMS) + 2),
        *(
            [
                feature.name,
                *(_standing(feature, system) for system in SYSTEMS),
                f"`{feature.extra}`",
            ]
            for feature in FEATURES
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def python_table() -> str:
    """Return the table of Python versions, with the systems on which each was tried, in Markdown."""
    return "".join(
        f"| {' | '.join(row)} |\n" for row in [["Python", "tried on"], ["---", "---"], *map(list, PYTHONS.items())]
    )


def _standing(feature: Feature, system: str) -> str:
    if system not in feature.systems:
        return feature.elsewhere
    return "yes" if system in feature.tried else "not tried"


def _reason(feature: Feature, system: str, installed: Callable[[str], bool], driver: str | None) -> str:
    if system not in feature.systems:
        names = " and ".join(SYSTEMS[name] for name in feature.systems)
        return f"It runs on {names}{'' if feature.elsewhere == 'no' else f', elsewhere {feature.elsewhere}'}."
    if feature.nvidia and not driver:
        return "No driver of an NVIDIA GPU was found."
    missing = [module for module in feature.modules if not installed(module)]
    if feature.distribution and not missing and not _has_distribution(feature.distribution):
        missing.append(feature.distribution)
    if feature.one_of and not any(installed(module) for module in feature.one_of):
        missing.append(" or ".join(feature.one_of))
    if not missing:
        return ""
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; install the extra `{feature.extra}`."


def _has_distribution(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
