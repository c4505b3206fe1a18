"""A study's scans to a server, and what it makes of them to the disk; each order once, by whichever server answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.client import Busy, Client, Forms, NoAnswer
from semiseg.errors import Cancelled, InputError, SemisegError
from semiseg.system.durable_files import replace_file
from server.gateway.config import Form, Servers
from server.gateway.replicas import Replicas

_LOG = logging.getLogger("semiseg.gateway")


class NotNow(SemisegError):  # noqa: N818 - it passes
    """No server could do it at present; ``seconds`` is how long one of them asks to wait, 0 where none says."""

    def __init__(self, sentence: str, seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(frozen=True)
class Made:
    """What a server made of a scan.

    Attributes:
        files: names of the files of each form.
        server: which one it was.
        told: the model, the volumes and the remarks, as the server told them.
    """

    files: dict[str, list[str]]
    server: str
    told: dict[str, Any]


class Segmenting:
    """Asks the servers."""

    def __init__(self, servers: Servers, key: str | None, replicas: Replicas) -> None:
        """Ask ``replicas`` with an API ``key``."""
        self._servers, self._key, self._replicas = servers, key, replicas

    def segment(
        self,
        files: Sequence[Path],
        forms: Sequence[Form],
        model: str | None,
        folder: Path,
        stopped: Callable[[], bool],
    ) -> Made:
        """Have a scan segmented, and write each form into ``folder``.

        Args:
            files: its instances.
            forms: what is made.
            model: which of a server's models.
            folder: for the results; it exists.
            stopped: asked now and then.

        Raises:
            InputError: the servers will not have this scan; again would not help.
            NotNow: nobody answered, or nobody has room, or a server failed on it.
            Cancelled: it was stopped.
        """
        asked: list[str] = []
        why, pause = "no server is known", 0.0
        while True:
            with self._replicas.one(asked, stopped) as url:
                if url is None:
                    raise NotNow(f"No server could segment it: {why}", pause)
                asked.append(url)
                try:
                    answer = self._ask(url, files, forms, model)
                except NoAnswer as error:
                    why = str(error)
                    self._replicas.rest(url)
                except Busy as error:
                    why, pause = str(error), error.seconds
                    self._replicas.rest(url, error.seconds)
                except InputError:
                    raise
                except SemisegError as error:
                    why = str(error)
                    _LOG.warning("%s", error)
                else:
                    break
            if stopped():
                raise Cancelled("It was stopped between two servers.")
        told = {"model": answer.model, "millilitres": answer.millilitres, "remarks": answer.remarks}
        return Made(_kept(answer.files, folder), url, told)

    def _ask(self, url: str, files: Sequence[Path], forms: Sequence[Form], model: str | None) -> Forms:
        with Client(url, key=self._key, timeout=self._servers.timeout_seconds) as client:
            return client.ask_forms(files, forms, model=model)


def _kept(files: Mapping[str, Sequence[bytes]], folder: Path) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}
    for form, bodies in files.items():
        kept[form] = [f"{form}-{number:05d}.dcm" for number in range(1, len(bodies) + 1)]
        for name, body in zip(kept[form], bodies, strict=True):
            replace_file(folder / name, body)
    return kept
