"""Checks the sentences of the code: python -m deploy.prose [FOLDER ...]

Descriptions of parameters, attributes, results and errors in docstrings, and help texts of options, are noun phrases
or sentences. They begin with a capital letter and end with a full stop. They do not begin with a word that makes them
half a sentence, such as "of the scan", "what is asked for" or "how many". ruff checks the form of docstrings; this
module checks their words.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("semiseg", "trainer", "exporter", "server", "cli", "deploy", "docs/generators")

FRAGMENTS = frozenset(
    (
        "and",
        "are",
        "as",
        "had",
        "has",
        "how",
        "is",
        "its",
        "of",
        "or",
        "than",
        "that",
        "theirs",
        "to",
        "was",
        "were",
        "what",
        "where",
        "whether",
        "which",
        "who",
        "whom",
        "whose",
        "why",
    )
)
"""Words with which a description does not begin, in any case of letters."""

SECTIONS = frozenset(("Args:", "Attributes:", "Keyword Args:", "Raises:", "Returns:", "Yields:"))
NAMED = frozenset(("Args:", "Attributes:", "Keyword Args:", "Raises:"))
"""Sections whose entries have a name before a colon."""

ENTRY = re.compile(r"^ {4}(?P<name>[\w*`][\w*`.,\[\] ]*?(?: \([^)]*\))?): (?P<text>\S.*)$")
HELP = frozenset(("help", "description"))
"""Keyword arguments whose text a user reads."""


@dataclass(frozen=True)
class Description:
    """A piece of text that describes one thing.

    Attributes:
        line: Line of the file, from 1.
        name: Name of the parameter, attribute or error; empty for a result.
        text: The description in one line.
    """

    line: int
    name: str
    text: str


def faults_of(text: str) -> list[str]:
    """What is wrong with a description, each fault as the end of a sentence about it."""
    found = []
    first = re.match(r"[A-Za-z]+", text)
    if first and first[0].lower() in FRAGMENTS:
        found.append(f"begins with {first[0]!r}: name the thing first")
    elif first and first[0][0].islower() and re.match(r"[a-z]+(?:[\s,;:.]|$)", text):
        found.append("begins with a small letter")
    if not text.endswith((".", "!", "?", ":", ".)", ".``", ".'")):
        found.append("does not end with a full stop")
    return found


def descriptions_of(docstring: str, line: int) -> Iterator[Description]:
    """The described entries of a docstring in Google's style.

    Args:
        docstring: The docstring without its indentation.
        line: Line of the file on which it begins.
    """
    section, entry = "", None
    for number, row in enumerate([*docstring.splitlines(), "End"], line):
        if row in SECTIONS or (row and not row.startswith(" ")):
            if entry:
                yield entry
            section, entry = (row if row in SECTIONS else ""), None
            continue
        if not section or not row:
            continue
        named = ENTRY.match(row) if section in NAMED else None
        if named:
            if entry:
                yield entry
            entry = Description(number, named["name"], named["text"])
        elif entry:
            entry = Description(entry.line, entry.name, f"{entry.text} {row.strip()}")
        elif section not in NAMED:
            entry = Description(number, "", row.strip())


def check_file(path: Path) -> Iterator[str]:
    """The faults of a Python file, each as a line for a person.

    Args:
        path: The file.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                described += descriptions_of(docstring, node.body[0].lineno)
                for number, row in enumerate(docstring.splitlines(), node.body[0].lineno):
                    if row.startswith(" ") and row.strip() in SECTIONS:
                        yield f"{path}:{number}: {row.strip()} is indented, and would belong to the section before it."
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                text = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in HELP and isinstance(text, str) and " " in text:
                    described.append(Description(keyword.value.lineno, keyword.arg, text))
    for one in described:
        for fault in faults_of(one.text):
            yield f"{path}:{one.line}: {one.name or 'result'}: {one.text!r} {fault}."


def main(folders: list[str]) -> int:
    """Print the faults of all Python files in folders.

    Args:
        folders: Folders or files; by default those of the project.

    Returns:
        Exit status: 1 with a fault.
    """
    roots = [Path(folder) for folder in folders] or [ROOT / folder for folder in FOLDERS]
    files = [file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*.py")))]
    faults = [fault for file in files for fault in check_file(file)]
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} descriptions to write again.", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
