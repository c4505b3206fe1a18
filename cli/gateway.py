"""`semiseg gateway`: run the gateway to the PACS, and administer it."""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semiseg.errors import InputError

if TYPE_CHECKING:
    from server.jobs.queue import Queue

app = typer.Typer(
    help="Take studies from scanners and PACS, have them segmented, and send the results back.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
CONFIG_VARIABLE = "SEMISEG_GATEWAY_CONFIG"
STUDY_HELP = "Name, Study Instance UID, accession number or patient ID of a study; - reads it from the standard input."


@app.callback(invoke_without_command=True)
def gateway(
    context: typer.Context,
    config: Annotated[Path, typer.Option(envvar=CONFIG_VARIABLE, help="The configuration, gateway.yaml.")],
) -> None:
    """Run the gateway until it is stopped, or administer it with one of the commands below."""
    if platform.system() != "Linux":
        raise InputError(
            f"`semiseg gateway` runs on Linux, and this is {platform.system()}: several processes use its queue and "
            "need a clock that all of them share. Run it in a container or, on Windows, in WSL."
        )
    from server.gateway.config import read_config

    context.obj = read_config(config)
    if context.invoked_subcommand is None:
        from server.gateway.gateway import run
        from server.logs import configure_logging

        configure_logging()
        run(context.obj, lambda line: typer.echo(line))


@app.command()
def check(context: typer.Context) -> None:
    """Check that every server and destination answers and accepts what will be sent; exit code 1 if one does not."""
    from server.gateway.connectivity_check import check_peers

    failed = False
    for found in check_peers(context.obj):
        typer.echo(f"{found.subject}: {found.error or found.success}")
        failed = failed or bool(found.error)
    if failed:
        raise typer.Exit(1)


@app.command()
def explain(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM files, with one or more studies in it.")],
    sender: Annotated[list[str] | None, typer.Option("--from", help="AE title that they would come from.")] = None,
) -> None:
    """Report what would happen to these files, series by series, and why; nothing is sent."""
    from semiseg.volumes.dicom_index import index_files
    from server.gateway.routing import apply_rules, route_series

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    objects, left_out = index_files(sorted(path for path in folder.rglob("*") if path.is_file()))
    if not objects:
        raise InputError(f"{folder} holds no DICOM file.")
    pairs = Counter(uid for uid, _ in {(one.series, one.study) for one in objects})
    for study in dict.fromkeys(one.study for one in objects):
        typer.echo(f"Study {study}")
        mine = [one for one in objects if one.study == study]
        decisions = apply_rules(mine, sender or [], context.obj.rules, lambda series: pairs[series] > 1)
        for uid in dict.fromkeys(one.series.uid for one in decisions):
            told = [one for one in decisions if one.series.uid == uid]
            series = told[0].series
            typer.echo(f"  {series.name}: {len(series.objects)} files")
            for one in told:
                typer.echo(f"    {'+' if one.fits else '-'} rule {one.rule}: {one.reason}")
        for order in route_series(decisions, context.obj):
            to = "; ".join(f"{', '.join(forms)} to {name}" for name, forms in order.to.items())
            typer.echo(f"  => {len(order.files)} files by rule {order.rule.name}: {to}")
    if left_out:
        typer.echo(f"{len(left_out)} file(s) left out, such as: {left_out[0].sentence}")


@app.command()
def status(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False
) -> None:
    """List problems, studies, servers, destinations, and the numbers of jobs."""
    from server.gateway.status_document import read_live_status, status_document
    from server.gateway.status_text import status_lines

    queue, state = _state(context)
    told = status_document(queue, state, read_live_status(state))
    typer.echo(json.dumps(told) if as_json else "\n".join(status_lines(told)))


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A job, a series' name in the audit log, or a study.")],
) -> None:
    """Show a job, or a study with its instances, decisions, results and jobs."""
    from server.gateway.status_document import read_live_status, status_document
    from server.gateway.status_text import decision_lines, job_line, job_text, study_lines
    from server.gateway.study_search import find_studies

    queue, state = _state(context)
    name = _read_argument(name)
    if name and (job := queue.get(name)):
        typer.echo(job_text(job))
        return
    studies = find_studies(queue, state, name)
    if not studies:
        raise InputError(
            "There is no such job and no such study here. Type the name of a job or study, a Study Instance UID, an "
            "accession number or a patient ID."
        )
    listed = {one["study"]: one for one in status_document(queue, state, read_live_status(state))["study_list"]}
    for study in studies:
        jobs = queue.jobs(owner=study)
        for one in jobs:  # before the rest, as earlier versions printed nothing else
            typer.echo(job_line(one))
        for line in [*study_lines(listed[study]), *decision_lines(jobs)] if study in listed else [f"Study {study}"]:
            typer.echo(line)


@app.command()
def retry(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Jobs that failed or were cancelled.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
) -> None:
    """Retry dead letters."""
    from server.gateway.job_kinds import DELIVER
    from server.gateway.job_payloads import payload_of
    from server.gateway.reprocessing import belongs_to_ended_workitem

    queue, state = _state(context)
    wanted = [job.id for job in queue.jobs("failed")] if every else names or []
    if not wanted and not every:
        raise InputError("Name jobs, or say --all.")
    for name in wanted:
        job = queue.get(name)
        if job is not None and (every or job.queue != DELIVER) and belongs_to_ended_workitem(state, job):
            if not every:
                raise InputError(f"{name} worked on a workitem that has ended; have the manager schedule it anew.")
            typer.echo(f"{name}: left as it is, since the workitem it worked on has ended")
            continue
        if job is None or not queue.retry(name, payload_of(job).without_failures().to_json()):
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
def complete(context: typer.Context, studies: Annotated[list[str], typer.Argument(help=STUDY_HELP)]) -> None:
    """Have studies segmented as they are: those that are held because something is missing or came late."""
    from server.gateway.instance_store import STUDIES_FOLDER, accept_incomplete
    from server.gateway.job_kinds import STUDY as DECIDING
    from server.gateway.job_payloads import StudyPayload
    from server.gateway.reprocessing import require_no_workitem
    from server.gateway.study_search import find_study

    queue, state = _state(context)
    for name in [find_study(queue, state, _read_argument(one)) for one in studies]:
        folder = state / STUDIES_FOLDER / name
        if not any(folder.glob("*.dcm")):
            raise InputError(f"There is no instance of study {name} here.")
        require_no_workitem(state, name)
        accept_incomplete(folder)
        order = StudyPayload(study=name, why="an operator decided so", decided=True)
        typer.echo(f"{name}: is taken as it is (job {queue.put(DECIDING, order.to_json(), owner=name).id})")


@app.command()
def again(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A study, a series, or the job that made or delivered a result.")],
    deliver: Annotated[bool, typer.Option("--deliver", help="Send its results to their archives once more.")] = False,
    segment: Annotated[bool, typer.Option("--segment", help="Have it segmented and delivered once more.")] = False,
    decide: Annotated[bool, typer.Option("--decide", help="Apply today's rules; what is done stays.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the study from a polled archive once more.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="The archive's name in `polls`, for --fetch.")] = None,
) -> None:
    """Repeat a step: by default deliver a delivery, segment a series, or route a study again."""
    from server.gateway.reprocessing import ReprocessStep, refetch, reprocess

    queue, state = _state(context)
    if deliver + segment + decide + fetch > 1 or (source and not fetch):
        raise InputError("Say one of --deliver, --segment, --decide and --fetch; --from belongs to --fetch.")
    if fetch:
        jobs, left = [refetch(queue, state, context.obj.polls, _read_argument(name), source)], list[str]()
    else:
        what: ReprocessStep | None = "deliver" if deliver else "segment" if segment else "decide" if decide else None
        jobs, left = reprocess(queue, state, _read_argument(name), what)
    for job in jobs:
        typer.echo(f"{job.id}: {job.queue} of study {job.owner} waits again")
    for sentence in left:
        typer.echo(f"left as it is: {sentence}")


@app.command()
def conflict(
    context: typer.Context,
    study: Annotated[str, typer.Argument(help=STUDY_HELP)],
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep the instance that came first and delete the others.")
    ] = False,
    take_new: Annotated[
        bool, typer.Option("--take-new", help="Keep the instance that came last and delete the others.")
    ] = False,
) -> None:
    """Resolve a study that came with two contents or two patients; without an option, show the differences."""
    from server.gateway.conflicts import ConflictChoice, count_changes, find_conflict
    from server.gateway.instance_store import STUDIES_FOLDER
    from server.gateway.job_kinds import STUDY as DECIDING
    from server.gateway.job_payloads import StudyPayload
    from server.gateway.study_search import find_study
    from server.gateway.uid_hasher import KEY_FILE, UidHasher

    queue, state = _state(context)
    if keep_old and take_new:
        raise InputError("Say --keep-old or --take-new, one of the two.")
    name = find_study(queue, state, _read_argument(study))
    found = find_conflict(state / STUDIES_FOLDER / name)
    if found is None:
        raise InputError(f"There is nothing to decide about study {name}.")
    hasher = UidHasher(state / KEY_FILE)
    if not keep_old and not take_new:
        typer.echo(f"{name}: {found.describe()}")
        options: dict[str, ConflictChoice] = {"--keep-old": "old", "--take-new": "new"}
        for option, choice in options.items():
            replaced, deleted = count_changes(state / STUDIES_FOLDER / name, hasher, choice)
            typer.echo(f"  {option}: replaces {replaced} and deletes {deleted} instance(s) of another patient")
        typer.echo("  `semiseg gateway complete STUDY` has what came first segmented, and keeps the rest undecided")
        return
    running = [job for job in queue.jobs("running", owner=name) if job.queue != "fetch"]
    if running:
        raise InputError(
            f"Study {name} is being worked on (job {running[0].id}); wait for the end, or cancel that job."
        )
    order = StudyPayload(study=name, why="an operator decided", conflict="new" if take_new else "old")
    job = queue.put(DECIDING, order.to_json(), owner=name)
    typer.echo(f"{name}: what came {'last' if take_new else 'first'} counts (job {job.id})")


@app.command()
def purge(
    context: typer.Context,
    studies: Annotated[list[str], typer.Argument(help=STUDY_HELP)],
    for_good: Annotated[
        bool, typer.Option("--for-good", help="Do not fetch it again from an archive that is polled.")
    ] = False,
) -> None:
    """Delete studies with all that was made of them; a gateway that runs does it at once, another when it starts.

    A study that a polled archive lists is new afterwards and is fetched again, unless --for-good is given.
    """
    from server.gateway.job_kinds import PURGE
    from server.gateway.job_payloads import PurgePayload
    from server.gateway.study_search import find_study

    queue, state = _state(context)
    for name in [find_study(queue, state, _read_argument(one)) for one in studies]:
        order = PurgePayload(study=name, why="an operator asked for it", fetch_again=not for_good)
        job = queue.put(PURGE, order.to_json(), owner=name)
        typer.echo(f"{name}: will be deleted (job {job.id})")


@app.command()
def backup(context: typer.Context, folder: Annotated[Path, typer.Argument(help="A folder to make.")]) -> None:
    """Back up the gateway's state, also while it runs; a gateway whose `state` is the copy continues from there."""
    from server.gateway.backup import back_up

    queue, state = _state(context)
    count = back_up(queue, state, folder)
    typer.echo(f"{folder}: the queue, the names and {count} file(s) of studies and results")


def _state(context: typer.Context) -> tuple[Queue, Path]:
    from server.gateway.gateway import open_state

    return open_state(context.obj)


def _read_argument(name: str) -> str:
    """What was typed; "-" stands for a line of the standard input, which no list of commands or processes shows."""
    return sys.stdin.readline().strip() if name == "-" else name.strip()
