"""The matrix ``mat`` out of a MATLAB file that SPM wrote, read by SciPy in a process of its own.

Some damaged files of MATLAB 5 end the process in which SciPy 1.17 reads them (segmentation fault), and a server must
not end with one upload. SciPy reads no files of MATLAB 7.3, which are HDF5; SPM writes none.
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
    """The matrix (4, 4) in a file's bytes, of the first volume if there are several; None if no such matrix is read."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else np.array(json.loads(done.stdout), dtype=np.float64)


def main() -> None:
    """Read the file from standard input and print the matrix. Any error ends this process, and that is the answer."""
    from scipy.io import loadmat

    found = np.asarray(loadmat(io.BytesIO(sys.stdin.buffer.read()))["mat"], dtype=np.float64)
    if found.ndim == 3:  # one for each volume; nibabel takes the first, too
        found = found[:, :, 0]
    if found.shape != (4, 4):
        sys.exit(1)
    json.dump(found.tolist(), sys.stdout)


if __name__ == "__main__":
    main()
