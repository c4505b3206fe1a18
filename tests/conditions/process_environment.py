"""Other surroundings of a process: language, time zone, umask, home folder, network, user, place of the tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.conditions.condition import (
    Condition,
    Launcher,
    UnavailableError,
    copy_environ,
    copy_tree,
    find_program,
    python_executable,
)
from tests.conditions.other_user import other_user

ODD = "Prüf ordner ß"
LOOPBACK = """
import fcntl, os, socket, struct, sys
UP_AND_RUNNING, SET_FLAGS = 0x41, 0x8914
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh", b"lo", UP_AND_RUNNING))
os.execvp(sys.argv[1], sys.argv[1:])
"""
LANGUAGE = ("LC_ALL", "LANG", "LANGUAGE", "LC_CTYPE")


def process_environments() -> list[Condition]:
    """All conditions of this file."""
    return [
        Condition("locale-c", "the locale C, with ASCII as the encoding of files", _ascii),
        *(
            Condition(f"locale-{name}", f"the locale {source} in {charmap}", _locale(source, charmap))
            for name, source, charmap in (
                ("german", "de_DE", "UTF-8"),
                ("turkish", "tr_TR", "UTF-8"),
                ("latin-1", "de_DE", "ISO-8859-1"),
            )
        ),
        *(
            Condition(f"zone-{name}", f"the time zone {zone}", _zone(zone))
            for name, zone in (
                ("kiritimati", "Pacific/Kiritimati"),
                ("newfoundland", "America/St_Johns"),
                ("utc", "UTC"),
            )
        ),
        Condition("umask-077", "umask 077", _umask("077")),
        Condition("umask-000", "umask 000", _umask("000")),
        Condition("read-only-home", "a home folder that nobody can write to", _read_only_home),
        Condition("no-network", "no network but loopback", _no_network),
        Condition("other-user", "a user who is not root and owns only his own copy of the tree", other_user),
        Condition("odd-path", "a tree and temporary files under a path with blanks and umlauts", _odd_path),
    ]


def _language(**environ: str) -> dict[str, str | None]:
    return {**dict.fromkeys(LANGUAGE), **environ}


def _ascii(folder: Path) -> Launcher:
    return Launcher(environ=_language(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"))


def _locale(source: str, charmap: str) -> Callable[[Path], Launcher]:
    def make(folder: Path) -> Launcher:
        name = f"{source}.{charmap}"
        # With --force: a warning is none of ours, and the test below says whether there is a locale.
        command = [find_program("localedef"), "--force", "-i", source, "-f", charmap, str(folder / name)]
        made = subprocess.run(command, capture_output=True, text=True)
        if not (folder / name / "LC_CTYPE").is_file():
            raise UnavailableError(f"localedef makes no {name}: {made.stderr.strip().splitlines()[-1:]}")
        return Launcher(environ=_language(LOCPATH=str(folder), LC_ALL=name, LANG=name))

    return make


def _zone(zone: str) -> Callable[[Path], Launcher]:
    def make(folder: Path) -> Launcher:
        if not (Path("/usr/share/zoneinfo") / zone).is_file():
            raise UnavailableError(f"this machine has no time zone {zone} (Debian's package tzdata)")
        return Launcher(environ={"TZ": zone})

    return make


def _umask(mask: str) -> Callable[[Path], Launcher]:
    return lambda folder: Launcher(("/bin/sh", "-c", f'umask {mask}; exec "$@"', "sh"))


def _read_only_home(folder: Path) -> Launcher:
    home = folder / "home"
    home.mkdir()
    home.chmod(0o555)
    environ: dict[str, str | None] = {
        "HOME": str(home),
        **{f"XDG_{name}_HOME": None for name in ("CACHE", "CONFIG", "DATA", "STATE")},
    }
    if os.geteuid() != 0:
        return Launcher(environ=environ)
    # Permissions do not bind root; a mount that is read-only does.
    bind = 'mount --bind "$HOME" "$HOME" && mount -o remount,bind,ro "$HOME" && exec "$@"'
    before = (find_program("unshare"), "--mount", "/bin/sh", "-c", bind, "sh")
    _try(before, environ)
    return Launcher(before, environ)


def _no_network(folder: Path) -> Launcher:
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    before = (find_program("unshare"), *user, "--net", python_executable(), "-c", LOOPBACK)
    _try(before)
    # A test that needs the network skips, also where everything else was promised to be there.
    return Launcher(before, {"SEMISEG_TESTS_NEED_ALL": None})


def _odd_path(folder: Path) -> Launcher:
    odd = folder / ODD
    temporary = odd / "temporäre Dateien"
    temporary.mkdir(parents=True)
    tree = copy_tree(odd / "Quell baum")
    return Launcher(environ={**copy_environ(tree), "TMPDIR": str(temporary)}, tree=tree)


def _try(before: tuple[str, ...], environ: Mapping[str, str | None] = MappingProxyType({})) -> None:
    """Whether this machine permits it, seen by doing it once.

    Raises:
        NotHereError: It does not.
    """
    code, words = Launcher(before, environ).run_captured("/bin/true")
    if code != 0:
        raise UnavailableError(f"{before[0]} may not do it here: {words}")
