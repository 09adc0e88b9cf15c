import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import images
from datamodules.images import ImageError, read_image


@pytest.fixture(scope="module")
def color():
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


def encoded(array, kind, mode=None, **options):
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def put(folder, data, name="x.bin"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_files_give_their_very_pixels(tmp_path, color, kind):
    assert np.array_equal(read_image(put(tmp_path, encoded(color, kind))), color)
    gray = color[..., 0].copy()
    assert np.array_equal(read_image(put(tmp_path, encoded(gray, kind))), gray)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", None, {"quality": 98}),
        ("JPEG", None, {"quality": 98, "progressive": True}),
        ("JPEG", "CMYK", {"quality": 98}),
        ("WEBP", None, {"quality": 98}),
    ],
)
def test_lossy_files_are_close_to_their_pixels(tmp_path, color, kind, mode, options):
    found = read_image(put(tmp_path, encoded(color, kind, mode, **options)))
    assert found.shape == color.shape
    assert np.abs(found.astype(int) - color).mean() < 3


def test_fill_bytes_before_the_markers_of_a_jpeg_change_nothing(tmp_path, color):
    plain = filled = encoded(color, "JPEG")
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda"):
        filled = filled.replace(marker, b"\xff\xff\xff" + marker, 1)
    assert len(filled) == len(plain) + 9
    assert np.array_equal(
        read_image(put(tmp_path, filled, "a")), read_image(put(tmp_path, plain, "b"))
    )


def test_gray_stays_gray_and_alpha_is_dropped(tmp_path, color):
    gray = color[..., 1].copy()
    assert read_image(put(tmp_path, encoded(gray, "JPEG"))).ndim == 2
    assert np.array_equal(read_image(put(tmp_path, encoded(gray, "PNG", "LA"))), gray)
    with_alpha = np.dstack([color, gray])
    assert np.array_equal(read_image(put(tmp_path, encoded(with_alpha, "PNG"))), color)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_turn_is_applied(tmp_path, color, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    options = {"quality": 98} if kind != "PNG" else {}
    found = read_image(put(tmp_path, encoded(color, kind, exif=exif, **options)))
    assert np.abs(found.astype(int) - np.rot90(color, -1)).mean() < 3


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (4096, 14), (65535, 16), (255, 8)])
def test_deep_pixels_use_the_smallest_depth_that_holds_them(tmp_path, top, bits):
    deep = np.array([[0, top // 3, top]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        expected = np.rint(deep * 255.0 / (2**bits - 1))
        assert np.array_equal(read_image(tmp_path / name), expected)


def test_float_tiffs_are_taken_from_0_to_1_or_refused(tmp_path):
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    assert read_image(put(tmp_path, encoded(ramp, "TIFF"))).tolist() == [[0, 64, 128, 191, 255]]
    with pytest.raises(ImageError, match=r"x.bin: float32 pixels from 0.0 to 7.0"):
        read_image(put(tmp_path, encoded(ramp * 7, "TIFF")))


def test_a_page_is_named_or_the_file_is_refused(tmp_path, color):
    pages = [Image.fromarray(color), Image.fromarray(255 - color)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match=r"pages.tif: 2 frames; select one"):
        read_image(path)
    assert np.array_equal(read_image(f"{path}#0"), color)
    assert np.array_equal(read_image(f"{path}#1"), 255 - color)
    with pytest.raises(ImageError, match="frame is 2; the file has the frames 0 to 1"):
        read_image(f"{path}#2")


def bomb():
    size = (60_000).to_bytes(4, "big")
    head = b"IHDR" + size + size + bytes([8, 0, 0, 0, 0])
    end = b"\0\0\0\0IEND\xaeB`\x82"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big") + end


def thumbnail_bomb():
    """A TIFF whose first page is huge and says that it is a thumbnail."""
    tags = [(254, 1), (256, 60_000), (257, 60_000)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    second = struct.pack("<HHHIIHHIII", 2, 256, 4, 1, 8, 257, 4, 1, 8, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + struct.pack("<I", 50) + second


def crumbs():
    """A TIFF whose pages lie over one another, each with as many tags as can be."""
    pages = b"\xff\xff" * 40_000
    nexts = b"".join(struct.pack("<I", 8 + 4 * (k + 1)) for k in range(190_000))
    return b"II*\0\x08\0\0\0" + pages + nexts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (thumbnail_bomb(), "60000 x 60000 pixels"),
        (crumbs(), "tiff header is cut or damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 200_000, "png header is cut"),
        (b"<html>not found</html>", r"begins with b'<html>not fo', which is none of png"),
        (b"\0" * 500, "which is none of"),
        (bomb(), "60000 x 60000 pixels; allowed are 100000000"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpeg header is cut"),
        (b"\xff\xd8" + b"\xff" * 1_000_000, "jpeg header is cut"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "0 x 0 pixels"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path, data, message):
    with pytest.raises(ImageError, match=rf"film.png: .*{message}"):
        read_image(put(tmp_path, data, "film.png"))


def test_a_chunk_that_lies_about_its_length_is_refused_before_room_is_made(tmp_path, color):
    data = bytearray(encoded(color, "PNG"))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (2**31 - 9).to_bytes(4, "big")
    with pytest.raises(ImageError, match="png header is cut or damaged"):
        read_image(put(tmp_path, bytes(data)))


def test_a_missing_file_and_too_many_bytes_are_refused(tmp_path, color, monkeypatch):
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"x.bin: \d+ bytes; allowed are 100"):
        read_image(put(tmp_path, encoded(color, "PNG")))


def mutated(data, dice):
    kind = dice.integers(4)
    if kind == 0:
        return data[: dice.integers(len(data))]
    if kind == 1:
        at = dice.integers(len(data))
        return data[:at] + bytes(dice.integers(1, 200)) + data[at:]
    changed = bytearray(data)
    for _ in range(dice.integers(1, 9)):
        changed[dice.integers(len(changed))] ^= 1 << dice.integers(8)
    return bytes(changed)


def outcome(path):
    try:
        found = read_image(path)
    except ImageError as error:
        return "named" if str(error).startswith(str(path)) else f"not named: {error}"
    return "picture" if found.dtype == np.uint8 and found.shape[2:] in ((), (3,)) else "odd"


def test_mutated_files_end_in_a_picture_or_in_an_error_with_their_name(tmp_path, color):
    dice = np.random.default_rng(7)
    kinds = ["PNG", "JPEG", "TIFF", "BMP", "WEBP"]
    whole = [encoded(part, kind) for kind in kinds for part in (color, color[..., 0].copy())]
    for number in range(200):
        path = put(tmp_path, mutated(whole[number % len(whole)], dice), f"m{number}.png")
        assert outcome(path) in ("picture", "named")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_file_cut_in_half_is_never_half_a_picture(tmp_path, kind):
    large = cv2.resize(np.eye(9, dtype=np.uint8) * 255, (600, 500))
    data = encoded(large, kind)
    for share in (0.5, 0.9, 0.98):
        with pytest.raises(ImageError, match="cut"):
            read_image(put(tmp_path, data[: int(len(data) * share)]))
