"""TLS in and out: only those whose certificate the authority signed, and a study on its way to an archive behind it."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    SegmentationStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from tests.gateway.harness import (
    associate,
    dcmtk_program,
    make_config,
    make_offline_config,
    running_gateway,
    storescu,
    write_study,
)
from tests.polling import wait_until


@pytest.fixture(scope="module")
def certificates(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, a certificate of it for this machine, one for a scanner, and one of nobody."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, authority in (("authority", ""), ("gateway", "authority"), ("scanner", "authority"), ("nobody", "")):
        command = [require_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-days", "30", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
        command += ["-out", f"{name}.pem", "-keyout", f"{name}.key"]
        if authority:
            command += ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
            command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
    return {path.stem + (" key" if path.suffix == ".key" else ""): path for path in folder.iterdir()}


def test_door_with_tls_lets_in_whom_its_authority_knows(certificates: dict[str, Path], tmp_path: Path) -> None:
    """GW-05."""
    tls = {
        "certificate": str(certificates["gateway"]),
        "key": str(certificates["gateway key"]),
        "authority": str(certificates["authority"]),
    }
    with running_gateway(
        make_offline_config(tmp_path, dimse={"port": 0, "any_sender": True, "tls": tls}), tmp_path / "g"
    ) as gateway:

        def echo(name: str | None) -> bool:
            context = ssl.create_default_context(cafile=str(certificates["authority"]))
            # The authority has no key usage extension. A scanner does not ask for it, and the gateway must not either.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if name:
                context.load_cert_chain(certificates[name], certificates[f"{name} key"])
            entity = AE(ae_title="SCANNER")
            entity.add_requested_context(Verification)
            entity.acse_timeout = entity.network_timeout = 10
            association = entity.associate(
                "127.0.0.1", gateway.dicom_port, ae_title="SEMISEG", tls_args=(context, "localhost")
            )
            well = association.is_established and association.send_c_echo().Status == 0
            if association.is_established:
                association.release()
            return bool(well)

        silent = socket.create_connection(("127.0.0.1", gateway.dicom_port))  # never shakes hands, and stops nobody
        assert echo("scanner")
        assert not echo(None)
        assert not echo("nobody")
        assert not associate(gateway, "SCANNER").is_established
        assert echo("scanner")
        silent.close()


def test_study_goes_out_over_tls_to_an_archive_that_commits_itself(
    certificates: dict[str, Path], server: Any, require_program: Callable[[str], str], tmp_path: Path
) -> None:
    """GW-06.

    The archive is pynetdicom's, since Debian's Orthanc cannot be made to check a certificate and commit at once.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates["authority"]))
    context.load_cert_chain(certificates["gateway"], certificates["gateway key"])
    context.verify_mode = ssl.CERT_REQUIRED
    kept: list[str] = []
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(SegmentationStorage)
    entity.add_supported_context(StorageCommitmentPushModel)

    def store(event: Any) -> int:
        kept.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    def commit(event: Any) -> tuple[int, None]:
        report = Dataset()
        report.TransactionUID = event.action_information.TransactionUID
        report.ReferencedSOPSequence = event.action_information.ReferencedSOPSequence
        threading.Thread(
            target=event.assoc.send_n_event_report,
            args=(report, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance),
        ).start()
        return 0x0000, None

    running = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context,
        evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, commit)],
    )  # fmt: skip
    assert running is not None
    try:
        tls = {
            "certificate": str(certificates["scanner"]),
            "key": str(certificates["scanner key"]),
            "authority": str(certificates["authority"]),
        }
        archive = {
            "ae_title": "ARCHIVE",
            "host": "localhost",
            "port": running.server_address[1],
            "commitment": True,
            "tls": tls,
        }
        parts = make_config(tmp_path, server.url, destinations={"archive": {"type": "dimse", **archive}})
        write_study(tmp_path / "study", "over TLS")
        with running_gateway(parts, tmp_path / "gateway") as gateway:
            program = dcmtk_program(require_program, "storescu")
            assert storescu(program, gateway.dicom_port, tmp_path / "study").returncode == 0
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
            told = gateway.command("check")
            assert "destination archive, seg: is accepted as" in told and "commitment: is offered" in told
            parts["destinations"]["archive"] |= {"tls": tls | {"authority": str(certificates["nobody"])}}
            gateway.file.write_text(yaml.safe_dump(parts))
            refused = gateway.try_command("check")
            assert refused.returncode == 1 and "has a certificate that is not trusted" in refused.stdout
        assert len(kept) == 1
    finally:
        running.shutdown()
