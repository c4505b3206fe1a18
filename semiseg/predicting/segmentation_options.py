"""Options of a segmentation, which the command line, and the forms and jobs of the server share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from semiseg.errors import InputError
from semiseg.outputs.formats import OUTPUT_FORMATS, OutputFormat, find_format
from semiseg.volumes.read_options import ReadOptions

_FLAGS = ("strict", "aligned", "full")


class SegmentationOptions(BaseModel):
    """Options of a segmentation, beside the files of the scan.

    Attributes:
        model: Name of the model; None if there is only one.
        output_formats: Names of the output formats, without repetition; empty for the default of the scan.
        series: DICOM series to segment: a Series Instance UID, or ``NAME=UID,NAME=UID`` for several channels.
        strict: True to refuse a scan that would have to be corrected.
        aligned: True if the channels lie in one space although their files do not say so.
        full: True to run all windows, also if the model has a coarse pass.

    Examples:
        >>> options = SegmentationOptions.from_fields({"output_format": "seg, json", "strict": "true"})
        >>> options.output_formats
        ('seg', 'json')
        >>> options.to_fields()
        {'output_format': 'seg,json', 'strict': 'true'}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    output_formats: tuple[str, ...] = ()
    series: str | None = None
    strict: bool = False
    aligned: bool = False
    full: bool = False

    @field_validator("output_formats")
    @classmethod
    def _present_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found = dict.fromkeys(find_format(name.strip()) for name in names)
        *others, last = OUTPUT_FORMATS
        if None in found:
            raise InputError(
                f"The field `output_format` must be {', '.join(others)} or {last}, or several of them separated by "
                "commas."
            )
        return tuple(one.name for one in found if one is not None)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> SegmentationOptions:
        """Parse the text fields of a form; a field without text has its default.

        Raises:
            InputError: A field has an invalid value; the message names it.
        """
        given: dict[str, Any] = {name: value for name, value in fields.items() if value}
        for name in _FLAGS:
            if given.get(name, "false") not in ("true", "false"):
                raise InputError(f"The field `{name}` must be true or false.")
        formats = given.pop("output_format", None)
        return cls(**given, output_formats=tuple(formats.split(",")) if formats else ())

    def to_fields(self) -> dict[str, str]:
        """Return the text fields of a form with these options, without those that have their default."""
        texts = {"model": self.model, "output_format": ",".join(self.output_formats), "series": self.series}
        flags = {name: "true" for name in _FLAGS if getattr(self, name)}
        return {name: text for name, text in texts.items() if text} | flags

    @property
    def formats(self) -> tuple[OutputFormat, ...]:
        """The output formats."""
        return tuple(OUTPUT_FORMATS[name] for name in self.output_formats)

    @property
    def read_options(self) -> ReadOptions:
        """The options for reading the scan."""
        return ReadOptions(self.series, strict=self.strict, aligned=self.aligned)
