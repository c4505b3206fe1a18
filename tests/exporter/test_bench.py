"""The benchmark counts what it says, and every contender draws a mask of the same network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cli.app import build
from exporter.bench import backends, benchmark_case, measure
from exporter.bench.benchmark_case import BenchmarkCase, convolution_flops
from exporter.bench.measure import BenchmarkResult, measure_memory, run_benchmark, window_count

TINY = BenchmarkCase("unet-plain", 3, (40, 32, 32), (32, 32, 32), 1)


def test_operations_are_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1),  # 16^3 voxels of 4 channels, 27 products each
        nn.ConvTranspose3d(4, 3, 2, stride=2),  # 16^3 voxels of 4 channels, each to 3 channels of 8 voxels
    )
    monkeypatch.setattr(BenchmarkCase, "network", lambda self: network)
    assert convolution_flops(TINY) == 2 * 16**3 * 4 * (27 + 3 * 8)


@pytest.mark.parametrize("student", list(benchmark_case.STUDENTS))
def test_every_student_is_built_and_counted(student: str) -> None:
    case = BenchmarkCase(student, 14, (96, 96, 96), (96, 96, 96))
    with torch.device("meta"):
        network = case.recipe.build(1, 14, case.window)
    assert sum(p.numel() for p in network.parameters()) > 1_000_000
    assert "96x96x96" in str(case)


def test_windows_are_those_of_half_overlap() -> None:
    assert window_count(BenchmarkCase("unet", 3, (512, 512, 400), (96, 96, 96))) == 10 * 10 * 8


@pytest.fixture(scope="module")
def tiny() -> BenchmarkResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MATRIX", 128)
        patch.setattr(backends, "COMPILED", (False,))  # compiling takes a minute
        told: list[str] = []
        result = run_benchmark(TINY, 1, told.append)
    assert result.windows == 2 and len(told) == 2
    return result


@pytest.mark.long
def test_contenders_draw_the_mask_of_one_network(tiny: BenchmarkResult) -> None:
    by_name = {one.name: one for one in tiny.timed}
    assert {"OpenVINO fp32", "ONNX Runtime fp32", "OpenVINO int8"} < set(by_name)
    peer = next(name for name in by_name if name.startswith("MONAI"))
    assert by_name[peer].ratio == 1 and by_name[peer].equal == 1
    for name, one in by_name.items():
        assert len(one.seconds) == 1 and one.seconds[0] > 0
        # Random weights: many voxels are nearly ties.
        least = 0.8 if "int8" in name or "nnU-Net" in name else 0.99 if "16" in name else 0.999
        assert one.equal > least, name
    assert by_name["OpenVINO fp32"].of_matmul is not None and by_name[peer].of_matmul is None
    json.dumps(measure.machine_info(1))


@pytest.mark.long
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    big = BenchmarkCase("unet-plain", 14, (160, 64, 64), (32, 32, 32))
    ours, _ = measure_memory(big, "ours", 1)
    others, _ = measure_memory(big, "monai", 1)
    assert 0 < ours < others


@pytest.mark.long
def test_the_command_times_what_it_is_asked_for(tiny: BenchmarkResult, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[BenchmarkCase] = []

    def once_more(case: BenchmarkCase, threads: int, tell: Callable[[str], None]) -> BenchmarkResult:
        timed.append(case)
        return replace(tiny, case=case)

    monkeypatch.setattr(measure, "run_benchmark", once_more)  # what it measures was measured above
    asked = ["--only", "vnet", "--volume", "40x32x32", "--rounds", "2", "--threads", "1", "--json"]
    found = CliRunner().invoke(build("bench"), ["bench", "inference", *asked])
    assert found.exit_code == 0, found.output
    assert [(case.student, case.shape, case.rounds) for case in timed] == [("vnet", (40, 32, 32), 2)]
    told = json.loads(found.stdout)
    assert told["machine"] and told["cases"][0]["timed"][0]["name"] == tiny.timed[0].name
    found = CliRunner().invoke(build("bench"), ["bench", "inference", "--quick", "--threads", "1"])
    assert found.exit_code == 0 and timed[1] == BenchmarkCase("unet-plain", 3, (96, 96, 72), (48, 48, 48), 1)


def test_a_student_that_is_not_there_is_named() -> None:
    found = CliRunner().invoke(build("bench"), ["bench", "inference", "--only", "resnet"])
    assert found.exit_code != 0 and "There is no student 'resnet' to time; there are unet," in str(found.exception)
