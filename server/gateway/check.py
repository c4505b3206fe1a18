"""Whether the others are there: each server and each destination of a configuration, asked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from semiseg.client import Client
from semiseg.errors import SemisegError
from server.gateway.config import DimseDestination, GatewayConfig
from server.gateway.dicomweb import archive_at, said, secret_in
from server.gateway.entity import associate, entity
from server.gateway.replicas import Replicas

SECONDS = 10.0


def findings(config: GatewayConfig) -> Iterator[tuple[str, str]]:
    """What was asked, and what is wrong with it; "" where nothing is."""
    for url in Replicas(config.servers).urls():
        yield f"server {url}", _server(url, config)
    for name, destination in config.destinations.items():
        if destination.dimse is not None:
            to = destination.dimse
            yield f"destination {name} ({to.ae_title} at {to.host}:{to.port})", _echo(to, config.ae_title)
        elif destination.web is not None:
            yield f"destination {name} ({destination.web.url})", _asked(destination.web.url, destination.web.token)
    for poll in config.polls:
        yield f"archive {poll.url}", _asked(poll.url, poll.token)


def _server(url: str, config: GatewayConfig) -> str:
    try:
        key = secret_in(config.servers.key) if config.servers.key else None
        with Client(url, key=key, timeout=SECONDS) as client:
            if not client.ready():
                return "does not answer, or is not ready yet"
            models = {str(one["identity"]["name"]) for one in client.models()}
    except SemisegError as error:
        return str(error)
    for rule in config.rules:
        if rule.model is None and len(models) > 1:
            return f"rule {rule.name} names no model, and it has several: {', '.join(sorted(models))}"
        if rule.model is not None and rule.model not in models:
            return f"has no model {rule.model} (rule {rule.name}), only {', '.join(sorted(models))}"
    return ""


def _echo(to: DimseDestination, title: str) -> str:
    ours = entity(title, seconds=SECONDS)
    ours.add_requested_context(Verification)
    try:
        association = associate(ours, to)
    except SemisegError as error:
        return str(error)
    status = association.send_c_echo()
    association.release()
    return "" if status.get("Status") == 0 else "does not answer a C-ECHO"


def _asked(url: str, token: Path | None) -> str:
    from requests import RequestException

    try:
        archive_at(url, token).search_for_studies(limit=1)
    except SemisegError as error:
        return str(error)
    except RequestException as error:
        return said(error)
    return ""
