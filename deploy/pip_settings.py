"""Write what pip in another root needs to reach packages as on this machine: python3 deploy/pip_settings.py FOLDER

`pip config` merges the global, user and environment settings. Their outcome is written into FOLDER as four files:

- `pip_conf`: a pip.conf. Local package folders appear in it as /run/lent/0, 1, ..., where the caller has to mount them.
- `pip_env`: `export` lines for the `PIP_*` variables of this environment.
- `volumes`: a line `FOLDER:/run/lent/N:ro` for each local package folder.
- `authority`: the file of certificates to trust; empty where there is none.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

# The other root gets these files under other names, or has its own.
EXCLUDED_VARIABLES = ("PIP_CERT", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_REQUIRE_VIRTUALENV")
DEFAULT_AUTHORITY = "/etc/ssl/certs/ca-certificates.crt"


def pip_settings() -> dict[str, str]:
    """The settings of pip's configuration files by their names without a section; empty where there is no pip."""
    for pip in ([sys.executable, "-m", "pip"], ["pip"]):
        if shutil.which(pip[0]):
            answer = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                break
    else:
        return {}
    settings = {}
    for line in answer.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.startswith(("global.", "install.", "site.")):
            settings[name.split(".", 1)[1]] = str(ast.literal_eval(value))
    return settings


class MountedFolders:
    """The local package folders that settings name, and their places in the other root."""

    def __init__(self) -> None:
        """Start with no folder."""
        self.folders: list[Path] = []

    def map_address(self, word: str) -> str:
        """An address as the other root sees it: a lent folder's or file's new place, or the word unchanged.

        An index of files (file:///a/simple) refers to its neighbours (../files), so its parent folder is lent; so is
        the folder of a file (constraints).
        """
        is_url = word.startswith("file:")
        path = Path(unquote(urlparse(word).path) if is_url else word)
        if not (is_url or path.is_absolute()) or not path.exists():
            return word
        folder = path.parent if path.is_file() or (is_url and len(path.parts) > 2) else path
        if folder not in self.folders:
            self.folders.append(folder)
        place = Path("/run/lent") / str(self.folders.index(folder)) / path.relative_to(folder)
        return f"file://{place}" if is_url else str(place)


def main() -> None:
    """Write the four files."""
    into = Path(sys.argv[1])
    settings, mounted = pip_settings(), MountedFolders()
    settings.pop("cache-dir", None)
    authority = settings.pop("cert", None) or os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    authority = authority or DEFAULT_AUTHORITY
    (into / "authority").write_text(authority if Path(authority).is_file() else "")
    configuration = ["[global]"]
    for name, value in settings.items():
        configuration += [f"{name} =", *(f"    {mounted.map_address(word)}" for word in value.split())]
    (into / "pip_conf").write_text("\n".join(configuration) + "\n")
    environment = {
        n: v for n, v in sorted(os.environ.items()) if re.fullmatch(r"PIP_[A-Z_]+", n) and n not in EXCLUDED_VARIABLES
    }
    (into / "pip_env").write_text(
        "".join(
            f"export {n}={shlex.quote(' '.join(map(mounted.map_address, v.split())))}\n" for n, v in environment.items()
        )
    )
    (into / "volumes").write_text("".join(f"{folder}:/run/lent/{n}:ro\n" for n, folder in enumerate(mounted.folders)))


if __name__ == "__main__":
    main()
