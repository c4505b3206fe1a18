"""Send every test scan to a running server as the file it is, and judge the masks that come back.

python docs/results/hippocampus/over_http.py http://127.0.0.1:3000 DATA OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from semiseg.client import Client
from semiseg.dataset import evaluation_scans, load_dataset
from semiseg.evaluation.evaluator import evaluate
from semiseg.evaluation.picture import save_picture
from semiseg.evaluation.result import Evaluation
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.segmentation import Segmentation


def main(url: str, data: Path, out: Path) -> None:
    dataset = load_dataset(data)
    masks = out / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    rows, notes = [], ()
    with Client(url) as client:
        for case_id in evaluation_scans(dataset, None, "test"):
            case = dataset.case(case_id)
            mask = masks / f"{case_id}.nii.gz"
            mask.write_bytes(client.ask(case.image, "nifti").body)
            if read_labels(mask).shape != read_nifti(case.image).shape:
                raise SystemExit(f"{case_id}: the mask is not on the scan's grid")
            one = evaluate(lambda channels, mask=mask: _returned(mask, dataset.segments), dataset, [case_id])
            rows += one.rows
            notes = one.notes
    names = tuple(s.name for s in dataset.segments)
    whole = Evaluation(f"Over HTTP, {len(rows) // len(names)} test scans", names, tuple(rows), notes)
    whole.to_csv(out / "scores.csv")
    whole.to_json(out / "scores.json")
    save_picture(whole, out / "dice.png", "dice")
    Console().print(whole.table().markdown(), *whole.footnotes())


def _returned(mask: Path, segments: tuple) -> Segmentation:
    volume = read_labels(mask)
    return Segmentation(segments, volume.array.astype("uint8"), volume.affine)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
