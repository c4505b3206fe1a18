"""Judge masks that another program wrote as semiseg judges its own: score.py DATA MASKS OUT."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from semiseg.dataset import load_dataset
from semiseg.evaluation.evaluator import evaluate
from semiseg.evaluation.result import Evaluation
from semiseg.volumes.nifti import read_labels
from semiseg.volumes.segmentation import Segmentation, segmentation_from_labels
from semiseg.volumes.volume import Volume


def main(data: Path, masks: Path, out: Path) -> None:
    """One row a scan and segment, and the table."""
    dataset = load_dataset(data)
    found = []
    for file in sorted(masks.glob("*.nii.gz")):
        mask = read_labels(file)

        def answer(channels: Mapping[str, Volume], mask: Volume = mask) -> Segmentation:
            return segmentation_from_labels(dataset.segments, mask.array, mask.affine)

        found.append(evaluate(answer, dataset, (file.name.removesuffix(".nii.gz"),)))
    rows = tuple(row for one in found for row in one.rows)
    whole = Evaluation(masks.name, found[0].segments, rows)
    out.mkdir(parents=True, exist_ok=True)
    whole.to_csv(out / "scores.csv")
    whole.to_json(out / "scores.json")
    print(whole.table().markdown())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
