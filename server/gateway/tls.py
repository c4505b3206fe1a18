"""TLS for DIMSE, as the BCP 195 profiles of PS3.15 B.9 require it: 1.2 or newer, with certificates verified."""

from __future__ import annotations

import ssl
from pathlib import Path

from semiseg.errors import InputError
from server.gateway.config import Tls


def server_context(tls: Tls) -> ssl.SSLContext:
    """Create the TLS context of a listener; with an authority, it accepts only clients with a certificate signed by it.

    Raises:
        InputError: A file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, tls)
    if tls.authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """Create the TLS context of a connection to an archive, whose certificate has to match its host name.

    Raises:
        InputError: A file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Since version 3.13, Python rejects authorities without a key usage extension (RFC 5280 4.2.1.3), which the private
    # authorities of many hospitals lack. The operator names the authority in the configuration, so it is accepted with
    # every version of Python, and an upgrade does not break connections.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    file: Path | None = None
    try:
        if tls.certificate is not None and tls.key is not None:
            file = tls.certificate
            context.load_cert_chain(tls.certificate, tls.key)
        if tls.authority is not None:
            file = tls.authority
            context.load_verify_locations(tls.authority)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{file} cannot be used for TLS ({error}).") from None
