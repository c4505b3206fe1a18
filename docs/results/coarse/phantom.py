"""Paired processor times with and without a coarse pass: a network whose mask is known, a small organ, a large scan.

    PYTHONPATH=. python docs/results/coarse/phantom.py

The network compares grey values with two thresholds. It also computes a convolution of 32 channels, whose result is
discarded, so that a window takes some time (tests/bundles.py). The settings are learned and proved as in an export.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.coarse import MARGINS, THRESHOLDS, LearningScan, Outcome, learn_settings, prove_settings, settings_with
from exporter.parity_scans import ParityScan
from semiseg.bundle.coarse_settings import CoarsePassSettings, describe_coarse_pass
from semiseg.inference.engine_selection import choose_engine
from semiseg.inference.segmenter import Segmenter
from semiseg.inference.timing import Timing
from tests.bundles import make_threshold_bundle

WINDOW, SPACING = (32, 32, 32), (1.5, 1.5, 1.5)
SMALL, LARGE = (144, 144, 112), (256, 256, 200)
ROUNDS = 3


def scan(seed: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return noise with an ellipsoid of 36 to 48 voxels, a brighter core in it, and a thread of two voxels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.1, 0.03, (1, *shape)).astype(np.float32)
    centre, radii = rng.uniform(0.4, 0.6, 3) * shape, rng.uniform(18, 24, 3)
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    far = sum(((g - c) / r) ** 2 for g, c, r in zip(axes, centre, radii, strict=True))
    image[0][far < 1] += 0.35
    image[0][far < 0.2] += 0.35
    x, y, z = (int(c) for c in centre)
    image[0, x : x + 26, y : y + 2, z : z + 2] = 0.45
    return image


def main() -> None:
    """Run all measurements and print them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_threshold_bundle(Path(folder) / "bundle", window=WINDOW, work=1)
        choice = choose_engine(bundle, threads=1)
    manifest, engine = bundle.manifest, choice.engine
    scans = [ParityScan(scan(seed, SMALL), SPACING) for seed in range(9)]
    learning = [LearningScan.run(manifest, engine, one) for one in scans[:3]]
    names = [segment.name for segment in manifest.segments]
    print(f"{choice.selected.engine_and_device}, learned on three scans of {SMALL}:")
    print("kind            threshold  margin  times fewer windows  mean Dice  least Dice  lost")
    for kind in learning[0].coarse:
        for threshold in THRESHOLDS:
            for margin in (0.0, *MARGINS[:4]):
                settings = settings_with(kind, threshold, margin, ())
                found = Outcome.from_scans([one.outcome(settings, names) for one in learning])
                figures = found.proof("fp32", engine.name)
                print(
                    f"{settings.kind:15} {threshold:9} {margin:7} {found.window_ratio:20.2f} {figures.mean_dice:10.5f} "
                    f"{figures.least_dice:11.5f} {found.lost:5}"
                )
    coarse = learn_settings(manifest, engine, scans[:3], lambda _: None)
    assert isinstance(coarse, CoarsePassSettings), coarse
    proof, failure = prove_settings(manifest, coarse, engine, "fp32", scans[3:], lambda _: None)
    assert proof is not None, failure
    coarse = coarse.model_copy(update={"proofs": (proof,)})
    print("\n".join(describe_coarse_pass(coarse)))
    segmenter = Segmenter(manifest.model_copy(update={"coarse_pass": coarse}), engine, precision="fp32")
    array, seconds, masks = scan(100, LARGE), {True: [], False: []}, {}
    for _ in range(ROUNDS):
        for full in (False, True):
            timing, clock = Timing(), time.process_time()
            masks[full] = segmenter.segment_preprocessed(array, spacing=SPACING, full=full, timing=timing)
            seconds[full].append(time.process_time() - clock)
            assert timing.counts is not None
            print(f"{LARGE} full={full!s:5} {seconds[full][-1]:6.2f} s of the processor  {timing.counts.description}")
    ratios = [b / a for a, b in zip(seconds[False], seconds[True], strict=True)]
    print(f"organ: {np.count_nonzero(masks[True]) / masks[True].size:.2%} of the scan")
    print(f"voxels that differ: {np.count_nonzero(masks[True] != masks[False])} of {masks[True].size}")
    print(f"a full pass takes {statistics.median(ratios):.2f} times as long (median of {ROUNDS} pairs: {ratios})")


if __name__ == "__main__":
    main()
