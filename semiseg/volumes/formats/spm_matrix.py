"""Reads the matrix ``mat`` from a MATLAB file that SPM wrote, with SciPy in a separate process.

Some damaged MATLAB 5 files crash the process in which SciPy 1.17 reads them (segmentation fault), and one upload must
not crash a server. SciPy does not read MATLAB 7.3 files, which are HDF5; SPM does not write them.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

_SECONDS = 60


def parse_spm_matrix(data: bytes) -> NDArray[np.float64] | None:
    """Read the matrix (4, 4) from a file's bytes, that of the first volume if there are several; None if it fails."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else np.array(json.loads(done.stdout), dtype=np.float64)


def main() -> None:
    """Read the file from standard input and print the matrix; any error ends the process with a non-zero status."""
    from scipy.io import loadmat

    found = np.asarray(loadmat(io.BytesIO(sys.stdin.buffer.read()))["mat"], dtype=np.float64)
    if found.ndim == 3:  # one for each volume; nibabel also takes the first
        found = found[:, :, 0]
    if found.shape != (4, 4):
        sys.exit(1)
    json.dump(found.tolist(), sys.stdout)


if __name__ == "__main__":
    main()
