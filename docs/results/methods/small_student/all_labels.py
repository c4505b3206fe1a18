"""A split in which every training scan is labelled: `python all_labels.py DATA FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(data: Path, file: Path) -> None:
    """Write the split."""
    split = json.loads((data / "split.json").read_text())
    train = split["train"]
    split.pop("unlabelled", None)
    file.write_text(json.dumps({**split, "labelled": {str(len(train)): train}}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
