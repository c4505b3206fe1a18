"""TLS for DIMSE, as the BCP 195 profiles of PS3.15 B.9 ask for it: 1.2 or newer, certificates checked."""

from __future__ import annotations

import ssl
from pathlib import Path

from semiseg.errors import InputError
from server.gateway.config import Tls


def server_context(tls: Tls) -> ssl.SSLContext:
    """For a door; with an authority, only who has a certificate of it gets in.

    Raises:
        InputError: a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, tls)
    if tls.authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """For a connection to an archive, whose certificate has to be in its host's name.

    Raises:
        InputError: a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 began to refuse authorities without a key usage extension (RFC 5280 4.2.1.3), as many hospitals' own
    # are. The operator names the authority here, so it is trusted on every Python, and no upgrade cuts a connection.
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
