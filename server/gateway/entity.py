"""Our side of every DIMSE association: who we say we are."""

from __future__ import annotations

from importlib.metadata import version

from pynetdicom import AE

# PS3.7 D.3.3.2; a UUID as PS3.5 B.2 allows. It stays the same as long as the conformance statement does.
IMPLEMENTATION_CLASS = "2.25.279520917705210394514673571246121522162"


def entity(title: str, *, seconds: float = 30.0) -> AE:
    """An application entity that waits ``seconds`` for a connection, an association and an answer."""
    made = AE(ae_title=title)
    made.implementation_class_uid = IMPLEMENTATION_CLASS
    made.implementation_version_name = f"SEMISEG {version('semiseg')}"[:16]
    made.connection_timeout = made.acse_timeout = made.dimse_timeout = made.network_timeout = seconds
    return made
