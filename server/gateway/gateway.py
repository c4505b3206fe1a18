"""The gateway's process: listeners, studies and workers, and the order in which they start and stop."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.system.file_locks import exclusive_lock
from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies
from server.gateway import status_document
from server.gateway.archive_poller import ArchivePoller
from server.gateway.audit import AuditLog
from server.gateway.commitment_scu import CommitmentReports
from server.gateway.config import GatewayConfig, PolledArchive, WebListener
from server.gateway.context import GatewayContext
from server.gateway.inference_client import InferenceClient
from server.gateway.instance_store import InstanceStore
from server.gateway.job_kinds import DELIVER, FETCH, PURGE, SEGMENT, STUDY, WORKITEM
from server.gateway.job_payloads import FetchPayload, StudyPayload, readable_payload_of
from server.gateway.overview import Overview
from server.gateway.rejections import RejectionLog
from server.gateway.retention import RetentionTask
from server.gateway.retry_scheduler import RetryScheduler
from server.gateway.server_pool import PoolLimiter, ServerPool
from server.gateway.stages.deliver import DeliverStage
from server.gateway.stages.fetch import FetchStage
from server.gateway.stages.purge import PurgeStage
from server.gateway.stages.route import RouteStage
from server.gateway.stages.segment import SegmentStage
from server.gateway.storage_scp import StorageSCP
from server.gateway.study_problems import StudyProblems
from server.gateway.study_tracker import StudyTracker
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.gateway.ups_claims import is_workitem_folder
from server.gateway.ups_worklists import Worklists
from server.http_listener import bind_socket, is_loopback, listener_url, make_uvicorn_server
from server.jobs.fifo_limiter import FifoLimiter
from server.jobs.lanes import Lane, make_lanes
from server.jobs.queue import JobState, Queue, QueuedJob
from server.jobs.worker import RunningJob, Worker
from server.keys import KEYS_ENV, ApiKeys

# Maximum number of threads for each lane: each polled archive, each model and each destination has workers of its own,
# so that one that hangs does not block the others. The number for a destination is configured (`parallel`).
THREADS = {FETCH: 1, WORKITEM: 2, STUDY: 2, SEGMENT: 16, PURGE: 1}
# Time limits in seconds for stopping each part of the gateway; 20 s in all, because supervisors wait for at least that.
STOP_SECONDS, LOOP_SECONDS, POLL_SECONDS, WEB_SECONDS = 6.0, 1.5, 1.0, 4.0
POLL_QUIET = 60.0  # seconds, used if `quiet_seconds` is null
AFTER_FAILURE = 1.0
WAKE_SECONDS = 0.5
DATABASE_FILE, AUDIT_FILE = "jobs.sqlite3", "audit.jsonl"

_LOG = logging.getLogger("semiseg.gateway")
Announce = Callable[[str], None]


class Gateway:
    """All running parts of a gateway; a context manager that stops them."""

    def __init__(self, config: GatewayConfig, announce: Announce = lambda _: None) -> None:
        """Start the gateway.

        Args:
            config: Configuration of the gateway.
            announce: Function that is called with a line for each listener, each polled archive and each worklist.

        Raises:
            InputError, QueueError: The state folder, a port, a key or a certificate cannot be used.
        """
        self._config = config
        self._stop = threading.Event()
        self._workers: dict[str, list[Worker]] = {}
        self._pollings: list[ArchivePoller] = []
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._start(stack, announce)
            self._stack = stack.pop_all()

    def _start(self, stack: contextlib.ExitStack, announce: Announce) -> None:
        config, state = self._config, self._config.state
        os.umask(0o077)  # other users of this machine must not read scans
        stack.enter_context(exclusive_lock(state))
        self.audit = AuditLog(state / AUDIT_FILE)
        self.queue = Queue(state / DATABASE_FILE)
        stack.callback(self.queue.close)
        self.queue.release_all()
        hasher = UidHasher(state / KEY_FILE)
        self.studies = StudyTracker(config.completeness)
        self.instance_store = InstanceStore(
            state, hasher, config.retention.free_bytes, self.studies.instance_arriving, uids=config.uids
        )
        # pynetdicom and the client write temporary files to this folder, which is emptied at the start.
        tempfile.tempdir = str(self.instance_store.incoming)
        self.study_problems = StudyProblems(
            config, self.queue, self.instance_store, self.studies.held_reasons, self._pollings
        )
        stored, names = self.instance_store.studies, self.instance_store.study_names()
        self.studies.open_stored(
            [name for name in names if not is_workitem_folder(stored, name)],
            self.instance_store.interrupted_transfers(),
        )
        self.rejections = RejectionLog(self.audit)
        self.overview = Overview(
            self.queue,
            state,
            config.retention.free_bytes,
            lambda: len(self.instance_store.study_names()),
            self.studies.open_count,
            arriving=self.studies.open_names,
            in_trouble=self.study_problems.problems,
            rejections=self.rejections,
        )
        commitments, pool = CommitmentReports(), ServerPool(config.servers)
        self.overview.watch_servers(pool.troubles)
        context = GatewayContext(config, self.queue, self.instance_store, hasher, self.audit, self._wake)
        self.retries = RetryScheduler(context, ended=self._ended)
        is_open, complete = self.studies.is_open, self.studies.mark_complete
        context.results.mkdir(exist_ok=True)
        purge = PurgeStage(context, is_open=is_open)
        stages: dict[str, Callable[[RunningJob], dict[str, Any]]] = {
            FETCH: FetchStage(context, self.retries, complete=complete).run,
            STUDY: RouteStage(context, is_open=is_open, complete=complete).run,
            SEGMENT: SegmentStage(context, InferenceClient(config.servers, pool), self.retries).run,
            DELIVER: DeliverStage(context, commitments, self.retries).run,
            PURGE: purge.run,
        }
        self.worklists = Worklists(context)
        self.overview.watch_worklists(self.worklists)
        self.retention = RetentionTask(context, self.studies, purge, is_claimed=self.worklists.claims.has)
        self.overview.watch_destinations({name: one.trouble for name, one in self.retries.backoffs.items()})
        # Jobs that waited for a server or archive when the gateway stopped are tried at once: it may work again.
        for kind in (SEGMENT, DELIVER):
            self.retries.release_held(kind)
        self.audit.record("started", version=version("semiseg"), rules=[rule.name for rule in config.rules])
        stack.callback(self.audit.record, "stopped")
        stack.callback(self._close_workers)
        self._start_workers(stages, pool)
        stack.callback(status_document.delete_live_status, state)
        for name, look in (
            ("studies", self._look_at_studies),
            ("retention", self.retention.delete_expired),
            ("standing", self._tell_commands),
        ):
            thread = threading.Thread(target=self._loop, args=(name, look), name=name, daemon=True)
            thread.start()
            stack.callback(thread.join, LOOP_SECONDS)
        stack.callback(self._stop.set)
        if config.dimse is not None:
            node = StorageSCP(
                config.dimse,
                config.ae_title,
                self.instance_store,
                commitments,
                self.audit,
                self.studies,
                self.rejections,
            )
            stack.callback(node.close)
            announce(f"DICOM: {config.ae_title} on {config.dimse.host}:{node.port}")
        if config.web is not None:
            announce(f"web: {stack.enter_context(self._web(config.web, hasher))}")
        stack.callback(self.worklists.close, POLL_SECONDS)
        self.worklists.start()
        for worklist in config.worklists:
            announce(f"worklist {worklist.name}: polling {worklist.url} every {worklist.every_seconds:g} s")
        pollings = self._pollings
        stack.callback(_close_all, pollings)
        for poll in config.polls:
            polling = ArchivePoller(
                poll, config.completeness.quiet_seconds or POLL_QUIET, partial(self._found, hasher), hasher.hash
            )
            pollings.append(polling)
            announce(f"polling {poll.url} every {poll.every_seconds:g} s")
        self.overview.watch_polls({one.url: one.trouble for one in pollings})

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the listeners, return running jobs to the queue, and stop."""
        self._stack.close()

    def _start_workers(self, stages: Mapping[str, Callable[[RunningJob], dict[str, Any]]], pool: ServerPool) -> None:
        config = self._config
        self._worker(STUDY, stages[STUDY], fair=True)
        self._worker(PURGE, stages[PURGE])
        for _, lane in make_lanes("worklist", [one.name for one in config.worklists]):
            self._worker(WORKITEM, self.worklists.inputs.run, lane=lane)
        for _, lane in make_lanes("url", [poll.url for poll in config.polls]):
            self._worker(FETCH, stages[FETCH], lane=lane)
        for _, lane in make_lanes("model", [rule.model or "" for rule in config.rules]):
            self._worker(SEGMENT, stages[SEGMENT], lane=lane, limiter=PoolLimiter(pool), fair=True)
        for name, lane in make_lanes("to", list(config.destinations)):
            # The lane without a name holds deliveries to destinations that are not in the configuration any more.
            threads = 1 if name is None else config.destinations[name].parallel
            ready = self.retries.backoffs[name].ready if name is not None else lambda: True
            self._worker(DELIVER, stages[DELIVER], lane=lane, threads=threads, ready=ready, fair=True)

    def _worker(
        self,
        kind: str,
        work: Callable[[RunningJob], dict[str, Any]],
        *,
        threads: int | None = None,
        limiter: FifoLimiter | None = None,
        ready: Callable[[], bool] = lambda: True,
        lane: Lane | None = None,
        fair: bool = False,
    ) -> None:
        count = threads or THREADS[kind]
        worker = Worker(
            self.queue,
            kind,
            self.retries.retry_unexpected(work),
            threads=count,
            limiter=limiter or FifoLimiter(count),
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
            worker.close(0.0)  # all are told to stop before the first one is waited for
        until = time.monotonic() + STOP_SECONDS
        for worker in workers:
            worker.close(max(0.1, until - time.monotonic()))

    def _loop(self, name: str, look: Callable[[], float]) -> None:
        while not self._stop.is_set():
            pause = AFTER_FAILURE
            try:
                pause = look()
                self.overview.set_failure(name, None)
            except Exception as error:  # noqa: BLE001 - nothing would notice that the thread has ended
                told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__} in {name}."
                _LOG.error("%s", told, exc_info=not isinstance(error, SemisegError))
                self.overview.set_failure(name, told)
            self._stop.wait(pause)

    def _tell_commands(self) -> float:
        status_document.write_live_status(self._config.state, self.overview.live())
        return status_document.WRITE_INTERVAL

    def _look_at_studies(self) -> float:
        return self.studies.process_complete(self.study_problems, self._completed)

    def _completed(self, name: str, why: str) -> None:
        files = [path.name for path in self.instance_store.instances(name)]
        if not files:
            return
        job = self.queue.put(
            STUDY, StudyPayload(study=name, why=why).to_json(), key=_generation(name, files), owner=name
        )
        if job.state == "waiting" and job.attempts == 0:
            self.audit.record(
                "complete",
                study=name,
                job=job.id,
                instances=len(files),
                senders=self.instance_store.senders(name),
                why=why,
            )
            self._wake(STUDY)

    def _found(self, hasher: UidHasher, poll: PolledArchive, uid: str, count: int) -> None:
        payload = FetchPayload(study=hasher.hash(uid), url=poll.url, uid=uid)
        self.queue.put(FETCH, payload.to_json(), key=f"{poll.url} {uid} {count}", owner=payload.study)
        self._wake(FETCH)

    def _ended(self, job: QueuedJob, state: JobState) -> None:
        if state == "failed":
            now = self.queue.get(job.id)
            why = now.result.get("error", "") if now else ""
            if job.queue == SEGMENT:  # a server's message may quote a Series Description
                why = "A server refused it, or none could be reached for too long; `show` gives the message."
            self.audit.record("dead letter", study=readable_payload_of(job).study, job=job.id, kind=job.queue, why=why)
        elif state == "cancelled":
            self.audit.record("cancelled", study=readable_payload_of(job).study, job=job.id, kind=job.queue)

    @contextlib.contextmanager
    def _web(self, config: WebListener, hasher: UidHasher) -> Iterator[str]:
        from server.gateway.stow_handler import StowHandler
        from server.gateway.web_app import WebApp

        keys = ApiKeys(config.keys)
        if not keys.required and not is_loopback(config.host):
            raise InputError(
                f"The web listener on {config.host} would be open to everyone who can reach it: name a file of `keys`, "
                f"set {KEYS_ENV} in the environment, or set `host` to 127.0.0.1."
            )

        def complete(uid: str, count: int | None, anyway: bool) -> tuple[str, str] | None:
            name = hasher.hash(uid)
            if not self.instance_store.instances(name):
                return None
            if anyway:
                self.instance_store.accept_incomplete(name)
            lacking = self.study_problems.conflict_text(name)
            if not lacking and count is None and self._config.completeness.incomplete == "hold":
                lacking = self.study_problems.missing_text(name)
            if not lacking:
                self.studies.mark_complete(name, "it was declared complete", count)
            return name, lacking

        web = WebApp(
            StowHandler(self.instance_store, self.audit, config.upload_bytes, self.studies), self.overview, complete
        )
        listener = bind_socket(
            config.host, config.port, host_hint="give `web` another host", port_hint="give `web` another port"
        )
        proxies = TrustedProxies(config.proxies)
        guard = BrowserGuard(bind_host=config.host, hosts=config.hosts, keys=keys.required, option="web: hosts: [NAME]")
        app = web.create_app(keys, guard, proxies)
        server = make_uvicorn_server(
            app, stop_seconds=3, per_address=config.connections_per_address, proxies=proxies, lifespan="off"
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web", daemon=True)
        thread.start()
        try:
            yield listener_url(listener)
        finally:
            server.should_exit = True
            thread.join(WEB_SECONDS)


def _close_all(pollings: list[ArchivePoller]) -> None:
    """Stop all pollers at the same time, because each may be waiting for a response."""
    for polling in pollings:
        polling.stop()
    until = time.monotonic() + POLL_SECONDS
    for polling in pollings:
        polling.close(max(0.0, until - time.monotonic()))


def _generation(name: str, files: list[str]) -> str:
    """Return a key for a study with exactly these instances."""
    return f"{name} {hashlib.sha256(' '.join(files).encode()).hexdigest()}"


def run(config: GatewayConfig, announce: Announce) -> None:
    """Run the gateway until SIGTERM or SIGINT is received."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Gateway(config, announce):
        announce("ready")
        # The system may deliver the signal to another thread; this thread runs the handler when it wakes up.
        while not stop.wait(WAKE_SECONDS):
            pass


def open_state(config: GatewayConfig) -> tuple[Queue, Path]:
    """Open the queue and the state folder of a gateway, for commands that access them while it runs.

    Raises:
        InputError: No gateway has run with this state folder.
    """
    if not (config.state / DATABASE_FILE).exists():
        raise InputError(f"No gateway has run in {config.state} yet.")
    return Queue(config.state / DATABASE_FILE), config.state
