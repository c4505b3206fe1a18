"""Write every generated document; with ``--check`` write nothing and say which of them are not up to date."""

from __future__ import annotations

import sys

from docs.generators import http, licences, manifest, reference, trace
from docs.generators.document import Document, DocumentError


def documents() -> list[Document]:
    return [manifest.document(), *reference.documents(), http.document(), trace.document(), licences.document()]


def main(check: bool) -> int:
    try:
        made = documents()
    except DocumentError as error:
        print(error, file=sys.stderr)
        return 1
    old = [one for one in made if not one.is_current()]
    for one in old:
        if check:
            print(f"{one.name} is not what the code says; run `make docs` and commit what changes.", file=sys.stderr)
        else:
            one.write()
            print(f"wrote {one.name}")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
