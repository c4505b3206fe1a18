"""Check of servers, archives and worklists: each is contacted once, and nothing is stored."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from semiseg.client import Client, RequestRejectedError, ServerBusyError, ServerFailureError
from semiseg.errors import InputError, SemisegError
from semiseg.outputs.formats import OUTPUT_FORMATS, OutputFormat
from semiseg.system.durable_files import free_bytes
from server.gateway import dimse_statuses, http_statuses
from server.gateway.application_entity import AssociationFailed, NoContextAccepted, associate, create_application_entity
from server.gateway.config import (
    Destination,
    DimseDestination,
    FormatName,
    GatewayConfig,
    WebDestination,
    formats_for,
)
from server.gateway.dicomweb import create_dicomweb_client, read_secret, request_error_text
from server.gateway.server_pool import ServerPool
from server.gateway.storage_scu import presentation_contexts
from server.gateway.tls import client_context
from server.gateway.ups_client import UpsClient
from server.gateway.ups_config import Worklist
from server.gateway.ups_workitem import Workitem

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        subject: Name of the checked object.
        error: Problem and advice, as a sentence; "" if there is no problem.
        success: Text that is shown if there is no problem.
    """

    subject: str
    error: str
    success: str = "answers"


def check_peers(config: GatewayConfig) -> Iterator[CheckResult]:
    """Check the disk, servers, models of rules, destinations with their output formats, archives and worklists."""
    yield _disk(config)
    yield from _servers(config)
    for name, destination in config.destinations.items():
        forms = [form for rule in config.rules if name in rule.to for form in formats_for(rule, destination)]
        if destination.dimse is not None:
            yield from _dimse(name, destination, destination.dimse, list(dict.fromkeys(forms)), config.ae_title)
        elif destination.web is not None:
            yield from _web(name, destination.web)
    for poll in config.polls:
        yield CheckResult(f"archive {poll.url}", _asked(poll.url, poll.token))
    for worklist in config.worklists:
        yield _worklist(config, worklist)
        for archive in worklist.inputs:
            yield CheckResult(f"worklist {worklist.name}, inputs at {archive.url}", _asked(archive.url, archive.token))


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
    free, keep = free_bytes(folder), config.keep.free_bytes
    good = f"{free / 2**30:.1f} GB are free"
    if free < keep:
        told = f"{good}, and instances are refused below {keep / 2**30:.1f} GB (`keep.free_bytes`); free disk space"
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


def _dimse(
    name: str, destination: Destination, to: DimseDestination, forms: list[FormatName], title: str
) -> Iterator[CheckResult]:
    what = f"destination {name} ({to.ae_title} at {to.host}:{to.port})"
    if trouble := _tls(to):
        yield CheckResult(what, trouble)
        return
    headers = [_header(OUTPUT_FORMATS[form]) for form in forms]
    ours = create_application_entity(title, seconds=min(TIMEOUT_SECONDS, destination.connect_seconds))
    accepted: dict[str, list[UID]] = {}
    trouble = ""
    try:
        association = associate(ours, to, contexts=[build_context(Verification), *presentation_contexts(headers, to)])
    except NoContextAccepted:
        pass
    except (AssociationFailed, InputError) as error:
        yield CheckResult(what, str(error))
        return
    else:
        for one in association.accepted_contexts:
            accepted.setdefault(str(one.abstract_syntax), []).append(UID(one.transfer_syntax[0]))
        if Verification in accepted:  # archives need not support it
            status = association.send_c_echo()
            if "Status" not in status:
                trouble = "does not answer a C-ECHO"
            elif status.Status != 0x0000:
                trouble = f"answers a C-ECHO with status {dimse_statuses.describe(status.Status)}"
        if association.is_established:
            association.release()
    yield CheckResult(what, trouble)
    for form in forms:
        kind = UID(OUTPUT_FORMATS[form].sop_class)
        syntaxes = [one.name for one in dict.fromkeys(accepted.get(str(kind), ()))]
        told = f"does not accept {kind.name}; allow this SOP class there, or omit {form} from the destination's `forms`"
        yield CheckResult(
            f"destination {name}, {form}", "" if syntaxes else told, f"is accepted as {' or '.join(syntaxes)}"
        )
    if to.commitment:
        told = "does not support storage commitment; set `commitment: false`"
        yield CheckResult(
            f"destination {name}, commitment",
            "" if StorageCommitmentPushModel in accepted else told,
            "is offered",
        )


def _header(output_format: OutputFormat) -> Dataset:
    header = Dataset()
    header.SOPClassUID = output_format.sop_class
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(output_format.transfer_syntax)
    return header


def _tls(to: DimseDestination) -> str:
    """Return why a TLS connection fails; "" if it succeeds, is not configured, or the peer does not answer at all."""
    if to.tls is None:
        return ""
    try:
        context = client_context(to.tls)
    except InputError as error:
        return str(error)
    try:
        with (
            contextlib.closing(socket.create_connection((to.host, to.port), timeout=TIMEOUT_SECONDS)) as plain,
            context.wrap_socket(plain, server_hostname=to.host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"has a certificate that is not trusted ({error.verify_message}); check `tls.authority` and the host name"
        )
    except ssl.SSLError as error:
        return f"makes no TLS connection ({error.reason}); check that it is a TLS port that accepts our certificate"
    except OSError:
        return ""  # reported by the association


def _web(name: str, to: WebDestination) -> Iterator[CheckResult]:
    what = f"destination {name} ({to.url})"
    trouble = _asked(to.url, to.token)
    yield CheckResult(what, trouble)
    if not trouble:
        yield CheckResult(f"destination {name}, STOW-RS", _stow(to), "is available")


def _stow(to: WebDestination) -> str:
    """Check that the address accepts STOW-RS, with a message without instances, so that nothing is stored."""
    import requests

    boundary = secrets.token_hex(16)
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    with requests.Session() as session:
        session.trust_env = False
        if to.token is not None:
            headers["Authorization"] = f"Bearer {read_secret(to.token)}"
        try:
            with session.post(
                f"{to.url}/studies",
                data=f"--{boundary}--\r\n".encode(),
                headers=headers,
                timeout=(TIMEOUT_SECONDS, TIMEOUT_SECONDS),
                allow_redirects=False,
                stream=True,
            ) as answer:
                status = answer.status_code
        except requests.RequestException as error:
            return request_error_text(error)
    return f"answered {http_statuses.describe(status)}" if http_statuses.is_peer_error(status) else ""


def _asked(url: str, token: Path | None) -> str:
    from requests import RequestException

    try:
        create_dicomweb_client(url, token).search_for_studies(limit=1)
    except SemisegError as error:
        return str(error)
    except RequestException as error:
        return (
            http_statuses.describe(error.response.status_code)
            if error.response is not None
            else request_error_text(error)
        )
    except ValueError:  # the response is not JSON
        return "does not answer like a DICOMweb service; check that `url` is the DICOMweb root"
    return ""
