"""What a generator gives: the text of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class DocumentError(Exception):
    """A document cannot be made, or what it says must not be; a sentence."""


@dataclass(frozen=True)
class Document:
    """A file of the repository and what it has to hold.

    Attributes:
        name: Path within the repository.
        text: Whole text.
    """

    name: str
    text: str

    def is_current(self) -> bool:
        file = REPOSITORY / self.name
        return file.is_file() and file.read_text(encoding="utf-8") == self.text

    def write(self) -> None:
        (REPOSITORY / self.name).write_text(self.text, encoding="utf-8")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
