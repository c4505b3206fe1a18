"""The dataset.json of a folder with imagesTr and labelsTr: `python dataset.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """List every image with its label."""
    names = sorted(path.name for path in (folder / "imagesTr").glob("*.nii.gz"))
    document = {
        "name": "Left atrium",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "left atrium"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }
    (folder / "dataset.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
