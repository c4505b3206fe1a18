"""Every `semiseg` command that README and docs show is one that there is, with options that it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from cli.app import build
from docs.generators.document import REPOSITORY

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("d*/**/*.md"))]


def commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """The words of each command on a line of code, which are all, and of each between backticks with an argument."""
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|\$ )(.*\bsemiseg .*)$", text, re.MULTILINE):
        for part in re.split(r"&&|\|\||;|\s#", line):
            found = re.search(r"(?:^|[\s/])semiseg ([a-z].*)", part.strip())
            if found and not part.strip().startswith(("docker", "pip", "buildah", "in_image")):
                words = shlex.split(found[1].split(" >")[0])
                yield words, not {"...", "--help"} & set(words)
    for code in re.findall(r"`semiseg ([a-z]+ [^`]+)`", text):
        yield shlex.split(code.replace("...", "")), False


CASES = [(page, words, whole) for page in PAGES for words, whole in commands(page)]


def test_there_are_commands() -> None:
    assert len(CASES) > 60 and len({page for page, _, _ in CASES}) > 8


WRONG = [
    (["train", "--nope", "x"], "no option of train"),
    (["nonsense", "a"], "nonsense"),
    (["gateway", "--config", "f", "explode"], "explode"),
    (["gateway", "--konfig", "f", "status"], "--konfig"),
    (["data", "split", "DATA"], "--test"),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_what_there_is_not_is_noticed(words: list[str], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        test_command_is_one_that_there_is("README.md", list(words), True)


@pytest.mark.parametrize(("page", "words", "whole"), CASES, ids=[f"{p}: {' '.join(w)}"[:90] for p, w, _ in CASES])
def test_command_is_one_that_there_is(page: str, words: list[str], whole: bool) -> None:
    assert Path(REPOSITORY / page).is_file()
    command = get_command(build(words[0]))
    context = command.make_context("semiseg", [], resilient_parsing=True)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words[0]]
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        words = words[1:]
        if hasattr(command, "commands"):  # the options of `gateway` stand before its own commands
            while words and words[0].startswith("--"):
                assert words[0] in {name for one in command.params for name in one.opts}, words[0]
                words = words[2:]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-?\d.*", word):
            assert word.split("=")[0] in known, f"{page}: {word} is no option of {command.name}"
    for one in command.params if whole and not hasattr(command, "commands") else ():
        wanted = one.required and one.param_type_name == "option"
        assert not wanted or set(one.opts) & {word.split("=")[0] for word in words}, f"{page}: {one.opts[0]} is missing"
    assert not hasattr(command, "commands") or not words, f"{page}: {words}"
