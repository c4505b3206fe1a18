"""Whether the others are there, and take what will be sent: each is asked once, and nothing is stored."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    LabelMapSegmentationStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    StorageCommitmentPushModel,
    Verification,
)

from semiseg.client import Busy, Client, Failed, Refused
from semiseg.errors import InputError, SemisegError
from semiseg.system.durable_files import free_bytes
from server.gateway import peer_http, statuses
from server.gateway.c_store import contexts_for
from server.gateway.config import Destination, DimseDestination, Form, GatewayConfig, WebDestination, forms_for
from server.gateway.dicomweb import archive_at, said, secret_in
from server.gateway.entity import NotAssociated, NothingAccepted, associate, entity
from server.gateway.replicas import Replicas
from server.gateway.tls import client_context
from server.gateway.ups_client import UpsClient
from server.gateway.ups_config import Worklist
from server.gateway.ups_workitem import Workitem

SECONDS = 10.0
# The SOP class of each form and the transfer syntax in which a server makes it.
CLASSES: dict[Form, tuple[UID, UID]] = {
    "seg": (SegmentationStorage, ExplicitVRLittleEndian),
    "seg-labelmap": (LabelMapSegmentationStorage, ExplicitVRLittleEndian),
    "seg-fractional": (SegmentationStorage, ExplicitVRLittleEndian),
    "rtstruct": (RTStructureSetStorage, ImplicitVRLittleEndian),
    "sr": (Comprehensive3DSRStorage, ExplicitVRLittleEndian),
    "overlay": (SecondaryCaptureImageStorage, ExplicitVRLittleEndian),
}
assert set(CLASSES) == set(get_args(Form))


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        what: The thing that was looked at.
        trouble: Sentence that says what is wrong with it and what is to be done; "" where nothing is wrong.
        good: Words for a thing with which nothing is wrong.
    """

    what: str
    trouble: str
    good: str = "answers"


def findings(config: GatewayConfig) -> Iterator[Finding]:
    """Look at the disk, each server, each rule's model, each destination and what it will be sent, each archive."""
    yield _disk(config)
    yield from _servers(config)
    for name, destination in config.destinations.items():
        forms = [form for rule in config.rules if name in rule.to for form in forms_for(rule, destination)]
        if destination.dimse is not None:
            yield from _dimse(name, destination, destination.dimse, list(dict.fromkeys(forms)), config.ae_title)
        elif destination.web is not None:
            yield from _web(name, destination.web)
    for poll in config.polls:
        yield Finding(f"archive {poll.url}", _asked(poll.url, poll.token))
    for worklist in config.worklists:
        yield _worklist(config, worklist)
        for archive in worklist.inputs:
            yield Finding(f"worklist {worklist.name}, inputs at {archive.url}", _asked(archive.url, archive.token))


def _worklist(config: GatewayConfig, worklist: Worklist) -> Finding:
    """Whether the manager answers a search, and how many workitems are there for us; none is claimed."""
    what = f"worklist {worklist.name} ({worklist.url})"
    try:
        found = [Workitem.of(one) for one in UpsClient(worklist, config.ae_title).search()]
    except SemisegError as error:
        return Finding(what, str(error))
    ours = sum(item.step_among(worklist) is not None for item in found)
    return Finding(what, "", f"answers; {len(found)} workitems are scheduled, {ours} of them for a step of this file")


def _disk(config: GatewayConfig) -> Finding:
    folder = config.state
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free, keep = free_bytes(folder), config.keep.free_bytes
    good = f"{free / 2**30:.1f} GB are free"
    if free < keep:
        told = f"{good}, and instances are refused below {keep / 2**30:.1f} GB (`keep.free_bytes`); make room"
        return Finding(f"disk of {config.state}", told)
    return Finding(f"disk of {config.state}", "", good)


def _servers(config: GatewayConfig) -> Iterator[Finding]:
    models: dict[str, list[str]] = {}
    key, trouble = None, ""
    try:
        key = secret_in(config.servers.key) if config.servers.key else None
    except InputError as error:
        trouble = str(error)
    for url in Replicas(config.servers).urls():
        told = trouble
        if not told:
            told, models[url] = _server(url, key)
        yield Finding(f"server {url}", told)
    there = {url: names for url, names in models.items() if names}
    for rule in config.rules:
        yield _model_of(rule.name, rule.model, there)


def _model_of(rule: str, model: str | None, there: dict[str, list[str]]) -> Finding:
    what = f"rule {rule}"
    if not there:
        return Finding(what, "no server tells its models")
    if model is None:
        several = {url: names for url, names in there.items() if len(names) > 1}
        for url, names in several.items():
            told = f"it names no model, and {url} has several: {', '.join(names)}; name one in the rule"
            return Finding(what, told)
        return Finding(what, "", f"model {' or '.join(dict.fromkeys(names[0] for names in there.values()))}")
    having = [url for url, names in there.items() if model in names]
    if having:
        return Finding(what, "", f"model {model} is at {', '.join(having)}")
    others = ", ".join(sorted({name for names in there.values() for name in names}))
    return Finding(what, f"no server has the model {model}, only {others}; load it there, or name another")


def _server(url: str, key: str | None) -> tuple[str, list[str]]:
    try:
        with Client(url, key=key, timeout=SECONDS) as client:
            if not client.ready():
                return "does not answer, or is not ready yet", []
            return "", sorted(str(one["identity"]["name"]) for one in client.models())
    except (Refused, Failed, Busy) as error:
        return f"answered {peer_http.told(error.status)}", []
    except SemisegError as error:
        return str(error), []
    except (ValueError, KeyError, TypeError):
        return "what answers there is no semiseg server", []


def _dimse(
    name: str, destination: Destination, to: DimseDestination, forms: list[Form], title: str
) -> Iterator[Finding]:
    what = f"destination {name} ({to.ae_title} at {to.host}:{to.port})"
    if trouble := _tls(to):
        yield Finding(what, trouble)
        return
    headers = [_header(*CLASSES[form]) for form in forms]
    ours = entity(title, seconds=min(SECONDS, destination.connect_seconds))
    accepted: dict[str, list[UID]] = {}
    trouble = ""
    try:
        association = associate(ours, to, contexts=[build_context(Verification), *contexts_for(headers, to)])
    except NothingAccepted:
        pass
    except (NotAssociated, InputError) as error:
        yield Finding(what, str(error))
        return
    else:
        for one in association.accepted_contexts:
            accepted.setdefault(str(one.abstract_syntax), []).append(UID(one.transfer_syntax[0]))
        if Verification in accepted:  # an archive need not do it
            status = association.send_c_echo()
            if "Status" not in status:
                trouble = "does not answer a C-ECHO"
            elif status.Status != 0x0000:
                trouble = f"answers a C-ECHO with status {statuses.told(status.Status)}"
        if association.is_established:
            association.release()
    yield Finding(what, trouble)
    for form in forms:
        kind, _ = CLASSES[form]
        syntaxes = [one.name for one in dict.fromkeys(accepted.get(str(kind), ()))]
        told = f"takes no {kind.name}; allow this SOP class there, or leave {form} out of the destination's `forms`"
        yield Finding(f"destination {name}, {form}", "" if syntaxes else told, f"is taken as {' or '.join(syntaxes)}")
    if to.commitment:
        told = "does not do storage commitment; write `commitment: false`"
        yield Finding(
            f"destination {name}, commitment",
            "" if StorageCommitmentPushModel in accepted else told,
            "is offered",
        )


def _header(sop_class: UID, syntax: UID) -> Dataset:
    header = Dataset()
    header.SOPClassUID = sop_class
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    return header


def _tls(to: DimseDestination) -> str:
    """Why a TLS connection cannot be made; "" where it can, or none is wanted, or nobody answers at all."""
    if to.tls is None:
        return ""
    try:
        context = client_context(to.tls)
    except InputError as error:
        return str(error)
    try:
        with (
            contextlib.closing(socket.create_connection((to.host, to.port), timeout=SECONDS)) as plain,
            context.wrap_socket(plain, server_hostname=to.host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"has a certificate that is not trusted ({error.verify_message}); check `tls.authority` and the host name"
        )
    except ssl.SSLError as error:
        return f"makes no TLS connection ({error.reason}); is it a TLS port, and does it accept our certificate?"
    except OSError:
        return ""  # the association says what it is


def _web(name: str, to: WebDestination) -> Iterator[Finding]:
    what = f"destination {name} ({to.url})"
    trouble = _asked(to.url, to.token)
    yield Finding(what, trouble)
    if not trouble:
        yield Finding(f"destination {name}, STOW-RS", _stow(to), "is there")


def _stow(to: WebDestination) -> str:
    """Whether the address takes STOW-RS: asked with a message that has no instance in it, so that nothing is stored."""
    import requests

    boundary = secrets.token_hex(16)
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    with requests.Session() as session:
        session.trust_env = False
        if to.token is not None:
            headers["Authorization"] = f"Bearer {secret_in(to.token)}"
        try:
            with session.post(
                f"{to.url}/studies",
                data=f"--{boundary}--\r\n".encode(),
                headers=headers,
                timeout=(SECONDS, SECONDS),
                allow_redirects=False,
                stream=True,
            ) as answer:
                status = answer.status_code
        except requests.RequestException as error:
            return said(error)
    return f"answered {peer_http.told(status)}" if peer_http.is_of_the_peer(status) else ""


def _asked(url: str, token: Path | None) -> str:
    from requests import RequestException

    try:
        archive_at(url, token).search_for_studies(limit=1)
    except SemisegError as error:
        return str(error)
    except RequestException as error:
        return peer_http.told(error.response.status_code) if error.response is not None else said(error)
    except ValueError:  # of a page that is no JSON
        return "what answers there is no DICOMweb service; is it the DICOMweb root?"
    return ""
