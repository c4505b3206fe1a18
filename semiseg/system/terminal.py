"""What the terminal, or the file behind a pipe, can show, and how a command is typed in it."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence


def replace_unencodable_characters() -> None:
    """Print a ``?`` for a character that the output's encoding lacks, instead of ending with an error.

    Windows writes to pipes and files in the code page of the country, which has few characters. Outputs in UTF-8 show
    every character and are left as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict" and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")


def shell_join(arguments: Sequence[str]) -> str:
    """A command as a person types it: with the quotes of this system's shell where an argument needs them."""
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
