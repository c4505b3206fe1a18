"""`semiseg gateway`: the PACS side, and the commands that look after it."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semiseg.errors import InputError

if TYPE_CHECKING:
    from server.jobs.queue import Job, Queue

app = typer.Typer(
    help="Take studies from scanners and PACS, have them segmented, and send the results back.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
VARIABLE = "SEMISEG_GATEWAY_CONFIG"


@app.callback(invoke_without_command=True)
def gateway(
    context: typer.Context,
    config: Annotated[Path, typer.Option(envvar=VARIABLE, help="The configuration, gateway.yaml.")],
) -> None:
    """Run until stopped; or, with one of the commands below, look after a gateway that runs."""
    if platform.system() != "Linux":
        raise InputError(
            f"`semiseg gateway` runs on Linux, and this is {platform.system()}: several processes use its queue and "
            "need a clock that all of them share. Run it in a container or, on Windows, in WSL."
        )
    from server.gateway.config import read_config

    context.obj = read_config(config)
    if context.invoked_subcommand is None:
        from server.gateway.gateway import run
        from server.logs import keep_logs

        keep_logs()
        run(context.obj, lambda line: typer.echo(line))


@app.command()
def check(context: typer.Context) -> None:
    """Ask whether every server and destination is there and takes what will be sent; exit code 1 when one does not."""
    from server.gateway.check import findings

    failed = False
    for found in findings(context.obj):
        typer.echo(f"{found.what}: {found.trouble or found.good}")
        failed = failed or bool(found.trouble)
    if failed:
        raise typer.Exit(1)


@app.command()
def explain(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM files, with one or more studies in it.")],
    sender: Annotated[list[str] | None, typer.Option("--from", help="AE title that they would come from.")] = None,
) -> None:
    """What would happen to these files, series by series, and why; nothing is sent."""
    from semiseg.volumes.dicom_index import look_at
    from server.gateway.routing import decide, orders

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    objects, left_out = look_at(sorted(path for path in folder.rglob("*") if path.is_file()))
    if not objects:
        raise InputError(f"{folder} holds no DICOM file.")
    pairs = Counter(uid for uid, _ in {(one.series, one.study) for one in objects})
    for study in dict.fromkeys(one.study for one in objects):
        typer.echo(f"Study {study}")
        mine = [one for one in objects if one.study == study]
        decisions = decide(mine, sender or [], context.obj.rules, lambda series: pairs[series] > 1)
        for uid in dict.fromkeys(one.series.uid for one in decisions):
            told = [one for one in decisions if one.series.uid == uid]
            series = told[0].series
            typer.echo(f"  {series.name}: {len(series.objects)} files")
            for one in told:
                typer.echo(f"    {'+' if one.fits else '-'} rule {one.rule}: {one.reason}")
        for order in orders(decisions, context.obj):
            to = "; ".join(f"{', '.join(forms)} to {name}" for name, forms in order.to.items())
            typer.echo(f"  => {len(order.files)} files by rule {order.rule.name}: {to}")
    if left_out:
        typer.echo(f"{len(left_out)} file(s) left out, such as: {left_out[0].sentence}")


@app.command()
def status(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False
) -> None:
    """How many jobs there are of each kind, and the dead letters."""
    from server.gateway.overview import jobs_of
    from server.gateway.ups_claims import described, line_of, read_claims

    queue, state = _state(context)
    told = jobs_of(queue) | {"workitems": [described(claim) for claim in read_claims(state)]}
    if as_json:
        typer.echo(json.dumps(told))
        return
    for kind, states in told["jobs"].items():
        typer.echo(f"{kind:8} " + "  ".join(f"{state} {count}" for state, count in states.items()))
    for what, found in (("held up by others", told["held_up"]), ("dead letter(s)", told["dead_letters"])):
        typer.echo(f"{len(found)} {what}" + (":" if found else ""))
        for one in found:
            typer.echo(f"  {one['id']}  {one['kind']:8} study {one['study']}  {one['error']}")
    if claims := read_claims(state):
        typer.echo(f"{len(claims)} workitem(s) claimed:")
        for claim in claims:
            typer.echo(f"  {line_of(claim)}")


@app.command()
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="A job or a study.")]) -> None:
    """All there is to know of a job, or of a study's jobs."""
    queue, _ = _state(context)
    job = queue.get(name)
    jobs = [job] if job else queue.jobs(owner=name)
    if not jobs or not name:
        raise InputError(f"There is no job and no study {name}.")
    for one in jobs:
        typer.echo(_told(one, whole=job is not None))


@app.command()
def retry(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Jobs that failed or were cancelled.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
) -> None:
    """Let dead letters be tried once more."""
    from server.gateway.work import tidied

    queue, _ = _state(context)
    wanted = [job.id for job in queue.jobs("failed")] if every else names or []
    if not wanted and not every:
        raise InputError("Name jobs, or say --all.")
    for name in wanted:
        job = queue.get(name)
        if job is None or not queue.retry(name, tidied(job.payload)):
            raise InputError(f"{name} is no job that has failed or was cancelled.")
        typer.echo(f"{name}: waits again")


@app.command()
def cancel(context: typer.Context, names: Annotated[list[str], typer.Argument(help="Jobs.")]) -> None:
    """Stop jobs that have not ended."""
    queue, _ = _state(context)
    for name in names:
        job = queue.stop(name)
        if job is None:
            raise InputError(f"There is no job {name}.")
        typer.echo(f"{name}: {'stopping' if job.state == 'running' else job.state}")


@app.command()
def complete(context: typer.Context, studies: Annotated[list[str], typer.Argument(help="Studies, by name.")]) -> None:
    """Have studies segmented as they are: those that are held because something is missing or came late."""
    from server.gateway.inbox import STUDIES, accept_as_it_is
    from server.gateway.work import STUDY

    queue, state = _state(context)
    for name in studies:
        folder = state / STUDIES / name
        if len(name) != 32 or not folder.is_dir() or not any(folder.glob("*.dcm")):
            raise InputError(f"There is no study {name} here, or nothing of it.")
        accept_as_it_is(folder)
        payload = {"study": name, "why": "an operator decided so", "decided": True}
        typer.echo(f"{name}: is taken as it is (job {queue.put(STUDY, payload, owner=name).id})")


@app.command()
def purge(context: typer.Context, studies: Annotated[list[str], typer.Argument(help="Studies, by name.")]) -> None:
    """Delete studies with all that was made of them; a gateway that runs does it at once, another when it starts."""
    from server.gateway.work import PURGE

    queue, state = _state(context)
    for name in studies:
        if not (queue.jobs(owner=name) or (len(name) == 32 and (state / "studies" / name).is_dir())):
            raise InputError(f"There is no study {name}.")
        job = queue.put(PURGE, {"study": name, "why": "an operator asked for it"}, owner=name)
        typer.echo(f"{name}: will be deleted (job {job.id})")


@app.command()
def backup(context: typer.Context, folder: Annotated[Path, typer.Argument(help="A folder to make.")]) -> None:
    """Copy all that the gateway knows and keeps, while it runs or not; a gateway whose `state` is the copy goes on."""
    from server.gateway.backup import back_up

    queue, state = _state(context)
    count = back_up(queue, state, folder)
    typer.echo(f"{folder}: the queue, the names and {count} file(s) of studies and results")


def _state(context: typer.Context) -> tuple[Queue, Path]:
    from server.gateway.gateway import state_of

    return state_of(context.obj)


def _told(job: Job, *, whole: bool) -> str:
    from server.gateway.overview import described

    one: dict[str, Any] = described(job)
    if not whole:
        error = f"  {one['error']}" if one["error"] else ""
        return f"{_day(job.created)}  {job.id}  {job.queue:8} {job.state:9} {one['rule']} {', '.join(one['to'])}{error}"
    one["created"], one["changed"] = _day(job.created), _day(job.changed)
    one["result"] = job.result
    return json.dumps(one, indent=2)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
