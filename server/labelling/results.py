"""Results of ``POST /infer``: the label map in the requested format, and parameters."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.outputs.nrrd import write_nrrd, write_seg_nrrd
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.segmentation import Segment, Segmentation
from server.http.limits import ApiError
from server.labelling.label_names import LabelNames

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
_TYPES = {".nii.gz": "application/gzip", ".seg.nrrd": "application/x-nrrd", ".nrrd": "application/x-nrrd"}


@dataclass(frozen=True)
class LabelMapResult:
    """A label map as a file, with its parameters.

    Attributes:
        content: Bytes of the file.
        name: Name of the file.
        media_type: Media type of the file.
        params: Parameters that are sent with the file.
    """

    content: bytes
    name: str
    media_type: str
    params: Mapping[str, Any]

    def multipart(self) -> tuple[bytes, str]:
        """Return the parameters and the file as ``multipart/form-data``: the body and its media type.

        The part ``params`` has no file name and the part ``image`` has one; clients distinguish them by that.
        """
        boundary = secrets.token_hex(16)
        parts = (
            b'Content-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
            + json.dumps(self.params).encode(),
            f'Content-Disposition: form-data; name="image"; filename="{self.name}"\r\n'
            f"Content-Type: {self.media_type}\r\n\r\n".encode()
            + self.content,
        )
        mark = f"--{boundary}".encode()
        body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
        return body, f"multipart/form-data; boundary={boundary}"


def requested_extension(params: Mapping[str, Any]) -> str:
    """Return the file name extension that a client requests.

    Raises:
        ApiError: 400, the extension is not one of :data:`EXTENSIONS`.
    """
    asked = params.get("result_extension") or ".nii.gz"
    if asked not in EXTENSIONS:
        raise ApiError(400, f"`result_extension` must be {', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}.")
    return str(asked)


def encode_label_map(
    array: NDArray[np.uint8],
    affine: NDArray[np.float64],
    names: LabelNames,
    params: Mapping[str, Any],
    *,
    image: str,
    like: Path | None,
    folder: Path,
) -> tuple[bytes, str, str]:
    """Encode a label map in the format that a client requests.

    Args:
        array: Label map (X, Y, Z) with the values of the dataset.
        affine: Matrix (4, 4) from voxel indices to RAS+ mm.
        names: Label names of the dataset.
        params: Parameters from the client: ``result_extension``, and ``result_compress`` for NRRD.
        image: Name of the image, from which the name of the file is made.
        like: File of the image, whose NIfTI header is repeated; None for none.
        folder: Folder for the file while it is written.

    Returns:
        Bytes, name and media type of the file.

    Raises:
        ApiError: 400, the format is not supported.
    """
    extension = requested_extension(params)
    path = folder / f"result{extension}"
    segments = tuple(Segment(name=name, label=value) for name, value in names.values.items())
    if extension == ".seg.nrrd":
        write_seg_nrrd(path, Segmentation(segments, array, affine))
    elif extension == ".nrrd":
        write_nrrd(path, Segmentation(segments, array, affine), compress=params.get("result_compress") is not False)
    else:
        write_nifti(path, array, affine, like=like)
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", image)[:100] or "result"
    return path.read_bytes(), f"{stem}{extension}", _TYPES.get(extension, "application/octet-stream")
