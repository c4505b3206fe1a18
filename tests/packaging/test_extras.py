"""What pyproject.toml promises about its extras, and what constraints.txt pins of it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from deploy import environment

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
TRAINING_ONLY = {"torch", "monai", "transformers", "peft", "accelerate", "onnx", "onnxscript", "tensorboard"}
OURS = "semiseg"
PYTHONS = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
# Why each is not pinned is said at the top of constraints.txt.
UNPINNED = {"flatbuffers", "tensorrt"}


def asked(extra: str) -> list[Requirement]:
    """What an extra brings: the core's, its own, and what other extras bring that it names."""
    found = list(CORE)
    for requirement in EXTRAS[extra]:
        if requirement.name == OURS:
            found += [one for other in requirement.extras for one in EXTRAS[other]]
        else:
            found.append(requirement)
    return found


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(python: str = "", system: str = "") -> list[Requirement]:
    """The pins; with a version of Python and a platform, those that hold there."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = {"python_version": python, "sys_platform": system}
    return [pin for pin in found if not python or pin.marker is None or pin.marker.evaluate(there)]


def test_the_extras_are_the_ones_the_documentation_speaks_of() -> None:
    assert set(EXTRAS) == {"imaging", "train", "export", "serve", "gpu", "gateway", "ray", "trt", "dev"}


def test_serve_and_gpu_pin_one_package_to_two_versions_so_that_pip_refuses_them_together() -> None:
    versions = {
        extra: {canonicalize_name(r.name): str(r.specifier) for r in EXTRAS[extra] if str(r.specifier).startswith("==")}
        for extra in ("serve", "gpu")
    }
    contradictory = {
        name for name in versions["serve"].keys() & versions["gpu"].keys()
        if versions["serve"][name] != versions["gpu"][name]
    }  # fmt: skip
    assert contradictory == {"flatbuffers"}


def test_the_contradictory_pin_is_not_decided_by_the_constraints() -> None:
    assert names(pins()).isdisjoint(UNPINNED)


def test_serve_and_gpu_differ_in_the_runtime_only() -> None:
    # OpenVINO runs on processors; a machine with a GPU has no use for its 180 MB.
    assert names(EXTRAS["serve"]) ^ names(EXTRAS["gpu"]) == {*RUNTIMES, "openvino"}


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"serve", "gpu"}))
def test_no_other_extra_brings_an_onnx_runtime(extra: str) -> None:
    assert names(EXTRAS[extra]).isdisjoint(RUNTIMES)


@pytest.mark.parametrize("extra", ["serve", "gpu", "gateway"])
def test_serving_asks_for_nothing_that_only_training_needs(extra: str) -> None:
    assert names(asked(extra)).isdisjoint(TRAINING_ONLY)


@pytest.mark.parametrize("extra", ["train", "export", "serve", "gpu", "gateway", "ray", "dev"])
def test_what_is_asked_for_is_pinned_to_a_version_that_satisfies_it(extra: str) -> None:
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}
    for requirement in asked(extra):
        name = canonicalize_name(requirement.name)
        if name not in UNPINNED:
            assert name in pinned, f"{name} has no pin in constraints.txt"
            assert requirement.specifier.contains(pinned[name]), f"{requirement} refuses the pin {pinned[name]}"


def test_both_builds_of_the_runtime_are_pinned_to_one_version() -> None:
    assert len({str(pin.specifier) for pin in pins() if canonicalize_name(pin.name) in RUNTIMES}) == 1


def test_the_constraints_pin_exactly_and_each_package_once() -> None:
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "+" not in specifier.version, f"{pin} would ask for one machine's build"
    sorted_names = [canonicalize_name(pin.name) for pin in pins()]
    assert sorted_names == sorted(sorted_names)
    for python in PYTHONS:
        for system in ("linux", "darwin", "win32"):
            assert len(names(pins(python, system))) == len(pins(python, system)), f"two pins on {python}, {system}"


def test_python_3_11_is_the_least_and_there_is_no_bound_above() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(8, 40) if supported.contains(f"3.{minor}.1")] == list(range(11, 40))
    assert environment.MIN_PYTHON == (3, 11)
    assert PYTHONS == ["3.11", "3.12", "3.13", "3.14"]


def test_every_pin_takes_the_python_of_debian_12() -> None:
    """pip passes over a version that asks for a newer patch release, and then finds that the pin cannot be had."""
    asking = {}
    for pin in pins():
        try:
            asks = metadata.metadata(pin.name).get("Requires-Python")
        except metadata.PackageNotFoundError:
            continue  # of another build or system
        if asks and not SpecifierSet(asks).contains("3.11.2"):
            asking[pin.name] = asks
    assert asking == {}


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert PROJECT["license"].split(" AND ")[0] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
