"""Decodes pixel data in a process of its own: tasks come in on the standard input, frames go out on the output.

``python -m semiseg.volumes.decoder_process``, started by :mod:`semiseg.volumes.dicom_decoding`.
"""

from __future__ import annotations

import os
import sys
import warnings

from pydicom.uid import UID

from semiseg.volumes.dicom_decoding import decode_frames, receive, send
from semiseg.volumes.dicom_file import PARSING_ERRORS


def main() -> None:
    """Answer until the input ends: a list of frames, or a sentence where they cannot be decoded."""
    answers = os.fdopen(os.dup(1), "wb")
    warnings.filterwarnings("error", message=".*non-conformant padding")  # an RLE segment that is too long
    os.dup2(2, 1)  # what a decoder prints must not get between the answers
    while (task := receive(sys.stdin.buffer)) is not None:
        dataset, syntax, indices = task
        try:
            send(answers, decode_frames(dataset, UID(syntax), indices))
        except PARSING_ERRORS as error:
            send(answers, str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
