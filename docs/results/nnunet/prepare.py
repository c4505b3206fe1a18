"""Labelled scans of a split as an nnU-Net dataset, and those that are judged: prepare.py DATA SPLIT LABELLED LIST RAW.

LIST is a list of the split, development or test. RAW/Dataset004_Few becomes the dataset, RAW/judged the scans.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import cast

from semiseg.dataset import evaluation_scans, load_dataset, make_split
from semiseg.dataset.split import Pool


def main(data: Path, split: Path, labelled: int, judged: Pool, raw: Path) -> None:
    """Copy what nnU-Net may see, and nothing else."""
    dataset = load_dataset(data)
    target = raw / "Dataset004_Few"
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True, exist_ok=True)
    (raw / "judged").mkdir(exist_ok=True)
    learned = make_split(dataset, split, labelled).labelled
    for case_id in learned:
        case = dataset.case(case_id)
        assert case.label is not None
        shutil.copy(case.image, target / "imagesTr" / f"{case_id}_0000.nii.gz")
        shutil.copy(case.label, target / "labelsTr" / f"{case_id}.nii.gz")
    for case_id in evaluation_scans(dataset, split, judged):
        shutil.copy(dataset.case(case_id).image, raw / "judged" / f"{case_id}_0000.nii.gz")
    document = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0} | {s.name: s.label for s in dataset.segments},
        "numTraining": len(learned),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    # It learns from all of them; its own validation, which decides nothing here, looks at the first.
    folds = [{"train": list(learned), "val": [learned[0]]}]
    (raw / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), cast(Pool, sys.argv[4]), Path(sys.argv[5]))
