"""Which tests prove which requirement: numbers of docs/requirements.md that docstrings of tests name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docs.generators.document import REPOSITORY, Document, DocumentError, markdown_table

REQUIREMENTS = "docs/requirements.md"
RISKS = "docs/risks.md"
_NUMBER = re.compile(r"\b[A-Z]{2,3}-\d\d\b")
_REQUIREMENT = re.compile(r"^- \*\*([A-Z]{2,3}-\d\d)\*\* (.+)$", re.MULTILINE)


def document() -> Document:
    """The table.

    Raises:
        DocumentError: A requirement has no test, or a test or a risk names a number that does not exist.
    """
    wanted = requirements()
    found: dict[str, list[str]] = {number: [] for number in wanted}
    for name, number in proofs(REPOSITORY / "tests"):
        if number not in found:
            raise DocumentError(f"{name} names the requirement {number}, which {REQUIREMENTS} has not.")
        found[number].append(name)
    if bare := [number for number, tests in found.items() if not tests]:
        raise DocumentError(f"No test names the requirement(s) {', '.join(bare)} of {REQUIREMENTS} in its docstring.")
    for number in _NUMBER.findall((REPOSITORY / RISKS).read_text(encoding="utf-8")):
        if number not in wanted:
            raise DocumentError(f"{RISKS} names the requirement {number}, which {REQUIREMENTS} has not.")
    rows = [(number, wanted[number], "<br>".join(f"`{test}`" for test in tests)) for number, tests in found.items()]
    count = sum(len(tests) for tests in found.values())
    return Document(
        "docs/trace.md",
        "# Requirements and the tests that prove them\n\n"
        "Made by `make docs` from [requirements.md](requirements.md) and the docstrings of the tests: "
        f"{len(wanted)} requirements, {count} proofs.\n\n" + markdown_table(("number", "requirement", "tests"), rows),
    )


def requirements() -> dict[str, str]:
    """What is required, by number.

    Raises:
        DocumentError: A number is given twice.
    """
    pairs = _REQUIREMENT.findall((REPOSITORY / REQUIREMENTS).read_text(encoding="utf-8"))
    numbers = [number for number, _ in pairs]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise DocumentError(f"{REQUIREMENTS} gives {', '.join(twice)} twice.")
    return dict(pairs)


def proofs(folder: Path) -> Iterator[tuple[str, str]]:
    """Each test that names a requirement, and the number."""
    for file in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for number in _NUMBER.findall(ast.get_docstring(node) or ""):
                    yield f"{file.relative_to(folder)}::{node.name}", number
