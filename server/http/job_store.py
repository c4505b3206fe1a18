"""The folder of `--state`: jobs, their uploads and their results, consistent after a crash or a power cut.

    lock             lock file of the one server that works here
    jobs.sqlite3     the queue
    uploads/ID/      files of a job that has not ended, or of a viewer bundle, for conversion to other output formats
    results/ID       result of a job that is done
    work/            unfinished files; emptied at every start

An upload is complete in uploads/ before its job is added to the queue, and a result is complete in results/ before its
job is done. A file without a row in the queue was therefore never acknowledged, and is deleted at the next start.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.outputs.formats.reports import ViewerBundleFormat
from semiseg.system.durable_files import link_or_copy, move_durably, replace_file
from server.http.idempotency import key_reused_error, request_digest
from server.http.job_payload import JobPayload
from server.http.result_headers import remark_pairs, segment_millilitres
from server.http.results import EncodedResult
from server.http.uploads import Upload
from server.jobs.deletion import empty_folder, remove
from server.jobs.queue import ENDED_STATES, JobState, Queue, QueuedJob

JOB_QUEUE = "segment"  # kind of these jobs in the queue
VIEWER_BUNDLE = ViewerBundleFormat.name


@dataclass(frozen=True)
class JobStore:
    """A state folder that this process has locked."""

    folder: Path
    queue: Queue

    @classmethod
    def open(cls, folder: Path) -> JobStore:
        """Open or create a state folder; release jobs that an earlier server had started and delete unknown files.

        Raises:
            InputError, QueueError: The database cannot be read by this version, or the folder cannot be written.
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
        """Folder of the uploads that are still needed, one folder per job."""
        return self.folder / "uploads"

    @property
    def results(self) -> Path:
        """Folder of the results, one file per job that is done."""
        return self.folder / "results"

    @property
    def work(self) -> Path:
        """Folder for unfinished files."""
        return self.folder / "work"

    def accept(self, payload: JobPayload, folder: Path, **put: Any) -> QueuedJob:
        """Make a job of an upload; when this returns, the job survives a power cut.

        Args:
            payload: The request.
            folder: Folder of the files, on the same volume as the state folder; it is moved.
            put: Further arguments of :meth:`Queue.put`.

        Raises:
            QueueFull, QueueError: See :meth:`Queue.put`.
            ApiError: 422, the key belongs to a job with another digest.
        """
        name = secrets.token_hex(16)
        move_durably(folder, self.uploads / name)
        try:
            job = self.queue.put(JOB_QUEUE, payload.to_json(), id=name, **put)
        except BaseException:
            remove(self.uploads / name)
            raise
        if job.id != name:
            remove(self.uploads / name)
            if self._digest_of(job) != payload.digest:
                raise key_reused_error()
        return job

    def _digest_of(self, job: QueuedJob) -> str | None:
        """The digest of a job's request; None if a version before 0.2 accepted it and its upload was deleted."""
        payload = JobPayload.from_job(job)
        if payload.digest is not None:
            return payload.digest
        upload = payload.upload(self.uploads / job.id)
        try:
            return request_digest(upload.files, upload.channels, payload.options)
        except OSError:
            return None

    def copy_upload(self, job: QueuedJob) -> tuple[Upload, Path]:
        """Link or copy the files of a job into a new folder, which the caller may write into and has to delete."""
        folder = Path(tempfile.mkdtemp(prefix=f"{job.id}-", dir=self.work))
        upload = JobPayload.from_job(job).upload(folder)
        try:
            for file in upload.files:
                link_or_copy(self.uploads / job.id / file.name, file)
        except OSError:
            remove(folder)
            raise
        return upload, folder

    def save_result(self, job: QueuedJob, answer: EncodedResult) -> dict[str, Any]:
        """Write a result and return the values that the queue stores with the job."""
        replace_file(self.results / job.id, answer.body)
        return {
            "media_type": answer.media_type,
            "headers": answer.headers,
            "windows": answer.report.windows,
            "millilitres": segment_millilitres(answer.report),
            "remarks": remark_pairs(answer.report),
        }

    def clean_up(self, job: QueuedJob) -> None:
        """Delete the upload of a job that has ended, unless it is still needed."""
        if not _needs_upload(job):
            remove(self.uploads / job.id)

    def delete(self, job: QueuedJob) -> None:
        """Delete a job that has ended, with its upload and its result."""
        if self.queue.delete(job.id):
            remove(self.results / job.id)
            remove(self.uploads / job.id)

    def count(self) -> dict[JobState, int]:
        """Number of jobs in each state."""
        return self.queue.count(JOB_QUEUE)

    def delete_expired(self, seconds: float) -> None:
        """Delete the jobs that ended more than ``seconds`` ago."""
        for job in self.queue.jobs(*ENDED_STATES, queue=JOB_QUEUE, before=time.time() - seconds):
            self.delete(job)


def _keep_only(names: set[str], folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            remove(path)


def _needs_upload(job: QueuedJob) -> bool:
    return not job.ended or (job.state == "done" and JobPayload.from_job(job).output_format == VIEWER_BUNDLE)
