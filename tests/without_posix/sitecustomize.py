"""An interpreter in which the code of this repository finds none of the names that only POSIX or Linux has.

On the path (PYTHONPATH) of a process and of all that it starts, Python imports this file first, and then:

- what the table `banned-api` of pyproject.toml lists, the lint's own list, is not there for the packages of this
  repository and for their tests: importing such a module is a ModuleNotFoundError, such an attribute an AttributeError.
  Python's own library and other packages, which have ways of their own on each system, still find them;
- /proc, /sys and /dev cannot be opened by this code, and no folder can;
- multiprocessing starts its processes anew (``spawn``);
- as on Windows, a file that this process has open or mapped into memory can neither be deleted, renamed nor replaced,
  and no folder with such a file in it be renamed; nothing replaces a folder.

What has a reason to be exempt from the lint is exempt here: the PACS service, and the tests of it and of packaging.
"""

from __future__ import annotations

import builtins
import errno
import importlib.machinery
import importlib.util
import os
import sys
import tomllib
from types import FrameType

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OURS = tuple(os.path.join(ROOT, name) + os.sep for name in ("semiseg", "trainer", "exporter", "server", "cli", "tests"))
EXEMPT = tuple(
    os.path.join(ROOT, *name.split("/"))
    for name in (
        "server/gateway/",
        "tests/gateway/",
        "tests/packaging/",
        "tests/releases/",
        "tests/conditions/",
        "tests/without_posix/",
    )
)
STANDARD = (os.path.dirname(os.__file__) + os.sep, "<frozen", "<string>")
IN_USE = "The process cannot access the file because it is being used by another process"
ACCESS_DENIED, SHARING_VIOLATION = 5, 32


def is_ours(file: str | None) -> bool:
    """Whether a file of code is of this repository and not exempt."""
    return file is not None and file.startswith(OURS) and not file.startswith(EXEMPT)


def is_standard(file: str) -> bool:
    """Whether a file of code is of Python's own library, in whose folder others may be installed."""
    return file.startswith(STANDARD) and "-packages" + os.sep not in file


def banned() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The modules, and the attributes by module, that the lint forbids."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
        names = tomllib.load(stream)["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    attributes: dict[str, set[str]] = {}
    for name in names:
        module, dot, attribute = name.rpartition(".")
        if dot:
            attributes.setdefault(module, set()).add(attribute)
    return frozenset(n for n in names if "." not in n), {m: frozenset(a) for m, a in attributes.items()}


def hide_modules(names: frozenset[str]) -> None:
    """Let our code import none of these."""
    real = builtins.__import__

    def importing(name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002 - the names of __import__
        if level == 0 and name.partition(".")[0] in names and is_ours((globals or {}).get("__file__")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = importing


def hide_attributes(module_name: str, names: frozenset[str]) -> None:
    """Let our code find none of these attributes of a module: they leave its table, and others are given them here."""
    module = importlib.import_module(module_name)
    table = vars(module)
    kept = {name: table.pop(name) for name in names if name in table}

    def found(name: str) -> object:
        if name in kept and not is_ours(sys._getframe(1).f_code.co_filename):
            return kept[name]
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    module.__getattr__ = found


def is_done_by_us(frame: FrameType | None) -> bool:
    """Whether it is our code that runs, by itself or through Python's own library."""
    while frame is not None and is_standard(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and is_ours(frame.f_code.co_filename)


def in_use(path: str) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    real = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target == real or target.startswith(real + os.sep):
            return True
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        return any(
            target == real or target.startswith(real + os.sep)
            for target in (line.rstrip("\n")[73:] for line in stream)
            if target.startswith(os.sep)
        )


def refuse_what_windows_refuses(event: str, arguments: tuple) -> None:
    """Hear of every file that is opened, renamed or deleted, before it is."""
    if event not in ("open", "os.remove", "os.rename") or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    caller = sys._getframe().f_back  # None while Python reads the program that it is to run
    if caller is None or caller.f_code.co_filename == __file__ or not is_done_by_us(caller):
        return
    if event == "open":
        path = os.fsdecode(arguments[0])
        if path.startswith(("/proc/", "/sys/", "/dev/")) and path != os.devnull:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if is_ours(caller.f_code.co_filename) and os.path.isdir(path):  # Python's library has its own ways
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return
    if event == "os.rename" and os.path.isdir(arguments[1]):
        error = PermissionError(errno.EACCES, "Access is denied", arguments[1])
        error.winerror = ACCESS_DENIED
        raise error
    half = len(arguments) // 2  # paths, and the folders that they start from
    for name, folder in zip(arguments[:half], arguments[half:], strict=True):
        one = os.path.join(f"/proc/self/fd/{folder}" if folder != -1 else "", os.fsdecode(name))
        if os.path.exists(one) and not os.path.islink(one) and in_use(one):
            error = PermissionError(errno.EACCES, IN_USE, one)
            error.winerror = SHARING_VIOLATION
            raise error


def import_the_next_sitecustomize() -> None:
    """The machine may have one of its own."""
    elsewhere = [folder for folder in sys.path if os.path.abspath(folder or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main() -> None:
    """Make this interpreter one."""
    import multiprocessing

    modules, attributes = banned()
    hide_modules(modules)
    for module_name, names in attributes.items():
        hide_attributes(module_name, names)
    multiprocessing.set_start_method("spawn")
    import_the_next_sitecustomize()
    sys.addaudithook(refuse_what_windows_refuses)


main()
