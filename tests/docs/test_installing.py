"""docs/installing.md: the sentences that it promises are those of the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from semiseg.engines.openvino import import_openvino
from semiseg.errors import InputError
from semiseg.outputs.formats import OUTPUT_FORMATS, base
from semiseg.predicting.ray_cluster import segment_on_cluster

PAGE = " ".join((Path(__file__).resolve().parents[2] / "docs" / "installing.md").read_text(encoding="utf-8").split())


def assert_quoted(error: InputError, *, up_to: str = "") -> None:
    """The page quotes the error to its end, or up to some words; what stands in brackets may be left out as ``...``."""
    told = str(error).partition(up_to)[0] if up_to else str(error)
    assert f'"{re.sub(r"[(].*?[)]", "(...)", told)}' in PAGE, told


def test_what_is_said_without_openvino_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError) as refused:
        import_openvino()
    assert_quoted(refused.value)


def test_what_is_said_without_ray_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError) as refused:
        next(segment_on_cluster(lambda: None, [], address=None, workers=None, threads=1))
    assert_quoted(refused.value)


def test_what_is_said_without_highdicom_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        OUTPUT_FORMATS["seg"].check_installed()
    assert_quoted(refused.value, up_to=", or use")


def test_what_the_gateway_says_elsewhere_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cli.gateway import app

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("platform.system", lambda: "Windows")
    refused = CliRunner().invoke(app, ["--config", "gateway.yaml"]).exception
    assert isinstance(refused, InputError)
    assert_quoted(refused, up_to=": several")
    assert str(refused).endswith("Run it in a container or, on Windows, in WSL.")
    assert "Run it in a container or, on Windows, in WSL." in PAGE
