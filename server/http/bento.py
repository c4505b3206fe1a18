"""A Bento: the server with its bundle inside, which BentoML's own tools start and pack into an image.

It is configured by environment variables in place of the options of `semiseg serve`: SEMISEG_API_KEYS or
SEMISEG_KEYS_FILE (API keys), SEMISEG_NO_KEYS=1 (no keys are needed), SEMISEG_STATE (the folder of /jobs),
SEMISEG_THREADS, and SEMISEG_ALLOWED_HOSTS, SEMISEG_PROXIES and SEMISEG_PATH_PREFIX (host names, trusted proxies and
path prefix).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from semiseg.bundle.bundle import open_bundle
from semiseg.errors import InputError

if TYPE_CHECKING:
    import bentoml

SERVICE_SOURCE = '''"""The service of this Bento; it is implemented in server/http."""

from pathlib import Path

from server.http.bento import make_bento_service

service = make_bento_service(Path(__file__).parent / "bundle")
'''
PACKAGES = ("semiseg", "server", "cli")


def build_bento(folder: Path) -> bentoml.Bento:
    """Build a Bento of the bundle in ``folder`` and add it to BentoML's store.

    Raises:
        BundleError: The bundle is incomplete or altered.
        InputError: BentoML cannot build the Bento.
    """
    bundle = open_bundle(folder)
    import bentoml
    from bentoml.exceptions import BentoMLException

    with tempfile.TemporaryDirectory(prefix="semiseg-bento-") as name:
        context = Path(name)
        shutil.copytree(bundle.folder, context / "bundle")
        for package in PACKAGES:
            found = importlib.util.find_spec(package)
            assert found is not None and found.submodule_search_locations
            source = Path(found.submodule_search_locations[0])
            shutil.copytree(source, context / package, ignore=shutil.ignore_patterns("__pycache__"))
        (context / "service.py").write_text(SERVICE_SOURCE, encoding="utf-8")
        told = "SEMISEG_NO_KEYS" in os.environ
        os.environ.setdefault("SEMISEG_NO_KEYS", "1")  # BentoML imports the service while it builds
        try:
            return bentoml.build(
                "service:service",
                name=_bento_name(bundle.manifest.name),
                description=f"semiseg with the model {bundle.manifest.name}. RESEARCH USE ONLY.",
                labels={"model": _bento_name(bundle.manifest.name), "semiseg": version("semiseg")},
                include=["service.py", "bundle/", *(f"{package}/" for package in PACKAGES)],
                python={"packages": _requirements(), "lock_packages": False},
                docker={"env": {"BENTOML_DO_NOT_TRACK": "True"}},
                build_ctx=str(context),
            )
        except BentoMLException as error:
            raise InputError(f"BentoML cannot build the Bento: {str(error).splitlines()[0]}") from error
        finally:
            if not told:
                del os.environ["SEMISEG_NO_KEYS"]


def make_bento_service(bundle: Path) -> bentoml.Service[Any]:
    """Make the service of a Bento: the server of :func:`server.http.startup.serve` in the form that BentoML needs.

    Raises:
        BundleError, EngineError, InputError: A bundle or a setting cannot be used, or there are no keys although
            SEMISEG_NO_KEYS is not set.
    """
    import bentoml
    from bentoml._internal.context import server_context

    from server.keys import KEYS_ENV, ApiKeys

    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    keys = ApiKeys(Path(os.environ["SEMISEG_KEYS_FILE"]) if "SEMISEG_KEYS_FILE" in os.environ else None)
    if not keys.required and os.environ.get("SEMISEG_NO_KEYS") != "1":
        raise InputError(
            f"Set {KEYS_ENV} or SEMISEG_KEYS_FILE to the API keys of the users, or SEMISEG_NO_KEYS=1 to need no keys."
        )
    if server_context.worker_index is None:  # BentoML inspects the service before it starts the serving process
        return bentoml.service(name="semiseg")(type("Segmentation", (), {}))
    from server.http.access_options import AccessOptions
    from server.http.app import ServerContext
    from server.http.limits import Limits
    from server.http.model import ModelSettings
    from server.http.models import ServedModels
    from server.http.process import prepare_process
    from server.http.service import make_service
    from server.logs import configure_logging

    threads = os.environ.get("SEMISEG_THREADS")
    state = os.environ.get("SEMISEG_STATE")
    # Never closed: the system releases the locks when the process ends, and the next process deletes the files.
    stack = contextlib.ExitStack()
    folder, job_store = stack.enter_context(prepare_process(Path(state) if state else None, None))
    models = ServedModels.open([ModelSettings(bundle=bundle, threads=int(threads) if threads else None)])
    service = make_service(
        ServerContext.create(models, Limits(), folder, job_store), keys, access=AccessOptions.from_environment()
    )
    configure_logging()
    _HELD.append(stack)
    return service


_HELD: list[contextlib.ExitStack] = []


def _requirements() -> list[str]:
    """The requirements of the extras `serve` and `imaging` on this Python, pinned to the installed versions."""
    found = set()
    for line in requires("semiseg") or []:
        asked = Requirement(line)
        applies = asked.marker is None or any(asked.marker.evaluate({"extra": e}) for e in ("serve", "imaging"))
        if asked.name != "semiseg" and applies:
            found.add(f"{asked.name}=={version(asked.name)}")
    return sorted(found)


def _bento_name(name: str) -> str:
    """Convert a name to the characters that BentoML allows: lower-case letters, digits and single dashes."""
    return "semiseg-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "model")
