"""Make series of single images, so that a reader of volumes decodes them: most test files are single images.

    python -m docs.readers.lift TREE... --into FOLDER

Each grey-value image below a TREE that is no volume by itself becomes a folder of its own. A single image is written
three times, at three places; the frames of a multi-frame object are given functional groups that place them. Pixel data
and everything that says how they are stored stay as they are. It needs numpy and pydicom, and nothing of semiseg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

CT = UID("1.2.840.10008.5.1.4.1.1.2")
ENHANCED_CT = UID("1.2.840.10008.5.1.4.1.1.2.1")
MOST_FRAMES = 200


def write_series(path: Path, folder: Path) -> bool:
    """Write the series of one file; False where it is no grey-value image, or already says where its frames lie."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        frames = int(dataset.get("NumberOfFrames") or 1)
        wanted = (
            dataset.get("SamplesPerPixel", 1) == 1 and str(dataset.get("PhotometricInterpretation", ""))[:4] == "MONO"
        )
        whole = "Rows" in dataset and "PixelData" in dataset and dataset.Rows * dataset.Columns < 2**22
    except Exception:  # noqa: BLE001 - a file that pydicom cannot parse stays out
        return False
    if not wanted or not whole or frames > MOST_FRAMES or "PerFrameFunctionalGroupsSequence" in dataset:
        return False
    try:
        _name(dataset)
        folder.mkdir(parents=True)
        if frames > 1:
            _place_frames(dataset, frames)
            dataset.save_as(folder / "object.dcm", enforce_file_format=True)
        else:
            for z in range(3):
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                dataset.ImagePositionPatient = [0, 0, 2 * z]
                dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
                dataset.PixelSpacing = [1, 1]
                dataset.InstanceNumber = z + 1
                dataset.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    except Exception:  # noqa: BLE001 - nor does one that pydicom cannot write again
        for written in folder.glob("*"):
            written.unlink()
        folder.rmdir()
        return False
    return True


def _name(dataset: Dataset) -> None:
    """Identity and kind: a series of its own, and nothing of a patient."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT
    dataset.Modality, dataset.PhotometricInterpretation = "CT", "MONOCHROME2"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID, dataset.SeriesDescription = generate_uid(), "lifted"
    dataset.PatientName = dataset.PatientID = "nobody"


def _place_frames(dataset: Dataset, frames: int) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [1, 1], 2, 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = (
            slope,
            intercept,
            "US",
        )
        shared.PixelValueTransformationSequence = [transformation]
        del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for z in range(frames):
        frame, content, plane = Dataset(), Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", z + 1, [1, z + 1]
        plane.ImagePositionPatient = [0, 0, 2 * z]
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], [plane]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)


def main() -> int:
    """Lift everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    for tree in options.trees:
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        count = sum(write_series(path, options.into / tree.name / f"{path.relative_to(tree)}.lifted") for path in files)
        print(tree.name, count, "of", len(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
