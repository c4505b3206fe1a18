"""Windows that a coarse pass skips, its cost and its errors, on phantoms of a body with a small abdomen in it.

    python docs/results/coarse/trained.py FOLDER [UPDATES]

Trains a small network on phantoms of 144x144x112 voxels (once; FOLDER keeps it), exports it, which learns and proves
the coarse pass, and runs the bundle on phantoms of 256x256x200 alternately with and without the coarse pass.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exporter.coarse import MARGINS, THRESHOLDS, LearningScan, Outcome, settings_with
from exporter.export import export
from exporter.parity_scans import find_parity_scans
from semiseg.bundle.bundle import open_bundle
from semiseg.dataset import load_dataset, make_split
from semiseg.inference.engine_selection import choose_engine
from semiseg.inference.segmenter import Segmenter
from semiseg.inference.timing import Timing
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.volumes.nifti import write_nifti
from trainer.loop import train
from trainer.plan import make_plan
from trainer.recipe_files import make_recipe

SPACING = (1.5, 1.5, 2.5)
ABDOMEN = (64, 64, 40)
TRAINING, LARGE = (144, 144, 112), (256, 256, 200)
SCANS, ROUNDS = 12, 3
WINDOW = [32, 32, 32]


def body(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return image and labels of a body of muscle with darker and brighter balls, and an abdomen inside it."""
    rng = np.random.default_rng([seed, 7])
    few = [n // 16 for n in shape]
    smooth = ndimage.zoom(rng.normal(0, 15, few), [n / k for n, k in zip(shape, few, strict=True)], order=1)
    axes = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in shape)]
    inside = (axes[0] / 0.9) ** 2 + (axes[1] / 0.7) ** 2 + 0 * axes[2] < 1
    grey = np.where(inside, 230 + smooth[tuple(slice(n) for n in shape)], 12).astype(np.float32)
    for _ in range(int(np.prod(shape) / 60_000)):
        centre, radii = rng.uniform(0.25, 0.75, 3) * shape, rng.uniform(3, 9, 3)
        low = np.maximum(0, (centre - radii).astype(int) - 1)
        high = np.minimum(shape, (centre + radii).astype(int) + 2)
        x, y, z = (np.arange(a, b) for a, b in zip(low, high, strict=True))
        ball = sum(((g - c) / r) ** 2 for g, c, r in zip(np.ix_(x, y, z), centre, radii, strict=True)) < 1
        grey[low[0] : high[0], low[1] : high[1], low[2] : high[2]][ball] = rng.uniform(100, 280)
    image = np.hypot(grey + rng.normal(0, 12, shape), rng.normal(0, 12, shape))
    labels = np.zeros(shape, np.uint8)
    room = [n - side for n, side in zip(shape, ABDOMEN, strict=True)]
    at = [int(rng.integers(int(0.35 * free), int(0.65 * free) + 1)) for free in room]
    place = tuple(slice(a, a + side) for a, side in zip(at, ABDOMEN, strict=True))
    phantom = make_phantom(seed, ABDOMEN, SPACING)
    image[place], labels[place] = phantom.image.array, phantom.labels.array
    return np.rint(image).astype(np.int16), labels


def dataset(folder: Path) -> Path:
    """Write a dataset folder of phantoms, with all labels."""
    if (folder / "dataset.json").exists():
        return folder
    affine = np.diag([*SPACING, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    ids = [f"body_{k:03d}" for k in range(SCANS)]
    for k, case in enumerate(ids):
        image, labels = body(k, TRAINING)
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image, affine)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", labels, affine)
    pairs = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in ids]
    names = {"0": "background", **{str(s.label): s.name for s in SEGMENTS}}
    document = {"name": "bodies", "modality": {"0": "MR"}, "labels": names, "training": pairs, "test": []}
    document["numTraining"] = SCANS
    split = {"test": [], "train": ids, "labelled": {"8": ids[:8]}, "unlabelled": {"8": ids[8:]}}
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def run_of(folder: Path, data: Path, updates: int) -> Path:
    """Return the run folder of a small network, which is trained unless it exists."""
    run = folder / "run"
    if not (run / "student.safetensors").exists():
        recipe = {
            "name": "bodies",
            "method": "supervised",
            "student": {"kind": "unet", "channels": [8, 16, 32], "residual_units": 0},
            "patch": WINDOW,
            "batch": 2,
            "updates": updates,
            "threads": 1,
            "preparation": {"intensity": [{"clip": [0, 800], "scale": "window"}]},
            "foreground": 0.3,
            "optimiser": {"kind": "adamw", "rate": 0.006},
            "schedule": {"kind": "cosine"},
            "postprocessing": {"segments": {s.name: {"minimum_ml": 1.0} for s in SEGMENTS}},
        }
        found = load_dataset(data)
        train(make_plan(found, make_split(found, labelled=8), make_recipe(recipe)), run, device="cpu")
    return run


def sweep(bundle: Path, run: Path) -> None:
    """Print the outcome of each kind, threshold and margin on the scans on which the settings are learned."""
    opened = open_bundle(bundle)
    engine = choose_engine(opened, threads=1).engine
    manifest = opened.manifest.model_copy(update={"coarse_pass": None})
    scans = find_parity_scans(manifest, run, data=None, cache=None).calibration[:4]
    learning = [LearningScan.run(manifest, engine, scan) for scan in scans]
    names = [segment.name for segment in manifest.segments]
    print("kind            threshold  margin  times fewer windows  mean Dice  least Dice  lost")
    for kind in dict.fromkeys(kind for each in learning for kind in each.coarse):
        for threshold in THRESHOLDS:
            for margin in MARGINS[:5]:
                coarse = settings_with(kind, threshold, margin, ())
                found = Outcome.from_scans([each.outcome(coarse, names) for each in learning])
                least = min(found.dice, default=1.0)
                print(
                    f"{coarse.kind:15} {threshold:9} {margin:7} {found.window_ratio:20.2f} {found.mean_dice:10.5f} "
                    f"{least:11.5f} {found.lost:5}"
                )


def paired(bundle: Path) -> None:
    """Print the seconds on large scans, alternately with and without the coarse pass."""
    opened = open_bundle(bundle)
    choice = choose_engine(opened, threads=1)
    segmenter = Segmenter(opened.manifest, choice.engine, precision=choice.selected.precision)
    segmenter.warm_up()
    print(f"{choice.selected.engine_and_device} {choice.selected.precision} {segmenter.full_pass_reason}")
    if segmenter.coarse_pass is None:
        return
    for seed in (1001, 1002):
        image, labels = body(seed, LARGE)
        array = opened.manifest.preprocessing.intensity[0].apply(image)[None]
        found, seconds = {}, {True: [], False: []}
        for _ in range(ROUNDS):
            for full in (False, True):
                timing, clock = Timing(), time.perf_counter()
                found[full] = segmenter.segment_preprocessed(array, spacing=SPACING, full=full, timing=timing)
                seconds[full].append(time.perf_counter() - clock)
                stages = {name: round(value, 2) for name, value in timing.seconds.items()}
                print(f"scan {seed} full={full!s:5} {seconds[full][-1]:7.2f} s  {timing.counts.description} {stages}")
        ratios = [b / a for a, b in zip(seconds[False], seconds[True], strict=True)]
        for segment in SEGMENTS:
            a, b, c = (one == segment.label for one in (found[True], found[False], labels))
            print(
                f"scan {seed} {segment.name}: Dice to the full pass {dice(a, b):.5f}; to the label {dice(a, c):.4f} "
                f"with the full pass, {dice(b, c):.4f} with the coarse pass"
            )
        print(f"scan {seed}: full pass takes {statistics.median(ratios):.2f} times as long (median of {ROUNDS})")


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks; 1 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


def main() -> None:
    """Run all measurements and print them."""
    folder = Path(sys.argv[1])
    data = dataset(folder / "data")
    clock = time.perf_counter()
    run = run_of(folder, data, int(sys.argv[2]) if len(sys.argv) > 2 else 400)
    print(f"trained in {time.perf_counter() - clock:.0f} s")
    clock = time.perf_counter()
    exported = export(run, folder / "bundle")
    print(f"exported in {time.perf_counter() - clock:.0f} s: {' '.join(exported.coarse_pass)}")
    sweep(folder / "bundle", run)
    paired(folder / "bundle")


if __name__ == "__main__":
    main()
