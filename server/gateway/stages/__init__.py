"""Stages that a study passes through as jobs of the queue: one module for each kind of job, with its typed payload.

Instances are received by storage_scp, stow_handler and archive_poller, and study_tracker decides when a study is
complete. Then the jobs follow: fetch, route, segment, deliver, purge (and `workitem`, in ups_inputs). Each job adds the
jobs that follow it to the queue before it ends, under keys derived from their content, so that a job that was killed
and starts again does not add them twice.
"""
