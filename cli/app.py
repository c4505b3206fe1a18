"""`semiseg`: the command line. Each command is one file, imported only when it is called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from semiseg.errors import SemisegError
from semiseg.renamed_keys import RenamedKeyWarning
from semiseg.system.terminal import replace_unencodable_characters

# command -> one line of help. `semiseg --help` is made from this table alone, so that it needs neither torch nor a web
# server; the file cli/<command>.py is imported when its command is called. Its `app` is a typer.Typer.
COMMANDS = {
    "demo": "Make scans, train, export, serve and segment: every step in a few minutes.",
    "inspect": "Report the content of a folder or file, series by series, and how it would be read.",
    "collect": "Make a dataset of DICOM series and their outlines, or of an nnU-Net folder.",
    "data": "Check a dataset and split it before training.",
    "train": "Train on a few labelled and many unlabelled scans.",
    "compare": "Compare methods, numbers of labels and seeds on one split with one budget: a table and a plot.",
    "suggest": "Choose the scans to outline first, and the scans to outline next.",
    "label": "Serve annotators in the browser or in 3D Slicer: keep their labels, offer drafts, and train.",
    "export": "Turn a training run into a bundle: one small network as ONNX, verified against the run.",
    "predict": "Segment one scan with a bundle, a run, or a server.",
    "evaluate": "Compute Dice, Jaccard, HD95 and ASSD of a bundle or run on a dataset.",
    "serve": "Segment scans over HTTP, with a page to look at them.",
    "gateway": "Receive studies from scanners and PACS, have them segmented, and send the results back.",
    "bento": "Build a Bento with a bundle inside, for BentoML's own tools.",
    "bench": "Measure time and memory of inference here, beside MONAI's and nnU-Net's sliding windows.",
    "doctor": "Report what this machine can run, and check a bundle.",
}
_SHOWN_WARNINGS: set[str] = set()
GROUPS = ("data", "bench", "gateway", "label")  # commands with subcommands of their own

# Which extra of pyproject.toml brings a module that a command may find missing.
EXTRAS = {
    "train": (
        "torch",
        "monai",
        "SimpleITK",
        "accelerate",
        "transformers",
        "peft",
        "matplotlib",
        "tensorboard",
        "safetensors",
    ),
    "export": ("onnx", "onnxscript"),
    "serve": ("bentoml", "onnxruntime"),
    "gateway": (
        "pynetdicom",
        "dicomweb_client",
        "requests",
        "starlette",
        "uvicorn",
        "httpx",
        "prometheus_client",
        "websocket",
    ),
    "ray": ("ray",),
    "trt": ("tensorrt",),
    "serve`, `train` or `export": ("scipy", "nibabel", "highdicom", "PIL"),
}


def build(command: str | None) -> typer.Typer:
    """The program with ``command`` imported, and every other command as its line of help."""
    program = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Train on a few labelled scans, export one small 3D network, serve it. RESEARCH USE ONLY.",
    )
    program.callback()(_options)
    for name, help_line in COMMANDS.items():
        if name != command:
            program.command(name, help=help_line)(_not_called)
            continue
        app: typer.Typer = importlib.import_module(f"cli.{name}").app
        if name in GROUPS:
            program.add_typer(app, name=name, help=help_line)
        else:
            (info,) = app.registered_commands
            info.name = name
            program.registered_commands.append(info)
    return program


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error ends as a sentence on stderr and an exit code: 2 for wrong use, 1 for a failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    command = next((a for a in arguments if not a.startswith("-")), None)
    replace_unencodable_characters()
    if not debug:
        _keep_libraries_quiet()
    try:
        build(command)(args=arguments, prog_name="semiseg")
    except SemisegError as error:
        if debug:
            raise
        sys.stderr.write(f"semiseg: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has closed the pipe (`semiseg inspect FOLDER | head`); Python must not try to flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"semiseg: {where}{error.strerror or error}. --debug shows where this happened.\n")
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = extra_providing(error.name)
        if debug or extra is None:
            raise
        sys.stderr.write(
            f"semiseg: this command needs {error.name}, which is not installed; install the `{extra}` extra.\n"
        )
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = str(error).strip().partition("\n")[0]
        sys.stderr.write(
            f"semiseg: this should not have happened ({type(error).__name__} in {Path(last.filename).name}, line "
            f"{last.lineno}{f': {told}' if told else ''}). Please report it with what --debug shows.\n"
        )
        sys.exit(1)


def _keep_libraries_quiet() -> None:
    """Hide the warnings of libraries: they are for programmers, and may quote a patient.

    Former names in users' files are still reported, in a line each. ``-W``, ``PYTHONWARNINGS`` and ``--debug`` show all
    warnings.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RenamedKeyWarning)
        warnings.showwarning = _show_renamed_key
    logging.lastResort = logging.NullHandler()  # None would print that there is no handler


def _show_renamed_key(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Print a warning as a line for the user, once."""
    line = f"semiseg: {message}\n"
    if line not in _SHOWN_WARNINGS:
        _SHOWN_WARNINGS.add(line)
        sys.stderr.write(line)


def extra_providing(module: str | None) -> str | None:
    """The extra of pyproject.toml that brings ``module``."""
    top = (module or "").split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semiseg {metadata.version('semiseg')}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    # The options are read by main() and _show_version; typer wants a function that carries them.
    del debug, version


def _not_called() -> None:
    # Stands for a command that was not called, so that --help can list it.
    return


if __name__ == "__main__":
    main()
