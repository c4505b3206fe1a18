"""What the terminal, or the file behind a pipe, can show."""

from __future__ import annotations

import io
import sys


def replace_what_cannot_be_shown() -> None:
    """Print a ``?`` for a character that the output's encoding lacks, instead of ending with an error.

    Windows writes to pipes and files in the code page of the country, which has few characters. Outputs in UTF-8 show
    every character and are left as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict" and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")
