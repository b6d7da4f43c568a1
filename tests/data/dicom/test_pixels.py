"""Pixels in every transfer syntax, against the uncompressed phantom of `fixtures/dicom`; MONOCHROME1; other scaling."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from made.dicom import make_affine, make_voxels, save, write_enhanced, write_series, write_small
from made.outcomes import error_of, one_series
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

FIXTURES = Path(__file__).parents[2] / "fixtures/dicom"
LOSSLESS = ("jpeg_lossless", "jpeg_lossless_sv1", "jpeg_lossless_12_bits", "jpeg_ls", "jpeg2000", "rle")
SIGNED = ("jpeg_lossless_sv1_signed", "jpeg_ls_signed", "rle_signed")
# Largest and mean distance from the uncompressed values that the compression of each fixture makes, rounded up.
LOSSY = {
    "jpeg_baseline": ("plain_8_bits", "JPEG Baseline (Process 1)", 15, 3),
    "jpeg_extended": ("plain", "JPEG Extended (Process 2 and 4)", 16, 4),
    "jpeg_ls_near": ("plain", "JPEG-LS Lossy (Near-Lossless) Image Compression", 2, 2),
    "jpeg2000_lossy": ("plain", "JPEG 2000 Image Compression", 180, 40),
}


def change(folder: Path, **attributes: object) -> None:
    """Sets attributes of every file, and leaves its pixels as they are."""
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            setattr(data, keyword, value)
        data.save_as(path)


@pytest.mark.parametrize("name", [*LOSSLESS, *SIGNED])
def test_lossless_compression_changes_nothing(name: str) -> None:
    found, plain = one_series(FIXTURES / name), one_series(FIXTURES / ("plain_signed" if name in SIGNED else "plain"))
    assert found.header.transfer_syntax != ExplicitVRLittleEndian
    assert found.problems() == [] and found.warnings() == [] and found.facts() == {}
    voxels, expected = found.voxels(), plain.voxels()
    assert voxels.dtype == expected.dtype
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_array_equal(found.grid()[1], plain.grid()[1])
    assert (expected.min(), expected.max()) == ((-1000, 3095) if name in SIGNED else (0, 4095))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_pixels_in_another_order_of_bytes(tmp_path: Path, syntax: UID) -> None:
    for path in (FIXTURES / "plain_signed").iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID, data.is_implicit_VR = syntax, syntax.is_implicit_VR
        data.is_little_endian = syntax.is_little_endian
        if not syntax.is_little_endian:
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        data.save_as(tmp_path / path.name, write_like_original=False)
    np.testing.assert_array_equal(one_series(tmp_path).voxels(), one_series(FIXTURES / "plain_signed").voxels())


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_compression_is_read_and_told(name: str) -> None:
    source, syntax, largest, mean = LOSSY[name]
    found, plain = one_series(FIXTURES / name), one_series(FIXTURES / source)
    assert found.problems() == []
    (told,) = found.warnings()
    assert told.startswith(f"3 images were compressed with loss ({syntax}, ratio ")
    distance = np.abs(found.voxels().astype(int) - plain.voxels())
    assert 0 < distance.max() <= largest and distance.mean() <= mean


@pytest.mark.filterwarnings("ignore:The .0028,0101. 'Bits Stored' value")
@pytest.mark.parametrize("name", ["jpeg_baseline", "jpeg2000_lossy", "jpeg2000"])
def test_another_decoder_finds_the_same(name: str) -> None:
    series = one_series(FIXTURES / name)
    for k, path in enumerate(sorted((FIXTURES / name).iterdir())):
        expected = pydicom.dcmread(path).pixel_array  # Pillow's
        np.testing.assert_array_equal(series.voxels()[:, :, k].T, expected)


@pytest.mark.parametrize("name", [*LOSSLESS, *SIGNED])
def test_frames_of_a_compressed_enhanced_file(tmp_path: Path, name: str) -> None:
    """The frames are those of the slices, in reverse order, each in two fragments where an offset table parts them."""
    sources = [pydicom.dcmread(path) for path in sorted((FIXTURES / name).iterdir())]
    plain = one_series(FIXTURES / ("plain_signed" if name in SIGNED else "plain"))
    path, bits = tmp_path / "e.dcm", sources[0].BitsStored
    options = {"order": "reversed", "BitsStored": bits, "HighBit": bits - 1}
    write_enhanced(path, plain.voxels(), plain.grid()[1], slope=0.5, intercept=3.0, **options)
    data = pydicom.dcmread(path)
    streams = [next(generate_pixel_data_frame(source.PixelData, 1)) for source in reversed(sources)]
    data.PixelData = encapsulate(streams, fragments_per_frame=1 if name.startswith("rle") else 2)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    save(path, data, sources[0].file_meta.TransferSyntaxUID)
    np.testing.assert_array_equal(one_series(tmp_path).voxels(), plain.voxels() * 0.5 + 3)


@pytest.mark.parametrize("signed", [0, 1])
def test_the_header_says_whether_an_unsigned_stream_is_signed(tmp_path: Path, signed: int) -> None:
    """Some archives encode signed numbers to JPEG 2000 as if they were not."""
    meant = (make_voxels((40, 36, 4), np.int32) * 5 - (9000 if signed else 0)).astype(np.int16 if signed else np.uint16)
    write_series(tmp_path, meant.view(np.uint16), make_affine(), transfer_syntax=JPEG2000Lossless)
    change(tmp_path, PixelRepresentation=signed)
    np.testing.assert_array_equal(one_series(tmp_path).voxels(), meant)


@pytest.mark.parametrize("name", [*LOSSLESS, *SIGNED, *LOSSY])
def test_a_stream_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    """Its lengths hold: a transfer that broke off and was filled with zeros."""
    shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "2.dcm").write_bytes(content[:-250] + bytes(242) + content[-8:])
    error = error_of(one_series(tmp_path).voxels)
    assert error.check == "unreadable file" and error.found.startswith("2.dcm: ")


def test_loss_of_an_earlier_compression_is_told(tmp_path: Path) -> None:
    write_small(tmp_path, LossyImageCompression="01", LossyImageCompressionRatio=[12.5, 3])
    (told,) = one_series(tmp_path).warnings()
    assert told.startswith("5 images were compressed with loss (earlier, as the header says, ratio 12.5\\3")


def test_jpeg_2000_that_denies_loss_is_not_told(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "jpeg2000_lossy", tmp_path, dirs_exist_ok=True)
    change(tmp_path, LossyImageCompression="00")
    assert one_series(tmp_path).warnings() == []


@pytest.mark.parametrize("header", [{"PixelRepresentation": 1}, {"BitsStored": 11, "HighBit": 10}, {"BitsStored": 16}])
@pytest.mark.parametrize("name", LOSSLESS)
def test_compressed_bits_mean_what_they_mean_uncompressed(tmp_path: Path, name: str, header: dict[str, int]) -> None:
    """Whatever a header makes of stored bits, as of signed numbers of 12 bits, it makes of them in every syntax."""
    for one in ("plain", name):
        shutil.copytree(FIXTURES / one, tmp_path / one)
        change(tmp_path / one, **header)
    voxels, expected = one_series(tmp_path / name).voxels(), one_series(tmp_path / "plain").voxels()
    assert voxels.dtype == expected.dtype
    np.testing.assert_array_equal(voxels, expected)


@pytest.mark.parametrize("name", [*LOSSLESS, "jpeg_extended", "jpeg_ls_near", "jpeg2000_lossy"])
def test_more_bits_than_the_header_has_room_for(tmp_path: Path, name: str) -> None:
    shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    change(tmp_path, BitsAllocated=8, BitsStored=8, HighBit=7)
    error = error_of(one_series(tmp_path).voxels)
    assert error.check == "unreadable file" and error.found.startswith("1.dcm: ")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", MPEG2MPML])
def test_other_compression_is_refused(tmp_path: Path, syntax: str) -> None:
    """High-throughput JPEG 2000, which GDCM does not know, and a video."""
    for path in write_small(tmp_path).paths:
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID, data.PixelData = MPEG2MPML, encapsulate([data.PixelData])
        data.save_as(path)
        path.write_bytes(path.read_bytes().replace(MPEG2MPML.encode(), syntax.encode()))
    error = error_of(one_series(tmp_path).voxels)
    assert error.check == "compressed" and "for which there is no decoder here" in error.found


# --- MONOCHROME1


@pytest.mark.parametrize(
    ("dtype", "bits", "total"), [(np.uint16, 16, 65535), (np.uint16, 12, 4095), (np.int16, 16, -1), (np.int16, 12, -1)]
)
def test_low_values_that_are_bright_are_inverted(tmp_path: Path, dtype: type, bits: int, total: int) -> None:
    stored = make_voxels(dtype=dtype) - (300 if dtype is np.int16 else 0)
    options = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1}
    made = write_series(tmp_path, stored, make_affine(), **options)
    series = one_series(tmp_path)
    voxels = series.voxels()
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels.astype(int), total - stored.astype(int))
    assert series.warnings() == ["MONOCHROME1, where low values are bright: the values were inverted"]
    if (dtype, bits) != (np.int16, 12):  # which GDCM refuses
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(list(map(str, made.paths)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(reader.Execute()).T, voxels)


def test_compressed_values_are_inverted_once(tmp_path: Path) -> None:
    for name in ("plain", "jpeg_lossless_sv1"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
        change(tmp_path / name, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=1)
        expected = (4095.0 - one_series(FIXTURES / name).voxels()) * 2 + 1
        np.testing.assert_array_equal(one_series(tmp_path / name).voxels(), expected)


def test_inversion_needs_one_rescale(tmp_path: Path) -> None:
    options = {"RescaleSlope": lambda k: k + 1, "RescaleIntercept": 0}
    write_small(tmp_path, PhotometricInterpretation="MONOCHROME1", **options)
    error = error_of(one_series(tmp_path).voxels)
    assert error.check == "mixed series"
    assert error.found.startswith("rescale of MONOCHROME1 (1, 0) in ")


def test_inversion_of_values_beyond_the_stored_bits(tmp_path: Path) -> None:
    """What JPEG 2000 with loss may come to, and cannot be mirrored."""
    shutil.copytree(FIXTURES / "jpeg2000_lossy", tmp_path, dirs_exist_ok=True)
    change(tmp_path, PhotometricInterpretation="MONOCHROME1")
    error = error_of(one_series(tmp_path).voxels)
    assert (error.check, error.found.split(":")[0]) == ("photometric interpretation", "2.dcm")


# --- Philips


def philips(data: pydicom.Dataset) -> None:
    block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0D, "FL", 0.0)
    block.add_new(0x0E, "FL", 0.004)


@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_the_standards_own_rescale_is_used_and_told(tmp_path: Path, slope: float) -> None:
    for path in write_small(tmp_path, RescaleSlope=slope, RescaleIntercept=0).paths:
        data = pydicom.dcmread(path)
        philips(data)
        save(path, data)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(series.voxels(), make_voxels() * slope)
    assert series.warnings() == []
    assert series.facts() == {
        "rescale": f"the standard's own (0028,1053) and (0028,1052), slope {slope:g}, intercept 0; "
        "Philips' (2005,100E) and (2005,100D) are there and not used"
    }


def test_rescale_of_an_enhanced_philips_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "e.dcm"
    write_enhanced(path, make_voxels(), make_affine(), slope=2.0, intercept=1.0)
    data = pydicom.dcmread(path)
    for frame in data.PerFrameFunctionalGroupsSequence:
        own = pydicom.Dataset()
        philips(own)
        frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [own])
        frame[0x2005, 0x140F] = pydicom.DataElement(0x2005140F, "SQ", [own])
    save(path, data)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(series.voxels(), make_voxels() * 2 + 1)
    assert "slope 2, intercept 1; Philips'" in series.facts()["rescale"]
