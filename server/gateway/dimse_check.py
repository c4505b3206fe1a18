"""Check of a DIMSE destination: TLS, the association, C-ECHO, and the acceptance of each output format."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from semiseg.errors import InputError
from semiseg.outputs.formats import OUTPUT_FORMATS, OutputFormat
from server.gateway import dimse_statuses
from server.gateway.application_entity import AssociationFailed, NoContextAccepted, associate, create_application_entity
from server.gateway.check_result import TIMEOUT_SECONDS, CheckResult
from server.gateway.config_types import FormatName
from server.gateway.destinations import DimseDestination
from server.gateway.storage_scu import presentation_contexts
from server.gateway.tls import client_context


def check_dimse_destination(
    name: str, to: DimseDestination, output_formats: Sequence[FormatName], title: str
) -> Iterator[CheckResult]:
    """Check an archive; nothing is stored.

    Args:
        name: Name of the destination in the configuration.
        to: The archive.
        output_formats: Output formats that it is to receive.
        title: AE title of the gateway.
    """
    what = f"destination {name} ({to.ae_title} at {to.host}:{to.port})"
    if trouble := _tls(to):
        yield CheckResult(what, trouble)
        return
    headers = [_header(OUTPUT_FORMATS[form]) for form in output_formats]
    ours = create_application_entity(title, seconds=min(TIMEOUT_SECONDS, to.connect_seconds))
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
    for form in output_formats:
        kind = UID(OUTPUT_FORMATS[form].sop_class)
        syntaxes = [one.name for one in dict.fromkeys(accepted.get(str(kind), ()))]
        told = (
            f"does not accept {kind.name}; allow this SOP class there, or omit {form} from the destination's "
            "`output_formats`"
        )
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
