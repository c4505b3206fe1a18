"""Decodes pixel data in a separate process: reads tasks from standard input and writes frames to standard output.

:mod:`semiseg.volumes.dicom_decoding` starts it as ``python -m semiseg.volumes.decoder_process``.
"""

from __future__ import annotations

import os
import sys
import warnings

from pydicom.uid import UID

from semiseg.volumes.dicom_decoding import decode_frames, receive, send
from semiseg.volumes.dicom_file import PARSING_ERRORS


def main() -> None:
    """Reply to every task until the input ends: with a list of frames, or with an error message."""
    answers = os.fdopen(os.dup(1), "wb")
    warnings.filterwarnings("error", message=".*non-conformant padding")  # an RLE segment that is too long
    os.dup2(2, 1)  # output that a decoder prints must not get between the replies
    while (task := receive(sys.stdin.buffer)) is not None:
        dataset, syntax, indices = task
        try:
            send(answers, decode_frames(dataset, UID(syntax), indices))
        except PARSING_ERRORS as error:
            send(answers, str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
