"""Reads images with ITK's own readers (GDCM for DICOM, NIfTI C library for NIfTI), as a process of its own.

It runs under the Python of another environment, which has SimpleITK and not semiseg, so that nothing of the product's
environment takes part. Each line of standard input is a request, each line of standard output its answer:

    {"kind": "dicom" or "nifti", "paths": [...], "out": "FILE.npz"}
    {"images": [{"error": "..."} or {"spacing": [...], "origin": [...], "direction": [...], "meta": {...}}, ...]}

The arrays are in FILE.npz under the indices of their paths, indexed (frame, row, column) as ITK does it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import SimpleITK

_META = {"0028|0101": "bits_stored", "0028|0103": "signed", "0002|0010": "syntax"}


def read_image(kind: str, path: str) -> tuple[dict[str, Any], Any]:
    """The geometry of an image as ITK states it (mm, LPS+), and its values after ITK's rescaling."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO" if kind == "dicom" else "NiftiImageIO")
    reader.SetFileName(path)
    image = reader.Execute()
    told = {
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
        "components": image.GetNumberOfComponentsPerPixel(),
        "meta": {name: reader.GetMetaData(key) for key, name in _META.items() if reader.HasMetaDataKey(key)},
    }
    return told, SimpleITK.GetArrayFromImage(image)


def main() -> None:
    """Answer requests until standard input ends."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    print(json.dumps({"SimpleITK": SimpleITK.Version.VersionString()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        images, arrays = [], {}
        for number, path in enumerate(request["paths"]):
            try:
                told, arrays[str(number)] = read_image(request["kind"], path)
                images.append(told)
            except RuntimeError as error:
                lines = [part.strip() for part in str(error).splitlines() if part.strip()]
                images.append({"error": lines[-1] if lines else "RuntimeError"})
        np.savez(request["out"], **arrays)
        print(json.dumps({"images": images}), flush=True)


if __name__ == "__main__":
    main()
