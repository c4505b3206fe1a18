"""The forms of an answer, by name; server, client and command line ask for the same ones."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal[
    "nifti", "nifti-labelmap", "seg", "seg-labelmap", "seg-fractional", "rtstruct", "sr", "overlay", "json", "case"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
