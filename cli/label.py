"""`semiseg label`: the server to which annotators' programs connect, and commands for its labels and models."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.serving_options import (
    Host,
    IdleTimeout,
    KeyFile,
    MaxUploadMb,
    MinFreeMb,
    NoKeys,
    Origins,
    Port,
    Threads,
    Timeout,
    TrustedProxies,
    Waiting,
)
from semiseg.errors import InputError
from server.http.access_options import HOSTS_ENV, PREFIX_ENV, AccessOptions

if TYPE_CHECKING:
    from server.labelling.startup import LabelOptions

app = typer.Typer(
    help="Keep the labels that annotators draw in the browser, in 3D Slicer or by a program, offer drafts, and train.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def label(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder in Medical Segmentation Decathlon form; label-demo for --demo.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Begin with a small dataset of generated scans, which is made if necessary.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle that drafts labels until a better one is accepted; none by default.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the labels; DATA/labelling by default.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    labelled: Annotated[
        int | None, typer.Option(min=0, help="Number of labelled scans of the split to begin with; 0 for none.")
    ] = None,
    suggestions: Annotated[
        Path | None,
        typer.Option(help="Folder that `semiseg suggest` wrote, for the strategy `suggested`."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    threads: Threads = None,
    parallel: Annotated[int, typer.Option(min=1, help="Images segmented at the same time.")] = 1,
    waiting: Waiting = 16,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with the training settings and the acceptance criteria of a new model."),
    ] = None,
    training: Annotated[
        bool | None,
        typer.Option("--training/--no-training", help="Train; by default where the packages for it are installed."),
    ] = None,
    keys: KeyFile = None,
    no_keys: NoKeys = False,
    origin: Origins = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(envvar=HOSTS_ENV, help="Name by which the server may be called, such as labels.example.org."),
    ] = None,
    proxy: TrustedProxies = None,
    path_prefix: Annotated[
        str, typer.Option(envvar=PREFIX_ENV, help="Path below which a proxy shows the server: /labels.")
    ] = "",
    min_free_mb: MinFreeMb = 1024,
    max_upload_mb: MaxUploadMb = 2048,
    timeout: Timeout = 3600,
    idle_timeout: IdleTimeout = 60,
) -> None:
    """Serve until stopped, or administer labels and models with one of the commands below."""
    from server.http.limits import MEGABYTE, Limits
    from server.keys import ApiKeys
    from server.labelling.startup import LabelOptions, serve_labels

    access = AccessOptions(
        hosts=tuple(allowed_host or ()), origins=tuple(origin or ()), proxies=tuple(proxy or ()), prefix=path_prefix
    )
    if demo:
        from cli.label_demo import prepare_demo

        data = data or Path("label-demo")
        config = prepare_demo(data, config)
    if data is None:
        raise InputError("Name the dataset folder with --data, or try `semiseg label --demo`.")
    context.obj = options = LabelOptions(
        data=data,
        state=state,
        bundle=bundle,
        split=split,
        labelled=labelled,
        host=host,
        port=port,
        threads=threads,
        suggestions=suggestions,
        access=access,
        config=config,
        train=training,
        open_to_all=no_keys,
    )
    if context.invoked_subcommand is not None:
        return
    limits = Limits(
        upload_bytes=int(max_upload_mb * MEGABYTE),
        parallel=parallel,
        waiting=waiting,
        disk_bytes=int(min_free_mb * MEGABYTE),
        idle_seconds=idle_timeout,
        request_seconds=timeout,
    )
    serve_labels(options, limits, ApiKeys(keys), announce=lambda sentence: typer.echo(f"semiseg {sentence}"))


@app.command()
def apply(context: typer.Context) -> None:
    """Write the newest final labels into the dataset's labelsTr; replaced labels are kept in the history."""
    from server.labelling.dataset_labels import apply_labels
    from server.labelling.startup import open_datastore

    with open_datastore(_options(context)) as store:
        changed = apply_labels(store, _user(), typer.echo)
    typer.echo(f"{len(changed)} label(s) written.")


@app.command()
def history(
    context: typer.Context,
    image: Annotated[str | None, typer.Argument(help="Id of an image; all images by default.")] = None,
) -> None:
    """List every version of every label with its user, time and model, and check the files against their SHA-256."""
    from server.labelling.startup import open_datastore

    with open_datastore(_options(context)) as store:
        for name in [image] if image is not None else store.store.images():
            for record in store.store.history(name):
                made = f", model {record.model}" if record.model else ""
                about = f" of version {record.about}" if record.about is not None else ""
                typer.echo(
                    f"{name} {record.version} {record.kind}{about} {record.tag} {record.when} {record.who}{made}"
                )
        damaged = store.store.check()
    if damaged:
        raise InputError(" ".join(damaged))


@app.command()
def models(context: typer.Context) -> None:
    """List the changes of the model in use with the training run, the person who accepted it, and the reason."""
    from server.labelling.model_history import ModelHistory

    for entry in ModelHistory(_options(context).folder).entries():
        typer.echo(f"{entry.number} {entry.bundle or '(the bundle of --bundle)'} {entry.when} {entry.who}: {entry.why}")


@app.command()
def rollback(
    context: typer.Context,
    to: Annotated[
        int | None, typer.Option(min=0, help="Change of the model to go back to; 0 for the one before all changes.")
    ] = None,
) -> None:
    """Return to the previous model; a running server uses it from its next request on."""
    from server.labelling.model_history import ModelHistory

    entry = ModelHistory(_options(context).folder).roll_back(_user(), to)
    typer.echo(f"{entry.why} In use is {entry.bundle or 'the bundle that --bundle names, if any'}.")


@app.command(name="run-round", hidden=True)
def run_round(context: typer.Context, name: Annotated[str, typer.Argument(help="Name of the round.")]) -> None:
    """Run a round of training that the server has prepared; the server starts this command."""
    from server.labelling.training_round import TRAINING
    from server.labelling.training_round import run_round as work

    work(_options(context).folder / TRAINING / name)


def _user() -> str:
    """The name of the user of this process; a container may have none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unnamed"


def _options(context: typer.Context) -> LabelOptions:
    options: LabelOptions = context.obj
    return options
