"""History of the model in use: one small file for each change, which is never altered."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semiseg.errors import InputError, validation_message
from semiseg.system.durable_files import replace_file
from semiseg.system.file_locks import exclusive_lock

MODELS = "models"
_ENTRY = re.compile(r"(\d{6})\.json")


class ModelChange(BaseModel):
    """One change of the model in use.

    Attributes:
        number: Number of the change, counted from 1.
        bundle: Folder of the bundle, below the state folder; empty for the bundle that ``--bundle`` names, or none.
        sha256: SHA-256 of the bundle's graph; empty without a bundle.
        round: Id of the training that made it; empty without one.
        who: Name of the person or program that made the change.
        when: Time of the change, ISO 8601 in UTC.
        why: Reason for the change, as a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[int, Field(ge=1)]
    bundle: str
    sha256: str = ""
    round: str = ""
    who: str
    when: str
    why: str


class ModelHistory:
    """The changes in a state folder; several processes may read and add changes at the same time."""

    def __init__(self, state: Path) -> None:
        """Use the folder ``state/models``."""
        self._state = state
        self._folder = state / MODELS

    def entries(self) -> list[ModelChange]:
        """All changes, oldest first.

        Raises:
            InputError: A change cannot be read.
        """
        if not self._folder.is_dir():
            return []
        return [self._read(path) for path in sorted(self._folder.iterdir()) if _ENTRY.fullmatch(path.name)]

    def current(self) -> ModelChange | None:
        """The last change; None before the first one."""
        names = sorted(path for path in self._folder.glob("*.json") if _ENTRY.fullmatch(path.name))
        return self._read(names[-1]) if names else None

    def bundle_in_use(self, first: Path | None) -> Path | None:
        """The folder of the bundle in use; before any change it is ``first``, the bundle of ``--bundle``."""
        entry = self.current()
        return self._state / entry.bundle if entry is not None and entry.bundle else first

    def add(self, bundle: str, *, sha256: str, round: str, who: str, why: str) -> ModelChange:  # noqa: A002 - its name
        """Use another bundle from now on.

        Raises:
            InputError: Another process is changing the model at this moment.
        """
        with exclusive_lock(self._folder):
            number = len(self.entries()) + 1
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            entry = ModelChange(number=number, bundle=bundle, sha256=sha256, round=round, who=who, when=when, why=why)
            replace_file(self._folder / f"{number:06d}.json", entry.model_dump_json(indent=1).encode() + b"\n")
        return entry

    def roll_back(self, who: str, to: int | None = None) -> ModelChange:
        """Use an earlier model again.

        Args:
            who: Name of the person who requests it.
            to: Number of the change after which the model was in use; 0 for the model before all changes. By default
                the model before the current one.

        Raises:
            InputError: There is no such change, or no earlier model.
        """
        entries = self.entries()
        if not entries:
            raise InputError("The model was never changed, so there is no earlier model.")
        wanted = (
            to if to is not None else next((e.number for e in reversed(entries) if e.bundle != entries[-1].bundle), 0)
        )
        if not 0 <= wanted <= len(entries):
            raise InputError(f"The changes of the model are numbered from 1 to {len(entries)}.")
        if wanted == 0:
            return self.add("", sha256="", round="", who=who, why="Rolled back to the model before all changes.")
        chosen = entries[wanted - 1]
        why = f"Rolled back to the model of change {wanted}."
        return self.add(chosen.bundle, sha256=chosen.sha256, round=chosen.round, who=who, why=why)

    def _read(self, path: Path) -> ModelChange:
        try:
            return ModelChange.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(f"{path} is not a change of the model: {validation_message(error)}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}).") from None
