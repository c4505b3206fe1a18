"""`semiseg gateway` where it cannot run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.command_line import run_semiseg


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_gateway_says_where_it_runs(tmp_path, monkeypatch, capsys, system):
    monkeypatch.setattr("cli.gateway.platform", SimpleNamespace(system=lambda: system))
    assert run_semiseg("gateway", "--config", tmp_path / "gateway.yaml", "status") == 2
    said = capsys.readouterr().err
    assert f"runs on Linux, and this is {system}" in said and "container" in said
