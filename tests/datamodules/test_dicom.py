import tomllib
from pathlib import Path

import numpy as np
import pytest

from datamodules.dicom import read_tags
from datamodules.images import ImageError, decode_bytes, read_image

pydicom = pytest.importorskip("pydicom")
ROOT = Path(__file__).parents[2]
RAMP = np.arange(0, 4096, 273, dtype=np.uint16).reshape(4, 4)


def write_dicom(path, array=RAMP, **tags):
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = array.shape[-2:]
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_without_a_window_the_range_of_the_values_is_used(tmp_path):
    image = read_image(write_dicom(tmp_path / "a.dcm"))
    assert np.array_equal(image, np.rint(RAMP / RAMP.max() * 255))


def test_the_order_is_modality_lut_window_inversion(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 2001}
    brightness = np.clip((RAMP * 2.0 - 1000 - 2999.5) / 2000 + 0.5, 0, 1)
    image = read_image(write_dicom(tmp_path / "a.dcm", **tags))
    assert np.array_equal(image, np.rint(brightness * 255))
    inverted = read_image(
        write_dicom(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **tags)
    )
    assert np.array_equal(inverted, np.rint((1 - brightness) * 255))


def test_exact_and_sigmoid_windows_follow_the_standard(tmp_path):
    tags = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = read_image(write_dicom(tmp_path / "a.dcm", VOILUTFunction="LINEAR_EXACT", **tags))
    assert np.array_equal(exact, np.rint(np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1) * 255))
    sigmoid = read_image(write_dicom(tmp_path / "b.dcm", VOILUTFunction="SIGMOID", **tags))
    assert np.array_equal(sigmoid, np.rint(255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000))))


def test_a_voi_table_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], [65535 - 16 * k for k in range(4096)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    image = read_image(write_dicom(tmp_path / "a.dcm", VOILUTSequence=[table]))
    assert np.array_equal(image, np.rint((65535 - 16.0 * RAMP) / 65535 * 255))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"WindowCenter": "NaN", "WindowWidth": 400},
        {"RescaleSlope": 0, "RescaleIntercept": 0, "WindowCenter": 40, "WindowWidth": 400},
        {"RescaleSlope": "NaN", "RescaleIntercept": 0},
        {"RescaleSlope": "", "RescaleIntercept": ""},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_window_or_slope_without_meaning_does_not_make_the_image_black(tmp_path, tags):
    image = read_image(write_dicom(tmp_path / "a.dcm", **tags))
    assert np.array_equal(image, np.rint(RAMP / RAMP.max() * 255))


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_for_the_range(tmp_path, interpretation):
    padded = np.full((6, 6), 63_536, np.uint16)
    padded[1:5, 1:5] = RAMP
    padded[0] = 63_000
    tags = {"PixelPaddingValue": 63_536, "PixelPaddingRangeLimit": 63_000, "BitsStored": 16,
            "HighBit": 15, "PhotometricInterpretation": interpretation}  # fmt: skip
    image = read_image(write_dicom(tmp_path / "a.dcm", padded, **tags))
    brightness = RAMP / RAMP.max()
    shown = brightness if interpretation == "MONOCHROME2" else 1 - brightness
    assert np.array_equal(image[1:5, 1:5], np.rint(shown * 255))
    assert image.sum() == image[1:5, 1:5].sum()


def test_a_preamble_of_another_format_is_ignored(tmp_path):
    file = write_dicom(tmp_path / "a.dcm")
    data = file.read_bytes()
    for preamble in (b"II*\0", b"MM\0*", b"BM"):
        file.write_bytes(preamble + data[len(preamble) :])
        assert np.array_equal(read_image(file), np.rint(RAMP / RAMP.max() * 255))
    ct = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    assert read_image(ct).shape == (128, 128)


def test_a_frame_is_selected_by_number_and_several_frames_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1]]), NumberOfFrames=2)
    with pytest.raises(ImageError, match=r"a.dcm: .*2 frames; select one"):
        read_image(path)
    assert np.array_equal(read_image(f"{path}#1"), read_image(f"{path}#0")[::-1])
    with pytest.raises(ImageError, match=r"a.dcm: .*frame is 2"):
        read_image(f"{path}#2")


def test_palette_color_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(ImageError, match=r"a.dcm: .*is PALETTE COLOR; export the image as RGB"):
        read_image(path)


def test_a_damaged_file_is_an_error_with_its_name(tmp_path):
    path = write_dicom(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"a.dcm: DICOM that cannot be read"):
        read_image(path)


def test_a_deflated_file_is_read_unless_it_unpacks_to_far_more_than_its_image(tmp_path):
    syntax = pydicom.uid.DeflatedExplicitVRLittleEndian
    path = write_dicom(tmp_path / "a.dcm", syntax=syntax)
    assert np.array_equal(read_image(path), np.rint(RAMP / RAMP.max() * 255))
    bomb = write_dicom(tmp_path / "b.dcm", syntax=syntax, EncapsulatedDocument=bytes(20_000_000))
    data = np.fromfile(bomb, np.uint8)
    assert len(data) < 40_000
    with pytest.raises(ValueError, match="unpacks to more than 800000 bytes"):
        decode_bytes(data, max_pixels=100_000)


def test_a_deflated_file_without_the_length_of_its_meta_group_is_bounded(tmp_path):
    tags = {"syntax": pydicom.uid.DeflatedExplicitVRLittleEndian}
    harmless = write_dicom(tmp_path / "a.dcm", **tags)
    bomb = write_dicom(tmp_path / "b.dcm", EncapsulatedDocument=bytes(20_000_000), **tags)
    harmless_data, bomb_data = (
        np.frombuffer(data[:132] + data[144:], np.uint8)
        for data in (harmless.read_bytes(), bomb.read_bytes())
    )
    assert np.array_equal(decode_bytes(harmless_data), read_image(harmless))
    with pytest.raises(ValueError, match="unpacks to more than 800000 bytes"):
        decode_bytes(bomb_data, max_pixels=100_000)


def read_test_file(name):
    return read_image(pydicom.data.get_testdata_file(name, download=False))


def test_the_dicom_extra_has_a_decoder_of_every_compression():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {name.split(">")[0] for name in extras["optional-dependencies"]["dicom"]}
    assert {"pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"} <= names


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # JPEG Lossless
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ],
)
def test_lossless_compressions_give_the_pixels_of_the_uncompressed_image(compressed, plain):
    assert np.array_equal(read_test_file(compressed), read_test_file(plain))


@pytest.mark.parametrize(
    "name", ["JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm"]
)
def test_lossy_compressions_are_read(name):
    assert read_test_file(name).std() > 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtplan.dcm", "RT Plan, modality RTPLAN, has no image"),
        ("test-SR.dcm", "Comprehensive SR, modality SR, has no image"),
        ("waveform_ecg.dcm", "12-lead ECG Waveform, modality ECG, has no image"),
    ],
)
def test_an_object_without_an_image_is_named(name, message):
    with pytest.raises(ImageError, match=f"{name}: DICOM .*{message}"):
        read_test_file(name)


def test_tags_that_identify_an_image_are_read_and_missing_ones_are_empty(tmp_path):
    tags = {"PatientID": " p7 ", "StudyInstanceUID": "1.2.3", "Manufacturer": "Acme"}
    header = read_tags(write_dicom(tmp_path / "a.dcm", **tags))
    assert header == {
        "patient": "p7", "study": "1.2.3", "view_position": "", "manufacturer": "Acme",
    }  # fmt: skip
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    assert set(read_tags(tmp_path / "b.dcm").values()) == {""}
    assert set(read_tags(tmp_path / "gone.dcm").values()) == {""}
