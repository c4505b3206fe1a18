"""Any student becomes one valid graph whose batch and window sizes stay free."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporter.errors import ExportError
from exporter.onnx import _unequal, export_onnx
from semiseg.engines.onnx import OnnxEngine
from trainer.network_configs import parse_network_config

STUDENTS = {
    "unet": {"kind": "unet", "channels": [4, 8, 8], "residual_units": 1},
    "unet, batch norm": {"kind": "unet", "channels": [4, 8, 8], "residual_units": 0, "norm": "batch"},
    "unet, thick slices": {
        "kind": "unet",
        "channels": [4, 8, 8],
        "strides": [[2, 2, 1], [2, 2, 2]],
        "residual_units": 0,
    },
    "unet3d": {"kind": "unet3d", "channels": [4, 6, 8]},
    "segresnet": {"kind": "segresnet", "filters": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"kind": "dynunet", "channels": [4, 6, 8]},
}
PAIR = [STUDENTS["unet"], STUDENTS["dynunet"]]
STUDENTS["mean of softmaxes"] = {"kind": "mean", "members": PAIR}
STUDENTS["mean of sigmoids"] = {"kind": "mean", "members": PAIR, "regions": True}
FIXED = {
    "swinunetr": ({"kind": "swinunetr", "feature_size": 12}, (64, 32, 32)),
    "unetr": ({"kind": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2}, (32, 16, 16)),
}


# The graphs of these have nothing that those of the others have not.
LONG = {"unet, batch norm", "unet3d", "dynunet", "mean of sigmoids"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in STUDENTS]
)
def test_a_student_computes_the_same_in_the_graph_at_other_sizes(name: str, tmp_path: Path) -> None:
    student = parse_network_config(STUDENTS[name])
    torch.manual_seed(0)
    network = student.build(2, 3, (8, 4, 8)).eval()
    # Two sides alike and one a single multiple of the divisor: none of them may be taken for a constant.
    export_onnx(network, tmp_path / "model.onnx", inputs=2, window=(8, 4, 8), divisor=student.divisor())
    engine = OnnxEngine(tmp_path / "model.onnx", threads=1)
    for batch, window in itertools.product((1, 3), ((8, 4, 8), (8, 8, 8), (4, 12, 16))):
        windows = np.random.default_rng(batch).normal(size=(batch, 2, *window)).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(windows)).numpy()
        np.testing.assert_allclose(engine.logits(engine.run(windows)), expected, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"], "the weights are in the graph's own file"


@pytest.mark.parametrize("name", ["unetr", pytest.param("swinunetr", marks=pytest.mark.long)])
def test_a_student_that_depends_on_its_window_gets_a_graph_for_that_window_and_any_batch(
    name: str, tmp_path: Path
) -> None:
    section, window = FIXED[name]
    student = parse_network_config(section)
    assert not student.takes_any_size
    torch.manual_seed(0)
    network = student.build(1, 2, window).eval()
    export_onnx(network, tmp_path / "model.onnx", inputs=1, window=window, divisor=None)
    assert sides(tmp_path / "model.onnx")[2:] == [str(side) for side in window]
    engine = OnnxEngine(tmp_path / "model.onnx", threads=1)
    for batch in (1, 3):
        windows = np.random.default_rng(batch).normal(size=(batch, 1, *window)).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(windows)).numpy()
        np.testing.assert_allclose(engine.logits(engine.run(windows)), expected, atol=1e-3)


def sides(model: Path) -> list[str]:
    return [d.dim_param or str(d.dim_value) for d in onnx.load(model).graph.input[0].type.tensor_type.shape.dim]


def test_nothing_of_the_machine_that_exported_it_is_in_a_graph(tmp_path: Path) -> None:
    """MOD-05."""
    export_onnx(
        parse_network_config(STUDENTS["unet"]).build(1, 3, (8, 8, 8)),
        tmp_path / "model.onnx",
        inputs=1,
        window=(8, 8, 8),
        divisor=(4, 4, 4),
    )
    content = (tmp_path / "model.onnx").read_bytes()
    for path in (torch.__file__, __file__, sys.prefix):
        assert str(Path(path).parent).encode() not in content
    assert b"site-packages" not in content and b"stack_trace" not in content


@pytest.mark.parametrize("window", [(4, 2, 4), (2, 2, 2), (2, 4, 2), (6, 4, 2)], ids=str)
def test_batch_and_sides_are_free_whatever_the_window(window: tuple[int, int, int], tmp_path: Path) -> None:
    network = nn.Conv3d(1, 2, 3, padding=1)
    export_onnx(network, tmp_path / "model.onnx", inputs=1, window=window, divisor=(2, 2, 2))
    found = sides(tmp_path / "model.onnx")
    assert found[1] == "1" and len(set(found)) == 5
    assert not any(side.isdecimal() for side in (found[0], *found[2:]))


@pytest.mark.parametrize("sides", itertools.product(range(1, 5), repeat=3), ids=str)
def test_the_example_window_has_three_sides_no_two_alike_and_none_of_one(sides: tuple[int, int, int]) -> None:
    # Releases of torch that take equal sizes for one and the same would otherwise export cubes only.
    found = _unequal(*sides)
    assert len(set(found)) == 3 and min(found) >= 2


class Strange(nn.Module):
    """Decides by the values, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_network_that_cannot_become_a_graph_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(Strange(), tmp_path / "model.onnx", inputs=1, window=(4, 4, 4), divisor=(2, 2, 2))
    assert str(caught.value).startswith("The network cannot be exported to ONNX: ") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
