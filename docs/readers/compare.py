"""Compare how this product reads scans with how independent readers do, voxel by voxel.

    python -m docs.readers.compare TREE... --itk PYTHON --dcm2niix PROGRAM --out table.csv

PYTHON is the interpreter of an environment with SimpleITK; DCMTK's programs are found on the path. Every series and
NIfTI file below each TREE becomes a row: `agree`, `refused` with the product's sentence, or `DISAGREE` with what
differs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from docs.readers.grids import Grid, differences, value_differences
from docs.readers.product_reader import ProductReader, ReadResult
from docs.readers.reference_readers import (
    DCMTK_DECODERS,
    LPS_TO_RAS,
    Image,
    ItkReader,
    Reading,
    decode_with_dcmtk,
    read_with_dcm2niix,
    read_with_nibabel,
    stack_slices,
)
from docs.readers.resampling import interpolate_on

SAME = "same"
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in ("50", "51", "81", "91", "203"))


@dataclass
class ComparedSeries:
    """One series or NIfTI file in the table.

    Attributes:
        tree: the folder that was given.
        folder: folder of the first file, relative to the root.
        series: modality and description.
        files, slices: numbers of files and slices.
        syntax: transfer syntax UID.
        outcome: agree, refused, DISAGREE, unconfirmed (no other reader reads it) or FAULT (an error, no refusal).
        sentence: the product's sentence.
        shape: shape (X, Y, Z) of the product's volume.
        gdcm, dcm2niix, dcmtk, nibabel: "same", what differs, or "-: " and why the reader has nothing to compare.
    """

    tree: str
    folder: str
    series: str
    files: int
    slices: int
    syntax: str
    outcome: str = ""
    sentence: str = ""
    shape: str = ""
    gdcm: str = ""
    dcm2niix: str = ""
    dcmtk: str = ""
    nibabel: str = ""

    def set_outcome(self) -> None:
        """The outcome, from what the readers say."""
        said = [text for text in (self.gdcm, self.dcm2niix, self.dcmtk, self.nibabel) if text and text[:2] != "-:"]
        if any(text != SAME for text in said):
            self.outcome = "DISAGREE"
        else:
            self.outcome = "agree" if said else "unconfirmed"


@dataclass
class Comparison:
    """The product beside the independent readers."""

    itk: ItkReader
    niix: Path
    product: ProductReader = field(default_factory=ProductReader)
    most_decoded: int = 3
    rows: list[ComparedSeries] = field(default_factory=list)

    def rows_of_tree(self, tree: Path) -> Iterator[ComparedSeries]:
        """The rows of one tree; series that lie in several folders are read folder by folder where they are refused."""
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        for read in self.product.read_all(files, firsts=True):
            folders = sorted({path.parent for path in read.paths})
            if read.grid is None and len(folders) > 1:
                for folder in folders:
                    here = [path for path in read.paths if path.parent == folder]
                    for part in self.product.read_all(here, firsts=True):
                        yield self.row(tree, part)
            else:
                yield self.row(tree, read)

    def row(self, tree: Path, read: ReadResult) -> ComparedSeries:
        """Compare one reading."""
        folder = read.paths[0].relative_to(tree)
        place = folder if read.label == "NIfTI" or len(read.paths) == 1 else folder.parent
        row = ComparedSeries(tree.name, str(place), read.label, len(read.paths), read.slices, read.syntax)
        row.sentence = read.sentence.replace(f"{tree}/", "")
        if read.fault:
            row.outcome, row.sentence = "FAULT", read.fault.replace(f"{tree}/", "")
            return row
        if read.grid is None:
            row.outcome = "refused"
            if read.slices > 1 and read.label != "damaged":
                row.dcm2niix = _describe_reading(read_with_dcm2niix(self.niix, read.paths))
            return row
        row.shape = "x".join(map(str, read.grid.array.shape))
        if read.label == "NIfTI":
            row.gdcm = _compare(read.grid, self.itk.nifti(read.paths[0]))
            row.nibabel = _compare(read.grid, read_with_nibabel(read.paths[0]))
        else:
            self._series(row, read, read.grid, read.uncorrected or read.grid)
        row.set_outcome()
        return row

    def _series(self, row: ComparedSeries, read: ReadResult, grid: Grid, before: Grid) -> None:
        tolerance = 1.0 if read.syntax in LOSSY else 0.0
        images = self.itk.images("dicom", read.paths)
        row.gdcm = _compare(before, stack_slices(images), tolerance=tolerance)
        if row.gdcm == SAME and read.corrected and len(images) > 1:
            row.gdcm = _compare_resampled(grid, images)
        row.dcm2niix = _compare(
            before, read_with_dcm2niix(self.niix, read.paths), place=not read.corrected, tolerance=tolerance
        )
        if row.dcm2niix != SAME:
            merged = _compare(
                before,
                read_with_dcm2niix(self.niix, read.paths, merge=True),
                place=not read.corrected,
                tolerance=tolerance,
            )
            row.dcm2niix = SAME if merged == SAME else row.dcm2niix
        if read.syntax in DCMTK_DECODERS:
            row.dcmtk = self._dcmtk(read, before)

    def _dcmtk(self, read: ReadResult, before: Grid) -> str:
        """A few slices, decoded by DCMTK and read as native by GDCM; they are found in the volume by their position."""
        chosen = sorted({0, len(read.paths) // 2, len(read.paths) - 1})[: self.most_decoded]
        for number in chosen:
            path = read.paths[number]
            image = decode_with_dcmtk(self.itk, path, read.syntax)
            if image is None or image.error:
                return f"-: {image.error if image else 'no decoder'}"
            if said := _slice_differences(before, image, 1.0 if read.syntax in LOSSY else 0.0):
                return said
        return SAME


def _compare_resampled(grid: Grid, images: Sequence[Image]) -> str:
    """What differs between the product's corrected volume and one interpolated independently from GDCM's slices."""
    values, inside = interpolate_on(grid, images)
    whole = grid.array.dtype.kind in "iu"
    apart = np.abs(values - grid.array)[inside]
    allowed = 0.5 + 1e-3 * float(np.ptp(values)) if whole else 1e-3 * max(1.0, float(np.ptp(values)))
    if not inside.any() or apart.max() > allowed:
        return f"corrected volume: differs by up to {apart.max(initial=0):.4g} from an independent interpolation"
    return SAME


def _slice_differences(grid: Grid, image: Image, tolerance: float) -> str:
    """What differs between slices as ITK reads them and the same places of a volume; "" where nothing does."""
    lps = LPS_TO_RAS @ grid.affine  # its own inverse
    step = image.direction[:, 2] * image.spacing[2]
    for frame in range(len(image.frames)):
        at = np.linalg.solve(lps, [*(image.origin + frame * step), 1.0])[2]
        z = round(float(at))
        if not 0 <= z < grid.array.shape[2] or abs(at - z) > 0.1:
            return "-: a decoded slice lies at no slice of the volume"
        if said := value_differences(grid.array[:, :, z].T, image.frames[frame], tolerance):
            return said
    return ""


def _compare(ours: Grid, theirs: Reading, *, place: bool = True, tolerance: float = 0.0) -> str:
    """ "same" if one of the other reader's volumes is ours; else what differs from the most similar one."""
    if theirs.sentence.startswith(("series of volumes", "Unable to equalize")):
        return theirs.sentence  # it sees several volumes, or slices that are not in the order of one
    if not theirs.grids:
        return f"-: {theirs.sentence}"
    said = [differences(ours, grid, place=place, tolerance=tolerance) for grid in theirs.grids]
    if "" in said:
        return SAME
    several = f"{len(said)} volumes; " if len(said) > 1 else ""
    return several + min(said, key=lambda text: (text.startswith("shape"), len(text)))


def _describe_reading(reading: Reading) -> str:
    shapes = ["x".join(map(str, grid.array.shape)) for grid in reading.grids]
    return f"-: {'volumes of ' + ', '.join(shapes[:8]) if shapes else reading.sentence}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and say how many rows have which outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--itk", type=Path, required=True, help="Python interpreter of an environment with SimpleITK")
    parser.add_argument("--dcm2niix", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    comparison = Comparison(ItkReader(options.itk), options.dcm2niix)
    outcomes: Counter[str] = Counter()
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [one.name for one in fields(ComparedSeries)]
        writer.writerow(names)
        for tree in options.trees:
            for row in comparison.rows_of_tree(tree.resolve()):
                writer.writerow([str(getattr(row, name)).replace("\n", " ") for name in names])
                file.flush()
                outcomes[row.outcome] += 1
            print(tree.name, dict(outcomes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
