"""What the images of a hospital are made of and under which licences, from their locks and the installed packages."""

from __future__ import annotations

import re
from importlib import metadata

from docs.generators.document import REPOSITORY, Document, DocumentError, markdown_table

IMAGES = ("serve", "gateway")
PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "CC0-1.0", "ISC", "MIT",
    "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip
# How packages that do not use SPDX's names call them.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Copyleft of single files: their own source is public where the package comes from, nothing of ours is in those files.
FILE_COPYLEFT = {
    "certifi": "a list of certificates, unchanged",
    "pathspec": "unchanged; BentoML asks for it",
}
# Compiled libraries that come inside wheels, by the beginning of their names. SPDX, and what has to be known.
LIBRARIES = {
    "libXau": "MIT",
    "libavif": "BSD-2-Clause",
    "libbrotli": "MIT",
    "libcrypto": "OpenSSL",
    "libfreetype": "FTL",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libharfbuzz": "MIT",
    "libjpeg": "IJG AND BSD-3-Clause",
    "liblcms2": "MIT",
    "liblzma": "0BSD",
    "libopenjp2": "BSD-2-Clause",
    "libpng16": "libpng-2.0",
    "libquadmath": "LGPL-2.1-or-later",
    "libscipy_openblas": "BSD-3-Clause",
    "libsharpyuv": "BSD-3-Clause",
    "libsodium": "ISC",
    "libssl": "OpenSSL",
    "libtiff": "libtiff",
    "libwebp": "BSD-3-Clause",
    "libxcb": "MIT",
    "libzmq": "MPL-2.0",
    "libzstd": "BSD-3-Clause",
}
_LINE = re.compile(r"([a-z0-9._-]+)==(\S+) ")
_LIBRARY = re.compile(r"[^/]+\.libs/(lib[^/]+\.so[.0-9]*)$")

INTRODUCTION = """\
# Licences of what is shipped

Made by `make docs` from the locks of the images and from what each package says of itself. semiseg is under the
Apache License 2.0 and contains nothing under the GPL or the AGPL; `make check` fails when a package comes into a lock
whose licence is not on the list of permissive ones, or a wheel brings a compiled library that nobody has looked at.

Besides the packages, the images and the wheel of semiseg contain the viewer of the server's page, NiiVue, listed at the
end. The images also contain a Debian system, whose packages have their licences in `/usr/share/doc/*/copyright`:
programs under the GPL are among them (such as bash and coreutils), which lie beside semiseg in the image and are no
part of it. Each image has a list of all of it in SPDX at `/usr/share/semiseg-TARGET.spdx.json`.

## Packages

"""
BETWEEN = """
Under a copyleft of single files (MPL-2.0), which reaches nothing beside those files: {exceptions}.

## Compiled libraries inside the wheels

"""
AFTER = """
`libgfortran` has GCC's runtime exception, which allows to use it with anything. `libquadmath` is under the LGPL: it is
a shared library that can be exchanged, comes unchanged from the makers of NumPy and SciPy, and its source is GCC's.
`libzmq` is under MPL-2.0, unchanged. FreeType is taken under its own licence (FTL), not under the GPL that it offers as
another choice. The OpenSSL that python-gdcm brings (1.1.1) gets no more corrections from its makers; GDCM uses it to
encrypt attributes, which semiseg never asks for, and no connection is made with it.

## The viewer of the server's page

`python -m deploy.viewer` (`make page`) brings it as one file, `niivue.js`. The licences' texts are in
[niivue.licences.txt](../server/http/page/niivue.licences.txt), which the wheel has among its licence files and the
server shows at `/page/niivue.licences.txt`.

"""
VIEWER_LICENCES = REPOSITORY / "server" / "http" / "page" / "niivue.licences.txt"
VIEWER_EXCEPTIONS = {"Apache-2.0 WITH LLVM-exception"}  # allows more than Apache-2.0 does


def document() -> Document:
    """The tables.

    Raises:
        DocumentError: A package is not installed in its locked version, or its licence must not be shipped.
    """
    images: dict[tuple[str, str], list[str]] = {}
    for image in IMAGES:
        for name, version in _LINE.findall((REPOSITORY / "deploy" / f"{image}.lock").read_text(encoding="utf-8")):
            images.setdefault((name, version), []).append(image)
    packages, libraries = [], []
    for (name, version), where in sorted(images.items()):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise DocumentError(f"{name} of the locks is not installed here; run `make install`.") from None
        if found.version != version:
            raise DocumentError(f"{name} is installed as {found.version} and locked as {version}; run `make install`.")
        packages.append((name, version, require_allowed(name, licence_of(found.metadata)), ", ".join(where)))
        libraries += [(library, licence_of_library(library), name) for library in bundled_libraries(found)]
    return Document(
        "docs/licences.md",
        INTRODUCTION
        + markdown_table(("package", "version", "licence", "image"), packages)
        + BETWEEN.format(exceptions=", ".join(f"{name} ({why})" for name, why in FILE_COPYLEFT.items()))
        + markdown_table(("library", "licence", "in the wheel of"), libraries)
        + AFTER
        + markdown_table(
            ("component", "licence", "copyright"), viewer_components(VIEWER_LICENCES.read_text(encoding="utf-8"))
        ),
    )


def viewer_components(text: str) -> list[tuple[str, str, str]]:
    """Component, licence and copyright of each part of the viewer, from the file of its licences.

    Raises:
        DocumentError: A licence must not be shipped, or its text is not in the file.
    """
    lines = text.splitlines()
    components = []
    for name, licence, copyright_ in (line.split(" | ") for line in lines if line.count(" | ") == 2):
        if licence not in VIEWER_EXCEPTIONS:
            require_allowed(f"{name} of the viewer", licence)
        for one in licence.split(" WITH "):
            if one not in lines:
                raise DocumentError(
                    f"{VIEWER_LICENCES.name} names the licence {one} of {name} and does not have its text."
                )
        components.append((name, licence, copyright_))
    return components


def licence_of(about: metadata.PackageMetadata) -> str:
    """What a package says, in SPDX's words where they are known."""
    if expression := "".join(about.get_all("License-Expression") or []):
        return expression
    classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    said = classifiers or [(about.get_all("License") or [""])[0].partition("\n")[0]]
    names = {line.rsplit("::", 1)[-1].strip() for line in said}
    return " AND ".join(sorted(SPELLINGS.get(name, name) for name in names))


def require_allowed(name: str, licence: str) -> str:
    """The licence, if it may be shipped.

    Raises:
        DocumentError: The licence must not be shipped, or is not known.
    """
    # A package under one licence or another may be taken under the one that is permissive.
    if any(set(choice.split(" AND ")) <= PERMISSIVE for choice in licence.split(" OR ")):
        return licence
    if licence == "MPL-2.0" and name in FILE_COPYLEFT:
        return licence
    raise DocumentError(
        f"{name} is under {licence or 'no licence that it names'}, which must not come into an image unseen."
    )


def bundled_libraries(package: metadata.Distribution) -> list[str]:
    """The shared libraries that a wheel was repaired with, without the sums in their names."""
    found = [_LIBRARY.search(str(file)) for file in package.files or ()]
    return sorted({re.sub(r"-[0-9a-f]{8}(?=[.-])", "", one[1]) for one in found if one})


def licence_of_library(library: str) -> str:
    """Its licence.

    Raises:
        DocumentError: Nobody has reviewed the licence.
    """
    for beginning, licence in LIBRARIES.items():
        if library.startswith(beginning):
            return licence
    raise DocumentError(f"Nobody has said under which licence {library} is; docs/generators/licences.py lists them.")
