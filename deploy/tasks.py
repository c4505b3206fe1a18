"""What can be done in a clone of semiseg, on every operating system: `python -m deploy.tasks TARGET`.

Needs a Python and nothing else: the targets make .venv and install into it what they need. `make TARGET` finds a Python
and does the same.
"""

import sys

# An older Python reads this file, too, and ends with a sentence: the syntax of the whole file is that of Python 3.6.
if sys.version_info < (3, 11):  # noqa: UP036
    if sys.argv[1:2] == ["fits"]:
        sys.stdout.write("Python {}.{} is older than 3.11\n".format(*sys.version_info))
    else:
        sys.stderr.write("semiseg needs Python 3.11 or newer, and this is {}.{}.\n".format(*sys.version_info))
    sys.exit(2)

import argparse
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from deploy import environment
from deploy.environment import PROGRAMS, PYTHON, ROOT, CommandRunner, TaskError

# The part of the suite that hosted CI runs on every system and Python: no system programs, no real data, no gateway.
QUICK = (
    "bundle",
    "cli",
    "dataset",
    "engines",
    "evaluation",
    "inference",
    "outputs",
    "packaging/test_workflows.py",
    "system",
    "volumes",
)
LEFTOVERS = (
    ".venv", "build", "dist", "demo-output", "semiseg.egg-info",
    ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache",
)  # fmt: skip
VARIABLES = """
  make's variables, and the same as options:
    PYTHON=      --python       Python with which .venv is made; by default make takes the newest that fits, and
                                the command takes the one that runs it
    RUNTIME=     --runtime      cpu (ONNX Runtime for CPUs) or gpu (its CUDA build); .venv holds one of them
    TORCH_INDEX= --torch-index  an extra package index to take torch from, for machines without a GPU: torch's
                                own index of CPU builds saves several gigabytes; empty by default
    OUT=         --out          where the demo writes
    JOBS=        --jobs         how many tests run at once; by default one more than there are cores, at most
                                four: many wait for servers
    ARGS=        -- ...         further arguments of the program that the target runs"""
VIEWER = ROOT / "server" / "http" / "page" / "niivue.js"


class Tasks:
    """One method a target; its docstring is what `help` prints."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.commands = CommandRunner(dry=options.dry_run)
        self.run = self.commands.run

    def help(self) -> None:
        """say what can be done"""
        print("python -m deploy.tasks TARGET [options] [-- arguments of the program that runs], or make TARGET\n")
        for name, task in TARGETS.items():
            print(f"  {name:<11}{task.__doc__}")
        print(VARIABLES)

    def demo(self) -> None:
        """make scans, train on 4 of them, export, serve, segment (a few minutes on 2 cores)"""
        self._need(tools=False)
        program = PROGRAMS / ("semiseg.exe" if os.name == "nt" else "semiseg")
        self.run(program, "demo", "--out", self.options.out, *self.options.arguments)

    def test(self) -> None:
        """run the tests, or their --quick part; some need SEMISEG_DATA or programs of tests/README.md"""
        folders = [f"tests/{name}" for name in QUICK] if self.options.quick else []
        self._pytest(*folders, *self.options.arguments)

    def test_all(self) -> None:
        """the same with those that take minutes (a crowd, hostile uploads, killed servers) and new random examples"""
        self._pytest(*self.options.arguments, "-m", "long or not long", "--hypothesis-profile=new")

    def conditions(self) -> None:
        """run the tests on other days, without optional programs, in other locales and on lesser processors"""
        self._need()
        self.run(PYTHON, "-m", "tests.conditions", *self.options.arguments)

    def check(self) -> None:
        """lint, formatting, types, import contracts, sentences, documents that are made from the code"""
        self._need()
        self.run(PYTHON, "-m", "ruff", "check", ".")
        self.run(PYTHON, "-m", "ruff", "format", "--check", ".")
        self.run(PYTHON, "-m", "mypy")
        self.run(PROGRAMS / ("lint-imports.exe" if os.name == "nt" else "lint-imports"))
        self.run(PYTHON, "-m", "deploy.prose")
        self.run(PYTHON, "-m", "docs.generators", "--check")

    def page(self) -> None:
        """bring the viewer of the server's page (with npm or pip); without it the page shows pictures"""
        lock = VIEWER.with_name("package-lock.json")
        if not VIEWER.exists() or VIEWER.stat().st_mtime < lock.stat().st_mtime:
            self.run(sys.executable, "-m", "deploy.viewer")

    def docs(self) -> None:
        """write the documents that are made from the code anew, and all as pages into build/docs"""
        self._need()
        self.run(PYTHON, "-m", "docs.generators")
        self.run(PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", "build/docs")
        print("build/docs/docs/index.html")

    def wheel(self) -> None:
        """build the wheel and the source distribution into dist, with the viewer of the page in them"""
        try:
            self.page()
        except subprocess.CalledProcessError:  # deploy.viewer has said why
            print("The page of this wheel will show pictures and no viewer.", file=sys.stderr)
        self._need()
        self.run(PYTHON, "-m", "build", "--outdir", "dist", ".")

    def audit(self) -> None:
        """ask PyPI's advisories about what the images are made of (needs the internet)"""
        # In an environment of its own, so that no environment of ours has to hold it. --strict: a package that cannot
        # be looked up is a failure and not a silence.
        self._need()
        folder = ROOT / "build" / "audit"
        programs = folder / PROGRAMS.name
        self.run(PYTHON, "-m", "venv", folder)
        tool = "pip-audit==2.10.1"
        self.run(programs / PYTHON.name, "-m", "pip", "install", "-qq", "--disable-pip-version-check", tool)
        for lock in sorted((ROOT / "deploy").glob("*.lock")):
            self.run(programs / "pip-audit", "--strict", "--disable-pip", "--require-hashes", "-r", lock)

    def install(self) -> None:
        """make .venv with everything in it, editable"""
        self._need()

    def clean(self) -> None:
        """remove .venv, caches, what was built and what the demo wrote"""
        if os.name == "nt" and Path(sys.prefix) == ROOT / ".venv":
            raise TaskError("Windows keeps a running program: run this with the Python that .venv was made with.")
        self.commands.remove(*(ROOT / name for name in LEFTOVERS))
        for folder in sorted(ROOT.rglob("__pycache__")):
            self.commands.remove(folder)

    def _need(self, tools: bool = True) -> None:
        environment.make_environment(self.commands, self.options.python)
        environment.install(
            self.commands, runtime=self.options.runtime, torch_index=self.options.torch_index, tools=tools
        )

    def _pytest(self, *arguments: str) -> None:
        self._need()
        # Files in their order: xdist would put those of few tests last, which are the slow ones.
        spread = ["-n", str(self.options.jobs), "--dist", "loadfile", "--no-loadscope-reorder", "--durations=15"]
        # One thread a test process: they already share the cores among them. Bytecode is kept whatever the shell says:
        # without it each of hundreds of processes compiles the code anew.
        variables = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
        self.run(PYTHON, "-m", "pytest", *spread, *arguments, variables=variables)


TARGETS: dict[str, Callable[[Tasks], None]] = {
    "demo": Tasks.demo, "test": Tasks.test, "test-all": Tasks.test_all, "conditions": Tasks.conditions,
    "check": Tasks.check, "page": Tasks.page, "docs": Tasks.docs, "wheel": Tasks.wheel, "audit": Tasks.audit,
    "install": Tasks.install, "clean": Tasks.clean, "help": Tasks.help,
}  # fmt: skip


def _default_jobs() -> int:
    """One test process more than there are cores, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(cores + 1, 4)


def parse(words: list[str]) -> argparse.Namespace:
    """The target and its options; what follows ``--`` belongs to the program that the target runs."""
    mark = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m deploy.tasks", description=Tasks.help.__doc__)
    parser.add_argument("target", choices=[*TARGETS, "fits"], nargs="?", default="help", metavar="TARGET")
    parser.add_argument("--python", metavar="PATH", help="Python with which .venv is made.")
    parser.add_argument(
        "--runtime", default=os.environ.get("RUNTIME") or "cpu", help="Build of ONNX Runtime: cpu or gpu."
    )
    parser.add_argument("--torch-index", default=os.environ.get("TORCH_INDEX", ""), metavar="URL")
    parser.add_argument("--out", default="demo-output", help="Folder for the results of the demo.")
    parser.add_argument("--jobs", default=_default_jobs(), help="Number of tests that run at once.")
    parser.add_argument(
        "--quick", action="store_true", help="Run only the tests that hold for every system and Python."
    )
    parser.add_argument("--dry-run", action="store_true", help="Print the commands and run none.")
    parser.add_argument("--named", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words[:mark])
    options.arguments = words[mark + 1 :]
    if options.target != "fits" and options.runtime not in environment.RUNTIMES:
        parser.error(f"RUNTIME={options.runtime} is unknown: use RUNTIME=cpu or RUNTIME=gpu")
    return options


def main(words: list[str]) -> int:
    """Run a target and return its exit code."""
    options = parse(words)
    if options.target == "fits":  # asked by make of each Python that it finds
        reason = environment.unsupported_reason(options.named)
        print(reason or "")
        return 2 if reason else 0
    try:
        TARGETS[options.target](Tasks(options))
    except TaskError as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
