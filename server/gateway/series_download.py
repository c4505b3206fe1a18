"""Download of series from a DICOMweb archive into a folder, for `semiseg collect --archive`.

Series are found by QIDO-RS (PS3.18 10.6) and retrieved by WADO-RS (PS3.18 10.4), each completely or not at all. Of the
studies with a wanted series, segmentations and structure sets are retrieved, too, because they may be its labels.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dicomweb_client import DICOMwebClient
from requests import RequestException

from semiseg.errors import InputError, SemisegError, VolumeError
from semiseg.system.durable_files import rename
from semiseg.volumes.dicom_file import read_dicom, text
from server.gateway.dicom_json import first_value, values_of
from server.gateway.dicomweb import create_dicomweb_client, request_error_text, url_origin
from server.gateway.retrieval import (
    PAGE,
    SERIES,
    STUDY,
    ReceivingFolder,
    fetch_errors,
    query_expected_instances,
    retrieve_parts,
)

LABEL_MODALITIES = ("SEG", "RTSTRUCT")
MODALITY, DESCRIPTION, MODALITIES_IN_STUDY = "00080060", "0008103E", "00080061"
MAX_STUDIES = 100_000
_PART = ".part"

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class ArchiveQuery:
    """Series to download.

    Attributes:
        url: DICOMweb root of the archive.
        modalities: DICOM modalities of the image series; at least one.
        descriptions: Patterns, one of which the Series Description must match; () for all.
        since: Earliest Study Date; None for all.
        token: File whose content is sent as bearer token; None for none.
    """

    url: str
    modalities: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    since: date | None = None
    token: Path | None = None


@dataclass(frozen=True)
class ArchiveSeries:
    """A series of an archive: its UIDs, modality and description."""

    study: str
    series: str
    modality: str
    description: str

    @property
    def folder_name(self) -> str:
        """Name of its folder: a hash, since a UID from an archive may be any text."""
        return hashlib.sha256(f"{self.study} {self.series}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class DownloadResult:
    """Numbers of series that were downloaded and that were there, and a sentence for each that could not be."""

    new: int
    there: int
    failures: tuple[str, ...] = ()


def download_series(query: ArchiveQuery, folder: Path, progress: Progress | None = None) -> DownloadResult:
    """Download the series that are not in the folder yet; a series that the archive does not return is left out.

    Args:
        query: Archive and series.
        folder: Folder of the downloads, which gets a folder for each series; it holds patients' data.
        progress: Function that is called with the current step, the number of items done, and their total.

    Raises:
        InputError: Nothing matches, the address is invalid, or the query has no modality.
        SemisegError: The archive does not answer the query.
    """
    if not query.modalities:
        raise InputError("Name the modality of the series to download with --modality.")
    if not url_origin(query.url) or urlsplit(query.url).scheme not in ("http", "https"):
        raise InputError(f"{query.url} is not an address such as https://archive.example.org/dicom-web.")
    tell = progress or (lambda what, done, of: None)
    archive = create_dicomweb_client(query.url, query.token)
    try:
        wanted = list(find_series(query, archive, tell))
    except (RequestException, ValueError) as error:
        reason = request_error_text(error) if isinstance(error, RequestException) else "its answer is not DICOM JSON"
        raise SemisegError(f"{query.url} did not answer the query for series ({reason}).") from None
    if not any(one.modality not in LABEL_MODALITIES for one in wanted):
        raise InputError(f"{query.url} has no series of the selected modality, description and date.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = there = 0
    failures: list[str] = []
    for number, one in enumerate(wanted):
        tell("Downloading series", number, len(wanted))
        if (folder / one.folder_name).is_dir():
            there += 1
            continue
        try:
            _download(query, archive, one, folder)
            new += 1
        except SemisegError as error:
            failures.append(f"{one.modality} {one.description or 'without a description'}: {error}")
    tell("Downloading series", len(wanted), len(wanted))
    return DownloadResult(new, there, tuple(failures))


def find_series(query: ArchiveQuery, archive: DICOMwebClient, tell: Progress) -> Iterator[ArchiveSeries]:
    """Find the wanted image series, and the label series of their studies."""
    asked = {modality.upper() for modality in query.modalities}
    for number, study in enumerate(_studies(query, archive, asked)):
        tell("Asking the archive", number, None)
        found = [_series_of(study, row) for row in archive.search_for_series(study, fields=[DESCRIPTION])]
        images = [one for one in found if one.series and one.modality in asked and _fits(query, one)]
        if images:
            yield from images
            yield from (one for one in found if one.series and one.modality in LABEL_MODALITIES)


def _studies(query: ArchiveQuery, archive: DICOMwebClient, modalities: set[str]) -> list[str]:
    """List the studies that may have a wanted series, page by page."""
    filters = {} if query.since is None else {"StudyDate": f"{query.since:%Y%m%d}-"}
    studies: dict[str, None] = {}
    seen: set[str] = set()
    asked = 0
    while len(seen) < MAX_STUDIES:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[MODALITIES_IN_STUDY], search_filters=filters, limit=PAGE, offset=asked
        )
        before, asked = len(seen), asked + len(page)
        for row in page:
            uid = str(first_value(row, STUDY) or "")
            seen.add(uid)
            inside = {str(one).upper() for one in values_of(row, MODALITIES_IN_STUDY)}
            if uid and (not inside or inside & modalities):  # archives need not return this attribute
                studies[uid] = None
        if len(seen) == before:
            break
    return list(studies)


def _series_of(study: str, row: dict[str, Any]) -> ArchiveSeries:
    series, modality, description = (str(first_value(row, tag) or "") for tag in (SERIES, MODALITY, DESCRIPTION))
    return ArchiveSeries(study, series, modality.upper(), description)


def _fits(query: ArchiveQuery, one: ArchiveSeries) -> bool:
    said = one.description.casefold()
    return not query.descriptions or any(fnmatchcase(said, pattern.casefold()) for pattern in query.descriptions)


def _download(query: ArchiveQuery, archive: DICOMwebClient, one: ArchiveSeries, folder: Path) -> None:
    """Download one series into a folder that gets its name when it is complete."""
    work = folder / f"{one.folder_name}{_PART}"
    shutil.rmtree(work, ignore_errors=True)  # left behind by a download that was killed
    work.mkdir(mode=0o700)
    try:
        with fetch_errors(query.url, "study"):
            announced = query_expected_instances(archive, one.study, one.series)
            with retrieve_parts(
                query.url, query.token, one.study, ReceivingFolder(work, lambda: None), one.series
            ) as files:
                got: dict[str, str] = {}
                for file in files:
                    instance = _instance_of(file, one, query.url)
                    if instance not in got:
                        file.rename(work / f"{len(got) + 1:06d}.dcm")
                        got[instance] = one.series
                if missing := announced.missing(got):
                    raise SemisegError(f"{query.url} returned only part of a series: {missing}")
        rename(work, folder / one.folder_name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _instance_of(file: Path, one: ArchiveSeries, url: str) -> str:
    """Return the SOP Instance UID of a part.

    Raises:
        SemisegError: The part is not an instance of the series.
    """
    try:
        header = read_dicom(file, pixels=False)
        study, series, instance = (
            text(header, keyword, file) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
    except VolumeError:
        raise SemisegError(f"{url} returned a part that is not a DICOM instance.") from None
    if (study, series) != (one.study, one.series) or not instance:
        raise SemisegError(f"{url} returned an instance of another series.")
    return instance
