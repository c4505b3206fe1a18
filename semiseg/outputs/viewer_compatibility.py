"""What widely used programs do not read of a DICOM result that is valid, so that an answer can say so beforehand.

Every sentence rests on a comparison, voxel by voxel, with the programs themselves: docs/results/readers_of_results.
"""

from __future__ import annotations

from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.scan_warning import ScanWarning

_BITS_OF_A_BYTE = 8


def viewer_warnings(series: DicomSeries | None) -> tuple[ScanWarning, ...]:
    """Remarks about the series whose DICOM results some programs misread or refuse; none for most series.

    Args:
        series: The series that was segmented, or None for a scan that is not DICOM.

    Returns:
        ``seg_packed_bits``: the images' pixels are no multiple of eight, so that the frames of a BINARY SEG begin
        within a byte (PS3.5 section 8.1.1). ``seg_irregular_planes``: the images lie unevenly or lean, so that the
        frames of a SEG and the contours of a structure set make no regular volume.
    """
    if series is None:
        return ()
    return (*_packed_bits(series), *_irregular_planes(series))


def _packed_bits(series: DicomSeries) -> tuple[ScanWarning, ...]:
    plane = series.slices[0].plane
    if plane.columns * plane.rows % _BITS_OF_A_BYTE == 0:
        return ()
    text = (
        f"Images of {plane.columns} x {plane.rows} pixels are no multiple of 8 pixels. Of a binary DICOM SEG of such "
        "images, dcmqi (3D Slicer) may misplace the voxels, and cornerstone3D (OHIF) may refuse it or misplace them. "
        "OHIF reads seg-labelmap, and dcmqi reads seg-fractional."
    )
    return (ScanWarning("seg_packed_bits", text),)


def _irregular_planes(series: DicomSeries) -> tuple[ScanWarning, ...]:
    codes = {remark.code for remark in series.warnings}
    leans = "gantry_tilt" in codes
    if not leans and "uneven_slices" not in codes:  # where slices are missing alone, frames leave planes out
        return ()
    dcmqi = "refuses a DICOM SEG of them" if leans else "puts the frames of a DICOM SEG at even distances"
    text = (
        f"The images {'lean' if leans else 'lie at uneven distances'}, and DICOM results lie on them as they are. "
        f"dcmqi (3D Slicer) {dcmqi}, and programs that make one volume of the images misplace contours. OHIF and "
        "highdicom, which go by the image that each frame refers to, read the SEG. NIfTI holds the corrected volume."
    )
    return (ScanWarning("seg_irregular_planes", text),)
