"""The server's log: one JSON object per line on standard error, without any content of scans."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from pathlib import Path

LOGGER_NAME = "semiseg"
TRUSTED_LOGGERS = (LOGGER_NAME, "uvicorn", "asyncio")  # their messages do not quote the content of files
REPEAT_SECONDS = 60.0  # seconds in which the same message of another package, about the same peer, is written once
_MOST_KEYS = 1000

_WARNING = re.compile(r"([^\n:]*(?::[\\/][^\n:]*)?):(\d+): (\w+): ")


def utc_timestamp(moment: float) -> str:
    """A Unix time as ISO 8601, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON; the entries of ``extra={"fields": {...}}`` become fields of the object.

    The text of a message from a logger that is not trusted is replaced by the package, the level and the position in
    the code from which it was logged: pydicom, for example, quotes the values of invalid attributes. Exceptions are
    logged by type and position.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        trusted = _is_trusted(record)
        message = record.getMessage().partition("\n")[0] if trusted else _without_its_words(record)
        line: dict[str, object] = {
            "time": utc_timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **getattr(record, "fields", {}),
        }
        if not trusted and (peer := _peer_of(record)):
            line["peer"] = peer
        if record.exc_info and record.exc_info[0] is not None:
            line["kind"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


class RepeatFilter(logging.Filter):
    """Drops repeated messages of other packages: a damaged scan can cause hundreds of the same.

    The next message that is let through has the number of dropped ones in the field `repeated`.
    """

    def __init__(self) -> None:
        """Create a filter that has seen no message."""
        super().__init__()
        self._lock = threading.Lock()
        self._said: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be written."""
        if _is_trusted(record):
            return True
        key, now = (record.name, _without_its_words(record), _peer_of(record)), time.monotonic()
        with self._lock:
            since, count = self._said.get(key, (-REPEAT_SECONDS, 0))
            if now - since < REPEAT_SECONDS:
                self._said[key] = since, count + 1
                return False
            if len(self._said) >= _MOST_KEYS:
                self._said.clear()
            self._said[key] = now, 0
        if count:
            record.fields = {**getattr(record, "fields", {}), "repeated": count}
        return True


def _is_trusted(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] in TRUSTED_LOGGERS


def _peer_of(record: logging.LogRecord) -> str:
    """The address of the peer, from the name KIND@ADDRESS of a connection's thread."""
    return (record.threadName or "").partition("@")[2]


def _without_its_words(record: logging.LogRecord) -> str:
    """A message with the position in the code in place of the original text, which may quote a scan."""
    package, level = record.name.split(".")[0], record.levelname.lower()
    place = f"{_module(record.pathname)}:{record.lineno} {record.funcName}"
    if record.name == "py.warnings":
        # The module `warnings` formats "FILE:LINE: CATEGORY: WORDS".
        found = _WARNING.match(record.getMessage())
        file, line, category = found.groups() if found else ("an unknown place", "0", "Warning")
        package, place = f"Python ({category})", f"{_module(file)}:{line}"
    return f"A message of level {level} from {package} at {place}; its text may quote a scan and is left out."


def _module(file: str) -> str:
    """The last three parts of a source file's path."""
    return "/".join(Path(file).parts[-3:])


def configure_logging() -> None:
    """Send every logger's records to standard error as JSON lines, and Python's warnings with them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] != "pytest":
            logger.handlers.clear()
            logger.propagate = True
    logging.getLogger(LOGGER_NAME).setLevel(logging.INFO)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended
    sys.unraisablehook = _not_raised


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread; Python would print its message. ``sys.exit`` in a thread is not an error."""
    if args.exc_type is not SystemExit:
        _unexpected("A thread ended", args)


def _not_raised(args: sys.UnraisableHookArgs) -> None:
    """Log an error in a destructor or a callback; Python would print its message."""
    _unexpected("An error could not be raised", args)


def _unexpected(what: str, args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    error = args.exc_value or BaseException()  # only the type and the place are written
    logging.getLogger(LOGGER_NAME).error(what, exc_info=(args.exc_type, error, args.exc_traceback))
