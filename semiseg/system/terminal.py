"""Encoding of the terminal's output, and quoting of commands for its shell."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence


def replace_unencodable_characters() -> None:
    """Print a ``?`` for a character that the output's encoding lacks, instead of raising an error.

    On Windows, pipes and files use the code page of the locale, which has few characters. UTF-8 outputs can show every
    character and are not changed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict" and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")


def shell_join(arguments: Sequence[str]) -> str:
    """Join arguments to a command line, quoted for the shell of this operating system."""
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
