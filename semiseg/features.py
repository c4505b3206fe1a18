"""What semiseg can do, on which systems, and what each part needs: the table of the README and of `semiseg doctor`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from semiseg.system.nvidia import nvidia_driver

SYSTEMS = {"Linux": "Linux", "Darwin": "macOS (Apple silicon)", "Windows": "Windows"}
"""The names that :func:`platform.system` gives, and those that people use."""

EVERYWHERE = tuple(SYSTEMS)


@dataclass(frozen=True)
class Feature:
    """A part of semiseg that a user would install for its own sake.

    Attributes:
        name: Name of the feature.
        extra: Extra of the installation that brings its packages.
        modules: Python modules that it imports, all of them.
        one_of: Python modules of which it needs at least one.
        distribution: Distribution that it needs, where another one brings modules of the same names.
        nvidia: Whether it needs an NVIDIA GPU and its driver.
        systems: Operating systems on which it runs.
        tried: Those of them on which it was tried.
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
    Feature("Label (MONAI Label's interface)", "serve", ("nibabel", "starlette", "uvicorn", "python_multipart")),
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
"""Versions of Python, and where each was tried."""


@dataclass(frozen=True)
class Availability:
    """Whether a feature can be used on this machine.

    Attributes:
        feature: The feature.
        reason: Why it cannot be used and how to change that, as a sentence; empty where it can.
    """

    feature: Feature
    reason: str = ""

    @property
    def available(self) -> bool:
        """Whether it can be used."""
        return not self.reason


def availabilities(
    system: str | None = None, installed: Callable[[str], bool] | None = None, driver: str | None = None
) -> tuple[Availability, ...]:
    """Whether each feature can be used here.

    Args:
        system: Operating system as :func:`platform.system` names it; this machine's by default.
        installed: Tells whether a Python module is installed; by default in this environment.
        driver: Name of the NVIDIA driver; by default of the one that this machine has, if any.
    """
    driver = nvidia_driver() if driver is None else driver
    system = platform.system() if system is None else system
    installed = _installed if installed is None else installed
    return tuple(Availability(feature, _reason(feature, system, installed, driver)) for feature in FEATURES)


def support_table() -> str:
    """The features by operating system, as a table in Markdown."""
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
    """The versions of Python and where each was tried, as a table in Markdown."""
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
