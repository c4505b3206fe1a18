"""Start of the labelling server: opens the labels and the bundle, binds the port, and serves requests."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from semiseg.bundle.bundle import open_bundle
from semiseg.dataset.folder import load_dataset
from semiseg.errors import InputError
from semiseg.system.file_locks import exclusive_lock
from semiseg.system.signals import STOP_SIGNALS
from server.http.access_options import AccessOptions
from server.http.limits import AdmissionControl, Limits
from server.http.model import ModelSettings
from server.http.process import prepare_process
from server.http_listener import bind_socket, is_loopback, listener_url, make_uvicorn_server
from server.jobs.fair_limiter import FairLimiter
from server.keys import KEYS_ENV, ApiKeys
from server.labelling.app import make_labelling_app
from server.labelling.context import LabellingContext
from server.labelling.datastore import Datastore
from server.labelling.label_names import LabelNames
from server.labelling.model_history import ModelHistory
from server.labelling.models import LabellingModel, ModelSlot
from server.labelling.selection import make_strategies
from server.labelling.sessions import Sessions
from server.labelling.split_growth import BaseSplit
from server.labelling.training import RoundTraining, can_train, read_config
from server.logs import LOGGER_NAME, configure_logging

STATE_FOLDER = "labelling"
BIND_HINTS = {"host_hint": "use --host 127.0.0.1", "port_hint": "choose another with --port"}


@dataclass(frozen=True)
class LabelOptions:
    """Options of a labelling server.

    Attributes:
        data: Folder of the dataset.
        state: Folder of the labels; ``labelling`` in the dataset folder by default.
        bundle: Bundle that is used until a better model is trained; None for none.
        split: Split file; the dataset's own by default.
        labelled: Number of labelled scans at the start; None for those of the split's only list.
        host, port: Address and port to listen on; port 0 takes a free one.
        threads: Number of CPU threads of the network; all by default.
        suggestions: File that `semiseg suggest` wrote, or its folder, for the strategy `suggested`; None for none.
        access: Allowed host names and origins, and trusted proxies.
        config: File with the configuration of the training; None uses the defaults.
        train: True if the server trains models; by default it does if the packages for training are installed.
        open_to_all: True if the server may accept all requests that reach ``host`` although it has no keys.
    """

    data: Path
    state: Path | None = None
    bundle: Path | None = None
    split: Path | None = None
    labelled: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int | None = None
    suggestions: Path | None = None
    access: AccessOptions = field(default_factory=AccessOptions)
    config: Path | None = None
    train: bool | None = None
    open_to_all: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the labels."""
        return self.state if self.state is not None else self.data / STATE_FOLDER


@contextlib.contextmanager
def open_datastore(options: LabelOptions) -> Iterator[Datastore]:
    """Open the dataset and its labels, which this process locks during the block.

    Raises:
        InputError: The dataset, its split or its labels cannot be used, or another process has locked them.
    """
    dataset = load_dataset(options.data)
    segments = open_bundle(options.bundle).manifest.segments if options.bundle is not None else ()
    names = LabelNames.from_dataset(dataset, segments)
    base = BaseSplit.read(dataset, options.split, options.labelled)
    with exclusive_lock(options.folder):
        yield Datastore(dataset, names, base, options.folder)


def serve_labels(options: LabelOptions, limits: Limits, keys: ApiKeys, announce: Callable[[str], None]) -> None:
    """Serve requests until a signal stops the server (SIGTERM, SIGINT; on Windows also Ctrl+Break).

    Args:
        options: Options of the server.
        limits: Limits of requests.
        keys: API keys of the users.
        announce: Function that is called with a message when the server listens.

    Raises:
        InputError: The address is reachable by other machines although there are no keys, or the port cannot be used;
            see also :func:`open_datastore`.
        BundleError, EngineError: The bundle cannot be used.
    """
    if not (keys.required or options.open_to_all or is_loopback(options.host)):
        raise InputError(
            f"Anyone who can reach {options.host} could change the labels: set API keys (--keys FILE, or {KEYS_ENV} in "
            "the environment), listen on 127.0.0.1, or allow it with --no-keys."
        )
    access = replace(options.access, bind_host=options.host)
    access.browser_guard(keys=keys.required)
    access.trusted_proxies()
    with prepare_process(None, None) as (scratch, _), open_datastore(options) as datastore:
        context = make_context(options, datastore, limits, keys, scratch)
        application = make_labelling_app(context, access, make_training(options, datastore))
        with bind_socket(options.host, options.port, **BIND_HINTS) as listener:
            announce(f"listening on {listener_url(listener)}, labels in {options.folder}")
            configure_logging()
            logging.getLogger(LOGGER_NAME).addHandler(context.log)
            server = make_uvicorn_server(
                application,
                stop_seconds=limits.stop_seconds,
                per_address=limits.connections_per_address,
                proxies=access.trusted_proxies(),
            )
            for number in STOP_SIGNALS:
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            threading.Thread(target=context.models.warm_up, name="warm-up", daemon=True).start()
            try:
                server.run(sockets=[listener])
            finally:
                context.sessions.clear()


def make_context(
    options: LabelOptions, datastore: Datastore, limits: Limits, keys: ApiKeys, scratch: Path
) -> LabellingContext:
    """Make the context that the endpoints share; this opens the bundle.

    Raises:
        BundleError, EngineError, InputError: The bundle cannot be used for this dataset, or the suggestions cannot be
            read.
    """
    return LabellingContext(
        datastore=datastore,
        models=_models(options, datastore),
        sessions=Sessions(options.folder / "sessions"),
        keys=keys,
        limits=limits,
        admission=AdmissionControl(limits, scratch),
        limiter=FairLimiter(limits.parallel),
        scratch=scratch,
        strategies=make_strategies(options.suggestions),
    )


def make_training(options: LabelOptions, datastore: Datastore) -> RoundTraining | None:
    """Make the service that trains the next model; None for a server that does not train.

    Raises:
        InputError: The configuration cannot be read, or training is requested but its packages are missing.
    """
    if options.train is False or (options.train is None and options.config is None and not can_train()):
        return None
    if not can_train():
        raise InputError("Training needs the extras `train` and `export`; install them, or use --no-training.")
    return RoundTraining(datastore, read_config(options.config), options.data, options.bundle)


def _models(options: LabelOptions, datastore: Datastore) -> ModelSlot:
    def open_for_dataset(bundle: Path) -> LabellingModel:
        settings = ModelSettings(bundle=bundle, threads=options.threads)
        return LabellingModel.open(settings, datastore.dataset, datastore.names)

    history = ModelHistory(options.folder)
    return ModelSlot(lambda: history.bundle_in_use(options.bundle), open_for_dataset)
