"""Check of DICOMweb services: a query, and STOW-RS without instances."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import SemisegError
from server.gateway import http_statuses
from server.gateway.check_result import TIMEOUT_SECONDS, CheckResult
from server.gateway.destinations import DicomwebDestination
from server.gateway.dicomweb import create_dicomweb_client, read_secret, request_error_text


def check_dicomweb_destination(name: str, to: DicomwebDestination) -> Iterator[CheckResult]:
    """Check an archive; nothing is stored.

    Args:
        name: Name of the destination in the configuration.
        to: The archive.
    """
    what = f"destination {name} ({to.url})"
    trouble = query_error(to.url, to.token)
    yield CheckResult(what, trouble)
    if not trouble:
        yield CheckResult(f"destination {name}, STOW-RS", _stow(to), "is available")


def query_error(url: str, token: Path | None) -> str:
    """Return why a DICOMweb service does not answer a query; "" if it does."""
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


def _stow(to: DicomwebDestination) -> str:
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
