"""A bundle whose masks can be computed by hand: a network that compares intensities with two thresholds.

It is a real ONNX graph in a real bundle, made without torch, so that tests of inference, server and command line know
the right answer for every voxel of any scan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from semiseg.bundle.bundle import MODEL, Bundle, write_bundle
from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.manifest import Channel, Manifest, Provenance
from semiseg.bundle.postprocessing import Postprocessing
from semiseg.bundle.preprocessing import Intensity, Preprocessing
from semiseg.volumes.segmentation import ConceptCode, Segment
from semiseg.volumes.volume import Volume, reorient

LOW, HIGH = 300.5, 600.5
"""Segment "low" lies strictly between the two, segment "high" above the second; integers never tie."""

CODE = ConceptCode(value="91723000", scheme="SCT", meaning="Anatomical structure")
SEGMENTS = (
    Segment(name="low", label=1, type=CODE, colour=(230, 60, 60)),
    Segment(name="high", label=2, type=CODE, colour=(60, 120, 230)),
)
SCALE = 1000.0  # intensities 0..1000 become 0..1


def make_threshold_bundle(
    folder: Path,
    *,
    name: str = "threshold",
    channels: tuple[str, ...] = ("image",),
    activation: Literal["softmax", "sigmoid"] = "softmax",
    window: tuple[int, int, int] = (16, 16, 16),
    overlap: float = 0.5,
    spacing: tuple[float, float, float] | None = None,
    postprocessing: Postprocessing | None = None,
    coarse_pass: CoarsePassSettings | None = None,
    fingerprint: Fingerprint | None = None,
    work: int = 0,
    at_full_intensity: Literal["works", "fails", "nan"] = "works",
) -> Bundle:
    """Write the bundle.

    Args:
        folder: where; replaced if it is a bundle already.
        name: the model's name in the manifest.
        channels: the network looks at the first one only.
        activation: ``softmax`` gives a label map; ``sigmoid`` two overlapping masks, "low" being everything above LOW.
        window: the only window allowed.
        overlap: share of a window covered again by the next.
        spacing: mm to resample to; None keeps each scan's own grid, and then the mask is exactly :func:`expected_mask`.
        postprocessing: cleaning of the mask.
        coarse_pass: settings of the coarse pass.
        fingerprint: Ranges of the training scans; by default wide ones.
        work: 3x3x3 convolutions of 32 channels whose result is thrown away: makes each window slow.
        at_full_intensity: what the graph does with a window that holds an intensity of 1000 or more: ``fails`` at run
            time (in ONNX Runtime; OpenVINO reads beyond a list without a word), or returns ``nan``.
    """
    manifest = Manifest(
        kind="bundle",
        name=name,
        channels=tuple(Channel(name=c) for c in channels),
        segments=SEGMENTS,
        activation=activation,
        preprocessing=Preprocessing(
            orientation="RAS",
            spacing=spacing,
            intensity=tuple(Intensity(clip=(0.0, SCALE), scale="window") for _ in channels),
        ),
        postprocessing=postprocessing or Postprocessing(),
        patch=window,
        window=window,
        windows=(window,),
        divisor=(1, 1, 1),
        overlap=overlap,
        coarse_pass=coarse_pass,
        fingerprint=fingerprint or _fingerprint(channels),
        provenance=Provenance(
            semiseg="0.1.0",
            method="threshold",
            created="2026-01-01T00:00:00Z",
            dataset="none",
            labelled=0,
            unlabelled=0,
            validation=0,
            updates=0,
            seed=0,
            student={},
            parameters=6,
        ),
    )
    graph = _graph(len(channels), activation, work, at_full_intensity)

    def fill(scratch: Path) -> Manifest:
        onnx.save(graph, scratch / MODEL)
        return manifest

    return write_bundle(folder, fill)


def expected_mask(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The label map that the softmax bundle gives for intensities (X, Y, Z)."""
    return np.asarray((array > LOW).astype(np.uint8) + (array > HIGH))


def scan_without_air(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A scan of which the network has to see every window; it compresses well."""
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.asarray((x + y + z) % 251, dtype=np.uint8)


def scan_array(shape: tuple[int, int, int], seed: int = 0, *, top: int = 1000) -> NDArray[np.int16]:
    """Integers 0..top-1 without any symmetry: a flipped or transposed mask cannot match by chance."""
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.int16)


def _graph(channels: int, activation: str, work: int, at_full_intensity: str) -> onnx.ModelProto:
    # Logits are straight lines of the intensity v whose maximum changes hands at the thresholds:
    # softmax 0, v - t1, 2v - t1 - t2; sigmoid v - t1, v - t2 (steep, so that blending cannot blur them).
    t1, t2 = LOW / SCALE, HIGH / SCALE
    slopes, offsets = ([0, 1, 2], [0, -t1, -t1 - t2]) if activation == "softmax" else ([1, 1], [-t1, -t2])
    kernel = np.zeros((len(slopes), channels, 1, 1, 1), np.float32)
    kernel[:, 0, 0, 0, 0] = np.asarray(slopes, np.float32) * 1e4
    tensors = {"kernel": kernel, "bias": np.asarray(offsets, np.float32) * np.float32(1e4)}
    nodes = [helper.make_node("Conv", ["windows", "kernel", "bias"], ["lines"])]
    last = "lines"
    if work:
        last = _append_work(nodes, tensors, last, channels, work)
    if at_full_intensity == "fails":
        last = _append_failure(nodes, tensors, last)
    if at_full_intensity == "nan":
        last = _append_nan(nodes, tensors, last)
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    axes = ["batch", "c", "x", "y", "z"]
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, [axes[0], channels, *axes[2:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [axes[0], len(slopes), *axes[2:]])],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _append_work(
    nodes: list[onnx.NodeProto], tensors: dict[str, NDArray[Any]], last: str, channels: int, work: int
) -> str:
    rng = np.random.default_rng(0)
    source, wide = "windows", channels
    for k in range(work):
        tensors[f"w{k}"] = rng.normal(0, 0.05, (32, wide, 3, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{k}"], [f"h{k}"], pads=[1] * 6))
        nodes.append(helper.make_node("Tanh", [f"h{k}"], [f"a{k}"]))
        source, wide = f"a{k}", 32
    tensors["nothing"] = np.zeros((1,), np.float32)
    tensors["channel_axis"] = np.asarray([1], np.int64)
    nodes.append(helper.make_node("ReduceMean", [source, "channel_axis"], ["mean"]))
    nodes.append(helper.make_node("Mul", ["mean", "nothing"], ["zero"]))
    nodes.append(helper.make_node("Add", [last, "zero"], ["worked"]))
    return "worked"


def _append_failure(nodes: list[onnx.NodeProto], tensors: dict[str, NDArray[Any]], last: str) -> str:
    # An intensity of 1 becomes index 1 into a list of one entry, which ONNX Runtime refuses at run time.
    tensors["one_entry"] = np.zeros((1,), np.float32)
    nodes.append(helper.make_node("ReduceMax", ["windows"], ["brightest"], keepdims=0))
    nodes.append(helper.make_node("Floor", ["brightest"], ["floored"]))
    nodes.append(helper.make_node("Cast", ["floored"], ["index"], to=TensorProto.INT64))
    nodes.append(helper.make_node("Gather", ["one_entry", "index"], ["entry"]))
    nodes.append(helper.make_node("Add", [last, "entry"], ["checked"]))
    return "checked"


def _append_nan(nodes: list[onnx.NodeProto], tensors: dict[str, NDArray[Any]], last: str) -> str:
    # The logarithm of nought times nought is no number; that of anything else is nought.
    tensors["full"], tensors["nought"] = np.ones((1,), np.float32), np.zeros((1,), np.float32)
    nodes.append(helper.make_node("ReduceMax", ["windows"], ["brightest"], keepdims=0))
    nodes.append(helper.make_node("Sub", ["full", "brightest"], ["room"]))
    nodes.append(helper.make_node("Log", ["room"], ["logarithm"]))
    nodes.append(helper.make_node("Mul", ["logarithm", "nought"], ["entry"]))
    nodes.append(helper.make_node("Add", [last, "entry"], ["checked"]))
    return "checked"


def _fingerprint(channels: tuple[str, ...]) -> Fingerprint:
    """Wide enough for the tests' scans to be familiar: from small voxels in a corner to large ones in every plane."""
    small = Volume(scan_array((6, 6, 6)), np.diag([0.3, 0.3, 0.3, 1.0]))
    large = Volume(scan_array((60, 60, 60)), np.diag([12.0, 12.0, 12.0, 1.0]))
    planes = [Volume(*reorient(large.array, large.affine, codes)) for codes in ("RAS", "PIR", "LSA")]
    return Fingerprint.collect([dict.fromkeys(channels, volume) for volume in (small, *planes)], "RAS")
