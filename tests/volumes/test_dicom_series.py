"""A DICOM series becomes the volume that its positions say, or a sentence that says why not."""

from __future__ import annotations

import random
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes import dicom_file
from semiseg.volumes.dicom_geometry import lps_to_ras, make_plane, require_regular, stack_affine, stack_planes
from semiseg.volumes.dicom_index import index_files
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import read_nifti, write_nifti
from semiseg.volumes.series_rules import group_by_series
from semiseg.volumes.volume import Volume, reorient
from tests.grids import AXIS_ORIENTATIONS


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return make_phantom(7, (26, 22, 9), (3.6, 4.2, 11.0)).image


def edit(path: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def oblique(volume: Volume) -> Volume:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (17, -9, 28), degrees=True).as_matrix()
    return Volume(volume.array, turn @ volume.affine)


def assert_same_places(a: Volume, b: Volume) -> None:
    """Every voxel of a has the value of b's voxel at the same point of the patient."""
    array_a, affine_a = reorient(a.array, a.affine, "RAS")
    array_b, affine_b = reorient(b.array, b.affine, "RAS")
    np.testing.assert_allclose(affine_a, affine_b, atol=1e-4)
    np.testing.assert_array_equal(array_a, array_b)


@pytest.mark.parametrize("axcodes", AXIS_ORIENTATIONS)
@pytest.mark.parametrize("tilted", [False, True])
def test_a_series_lies_where_the_nifti_file_of_the_same_phantom_lies(
    axcodes: str, tilted: bool, tmp_path: Path
) -> None:
    """VOL-01, VOL-02."""
    modality = "CT" if tilted else "MR"
    made = make_phantom(7, (14, 12, 9), (6.0, 7.0, 11.0), modality=modality).image  # type: ignore[arg-type]
    volume = Volume(*reorient(made.array, made.affine, axcodes))
    volume = oblique(volume) if tilted else volume
    write_nifti(tmp_path / "scan.nii.gz", volume.array, volume.affine)
    series = read_series(write_dicom_series(tmp_path / "series", volume, modality=modality))  # type: ignore[arg-type]
    assert series.modality == modality
    assert series.volume.array.dtype == np.int16
    assert_same_places(series.volume, read_nifti(tmp_path / "scan.nii.gz"))


def test_the_order_of_the_files_does_not_matter(files: list[Path]) -> None:
    """VOL-01."""
    expected = read_series(files)
    for seed in range(3):
        shuffled = random.Random(seed).sample(files, len(files))
        series = read_series(shuffled)
        np.testing.assert_array_equal(series.volume.array, expected.volume.array)
        np.testing.assert_array_equal(series.volume.affine, expected.volume.affine)
        assert [i.SOPInstanceUID for i in series.instances] == [i.SOPInstanceUID for i in expected.instances]


def test_instance_numbers_and_slice_locations_are_not_believed(files: list[Path]) -> None:
    """VOL-01."""
    expected = read_series(files).volume.array
    for k, path in enumerate(files):

        def lie(ds: pydicom.Dataset, k: int = k) -> None:
            ds.InstanceNumber, ds.SliceLocation = (5 * k) % len(files) + 1, -k

        edit(path, lie)
    np.testing.assert_array_equal(read_series(files).volume.array, expected)


def test_instances_are_in_the_order_of_the_slices_and_without_pixels(files: list[Path]) -> None:
    series = read_series(files)
    for z, instance in enumerate(series.instances):
        assert "PixelData" not in instance
        place = series.volume.affine @ (0, 0, z, 1)
        np.testing.assert_allclose(place[:3] * (-1, -1, 1), instance.ImagePositionPatient, atol=1e-4)


def test_rescale_slope_and_intercept_of_each_slice_are_applied(files: list[Path]) -> None:
    """VOL-03."""
    stored = read_series(files).volume.array.astype(np.float64)
    for path in files:

        def scale(ds: pydicom.Dataset) -> None:
            ds.RescaleSlope, ds.RescaleIntercept = "0.5", str(ds.InstanceNumber)

        edit(path, scale)
    series = read_series(files)
    assert series.volume.array.dtype == np.float32
    numbers = np.array([float(i.InstanceNumber) for i in series.instances])
    np.testing.assert_allclose(series.volume.array, stored * 0.5 + numbers, rtol=1e-6)


def test_the_same_file_twice_is_one_slice(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[2], tmp_path / "copy.dcm")
    assert read_series([*files, tmp_path / "copy.dcm"]).volume.shape[2] == len(files)


def test_files_without_preamble_are_read(files: list[Path]) -> None:
    expected = read_series(files).volume.array
    for path in files:
        dataset = pydicom.dcmread(path)
        content = path.read_bytes()
        path.write_bytes(content[144 + dataset.file_meta.FileMetaInformationGroupLength :])
        assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_series(files).volume.array, expected)


def test_a_series_whose_uids_were_emptied_is_still_a_volume(files: list[Path]) -> None:
    expected = read_series(files).volume.array
    for path in files:

        def empty(ds: pydicom.Dataset) -> None:
            ds.SeriesInstanceUID = ds.StudyInstanceUID = ""

        edit(path, empty)
    series = read_series(files)
    assert series.uid == ""
    np.testing.assert_array_equal(series.volume.array, expected)


def test_groups_leave_out_what_is_not_dicom(files: list[Path], phantom: Volume, tmp_path: Path) -> None:
    other = write_dicom_series(tmp_path / "other", phantom, description="Other")
    (tmp_path / "notes.txt").write_text("not a scan " * 30)
    objects, left_out = index_files([*other, tmp_path / "notes.txt", *files])
    assert sorted(len(series.images) for series in group_by_series(objects)) == [len(files), len(files)]
    assert [(one.path.name, one.damaged) for one in left_out] == [("notes.txt", False)]


def test_several_series_are_listed_and_one_can_be_named(files: list[Path], phantom: Volume, tmp_path: Path) -> None:
    other = write_dicom_series(tmp_path / "other", phantom, description="Other")
    uids = [str(pydicom.dcmread(f[0]).SeriesInstanceUID) for f in (files, other)]
    with pytest.raises(
        VolumeError, match=r"2 image series that fit.*MR, Phantom, 9 files.*MR, Other, 9 files"
    ) as caught:
        read_series([*files, *other])
    assert all(uid in str(caught.value) for uid in uids)
    assert read_series([*files, *other], series_uid=uids[1]).description == "Other"
    with pytest.raises(VolumeError, match=r"No series 1\.2\.3 is among the files"):
        read_series([*files, *other], series_uid="1.2.3")


def every(change: Callable[[pydicom.Dataset, int], None]) -> Callable[[list[Path]], list[Path]]:
    def apply(files: list[Path]) -> list[Path]:
        for k, path in enumerate(files):
            edit(path, lambda ds, k=k: change(ds, k))
        return files

    return apply


def only(number: int, change: Callable[[pydicom.Dataset], None]) -> Callable[[list[Path]], list[Path]]:
    def apply(files: list[Path]) -> list[Path]:
        edit(files[number], change)
        return files

    return apply


def put(**values: object) -> Callable[[pydicom.Dataset], None]:
    def change(ds: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


def moved(z: float = 0.0, y: float = 0.0) -> Callable[[pydicom.Dataset], None]:
    def change(ds: pydicom.Dataset) -> None:
        place = [float(v) for v in ds.ImagePositionPatient]
        ds.ImagePositionPatient = [place[0], round(place[1] + y, 6), round(place[2] + z, 6)]

    return change


def recoloured(ds: pydicom.Dataset) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = bytes(ds.Rows * ds.Columns * 3 + (ds.Rows * ds.Columns * 3) % 2)


def broken_jpeg(ds: pydicom.Dataset) -> None:
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 this is no JPEG 2000 stream"])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def emptied(keyword: str) -> Callable[[pydicom.Dataset], None]:
    return lambda ds: delattr(ds, keyword)


REFUSALS: dict[str, tuple[Callable[[list[Path]], list[Path]], str]] = {
    "nothing": (lambda files: [], "no files to read"),
    "duplicate positions": (
        only(4, moved(z=-11.0)),
        r"1 of 9 slices lie where another one does \(for example .* mm along the normal\)",
    ),
    "two echoes": (
        lambda files: files + [echo(path) for path in files],
        r"9 of 18 slices lie where another one does.*images of the same place, which differ in Echo Time\. Send",
    ),
    "a hole": (
        lambda files: files[:3] + files[4:],
        r"1 slice\(s\) are missing: between slices 3 and 4 of 8 .* the gap is 22\.00 mm instead of 11\.00 mm\. A gap "
        r"of 22\.0 mm is too wide to be interpolated \(the limit is 12\.5 mm\)",
    ),
    "a wide uneven gap": (only(8, moved(z=3.0)), r"unevenly spaced: 1 of 8 gaps differ.* 14\.0 mm is too wide"),
    "positions that lean like no gantry": (every(lambda ds, k: moved(y=12.0 * k)(ds)), "gantry can be tilted that far"),
    "a slice aside": (only(4, moved(y=8.0)), "displaced sideways by up to 8.0 mm"),
    "mixed orientation": (
        only(0, put(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
        r"2 orientations \(8, 1 slices\)",
    ),
    "a localiser among the slices": (
        only(0, put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        r"mixes 1 localiser image\(s\) with 8 others",
    ),
    "differing rows": (only(3, put(Rows=11, Columns=52)), "differ in rows and columns"),
    "differing spacing": (only(3, put(PixelSpacing=[4.0, 3.0])), "differ in pixel spacing"),
    "two frames of reference": (only(3, put(FrameOfReferenceUID="1.2.3")), "2 frames of reference"),
    "a single slice": (lambda files: files[:1], r"it has 1 slice\(s\) and not at least 2"),
    "colour": (only(5, recoloured), "a grey-value image is needed, but this one is RGB"),
    "missing position": (only(5, emptied("ImagePositionPatient")), "lacks ImagePositionPatient, so its place"),
    "missing orientation": (only(5, emptied("ImageOrientationPatient")), "lacks ImageOrientationPatient"),
    "cosines that are none": (only(5, put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "two perpendicular unit vec"),
    "spacing of zero": (only(5, put(PixelSpacing=[0, 1])), "is not positive"),
    "a codec's damaged stream": (only(5, broken_jpeg), "pixel data compressed as JPEG 2000.* cannot be decoded"),
    "pixels cut short": (only(5, put(PixelData=b"\0\0")), "the pixel data cannot be decoded"),
    "rescale of zero": (only(5, put(RescaleSlope=0, RescaleIntercept=0)), "are not valid"),
    "a multi-frame object": (only(5, put(NumberOfFrames=9)), "9 frames without positions"),
    "an inverted image": (only(5, put(PhotometricInterpretation="MONOCHROME1")), "stored for inverted display"),
    "a segmentation": (
        every(lambda ds, k: put(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")(ds)),
        "no images among the DICOM files, only: segmentation",
    ),
    "a dose grid": (every(lambda ds, k: put(Modality="RTDOSE")(ds)), "only: radiotherapy dose grid"),
    "a report": (
        every(lambda ds, k: (put(Modality="SR")(ds), delattr(ds, "Rows"))),  # type: ignore[func-returns-value]
        "only: structured report",
    ),
    "no DICOM at all": (
        lambda files: [path for path in files if path.write_bytes(b"nothing of the kind")],
        "None of the 9 files is a DICOM image; the first: .*not a DICOM file",
    ),
}


def echo(path: Path) -> Path:
    other = path.with_suffix(".echo2")
    shutil.copy(path, other)
    edit(other, put(SOPInstanceUID=generate_uid(), EchoTime=80))
    edit(other, lambda ds: setattr(ds, "PixelData", bytes(len(ds.PixelData))))
    return other


@pytest.mark.parametrize("what", list(REFUSALS))
def test_what_is_no_volume_is_refused_with_a_sentence_that_says_why(what: str, files: list[Path]) -> None:
    """VOL-04."""
    change, sentence = REFUSALS[what]
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_series(change(files))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_values_of_a_patient_do_not_get_into_warnings(files: list[Path], recwarn: pytest.WarningsRecorder) -> None:
    """VOL-08."""
    content = files[0].read_bytes()
    files[0].write_bytes(content.replace(b"20260101", b"Doe^Jane"))
    read_series(files)
    assert not [w for w in recwarn if "Doe" in str(w.message)]


def test_two_different_images_that_claim_one_identity_are_refused(files: list[Path]) -> None:
    uid = pydicom.dcmread(files[0]).SOPInstanceUID
    edit(files[1], put(SOPInstanceUID=uid))
    with pytest.raises(VolumeError, match="have the same SOP Instance UID"):
        read_series(files)


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """VOL-06."""
    monkeypatch.setattr(dicom_file, "MAX_INFLATED_BYTES", 2**25)
    edit(files[0], lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2.1.99"))
    content = files[0].read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(4)) + packer.flush()
    files[0].write_bytes(content[:start] + bomb)
    assert files[0].stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(VolumeError, match="grows beyond"):
        read_series(files[:1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


@given(
    gap=st.floats(0.3, 10),
    count=st.integers(2, 30),
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    seed=st.integers(0, 2**31),
)
def test_any_regular_stack_is_a_volume_whose_affine_gives_back_every_position(
    gap: float, count: int, degrees: tuple[float, float, float], seed: int
) -> None:
    """VOL-02."""
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    positions = [matrix @ (0, 0, gap * k) + (10, -20, 30) for k in range(count)]
    order = np.random.default_rng(seed).permutation(count)
    cosines = [*matrix[:, 0], *matrix[:, 1]]
    stack = stack_planes([make_plane(list(positions[i]), cosines, [0.7, 0.9], (4, 5)) for i in order])
    require_regular(stack)
    assert [order[i] for i in stack.order] == list(range(count))
    affine = lps_to_ras(stack_affine(stack))
    for k, position in enumerate(positions):
        np.testing.assert_allclose((affine @ (0, 0, k, 1))[:3], position, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :2], axis=0), (0.9, 0.7))


def test_gaps_that_creep_within_their_tolerance_may_not_add_up() -> None:
    heights = np.cumsum([0.0] + [10.08] * 30 + [9.92] * 30)
    stack = stack_planes([make_plane([0, 0, z], [1, 0, 0, 0, 1, 0], [1, 1], (4, 4)) for z in heights])
    with pytest.raises(VolumeError, match=r"gaps run from 9\.920 to 10\.080 mm, which puts slices up to 2\.40 mm"):
        require_regular(stack)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 1800), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_damaged_file_gives_a_volume_or_a_volume_error(place: int, value: int, cut: int, files: list[Path]) -> None:
    """VOL-06."""
    original = files[3].read_bytes()
    content = bytearray(original)
    content[min(place, len(content) - 1)] = value
    files[3].write_bytes(bytes(content if cut else content[:place]))
    try:
        assert isinstance(read_series(files).volume, Volume)
    except VolumeError as error:
        assert "\n" not in str(error)
    finally:
        files[3].write_bytes(original)
