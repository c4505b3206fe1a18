"""Output formats for programs and web pages: the JSON report, and the bundle that a viewer shows."""

from __future__ import annotations

from pathlib import Path

from semiseg.errors import InputError
from semiseg.outputs.formats.base import FormatInput, OutputFormat


class JsonFormat(OutputFormat):
    """The report without masks (:class:`semiseg.outputs.report.Report`)."""

    name = "json"
    file_name = "segmentation.json"
    media_type = "application/json"
    suffixes = (".json",)

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        from semiseg.system.durable_files import replace_file

        replace_file(path, data.report.model_dump_json(indent=2).encode())


class ViewerBundleFormat(OutputFormat):
    """The scan, its mask, the report and pictures in a zip (:mod:`semiseg.outputs.viewer_bundle`)."""

    name = "viewer-bundle"
    file_name = "viewer-bundle.zip"
    media_type = "application/zip"
    suffixes = (".zip",)
    needs_image = True

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        from semiseg.outputs.viewer_bundle import write_viewer_bundle

        if data.image is None:
            raise InputError("A viewer bundle contains the scan, so its volume is needed.")
        write_viewer_bundle(path, data.segmentation, data.report, data.image)
