"""A software bill of materials of the image that this runs in: SPDX 2.3 as JSON, on standard output.

The Python packages of the environment whose Python runs this, the viewer of the server's page, and the system's Debian
packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9.+\-]+( (AND|OR|WITH) [A-Za-z0-9.+\-]+)*")


def main(name: str) -> None:
    packages = sorted([*python_packages(), *viewer(), *debian_packages()], key=lambda one: str(one["SPDXID"]))
    content = json.dumps(packages, sort_keys=True).encode()
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://spdx.org/spdxdocs/{name}-{hashlib.sha256(content).hexdigest()}",
        "creationInfo": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)),
            "creators": ["Tool: semiseg-deploy-sbom"],
        },
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": one["SPDXID"],
            }
            for one in packages
        ],
    }
    json.dump(document, sys.stdout, indent=1)


def python_packages() -> list[dict[str, Any]]:
    found = {}
    for one in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        licence = one.metadata.get("License-Expression") or ""
        said = licence or (one.metadata.get("License") or "").partition("\n")[0][:200]
        classifiers = [line for line in one.metadata.get_all("Classifier") or [] if line.startswith("License")]
        found[name] = package(
            name, one.version, f"pkg:pypi/{name}@{one.version}", licence, said or "; ".join(classifiers)
        )
    return list(found.values())


def viewer() -> list[dict[str, Any]]:
    """NiiVue, which semiseg's wheel may contain as one file; its first line names the package that it is from."""
    files = metadata.distribution("semiseg").files or []
    for file in files:
        if file.as_posix() == "server/http/page/niivue.js":
            found = re.match(r"/\*! NiiVue from (pkg:\S+@(\S+));", file.read_text(encoding="utf-8"))
            purl, version = found.groups() if found else ("pkg:npm/%40niivue/niivue", "NOASSERTION")
            said = "BSD-2-Clause; what is bundled into it is listed in niivue.licences.txt beside it"
            return [package("niivue", version, purl, "", said)]
    return []


def debian_packages() -> list[dict[str, Any]]:
    if shutil.which("dpkg-query") is None:
        return []
    command = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    parts = [row.split("\t") for row in rows]
    return [
        package(f"debian-{name}", version, f"pkg:deb/debian/{name}@{version}?arch={arch}", "", "")
        for name, version, arch in parts
    ]


def package(name: str, version: str, purl: str, licence: str, said: str) -> dict[str, Any]:
    one: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{re.sub(r'[^A-Za-z0-9.-]', '-', name)}",
        "name": name.removeprefix("debian-"),
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence if _PLAIN.fullmatch(licence) else "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}],
    }
    if said and one["licenseDeclared"] == "NOASSERTION":
        one["licenseComments"] = f"The package says: {said}"
    return one


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "semiseg")
