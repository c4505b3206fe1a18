"""``split.json`` files: lists of scan ids, checked for consistency with each other and the dataset."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semiseg.dataset.dataset_json import abbreviate_ids, read_json
from semiseg.dataset.folder import Dataset
from semiseg.errors import DatasetError

Ids = tuple[str, ...]
FILE_NAME = "split.json"


class SplitFile(BaseModel):
    """The contents of a ``split.json``, checked for consistency, but not against a dataset.

    ``labelled`` is one list, or lists by budget (``{"4": [...], "8": [...]}``). ``train`` may be omitted (all scans
    except test and development), and so may ``unlabelled`` (the rest of train; if given, it is only checked).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: Ids
    train: Ids | None = None
    labelled: dict[str, Ids] | Ids | None = None
    unlabelled: dict[str, Ids] | Ids | None = None
    validation: Ids = ()
    development: Ids = ()
    # Information about the creation of the split.
    seed: int | None = None
    method: str = ""
    description: str = ""
    path: Path = Field(default=Path(FILE_NAME), exclude=True)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of labels for which the file has a list, in ascending order."""
        if isinstance(self.labelled, dict):
            return tuple(sorted(int(k) for k in self.labelled))
        return () if self.labelled is None else (len({*self.labelled, *self.validation}),)


def find_split(dataset: Dataset, split_file: Path | None) -> Path | None:
    """Return ``split_file`` if given, else the dataset's own ``split.json`` if it exists, else None."""
    if split_file is not None:
        return split_file
    own = dataset.folder / FILE_NAME
    return own if own.exists() else None


def read_split(dataset: Dataset, path: Path) -> SplitFile:
    """Read a ``split.json`` and check its consistency with itself and the dataset.

    Raises:
        DatasetError: The file is unreadable, has an unknown key or id, or has an id twice or in exclusive lists.
    """
    document = read_json(path)
    try:
        split = SplitFile.model_validate({**document, "path": path})
    except ValidationError as error:
        raise DatasetError(_schema_sentence(path, error)) from error
    for key in split.labelled if isinstance(split.labelled, dict) else ():
        if not (key.isascii() and key.isdigit() and int(key) > 0 and key == str(int(key))):
            raise DatasetError(f"{path}: the keys of 'labelled' are numbers of labels, not '{key}'.")
    lists = _named_lists(split)
    for name, ids in lists.items():
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise DatasetError(f"{path}: {name} names {abbreviate_ids(twice)} more than once.")
        unknown = [i for i in ids if i not in dataset.cases]
        if unknown:
            raise DatasetError(f"{path}: {name} names {abbreviate_ids(unknown)}, which {dataset.folder} does not have.")
    _check_exclusive(path, lists)
    return split


def random_split(
    dataset: Dataset, *, test: int, labelled: Sequence[int], development: int = 0, seed: int = 0
) -> SplitFile:
    """Draw a random split: ``test`` and ``development`` scans, then nested labelled lists from the other scans.

    All of these scans have a label file.

    Raises:
        DatasetError: There are not enough scans with a label file.
    """
    outlined = sorted(i for i in dataset.cases if has_label(dataset, i))
    needed = test + development + max(labelled, default=0)
    if min((test, development, *labelled), default=0) < 0 or not labelled or min(labelled) < 1 or test < 1:
        raise DatasetError("A split needs at least one test scan and at least one labelled scan.")
    if needed > len(outlined):
        raise DatasetError(
            f"{dataset.folder} has {len(outlined)} scans with a label file; {test} for test, {development} for "
            f"development and {max(labelled)} labelled ones make {needed}."
        )
    random.Random(seed).shuffle(outlined)
    for_test, for_development = outlined[:test], outlined[test : test + development]
    teaching = outlined[test + development :]
    train = sorted(set(dataset.cases) - {*for_test, *for_development})
    return SplitFile(
        seed=seed,
        method="A seeded shuffle of the scans with a label file: test, then development, then nested labelled lists.",
        test=tuple(sorted(for_test)),
        train=tuple(train),
        labelled={str(n): tuple(teaching[:n]) for n in sorted(set(labelled))},
        development=tuple(sorted(for_development)),
    )


def write_split(split: SplitFile, path: Path) -> None:
    """Write ``split`` as JSON; an existing file is never replaced, because published results may depend on it.

    Raises:
        DatasetError: The file exists or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(split.model_dump(mode="json", exclude_defaults=True), file, indent=1)
            file.write("\n")
    except FileExistsError:
        raise DatasetError(f"{path} already exists; delete it first if no result depends on it.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror or error}.") from error


def has_label(dataset: Dataset, case_id: str) -> bool:
    """Return True if the label file of a scan exists; the file is not opened."""
    label = dataset.cases[case_id].label
    return label is not None and label.is_file()


def _check_exclusive(path: Path, lists: dict[str, Ids]) -> None:
    """Refuse a scan in two exclusive lists, and a training list with scans outside ``train``."""
    kept_out = {"test", "development"}
    for name, ids in lists.items():
        for other, others in lists.items():
            apart = name in kept_out and other != name
            apart = apart or (name.startswith("unlabelled") and other == "validation")
            # "labelled '4'" and "unlabelled '4'" are exclusive; a scan may be labelled for 8 and unlabelled for 4.
            apart = apart or (name.startswith("unlabelled") and other == name.removeprefix("un"))
            both = sorted(set(ids) & set(others)) if apart else []
            if both:
                raise DatasetError(f"{path}: {abbreviate_ids(both)} cannot be in both {name} and {other}.")
        if "train" in lists and name.startswith(("labelled", "unlabelled", "validation")):
            outside = sorted(set(ids) - set(lists["train"]))
            if outside:
                raise DatasetError(f"{path}: {name} names {abbreviate_ids(outside)}, which train does not.")


def _named_lists(split: SplitFile) -> dict[str, Ids]:
    """Return every list of the file by the name that messages use for it."""
    out: dict[str, Ids] = {"test": split.test, "development": split.development, "validation": split.validation}
    if split.train is not None:
        out["train"] = split.train
    for name, lists in (("labelled", split.labelled), ("unlabelled", split.unlabelled)):
        if isinstance(lists, dict):
            out |= {f"{name} '{key}'": ids for key, ids in lists.items()}
        elif lists is not None:
            out[name] = lists
    return out


def _schema_sentence(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    known = ", ".join(f for f in SplitFile.model_fields if f != "path")
    if first["type"] == "extra_forbidden":
        return f"{path} has the unknown key '{where}'; known keys are {known}."
    if first["type"] == "missing":
        return f"{path} lacks '{where}': a split must list its test scans (an empty list if there are none)."
    return f"{path}: '{where}' cannot be read: {first['msg']}; lists of scan ids are expected."
