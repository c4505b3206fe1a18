"""What a scan costs beside the network: resampling, restoring labels, normalising; in turn, on one thread, medians.

    python docs/results/inference/beside_network.py

SimpleITK is timed where it is installed; semiseg does not need it.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from scipy import ndimage

from semiseg.bundle.preprocessing import Intensity, Preprocessing
from semiseg.bundle.resample import resample_image, resample_labels
from semiseg.volumes.volume import Volume

ROUNDS = 3


def main() -> None:
    rng = np.random.default_rng(0)
    for source, target in (((170, 170, 100), (256, 256, 128)), ((256, 256, 128), (170, 170, 100))):
        image = rng.random(source).astype(np.float32)
        contenders: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda image=image, target=target: resample_image(image, target),
            "affine_transform": lambda image=image, target=target: by_affine(image, target),
        }
        if importlib.util.find_spec("SimpleITK"):
            contenders["SimpleITK"] = lambda image=image, target=target: by_simpleitk(image, target)
        in_turn(f"trilinear, {source} -> {target}", contenders)
    small, large = (128, 128, 100), (256, 256, 200)
    organs = organs_in(small)
    in_turn(
        f"13 organs, {small} -> {large}",
        {"ours": lambda: resample_labels(organs, large), "organ by organ": lambda: organ_by_organ(organs, large)},
    )
    organs = organs_in((256, 256, 200))
    in_turn("13 organs, (256, 256, 200) -> (512, 512, 400)", {"ours": lambda: resample_labels(organs, (512, 512, 400))})
    values = (rng.standard_normal((512, 512, 400), np.float32) * 300).astype(np.int16)
    scan = Volume(values, np.diag([-0.8, -0.8, 1.5, 1.0]))
    for intensity in (
        Intensity(scale="window", clip=(-200, 300)),
        Intensity(scale="zscore", clip=(-200, 300)),
        Intensity(scale="zscore", percentiles=(0.5, 99.5)),
    ):
        preparation = Preprocessing(orientation="RAS", intensity=(intensity,))
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        seconds = []
        for _ in range(ROUNDS):
            since = time.perf_counter()
            preparation.apply({"image": scan})
            seconds.append(time.perf_counter() - since)
        peak = (memory("VmHWM") - before) / 1e6
        print(f"{intensity.scale} clip {intensity.clip} percentiles {intensity.percentiles} of 512x512x400:", end=" ")
        print(f"{median(seconds):.2f} s, {peak:.0f} MB beyond the scan's {scan.array.nbytes / 1e6:.0f}")


def in_turn(what: str, contenders: dict[str, Callable[[], np.ndarray]]) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            since = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - since)
    print(what)
    for name, times in seconds.items():
        ratio = median(b / a for a, b in zip(seconds["ours"], times, strict=True))
        unlike = float(np.abs(found[name].astype(np.float64) - found["ours"]).max())
        print(f"  {name:18} {median(times):7.3f} s  {ratio:6.2f} times ours  largest difference {unlike:.2g}")


def by_affine(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    zoom = np.asarray(image.shape, float) / np.asarray(shape, float)
    offset = (zoom - 1.0) / 2.0
    return ndimage.affine_transform(image, zoom, offset=offset, output_shape=shape, order=1, mode="nearest")


def by_simpleitk(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    resample = SimpleITK.ResampleImageFilter()
    resample.SetSize([int(n) for n in shape[::-1]])
    zoom = np.asarray(image.shape) / np.asarray(shape)
    resample.SetOutputSpacing([float(z) for z in zoom[::-1]])
    resample.SetOutputOrigin([float((z - 1) / 2) for z in zoom[::-1]])
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    return SimpleITK.GetArrayFromImage(resample.Execute(SimpleITK.GetImageFromArray(image)))


def organ_by_organ(labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    best = np.full(shape, -1.0, dtype=np.float32)
    out = np.zeros(shape, dtype=labels.dtype)
    for label in np.unique(labels):
        share = by_affine((labels == label).astype(np.float32), shape)
        wins = share > best + 1e-6
        out[wins], best[wins] = label, share[wins]
    return out


def organs_in(shape: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels, grid = np.zeros(shape, np.uint8), np.ogrid[tuple(slice(n) for n in shape)]
    for label in range(1, 14):
        centre = [rng.uniform(0.15, 0.7) * n for n in shape]
        radius = [rng.uniform(0.04, 0.18) * n for n in shape]
        labels[sum(((grid[a] - centre[a]) / radius[a]) ** 2 for a in range(3)) < 1] = label
    return labels


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


if __name__ == "__main__":
    main()
