"""MONAI Label's own Python client, where there is one to test with: ``monailabel/client/client.py`` of a wheel.

``SEMISEG_MONAILABEL_CLIENT`` names the file (``pip download monailabel==0.8.5 --no-deps`` and unzip). It imports the
module ``cgi``, which Python 3.13 no longer has; there a stand-in reads its multipart answers.
"""

from __future__ import annotations

import email
import email.policy
import importlib.util
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_package

VARIABLE = "SEMISEG_MONAILABEL_CLIENT"


def load_client() -> Any:
    """The module; the test is skipped where nobody named it."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} is unset: no client of MONAI Label to test with")
    require_package("requests")
    path = Path(named)
    assert path.is_file(), f"{VARIABLE} names {path}, which is no file"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("cgi") is None:
            sys.modules["cgi"] = _stand_in_for_cgi()
        spec = importlib.util.spec_from_file_location("monai_label_client_under_test", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def _stand_in_for_cgi() -> types.ModuleType:
    class Field:
        def __init__(self, part: Any) -> None:
            self.name = part.get_param("name", header="content-disposition")
            self.filename = part.get_filename()
            content = part.get_payload(decode=True)
            self.value = content if self.filename else content.decode()

    class FieldStorage:
        def __init__(self, fp: Any, environ: Any, headers: Any, keep_blank_values: bool) -> None:
            del environ, keep_blank_values
            length = headers.get("content-length")
            content = fp.read(int(length)) if length else fp.read()
            head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
            message = email.message_from_bytes(head + content, policy=email.policy.HTTP)
            self.list = [Field(part) for part in message.iter_parts()]

    module = types.ModuleType("cgi")
    module.FieldStorage = FieldStorage  # type: ignore[attr-defined]
    return module
