"""Generate DICOM series whose volumes are known by construction: the grid of what objects may look like.

    python -m docs.readers.generate FOLDER

It needs numpy, pydicom, imagecodecs and DCMTK's programs, and nothing of semiseg. Each case gets a folder with its
files, ``truth.npz`` (array, affine) and a line in ``cases.jsonl``: what it is, and whether a reader has to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from docs.readers.generated_series import ORIENTATIONS, GeneratedSeries, Layout, Rescale, write_series
from docs.readers.header_oddities import HEADER_ODDITIES
from docs.readers.pixel_encoding import DCMTK, LOSSY, SYNTAXES, Format
from docs.readers.pixel_oddities import PIXEL_ODDITIES

LAYOUTS: tuple[Layout, ...] = ("classic", "enhanced", "enhanced_shuffled", "enhanced_own_planes")
COMPRESSED = (Format(8, 8, False), Format(16, 12, False), Format(16, 12, True), Format(16, 16, False),
              Format(16, 16, True))  # fmt: skip
NATIVE = (*COMPRESSED, Format(16, 8, False), Format(16, 10, False), Format(8, 8, True), Format(32, 24, False),
          Format(32, 28, True))  # fmt: skip
TOLERANCES = {"htj2k203": 2.0}
"""Stored values by which lossy decoders may differ: 1, and 2 of 65535 between OpenJPH's and OpenJPEG's wavelet 9/7."""
VARYING = ((0.5, 0.0), (0.25, 1.0), (2.0, -3.0), (1.0, 0.0))
CLASSIC_RESCALES = (
    Rescale("absent"),
    Rescale("identity", ((1, 0),)),
    Rescale("hu", ((1, -1024),)),
    Rescale("doubled", ((2, 0),)),
    Rescale("half", ((0.5, 10.25),)),
    Rescale("negative", ((-1, 100),)),
    Rescale("tiny", ((0.000123, -0.5),)),
    Rescale("per_slice", VARYING),
)
ENHANCED_RESCALES = (
    Rescale("absent"),
    Rescale("frame", ((1, -1024),)),
    Rescale("per_frame", VARYING),
    Rescale("shared", ((0.5, 10.25),), "shared"),
    Rescale("root", ((1, -1024),), "root"),
    Rescale("frame_root", ((1, -1024),), "own", beside_root=(2, 7)),
    Rescale("shared_root", ((0.5, 10.25),), "shared", beside_root=(2, 7)),
)


def formats_of(syntax: str) -> tuple[Format, ...]:
    """The pixel formats that a transfer syntax is tried with."""
    if syntax == "jpeg50":
        return (Format(8, 8, False),)
    if syntax == "jpeg51":
        return (Format(16, 12, False),)
    if syntax in ("explicit", "implicit", "big_endian", "deflated", "rle"):
        return NATIVE
    return COMPRESSED


def every_case() -> Iterator[GeneratedSeries]:
    """The grid."""
    names = tuple(ORIENTATIONS)
    number = 0
    for syntax in SYNTAXES:
        for form in formats_of(syntax):
            for layout in LAYOUTS:
                for rescale in CLASSIC_RESCALES if layout == "classic" else ENHANCED_RESCALES:
                    number += 1
                    modality = ("CT", "MR", "PT")[number % 3]
                    place = names[number % len(names)]
                    yield _case("grid", layout, modality, syntax, form, rescale, place)
    yield from _unused_bits()
    for syntax in ("explicit", "rle", "j2k90"):
        for layout in LAYOUTS:
            for place in names:
                form = Format(16, 12, True)
                yield _case("place", layout, "CT", syntax, form, CLASSIC_RESCALES[2], place)
    yield from _padding()


def _unused_bits() -> Iterator[GeneratedSeries]:
    """Something in the bits above Bits Stored, which is no part of the values (PS3.5 8.1.1)."""
    forms = [
        Format(16, 12, True, "zeroed"), Format(16, 10, True, "zeroed"),
        Format(16, 12, False, "garbage"), Format(16, 12, True, "garbage"), Format(32, 24, False, "garbage"),
        Format(16, 12, False, "overlay"), Format(16, 12, True, "overlay"), Format(16, 10, False, "overlay"),
    ]  # fmt: skip
    for syntax in (*(name for name in DCMTK if name not in LOSSY), "jpegls80_wide", "j2k90_unsigned"):
        for form in forms:
            if form.allocated == 32 and syntax not in ("explicit", "implicit", "big_endian", "deflated", "rle"):
                continue
            for layout in LAYOUTS[:2]:
                yield _case("unused", layout, "CT", syntax, form, Rescale("hu", ((1, -1024),)), "axial")


def _padding() -> Iterator[GeneratedSeries]:
    """Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2): such pixels are rescaled like all others."""
    for syntax in ("explicit", "jpeg70", "jpegls80", "j2k90"):
        for form in COMPRESSED:
            low, high = form.limits
            for name, extra in (
                ("low", {"PixelPaddingValue": low}),
                ("range", {"PixelPaddingValue": low, "PixelPaddingRangeLimit": low + 9}),
                ("high", {"PixelPaddingValue": high}),
            ):
                for layout in LAYOUTS[:2]:
                    rescale = Rescale("hu", ((1, -1024),))
                    case = _case(f"padding_{name}", layout, "CT", syntax, form, rescale, "axial", extra)
                    yield case


def _case(
    block: str,
    layout: Layout,
    modality: str,
    syntax: str,
    form: Format,
    rescale: Rescale,
    place: str,
    extra: dict[str, Any] | None = None,
) -> GeneratedSeries:
    name = "-".join([block, syntax, form.name, layout, rescale.name, place, modality])
    return GeneratedSeries(name, layout, modality, syntax, form, rescale, place, extra or {})


def main() -> int:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="only cases whose names contain this")
    options = parser.parse_args()
    made, left_out = Counter[str](), Counter[str]()
    options.folder.mkdir(parents=True, exist_ok=True)
    with (options.folder / "cases.jsonl").open("w", encoding="utf-8") as file:
        for number, case in enumerate(every_case()):
            if options.only not in case.name:
                continue
            folder = options.folder / case.name
            folder.mkdir(parents=True)
            try:
                truth = write_series(case, folder, np.random.default_rng(number))
            except RuntimeError as error:
                left_out[f"{case.syntax} {case.form.name}: {str(error).partition(': encoding')[0]}"] += 1
                _remove(folder)
                continue
            np.savez(folder / "truth.npz", array=truth.array, affine=truth.affine)
            slope = max((abs(pair[0]) for pair in case.rescale.pairs), default=1.0)
            slack = slope * TOLERANCES.get(case.syntax, 1.0) if case.syntax in LOSSY else 0.0
            line = {"name": case.name, "must": "read", "slack": slack, "why": ""}
            file.write(json.dumps(line) + "\n")
            made[case.name.split("-")[0]] += 1
        for number, oddity in enumerate((*HEADER_ODDITIES, *PIXEL_ODDITIES)):
            if options.only not in oddity.name:
                continue
            folder = options.folder / oddity.name
            folder.mkdir(parents=True)
            odd_truth = oddity.make(folder, np.random.default_rng(10_000 + number))
            if odd_truth is not None:
                np.savez(folder / "truth.npz", array=odd_truth.array, affine=odd_truth.affine)
            line = {"name": oddity.name, "must": oddity.must, "slack": 0.0, "why": oddity.why}
            file.write(json.dumps(line) + "\n")
            made["odd"] += 1
    print(json.dumps({"made": made, "left_out": left_out}, indent=1))
    return 0


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
