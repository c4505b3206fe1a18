"""Warnings about valid DICOM results that widely used programs misread or refuse.

They are based on voxel-by-voxel comparisons with these programs: docs/results/readers_of_results.
"""

from __future__ import annotations

from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.scan_warning import ScanWarning

_BITS_OF_A_BYTE = 8


def viewer_warnings(series: DicomSeries | None) -> tuple[ScanWarning, ...]:
    """Return warnings for a series whose DICOM results some programs misread or refuse; empty for most series.

    Args:
        series: The series that was segmented, or None for a scan that is not DICOM.

    Returns:
        Warnings with the codes ``seg_packed_bits`` (the number of pixels of an image is not a multiple of eight, so
        that frames of a BINARY SEG begin within a byte, PS3.5 section 8.1.1) and ``seg_irregular_planes`` (the images
        are unevenly spaced or sheared, so that the frames of a SEG and the contours of a structure set do not form a
        regular volume).
    """
    if series is None:
        return ()
    return (*_packed_bits(series), *_irregular_planes(series))


def _packed_bits(series: DicomSeries) -> tuple[ScanWarning, ...]:
    plane = series.slices[0].plane
    if plane.columns * plane.rows % _BITS_OF_A_BYTE == 0:
        return ()
    text = (
        f"Images of {plane.columns} x {plane.rows} pixels are not a multiple of 8 pixels. With a binary DICOM SEG of "
        "such images, dcmqi (3D Slicer) may misplace voxels, and cornerstone3D (OHIF) may refuse it or misplace "
        "voxels. OHIF reads seg-labelmap, and dcmqi reads seg-fractional."
    )
    return (ScanWarning("seg_packed_bits", text),)


def _irregular_planes(series: DicomSeries) -> tuple[ScanWarning, ...]:
    codes = {remark.code for remark in series.warnings}
    leans = "gantry_tilt" in codes
    if not leans and "uneven_slices" not in codes:  # if slices are only missing, frames leave planes out
        return ()
    dcmqi = "refuses a DICOM SEG of them" if leans else "puts the frames of a DICOM SEG at even distances"
    text = (
        f"The images {'are sheared' if leans else 'are unevenly spaced'}, and DICOM results are on the original "
        f"images. dcmqi (3D Slicer) {dcmqi}, and programs that make one volume of the images misplace contours. OHIF "
        "and highdicom, which use the image that each frame refers to, read the SEG. NIfTI contains the corrected "
        "volume."
    )
    return (ScanWarning("seg_irregular_planes", text),)
