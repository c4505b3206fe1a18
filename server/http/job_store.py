"""The folder of `--state`: jobs, their uploads and their results, whole after whatever happened.

    lock             held by the one server that works here
    jobs.sqlite3     the queue
    uploads/ID/      the files of a job that has not ended, or of a case, which is shown in other forms afterwards
    results/ID       the answer of a job that is done
    work/            what is not finished; emptied at every start

An upload is complete in uploads/ before its job is in the queue, and a result complete in results/ before its job is
done. So a file without a row of the queue was never promised to anybody, and is deleted at the next start.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.system.durable_files import link_or_copy, move_durably, replace_file
from server.http.idempotency import key_reused_error, request_digest
from server.http.result_headers import remark_pairs, segment_millilitres
from server.http.results import EncodedResult
from server.http.uploads import Upload
from server.jobs.deletion import empty_folder, remove
from server.jobs.queue import ENDED_STATES, JobState, Queue, QueuedJob

JOB_QUEUE = "segment"  # the queue of these jobs


@dataclass(frozen=True)
class JobStore:
    """A state folder that this process holds."""

    folder: Path
    queue: Queue

    @classmethod
    def open(cls, folder: Path) -> JobStore:
        """Make the folder what it says, and free what a former server had begun.

        Raises:
            InputError, QueueError: it holds no database that this version reads, or cannot be written.
        """
        for name in ("uploads", "results", "work"):
            (folder / name).mkdir(exist_ok=True)
        state = cls(folder, Queue(folder / "jobs.sqlite3"))
        state.queue.release_all()
        empty_folder(state.work)
        jobs = state.queue.jobs(queue=JOB_QUEUE)
        _keep_only({job.id for job in jobs if _needs_upload(job)}, state.uploads)
        _keep_only({job.id for job in jobs if job.state == "done"}, state.results)
        return state

    @property
    def uploads(self) -> Path:
        """Folders of the jobs whose upload is needed."""
        return self.folder / "uploads"

    @property
    def results(self) -> Path:
        """Files of jobs that are done."""
        return self.folder / "results"

    @property
    def work(self) -> Path:
        """Unfinished things."""
        return self.folder / "work"

    def accept(self, upload: Upload, folder: Path, details: dict[str, Any], **put: Any) -> QueuedJob:
        """Make a job of an upload; when this returns, a power cut cannot take it away.

        Args:
            upload: files and fields.
            folder: where the files are, on the volume of this folder; it is moved.
            details: what else the work needs.
            put: further arguments of :meth:`Queue.put`.

        Raises:
            QueueFull, QueueError: see there.
            ApiError: 422, the key is that of a job with another ``digest`` in ``details``.
        """
        payload = {
            "files": [file.name for file in upload.files],
            "channels": {name: [file.name for file in files] for name, files in upload.channels.items()},
            "fields": upload.fields,
            "received": upload.received,
            "dicom": upload.dicom,
            **details,
        }
        name = secrets.token_hex(16)
        move_durably(folder, self.uploads / name)
        try:
            job = self.queue.put(JOB_QUEUE, payload, id=name, **put)
        except BaseException:
            remove(self.uploads / name)
            raise
        if job.id != name:
            remove(self.uploads / name)
            if self._digest_of(job) != details.get("digest"):
                raise key_reused_error()
        return job

    def _digest_of(self, job: QueuedJob) -> str | None:
        """The digest of the request of a job; None where a version before 0.2 accepted it and its upload is gone."""
        payload, folder = job.payload, self.uploads / job.id
        if "digest" in payload:
            return str(payload["digest"])
        files = [folder / name for name in payload["files"]]
        channels = {name: [folder / file for file in inside] for name, inside in payload["channels"].items()}
        try:
            return request_digest(files, channels, payload["fields"], payload["accept"])
        except OSError:
            return None

    def copy_upload(self, job: QueuedJob) -> tuple[Upload, Path]:
        """The files of a job in a new folder, which the work may fill and has to delete."""
        folder = Path(tempfile.mkdtemp(prefix=f"{job.id}-", dir=self.work))
        payload = job.payload
        try:
            for name in payload["files"]:
                link_or_copy(self.uploads / job.id / name, folder / name)
        except OSError:
            remove(folder)
            raise
        channels = {name: tuple(folder / file for file in files) for name, files in payload["channels"].items()}
        files = tuple(folder / name for name in payload["files"])
        # The model that was meant when it was accepted, also where the server has others since.
        fields = {**payload["fields"], "model": payload["model"]}
        return Upload(files, channels, fields, payload["received"], payload.get("dicom", False)), folder

    def save_result(self, job: QueuedJob, answer: EncodedResult) -> dict[str, Any]:
        """Write a result, and say what the queue is to know of it."""
        replace_file(self.results / job.id, answer.body)
        return {
            "media_type": answer.media_type,
            "headers": answer.headers,
            "windows": answer.report.windows,
            "millilitres": segment_millilitres(answer.report),
            "remarks": remark_pairs(answer.report),
        }

    def clean_up(self, job: QueuedJob) -> None:
        """Delete what a job that has ended does not need any more."""
        if not _needs_upload(job):
            remove(self.uploads / job.id)

    def delete(self, job: QueuedJob) -> None:
        """Delete a job that has ended, and its result."""
        if self.queue.delete(job.id):
            remove(self.results / job.id)
            remove(self.uploads / job.id)

    def count(self) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        return self.queue.count(JOB_QUEUE)

    def delete_expired(self, seconds: float) -> None:
        """Delete the jobs that ended so long ago."""
        for job in self.queue.jobs(*ENDED_STATES, queue=JOB_QUEUE, before=time.time() - seconds):
            self.delete(job)


def _keep_only(names: set[str], folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            remove(path)


def _needs_upload(job: QueuedJob) -> bool:
    return not job.ended or (job.state == "done" and job.payload["fields"].get("answer") == "case")
