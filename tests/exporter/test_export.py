"""A run goes in, a bundle comes out: the student alone, proven against the network, or nothing at all."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import nn

import exporter.export
from cli.app import main
from exporter.errors import ExportError
from exporter.export import export
from exporter.onnx import export_onnx
from semiseg.bundle.bundle import MANIFEST, MODEL, Bundle, open_bundle
from semiseg.bundle.card import CARD
from semiseg.engines.onnx import OnnxEngine
from semiseg.errors import BundleError, InputError
from semiseg.inference.windows import padding_for
from semiseg.volumes.nifti import read_labels
from tests.runs import NARROW_WINDOW, WINDOW, TinyRun, make_tiny_run
from trainer.engine import load_trained_network
from trainer.errors import RunError
from trainer.run_sources import SOURCES_FILE


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def initializers(model: Path) -> dict[str, NDArray[np.generic]]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer}


# --- what is in the graph --------------------------------------------------------------------------------------------


def test_the_run_has_a_teacher_with_lora_that_could_be_left_in(tiny_run: TinyRun) -> None:
    state = torch.load(tiny_run.folder / "checkpoint.pt", weights_only=True)["networks"]
    assert set(state) == {"student", "teacher"}
    assert any("lora_A" in name for name in state["teacher"])
    assert len(state["teacher"]) > len(state["student"])


def test_the_graph_holds_the_students_tensors_and_no_other(tiny_run: TinyRun, tiny_bundle: Bundle) -> None:
    """MOD-04."""
    student = load_file(tiny_run.folder / "student.safetensors")
    found = initializers(tiny_bundle.model)
    for name in student.keys() & found.keys():
        np.testing.assert_array_equal(found[name], student[name])
    # The exporter gives the one number of a PReLU another name and shape.
    slopes = {name: values for name, values in student.items() if name not in found}
    assert all(values.size == 1 for values in slopes.values())
    unnamed = [values for name, values in found.items() if name not in student]
    for slope in slopes.values():
        assert any(values.size == 1 and values.item() == slope.item() for values in unnamed)
    total = sum(found[name].size for name in student.keys() & found.keys()) + len(slopes)
    assert total == tiny_bundle.manifest.provenance.parameters == sum(v.size for v in student.values())
    # What remains is instance normalisation without parameters: a scale of ones and a shift of zeros per channel.
    known = [slope.item() for slope in slopes.values()]
    for values in unnamed:
        assert values.size <= 8 and set(values.ravel().tolist()) <= {0.0, 1.0, *known}


def test_neither_a_name_nor_a_node_of_the_graph_belongs_to_the_teacher(tiny_bundle: Bundle) -> None:
    """MOD-04."""
    graph = onnx.load(tiny_bundle.model).graph
    names = [i.name for i in graph.initializer]
    names += [name for node in graph.node for name in (node.name, *node.input, *node.output)]
    words = ("lora", "teacher", "segformer", "decode_head", "attention")
    assert names and not [name for name in names if any(word in name.lower() for word in words)]


def test_the_graph_is_one_file_with_one_input_and_one_output(tiny_bundle: Bundle) -> None:
    graph = onnx.load(tiny_bundle.model, load_external_data=False).graph
    assert [i.name for i in graph.input] == ["windows"] and [o.name for o in graph.output] == ["logits"]
    assert not any(i.external_data for i in graph.initializer)


@pytest.mark.parametrize("window", [WINDOW, NARROW_WINDOW, (8, 8, 8), (4, 10, 6), (24, 20, 18)], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_takes_any_batch_and_any_multiple_of_the_divisor(
    tiny_run: TinyRun, tiny_bundle: Bundle, batch: int, window: tuple[int, int, int]
) -> None:
    windows = np.random.default_rng(batch).normal(size=(batch, 1, *window)).astype(np.float32)
    engine = OnnxEngine(tiny_bundle.model, threads=1)
    _, network = load_trained_network(tiny_run.folder)
    with torch.inference_mode():
        expected = network(torch.from_numpy(windows)).numpy()
    found = engine.logits(engine.run(windows))
    assert found.shape == (batch, 4, *window)
    np.testing.assert_allclose(found, expected, atol=1e-3)


# --- the proof -------------------------------------------------------------------------------------------------------


def test_the_recorded_parity_is_what_anybody_can_compute_again(tiny_run: TinyRun, tiny_bundle: Bundle) -> None:
    (variant,) = json.loads((tiny_bundle.folder / MANIFEST).read_text())["variants"]
    recorded = {(p["engine"], tuple(p["window"])): p for p in variant["parity"]}
    engines = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    assert set(recorded) == {(engine, window) for engine in engines for window in (WINDOW, NARROW_WINDOW)}
    _, network = load_trained_network(tiny_run.folder)
    engine = OnnxEngine(tiny_bundle.model, threads=1)
    scans = [np.load(f) for f in sorted((tiny_run.folder / "cache").glob("*-image.npy"))]
    assert len(scans) == 3, "two labelled scans and one unlabelled"
    for window in (WINDOW, NARROW_WINDOW):
        differences, pairs = [], []
        for scan in scans:
            padded = np.pad(scan, [(0, 0), *padding_for(scan.shape[1:], window)], mode="edge")
            corner = [(n - w) // 2 for n, w in zip(padded.shape[1:], window, strict=True)]
            middle = padded[(slice(None), *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))][None]
            with torch.inference_mode():
                expected = network(torch.from_numpy(middle.copy())).numpy()
            found = engine.logits(engine.run(middle))
            differences.append(np.abs(expected - found).max())
            pairs.append((expected.argmax(1), found.argmax(1)))
        told = recorded["onnxruntime", window]
        assert told["windows"] == len(pairs) == 3
        # Thread counts may change the last digits.
        assert told["largest_difference"] == pytest.approx(max(differences), abs=1e-4)
        a, b = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
        dice = {
            segment.name: 2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k))
            for k, segment in enumerate(tiny_bundle.manifest.segments, start=1)
            if np.any(a == k) or np.any(b == k)
        }
        assert dice, "a network that draws nothing would prove little"
        assert told["dice"] == pytest.approx(dice, abs=1e-3)
    for told in recorded.values():
        assert 0 <= told["largest_difference"] <= 1e-2 and min(told["dice"].values()) >= 0.999


def perturbed(network: nn.Module, target: Path, **options: object) -> None:
    """An exporter with a bug: the graph of a network whose last bias is off by a tenth."""
    with torch.no_grad():
        last = [p for p in network.parameters() if p.ndim == 1][-1]
        last[0] += 0.1
        try:
            export_onnx(network, target, **options)  # type: ignore[arg-type]
        finally:
            last[0] -= 0.1


def test_a_graph_that_computes_something_else_is_not_exported(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOD-03."""
    monkeypatch.setattr(exporter.export, "export_onnx", perturbed)
    with pytest.raises(ExportError) as caught:
        export(tiny_run.folder, tmp_path / "bundle")
    assert str(caught.value).startswith("The fp32 graph does not compute what the network computes")
    assert "logits differ by up to 0.1" in str(caught.value)
    assert "No bundle was written." in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_earlier_bundle_as_it_was(
    tiny_run: TinyRun, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    before = contents(tmp_path)
    monkeypatch.setattr(exporter.export, "export_onnx", perturbed)
    with pytest.raises(ExportError):
        export(tiny_run.folder, tmp_path / "bundle")
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_proof_is_made_on_a_named_dataset_without_opening_its_test_scans(tiny_run: TinyRun, tmp_path: Path) -> None:
    """TRN-02."""
    data = shutil.copytree(tiny_run.data, tmp_path / "data")
    for case in json.loads((data / "split.json").read_text())["test"]:
        (data / "imagesTr" / f"{case}.nii.gz").write_bytes(b"closed")
    bundle = export(tiny_run.folder, tmp_path / "bundle", data=data).bundle
    assert [parity.windows for parity in bundle.manifest.variants[0].parity] == [3] * 4


def test_a_shared_cache_may_be_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "shared"
    shutil.copytree(tiny_run.folder, run)
    (run / "cache").rename(cache)
    # Another run's scans, of two channels, lie beside this run's own.
    np.save(cache / "0000-image.npy", np.zeros((2, 20, 20, 20), np.float32))
    exported = export(run, tmp_path / "bundle", cache=cache)
    assert [parity.windows for parity in exported.bundle.manifest.variants[0].parity] == [3] * 4
    assert exported.scans == f"Tested on the preprocessed scans in {cache}."


def test_a_run_knows_which_scans_of_a_shared_cache_are_its_own(tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path, cache=tmp_path / "shared")
    stranger = np.full((1, 20, 20, 20), np.nan, np.float32)  # of another run with as many channels; it fails any proof
    for name in ("0000", "zzzz"):
        np.save(tmp_path / "shared" / f"{name}-image.npy", stranger)
    exported = export(run.folder, tmp_path / "bundle")
    assert [parity.windows for parity in exported.bundle.manifest.variants[0].parity] == [3] * 4
    assert exported.scans == f"Tested on the run's preprocessed scans in {tmp_path / 'shared'}."


@pytest.fixture
def moved(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A run that was moved together with its dataset: what it remembers is no longer where it was."""
    shutil.copytree(tiny_run.folder, tmp_path / "moved" / "run")
    shutil.copytree(tiny_run.data, tmp_path / "moved" / "data")
    file = tmp_path / "moved" / "run" / SOURCES_FILE
    file.write_text(file.read_text().replace(str(tiny_run.folder.parent), str(tmp_path / "gone")))
    return tmp_path / "moved" / "run"


def test_a_run_that_was_moved_with_its_dataset_finds_both(moved: Path, tmp_path: Path) -> None:
    assert export(moved, tmp_path / "one").scans == f"Tested on the run's preprocessed scans in {moved / 'cache'}."
    shutil.rmtree(moved / "cache")
    exported = export(moved, tmp_path / "other")
    assert exported.scans == f"Tested on scans of the run's dataset {moved.parent / 'data'}."
    assert [parity.windows for parity in exported.bundle.manifest.variants[0].parity] == [3] * 4


def test_a_run_whose_scans_are_gone_says_where_they_were(moved: Path, tmp_path: Path) -> None:
    shutil.rmtree(moved / "cache")
    shutil.rmtree(moved.parent / "data")
    with pytest.raises(ExportError, match=r"were in .*gone.*--cache, or the dataset with --data"):
        export(moved, tmp_path / "bundle")


def test_a_run_of_an_earlier_version_is_exported_from_its_own_cache(moved: Path, tmp_path: Path) -> None:
    (moved / SOURCES_FILE).unlink()
    assert export(moved, tmp_path / "bundle").scans == f"Tested on the preprocessed scans in {moved / 'cache'}."


def test_no_path_of_this_machine_leaves_in_a_bundle(tiny_run: TinyRun, tiny_bundle: Bundle) -> None:
    assert str(tiny_run.data) in (tiny_run.folder / SOURCES_FILE).read_text()
    for file in tiny_bundle.folder.iterdir():
        assert str(tiny_run.folder.parent).encode() not in file.read_bytes(), file


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_bundle_is_complete_and_nothing_else_is_left(tiny_run: TinyRun, tiny_bundle: Bundle) -> None:
    assert sorted(p.name for p in tiny_bundle.folder.iterdir()) == [CARD, MANIFEST, MODEL]
    assert [p.name for p in tiny_bundle.folder.parent.iterdir()] == ["tiny"]
    manifest = open_bundle(tiny_bundle.folder).manifest
    changed = {"kind": "bundle", "files": manifest.files, "variants": manifest.variants}
    assert manifest == tiny_run.manifest.model_copy(update=changed)
    assert manifest.windows == (WINDOW, NARROW_WINDOW) and manifest.provenance.method == "mn"


def test_the_run_is_left_as_it_was(tiny_run: TinyRun, tmp_path: Path) -> None:
    before = contents(tiny_run.folder)
    export(tiny_run.folder, tmp_path / "bundle")
    assert contents(tiny_run.folder) == before


def test_an_unfinished_run_is_refused_with_what_to_do(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (run / "student.safetensors").unlink()
    with pytest.raises(RunError, match="the run has not finished; continue it with --resume"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_of_another_student_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    document["provenance"]["student"]["channels"] = [4, 16]
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="do not fit the network of this run"):
        export(run, tmp_path / "bundle")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no run\.json, so it is not a semiseg bundle or run"):
        export(tmp_path, tmp_path / "bundle")


def test_a_folder_that_is_not_a_bundle_is_not_replaced(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        export(tiny_run.folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


# --- what the bundle is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("bundle", "is no training run, which would know its dataset: name one with --data"),
        ("old run", "did not record where its dataset is: name it with --data"),
        ("moved run", "is no longer in .*gone.*: name it with --data"),
    ],
)
def test_a_model_that_does_not_know_its_dataset_asks_for_it(
    tiny_bundle: Bundle, moved: Path, capsys: pytest.CaptureFixture[str], kind: str, sentence: str
) -> None:
    if kind == "old run":
        (moved / SOURCES_FILE).unlink()
    shutil.rmtree(moved.parent / "data")
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tiny_bundle.folder if kind == "bundle" else moved)])
    assert left.value.code == 2 and re.search(sentence, capsys.readouterr().err)


def test_run_and_bundle_are_judged_alike_on_the_test_scans(
    tiny_run: TinyRun, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MOD-02, MOD-03."""
    scores, masks = {}, {}
    for name, model in (("run", tiny_run.folder), ("bundle", tiny_bundle.folder)):
        named = ["--data", str(tiny_run.data)] if name == "bundle" else []  # the run knows its dataset
        arguments = ["evaluate", str(model), *named, "--out", str(tmp_path / name)]
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--save-masks", "--threads", "1"])
        assert not left.value.code, capsys.readouterr().err
        rows = json.loads((tmp_path / name / "scores.json").read_text())["rows"]
        scores[name] = {(r["case"], r["segment"]): r["score"] for r in rows}
        masks[name] = np.stack([read_labels(p).array for p in sorted((tmp_path / name / "masks").glob("*.nii.gz"))])
    assert len(scores["run"]) == 2 * 3 and scores["run"].keys() == scores["bundle"].keys()
    assert len(np.unique(masks["run"])) > 1, "a network that draws nothing would prove nothing"
    # Both add in float32, in another order: a voxel at a tie may fall either way.
    assert np.mean(masks["run"] == masks["bundle"]) > 0.999
    for key, expected in scores["run"].items():
        for figure in ("dice", "jaccard"):
            assert scores["bundle"][key][figure] == pytest.approx(expected[figure], abs=2e-3)
