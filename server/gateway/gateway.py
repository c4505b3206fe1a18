"""The process: doors, studies, workers, and the order in which they start and stop."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.system.file_locks import held
from server.browser_guard import BrowserGuard
from server.forwarded import Proxies
from server.gateway import standing
from server.gateway.audit import Audit
from server.gateway.config import GatewayConfig, Poll, WebDoor
from server.gateway.context import GatewayContext
from server.gateway.deciding import Deciding
from server.gateway.delivery import Commitments
from server.gateway.inbox import Inbox
from server.gateway.kinds import DELIVER, FETCH, PURGE, SEGMENT, STUDY, WORKITEM
from server.gateway.names import KEY, Names
from server.gateway.node import Node
from server.gateway.overview import Overview
from server.gateway.polling import Polling
from server.gateway.rejections import Rejections
from server.gateway.replicas import Capacity, Replicas
from server.gateway.retention import Retention
from server.gateway.retrying import Retrying
from server.gateway.segmenting import Segmenting
from server.gateway.studies import Studies
from server.gateway.study_troubles import StudyTroubles
from server.gateway.ups import Worklists
from server.gateway.ups_claims import is_of_workitem
from server.gateway.work import Work
from server.jobs.lanes import Lane, lanes_of
from server.jobs.queue import Job, Queue, State
from server.jobs.turns import Turns
from server.jobs.worker import Task, Worker
from server.keys import VARIABLE, Keys
from server.listening import bound, is_loopback, url_of, uvicorn_of

# At most, of each lane: each polled archive, each model and each destination has workers of its own, so that none that
# hangs holds up another. A destination says how many of its own there are (`parallel`).
THREADS = {FETCH: 1, WORKITEM: 2, STUDY: 2, SEGMENT: 16, PURGE: 1}
# What is given up after so many seconds when the gateway stops; 20 s in all, which supervisors wait for.
STOP_SECONDS, LOOP_SECONDS, POLL_SECONDS, WEB_SECONDS = 6.0, 1.5, 1.0, 4.0
POLL_QUIET = 60.0  # seconds, where quiet completes no study
AFTER_FAILURE = 1.0
WAKE_SECONDS = 0.5
DATABASE, AUDIT = "jobs.sqlite3", "audit.jsonl"

_LOG = logging.getLogger("semiseg.gateway")
Announce = Callable[[str], None]


class Gateway:
    """Everything that runs; a context manager that stops it."""

    def __init__(self, config: GatewayConfig, announce: Announce = lambda _: None) -> None:
        """Start.

        Args:
            config: The configuration.
            announce: Function that is told, line by line, what listens, what is asked, and that all is ready.

        Raises:
            InputError, QueueError: the state folder, a port, a key or a certificate cannot be used.
        """
        self._config = config
        self._stop = threading.Event()
        self._workers: dict[str, list[Worker]] = {}
        self._pollings: list[Polling] = []
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._start(stack, announce)
            self._stack = stack.pop_all()

    def _start(self, stack: contextlib.ExitStack, announce: Announce) -> None:
        config, state = self._config, self._config.state
        os.umask(0o077)  # scans are nobody else's on this machine
        stack.enter_context(held(state))
        self.audit = Audit(state / AUDIT)
        self.queue = Queue(state / DATABASE)
        stack.callback(self.queue.close)
        self.queue.free_all()
        names = Names(state / KEY)
        self.inbox = Inbox(
            state, names, config.keep.free_bytes, lambda *told: self.studies.arriving(*told), uids=config.uids
        )
        # pynetdicom and the client write what they cannot hold in memory: on this volume, where it is swept.
        tempfile.tempdir = str(self.inbox.incoming)
        self.troubles = StudyTroubles(
            config, self.queue, self.inbox, lambda: self.studies.held(), lambda: self._pollings
        )
        self.studies = Studies(
            config.complete,
            lambda name: len(self.inbox.instances(name)),
            [name for name in self.inbox.known() if not is_of_workitem(self.inbox.studies, name)],
            lacking=self.troubles.lacking,
            undecided=self.troubles.undecided,
            fetching=lambda name: bool(self.queue.jobs("waiting", "running", queue=FETCH, owner=name)),
            interrupted=self.inbox.interrupted(),
        )
        self.rejections = Rejections(self.audit)
        self.overview = Overview(
            self.queue,
            state,
            config.keep.free_bytes,
            lambda: len(self.inbox.known()),
            self.studies.open_count,
            arriving=self.studies.open_names,
            in_trouble=self.troubles.listed,
            rejections=self.rejections,
        )
        commitments, replicas = Commitments(), Replicas(config.servers)
        self.overview.watch_servers(replicas.troubles)
        context = GatewayContext(config, self.queue, self.inbox, names, self.audit, self._wake)
        self.retrying = Retrying(context, ended=self._ended)
        is_open, complete = self.studies.is_open, self.studies.end
        self.deciding = Deciding(context, is_open=is_open, complete=complete)
        self.work = Work(
            context,
            Segmenting(config.servers, replicas),
            commitments,
            self.retrying,
            is_open=is_open,
            complete=complete,
        )
        self.worklists = Worklists(context)
        self.overview.watch_worklists(self.worklists)
        self.retention = Retention(context, self.studies, self.work, is_claimed=self.worklists.claims.has)
        self.overview.watch_destinations({name: one.told for name, one in self.retrying.backoffs.items()})
        # What waited for others when the gateway ended is tried at once: they may be well since.
        for kind in (SEGMENT, DELIVER):
            self.retrying.release_held(kind)
        self.audit.tell("started", version=version("semiseg"), rules=[rule.name for rule in config.rules])
        stack.callback(self.audit.tell, "stopped")
        stack.callback(self._close_workers)
        self._start_workers(replicas)
        stack.callback(standing.forget, state)
        for name, look in (
            ("studies", self._look_at_studies),
            ("retention", self.retention.tidy),
            ("standing", self._tell_commands),
        ):
            thread = threading.Thread(target=self._loop, args=(name, look), name=name, daemon=True)
            thread.start()
            stack.callback(thread.join, LOOP_SECONDS)
        stack.callback(self._stop.set)
        if config.dimse is not None:
            node = Node(
                config.dimse, config.ae_title, self.inbox, commitments, self.audit, self.studies, self.rejections
            )
            stack.callback(node.close)
            announce(f"DICOM: {config.ae_title} on {config.dimse.host}:{node.port}")
        if config.web is not None:
            announce(f"web: {stack.enter_context(self._web(config.web, names))}")
        stack.callback(self.worklists.close, POLL_SECONDS)
        self.worklists.begin()
        for worklist in config.worklists:
            announce(f"worklist {worklist.name}: asking {worklist.url} every {worklist.every_seconds:g} s")
        pollings = self._pollings
        stack.callback(_close_all, pollings)
        for poll in config.polls:
            polling = Polling(poll, config.complete.quiet_seconds or POLL_QUIET, partial(self._found, names), names.of)
            pollings.append(polling)
            announce(f"asking {poll.url} every {poll.every_seconds:g} s")
        self.overview.watch_polls({one.url: one.trouble for one in pollings})

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Shut the doors, give back what is being worked on, and stop."""
        self._stack.close()

    def _start_workers(self, replicas: Replicas) -> None:
        config, work = self._config, self.work
        self._worker(STUDY, self.deciding.study, fair=True)
        self._worker(PURGE, work.purge)
        for _, lane in lanes_of("worklist", [one.name for one in config.worklists]):
            self._worker(WORKITEM, self.worklists.inputs.work, lane=lane)
        for _, lane in lanes_of("url", [poll.url for poll in config.polls]):
            self._worker(FETCH, work.fetch, lane=lane)
        for _, lane in lanes_of("model", [rule.model or "" for rule in config.rules]):
            self._worker(SEGMENT, work.segment, lane=lane, turns=Capacity(replicas), fair=True)
        for name, lane in lanes_of("to", list(config.destinations)):
            # Without a name: what a destination was to get that the configuration does not have any more.
            threads = 1 if name is None else config.destinations[name].parallel
            ready = self.retrying.backoffs[name].ready if name is not None else lambda: True
            self._worker(DELIVER, work.deliver, lane=lane, threads=threads, ready=ready, fair=True)

    def _worker(
        self,
        kind: str,
        work: Callable[[Task], dict[str, Any]],
        *,
        threads: int | None = None,
        turns: Turns | None = None,
        ready: Callable[[], bool] = lambda: True,
        lane: Lane | None = None,
        fair: bool = False,
    ) -> None:
        count = threads or THREADS[kind]
        worker = Worker(
            self.queue,
            kind,
            self.retrying.steadily(work),
            threads=count,
            turns=turns or Turns(count),
            ready=ready,
            ended=self._ended,
            lane=lane,
            fair=fair,
        )
        self._workers.setdefault(kind, []).append(worker)

    def _wake(self, kind: str) -> None:
        for worker in self._workers.get(kind, ()):
            worker.wake()

    def _close_workers(self) -> None:
        workers = [worker for kind in self._workers.values() for worker in kind]
        for worker in workers:
            worker.close(0.0)  # they all hear of it before the first one is waited for
        until = time.monotonic() + STOP_SECONDS
        for worker in workers:
            worker.close(max(0.1, until - time.monotonic()))

    def _loop(self, name: str, look: Callable[[], float]) -> None:
        while not self._stop.is_set():
            pause = AFTER_FAILURE
            try:
                pause = look()
                self.overview.broke(name, None)
            except Exception as error:  # noqa: BLE001 - a thread that ends would never be missed
                told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__} in {name}."
                _LOG.error("%s", told, exc_info=not isinstance(error, SemisegError))
                self.overview.broke(name, told)
            self._stop.wait(pause)

    def _tell_commands(self) -> float:
        standing.write(self._config.state, self.overview.live())
        return standing.WRITING

    def _look_at_studies(self) -> float:
        return self.studies.complete(self._completed)

    def _completed(self, name: str, why: str) -> None:
        files = [path.name for path in self.inbox.instances(name)]
        if not files:
            return
        job = self.queue.put(STUDY, {"study": name, "why": why}, key=_generation(name, files), owner=name)
        if job.state == "waiting" and job.attempts == 0:
            self.audit.tell(
                "complete", study=name, job=job.id, instances=len(files), senders=self.inbox.senders(name), why=why
            )
            self._wake(STUDY)

    def _found(self, names: Names, poll: Poll, uid: str, count: int) -> None:
        payload = {"study": names.of(uid), "url": poll.url, "uid": uid}
        self.queue.put(FETCH, payload, key=f"{poll.url} {uid} {count}", owner=names.of(uid))
        self._wake(FETCH)

    def _ended(self, job: Job, state: State) -> None:
        if state == "failed":
            now = self.queue.get(job.id)
            why = now.result.get("error", "") if now else ""
            if job.queue == SEGMENT:  # a server's sentence may quote a Series Description
                why = "No server will have it, or none could be reached for too long; `show` has the sentence."
            self.audit.tell("dead letter", study=job.payload.get("study", ""), job=job.id, kind=job.queue, why=why)
        elif state == "cancelled":
            self.audit.tell("cancelled", study=job.payload.get("study", ""), job=job.id, kind=job.queue)

    @contextlib.contextmanager
    def _web(self, door: WebDoor, names: Names) -> Iterator[str]:
        from server.gateway.stow import Stow
        from server.gateway.web import Web

        keys = Keys(door.keys)
        if not keys.required and not is_loopback(door.host):
            raise InputError(
                f"Whoever reaches {door.host} could use the gateway's web door: name a file of `keys`, set {VARIABLE} "
                "in the environment, or let it listen on 127.0.0.1."
            )

        def complete(uid: str, count: int | None, anyway: bool) -> tuple[str, str] | None:
            name = names.of(uid)
            if not self.inbox.instances(name):
                return None
            if anyway:
                self.inbox.accept_as_it_is(name)
            lacking = self.troubles.undecided(name)
            if not lacking and count is None and self._config.complete.incomplete == "hold":
                lacking = self.troubles.lacking(name)
            if not lacking:
                self.studies.end(name, "somebody said so", count)
            return name, lacking

        web = Web(Stow(self.inbox, self.audit, door.upload_bytes, self.studies), self.overview, complete)
        listener = bound(
            door.host, door.port, other_host="give `web` another host", other_port="give `web` another port"
        )
        proxies = Proxies(door.proxies)
        guard = BrowserGuard(bound=door.host, hosts=door.hosts, keys=keys.required, option="web: hosts: [NAME]")
        app = web.app(keys, guard, proxies)
        server = uvicorn_of(
            app, stop_seconds=3, per_address=door.connections_per_address, proxies=proxies, lifespan="off"
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web", daemon=True)
        thread.start()
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(WEB_SECONDS)


def _close_all(pollings: list[Polling]) -> None:
    """Stop all of them at once: each may be waiting for an answer."""
    for polling in pollings:
        polling.stop()
    until = time.monotonic() + POLL_SECONDS
    for polling in pollings:
        polling.close(max(0.0, until - time.monotonic()))


def _generation(name: str, files: list[str]) -> str:
    """What names a study with exactly these instances."""
    return f"{name} {hashlib.sha256(' '.join(files).encode()).hexdigest()}"


def run(config: GatewayConfig, announce: Announce) -> None:
    """Run until told to stop (SIGTERM, SIGINT)."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Gateway(config, announce):
        announce("ready")
        # Another thread may be the one that the system interrupts; this one runs the handler when it wakes up.
        while not stop.wait(WAKE_SECONDS):
            pass


def state_of(config: GatewayConfig) -> tuple[Queue, Path]:
    """The queue and the folder of a gateway, for commands that look at it while it runs.

    Raises:
        InputError: no gateway has ever run there.
    """
    if not (config.state / DATABASE).exists():
        raise InputError(f"No gateway has run in {config.state} yet.")
    return Queue(config.state / DATABASE), config.state
