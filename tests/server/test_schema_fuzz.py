"""Schemathesis asks the server whatever its OpenAPI document allows, and whatever it forbids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.bundles import make_threshold_bundle
from tests.polling import paths_in
from tests.server.harness import RunningServer, running_server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
checks = schemathesis.checks
checks.load_all_checks()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("server")
    with running_server(make_threshold_bundle(folder / "b").folder, folder, "--state", str(folder / "state")) as server:
        yield server
        assert "Traceback" not in server.output and '"level": "error"' not in server.output
        left = [p for p in paths_in(folder / "state") if p.is_file() and not p.name.startswith(("jobs.", "lock"))]
        assert left == []


def test_no_request_breaks_the_server_or_its_promise(server):
    """SRV-08."""
    schema = schemathesis.openapi.from_url(f"{server.url}/docs.json", wait_for_schema=10)
    # Random bytes are no scan: that they are refused is right, and which refusals there are is checked.
    names = ["status_code", "content_type", "response_schema", "response_headers"]
    wanted = [checks.not_a_server_error, *(checks.CHECKS.get_one(f"{name}_conformance") for name in names)]
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            case.validate_response(case.call(), checks=wanted)

        ask()
        asked.add(f"{operation.method.upper()} {operation.path}")
    assert {"POST /segment", "POST /jobs", "GET /jobs/{id}", "DELETE /jobs/{id}", "GET /jobs/{id}/result"} <= asked
