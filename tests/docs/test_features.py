"""The README's tables of systems and Pythons are those of `semiseg doctor`, and follow the installation's extras."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from docs.generators.document import REPOSITORY
from semiseg.features import FEATURES, PYTHONS, SYSTEMS, availabilities, python_table, support_table

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_readme_holds_the_tables_of_the_code() -> None:
    assert support_table() in README and python_table() in README
    assert f">={min(PYTHONS, key=lambda version: int(version.split('.')[1]))}" == PROJECT["requires-python"]


def test_every_feature_names_an_extra_of_the_installation() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {feature.extra for feature in FEATURES} <= set(extras)
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    for feature in FEATURES:
        assert set(feature.tried) <= set(feature.systems) <= set(SYSTEMS)


def test_every_feature_is_available_where_everything_is_installed() -> None:
    found = {one.feature.name: one.reason for one in availabilities("Linux", lambda _: True, driver="")}
    assert {name: reason for name, reason in found.items() if reason and "GPU" not in name} == {}


@pytest.mark.parametrize(
    ("system", "missing", "name", "reason"),
    [
        ("Linux", {"torch"}, "Export", "torch is missing; install the extra `export`."),
        ("Linux", {"torch", "monai"}, "Export", "torch, monai are missing; install the extra `export`."),
        (
            "Linux",
            {"openvino", "onnxruntime"},
            "Segment scans, evaluate, collect",
            "openvino or onnxruntime is missing; install the extra `serve`.",
        ),
        ("Linux", {"openvino"}, "Segment scans, evaluate, collect", ""),
        ("Windows", set(), "Connect a PACS (gateway)", "It runs on Linux, elsewhere in a container."),
        ("Darwin", set(), "NVIDIA GPU: TensorRT", "It runs on Linux and Windows."),
        ("Linux", {"tensorrt"}, "NVIDIA GPU: TensorRT", "tensorrt is missing; install the extra `trt`."),
    ],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    system: str, missing: set[str], name: str, reason: str
) -> None:
    found = {one.feature.name: one for one in availabilities(system, lambda m: m not in missing, driver="a driver")}
    assert found[name].reason == reason and found[name].available == (not reason)


def test_without_a_driver_there_is_no_gpu() -> None:
    found = {one.feature.name: one.reason for one in availabilities("Linux", lambda _: True, driver="")}
    assert found["NVIDIA GPU: segment and train"] == "No driver of an NVIDIA GPU was found."


def test_doctor_prints_a_row_for_each_feature() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "semiseg", "doctor"], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for one in availabilities():
        row = next(line for line in answer.stdout.splitlines() if line.startswith(one.feature.name))
        assert ("yes" if one.available else "no") in row.removeprefix(one.feature.name).split()[0]
