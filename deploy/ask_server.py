"""Wait until a semiseg server is ready, send it one NIfTI scan, and check the mask that comes back.

Runs inside the serve image, so it needs nothing that is not in it: python ask_server.py URL SCAN MASK
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

READY_WITHIN_S = 120.0


def wait_until_ready(client: httpx.Client) -> float:
    """Seconds until /readyz answered 200; exits with a sentence when it does not within READY_WITHIN_S."""
    start = time.monotonic()
    while time.monotonic() - start < READY_WITHIN_S:
        try:
            if client.get("/readyz", timeout=5).status_code == 200:
                return time.monotonic() - start
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    sys.exit(f"The server was not ready within {READY_WITHIN_S:.0f} s.")


def main() -> None:
    """Segment, compare shape and affine with the scan's, and say what came back."""
    address, scan_path, mask_path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with httpx.Client(base_url=address, timeout=600, trust_env=False) as client:
        print(f"ready after {wait_until_ready(client):.1f} s")
        start = time.monotonic()
        with scan_path.open("rb") as scan_file:
            answer = client.post("/segment", files={"scan": (scan_path.name, scan_file)})
    if answer.status_code != 200:
        sys.exit(f"The server answered {answer.status_code}: {answer.text[:500]}")
    mask_path.write_bytes(answer.content)
    scan, mask = nib.load(scan_path), nib.load(mask_path)
    if mask.shape != scan.shape[:3] or not np.allclose(mask.affine, scan.affine, atol=1e-4):
        sys.exit(f"The mask's grid is not the scan's: shape {mask.shape} for {scan.shape}, affine\n{mask.affine}")
    values, counts = np.unique(np.asarray(mask.dataobj), return_counts=True)
    found = ", ".join(f"{int(value)}: {count}" for value, count in zip(values, counts, strict=True))
    print(
        f"segmented {scan_path.name} in {time.monotonic() - start:.1f} s: shape {mask.shape}, voxels by label {found}"
    )


if __name__ == "__main__":
    main()
