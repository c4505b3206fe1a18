"""A study through the gateway: sent as a modality does, taken back as an archive does. Runs inside the gateway's image.

python route_study.py FOLDER GATEWAY_PORT ARCHIVE_PORT     (the archive is this script; it ends when a SEG has come)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE, evt
from pynetdicom.sop_class import SegmentationStorage

WITHIN_S = 120.0


def main() -> None:
    """Send the study, wait for its segmentation, and say what came back."""
    folder, gateway, archive = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    images = [pydicom.dcmread(file) for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    came: list[Any] = []

    def store(event: Any) -> int:
        came.append(event.dataset)
        return 0x0000

    keeper = AE(ae_title="ARCHIVE")
    keeper.add_supported_context(SegmentationStorage)
    keeper.start_server(("127.0.0.1", archive), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    modality = AE(ae_title="MODALITY")
    for kind in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in images}:
        modality.add_requested_context(*kind)
    until = time.monotonic() + WITHIN_S
    while not (association := modality.associate("127.0.0.1", gateway, ae_title="SEMISEG")).is_established:
        if time.monotonic() > until:
            sys.exit(f"The gateway took no association within {WITHIN_S:.0f} s.")
        time.sleep(0.5)
    start = time.monotonic()
    if any(association.send_c_store(one).Status != 0 for one in images):
        sys.exit("The gateway refused an instance.")
    association.release()
    print(f"{len(images)} instances were acknowledged in {time.monotonic() - start:.1f} s")
    while not came:
        if time.monotonic() > until:
            sys.exit(f"No segmentation came back within {WITHIN_S:.0f} s.")
        time.sleep(0.1)
    seg = came[0]
    if seg.StudyInstanceUID != images[0].StudyInstanceUID:
        sys.exit("What came back belongs to another study.")
    names = ", ".join(one.SegmentLabel for one in seg.SegmentSequence)
    print(f"after {time.monotonic() - start:.1f} s a {seg.Modality} of its study came back: {names}")


if __name__ == "__main__":
    main()
