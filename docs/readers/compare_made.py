"""Compare what this product and the independent readers make of generated series with what is true by construction.

    python -m docs.readers.compare_made FOLDER --itk PYTHON --dcm2niix PROGRAM --out table.csv

FOLDER is what ``docs.readers.generate`` wrote. Outcomes: `agree` (read and true, or refused where it may be),
`REFUSED` (with the sentence, where the standard allows the object), `warned` (not read as it was written, with a
warning that `--strict` makes a refusal), `DISAGREE` (likewise, in silence).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from docs.readers.grids import Grid, differences
from docs.readers.product_reader import ProductReader, ReadResult
from docs.readers.reference_readers import ItkReader, Reading, read_with_dcm2niix, read_with_nibabel, stack_slices


@dataclass
class ComparedCase:
    """One generated series in the table.

    Attributes:
        case: name of the case.
        files: number of files.
        must: read, refuse or either.
        outcome: agree, REFUSED, warned, DISAGREE or FAULT.
        said: difference from the truth, or the product's sentence.
        itk: result of ITK (GDCM, or its NIfTI library): "true", the difference, or "-: " and the reason for none.
        other: result of dcm2niix, or of nibabel for NIfTI.
        why: paragraph of the standard that decides.
    """

    case: str
    files: int
    must: str
    outcome: str
    said: str
    itk: str
    other: str
    why: str


def judge_outcome(reads: list[ReadResult], truth: Grid | None, must: str, slack: float) -> tuple[str, str]:
    """The outcome, and what is to be said of it."""
    faults = [read.fault for read in reads if read.fault]
    if faults:
        return "FAULT", faults[0]
    volumes = [read for read in reads if read.grid is not None]
    if len(volumes) > 1:
        return "DISAGREE", f"read as {len(volumes)} volumes"
    if not volumes:
        said = "; ".join(read.sentence for read in reads) or "no image series"
        return ("REFUSED" if must == "read" else "agree"), said
    grid = volumes[0].grid
    assert grid is not None
    if truth is None or must == "refuse":
        values = f"{grid.array.min():g}..{grid.array.max():g}"
        said = f"read as {grid.array.shape}, values {values}, though it is no volume"
    else:
        said = differences(grid, truth, tolerance=slack)
    warning = volumes[0].sentence
    if not said:
        return "agree", warning
    return ("warned" if warning else "DISAGREE"), f"{said}. {warning}"


def describe_reading(reading: Reading, truth: Grid | None, slack: float) -> str:
    """What another reader makes of it."""
    if not reading.grids:
        return f"-: {reading.sentence}"
    if truth is None:
        return f"reads {len(reading.grids)} volume(s)"
    said = [differences(grid, truth, tolerance=slack) for grid in reading.grids]
    return "true" if "" in said else min(said, key=len)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and say how many rows have which outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--itk", type=Path, required=True, help="Python interpreter of an environment with SimpleITK")
    parser.add_argument("--dcm2niix", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="only cases whose names contain this")
    options = parser.parse_args(arguments)
    product, itk, outcomes = ProductReader(), ItkReader(options.itk), Counter[str]()
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [one.name for one in fields(ComparedCase)]
        writer.writerow(names)
        for line in (options.folder / "cases.jsonl").read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            if options.only not in case["name"]:
                continue
            row = _row(case, options.folder / case["name"], product, itk, options.dcm2niix)
            writer.writerow([str(getattr(row, name)).replace("\n", " ") for name in names])
            outcomes[row.outcome] += 1
    print(json.dumps({"SimpleITK": itk.version, "outcomes": outcomes}))
    return 0


def _row(case: dict[str, str], folder: Path, product: ProductReader, itk: ItkReader, niix: Path) -> ComparedCase:
    slack = float(case["slack"]) + 1e-9
    paths = sorted(path for path in folder.iterdir() if path.name != "truth.npz")
    truth = None
    if (folder / "truth.npz").exists():
        with np.load(folder / "truth.npz") as known:
            truth = Grid(known["array"], known["affine"])
    outcome, said = judge_outcome(list(product.read_all(paths)), truth, case["must"], slack)
    if paths[0].name.startswith("scan.nii"):
        others = [itk.nifti(paths[0]), read_with_nibabel(paths[0])]
    else:
        others = [stack_slices(itk.images("dicom", paths)), read_with_dcm2niix(niix, paths)]
    return ComparedCase(
        case=case["name"],
        files=len(paths),
        must=case["must"],
        outcome=outcome,
        said=said.replace(f"{folder}/", ""),
        itk=describe_reading(others[0], truth, slack),
        other=describe_reading(others[1], truth, slack),
        why=case["why"],
    )


if __name__ == "__main__":
    sys.exit(main())
