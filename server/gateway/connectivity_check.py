"""Check of servers, archives and worklists: each is contacted once, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator

from semiseg.client import Client, RequestRejectedError, ServerBusyError, ServerFailureError
from semiseg.errors import InputError, SemisegError
from semiseg.system.durable_files import free_bytes
from server.gateway import http_statuses
from server.gateway.check_result import TIMEOUT_SECONDS, CheckResult
from server.gateway.config import GatewayConfig, formats_for
from server.gateway.dicomweb import read_secret
from server.gateway.dicomweb_check import query_error
from server.gateway.server_pool import ServerPool
from server.gateway.ups_client import UpsClient
from server.gateway.ups_config import Worklist
from server.gateway.ups_workitem import Workitem


def check_peers(config: GatewayConfig) -> Iterator[CheckResult]:
    """Check the disk, servers, models of rules, destinations with their output formats, archives and worklists."""
    yield _disk(config)
    yield from _servers(config)
    for name, destination in config.destinations.items():
        forms = [form for rule in config.rules if name in rule.to for form in formats_for(rule, destination)]
        yield from destination.check(name, list(dict.fromkeys(forms)), config.ae_title)
    for poll in config.polls:
        yield CheckResult(f"archive {poll.url}", query_error(poll.url, poll.token))
    for worklist in config.worklists:
        yield _worklist(config, worklist)
        for archive in worklist.inputs:
            yield CheckResult(
                f"worklist {worklist.name}, inputs at {archive.url}", query_error(archive.url, archive.token)
            )


def _worklist(config: GatewayConfig, worklist: Worklist) -> CheckResult:
    """Check that the manager answers a search, and count the matching workitems; none is claimed."""
    what = f"worklist {worklist.name} ({worklist.url})"
    try:
        found = [Workitem.from_json(one) for one in UpsClient(worklist, config.ae_title).search()]
    except SemisegError as error:
        return CheckResult(what, str(error))
    ours = sum(item.find_step(worklist) is not None for item in found)
    return CheckResult(
        what, "", f"answers; {len(found)} workitems are scheduled, {ours} of them match a step of this file"
    )


def _disk(config: GatewayConfig) -> CheckResult:
    folder = config.state
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free, keep = free_bytes(folder), config.retention.free_bytes
    good = f"{free / 2**30:.1f} GB are free"
    if free < keep:
        told = (
            f"{good}, and instances are refused below {keep / 2**30:.1f} GB (`retention.free_bytes`); free disk space"
        )
        return CheckResult(f"disk of {config.state}", told)
    return CheckResult(f"disk of {config.state}", "", good)


def _servers(config: GatewayConfig) -> Iterator[CheckResult]:
    models: dict[str, list[str]] = {}
    key, trouble = None, ""
    try:
        key = read_secret(config.servers.key) if config.servers.key else None
    except InputError as error:
        trouble = str(error)
    for url in ServerPool(config.servers).urls():
        told = trouble
        if not told:
            told, models[url] = _server(url, key)
        yield CheckResult(f"server {url}", told)
    there = {url: names for url, names in models.items() if names}
    for rule in config.rules:
        yield _model_of(rule.name, rule.model, there)


def _model_of(rule: str, model: str | None, there: dict[str, list[str]]) -> CheckResult:
    what = f"rule {rule}"
    if not there:
        return CheckResult(what, "no server lists its models")
    if model is None:
        several = {url: names for url, names in there.items() if len(names) > 1}
        for url, names in several.items():
            told = f"it names no model, and {url} has several: {', '.join(names)}; name one in the rule"
            return CheckResult(what, told)
        return CheckResult(what, "", f"model {' or '.join(dict.fromkeys(names[0] for names in there.values()))}")
    having = [url for url, names in there.items() if model in names]
    if having:
        return CheckResult(what, "", f"model {model} is at {', '.join(having)}")
    others = ", ".join(sorted({name for names in there.values() for name in names}))
    return CheckResult(what, f"no server has the model {model}, only {others}; load it there, or name another")


def _server(url: str, key: str | None) -> tuple[str, list[str]]:
    try:
        with Client(url, key=key, timeout=TIMEOUT_SECONDS) as client:
            if not client.ready():
                return "does not answer, or is not ready yet", []
            return "", sorted(str(one["identity"]["name"]) for one in client.models())
    except (RequestRejectedError, ServerFailureError, ServerBusyError) as error:
        return f"answered {http_statuses.describe(error.status)}", []
    except SemisegError as error:
        return str(error), []
    except (ValueError, KeyError, TypeError):
        return "does not answer like a semiseg server", []
