import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import images
from datamodules.cache import file_hashes
from datamodules.images import ImageError, read_image
from tests.datamodules.test_dicom import write_dicom


@pytest.fixture(scope="module")
def color():
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


def encode(array, kind, mode=None, **options):
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def write(folder, data, name="x.bin"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_files_give_their_exact_pixels(tmp_path, color, kind):
    assert np.array_equal(read_image(write(tmp_path, encode(color, kind))), color)
    gray = color[..., 0].copy()
    assert np.array_equal(read_image(write(tmp_path, encode(gray, kind))), gray)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", None, {"quality": 98}),
        ("JPEG", None, {"quality": 98, "progressive": True}),
        ("JPEG", "CMYK", {"quality": 98}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {"compression": "zstd"}),
        ("TIFF", "YCbCr", {}),
        ("WEBP", None, {"quality": 98}),
    ],
)
def test_lossy_files_are_close_to_the_original_pixels(tmp_path, color, kind, mode, options):
    image = read_image(write(tmp_path, encode(color, kind, mode, **options)))
    assert image.shape == color.shape
    assert np.abs(image.astype(int) - color).mean() < 3


def test_fill_bytes_before_the_markers_of_a_jpeg_change_nothing(tmp_path, color):
    plain = filled = encode(color, "JPEG")
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda"):
        filled = filled.replace(marker, b"\xff\xff\xff" + marker, 1)
    assert len(filled) == len(plain) + 9
    assert np.array_equal(
        read_image(write(tmp_path, filled, "a")), read_image(write(tmp_path, plain, "b"))
    )


def test_gray_has_one_channel_and_alpha_is_dropped(tmp_path, color):
    gray = color[..., 1].copy()
    assert read_image(write(tmp_path, encode(gray, "JPEG"))).ndim == 2
    assert np.array_equal(read_image(write(tmp_path, encode(gray, "PNG", "LA"))), gray)
    with_alpha = np.dstack([color, gray])
    assert np.array_equal(read_image(write(tmp_path, encode(with_alpha, "PNG"))), color)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(tmp_path, color, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # 90 degrees clockwise
    options = {"quality": 98} if kind != "PNG" else {}
    image = read_image(write(tmp_path, encode(color, kind, exif=exif, **options)))
    assert np.abs(image.astype(int) - np.rot90(color, -1)).mean() < 3


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (4096, 14), (65535, 16), (255, 8)])
def test_deep_pixels_are_scaled_from_the_smallest_sufficient_bit_depth(tmp_path, top, bits):
    deep = np.array([[0, top // 3, top]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        expected = np.rint(deep * 255.0 / (2**bits - 1))
        assert np.array_equal(read_image(tmp_path / name), expected)


def test_float_tiffs_are_read_if_their_values_are_from_0_to_1(tmp_path):
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    assert read_image(write(tmp_path, encode(ramp, "TIFF"))).tolist() == [[0, 64, 128, 191, 255]]
    with pytest.raises(ImageError, match=r"x.bin: float32 pixels from 0 to 7"):
        read_image(write(tmp_path, encode(ramp * 7, "TIFF")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma"])
def test_tiffs_of_every_compression_that_pillow_reads_are_read(tmp_path, color, compression):
    options = {"compression": compression}
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    image = read_image(write(tmp_path, encode(ramp, "TIFF", **options)))
    assert image.tolist() == [[0, 64, 128, 191, 255]]
    assert np.array_equal(read_image(write(tmp_path, encode(color, "TIFF", **options))), color)
    deep = np.arange(0, 65536, 4096, dtype=np.uint16)[None]
    image = read_image(write(tmp_path, encode(deep, "TIFF", **options)))
    assert np.array_equal(image, np.rint(deep * 255.0 / 65535))
    cut = encode(color, "TIFF", **options)[:-900]
    with pytest.raises(ImageError, match=r"x.bin: .*cut"):
        read_image(write(tmp_path, cut))


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_in_which_white_is_zero_are_inverted(tmp_path, dtype, compression):
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    ramp = (np.linspace(0, 1, 9)[None] ** 2 * top).astype(dtype)
    plain = encode(ramp, "TIFF", compression=compression)
    tag = struct.pack("<HHIHH", 262, 3, 1, 1, 0)  # photometric interpretation: black is zero
    assert plain.count(tag) == 1
    inverted = write(tmp_path, plain.replace(tag, struct.pack("<HHIHH", 262, 3, 1, 0, 0)), "b")
    assert np.array_equal(255 - read_image(inverted), read_image(write(tmp_path, plain, "a")))


def png_chunks(array):
    data, offset, chunks = cv2.imencode(".png", array)[1].tobytes(), 8, {}
    while offset < len(data):
        length, kind = struct.unpack(">I4s", data[offset : offset + 8])
        chunks[kind] = chunks.get(kind, b"") + data[offset + 8 : offset + 8 + length]
        offset += 12 + length
    return chunks


def animated_png(still, frame):
    """A PNG whose still image is not part of its animation, twice the same frame."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = frame.shape[:2]
    image, pixels = png_chunks(still), png_chunks(frame)[b"IDAT"]
    chunks = [chunk(b"IHDR", image[b"IHDR"]), chunk(b"acTL", struct.pack(">II", 2, 0))]
    chunks.append(chunk(b"IDAT", image[b"IDAT"]))
    for number in (0, 2):
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, 0)
        chunks.append(chunk(b"fcTL", control))
        chunks.append(chunk(b"fdAT", struct.pack(">I", number + 1) + pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_still_image_of_an_animated_png_is_read(tmp_path, dtype):
    red = np.zeros((16, 24, 3), dtype)
    red[..., 2] = np.iinfo(dtype).max  # OpenCV writes BGR
    for frame in (np.zeros_like(red), np.zeros((8, 8, 3), dtype)):
        image = read_image(write(tmp_path, animated_png(red, frame)))
        assert image.reshape(-1, 3).mean(axis=0).tolist() == [255, 0, 0]


def test_a_page_is_selected_by_number_and_several_pages_are_refused(tmp_path, color):
    pages = [Image.fromarray(color), Image.fromarray(255 - color)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match=r"pages.tif: 2 frames; select one"):
        read_image(path)
    assert np.array_equal(read_image(f"{path}#0"), color)
    assert np.array_equal(read_image(f"{path}#1"), 255 - color)
    with pytest.raises(ImageError, match="frame is 2; the file has the frames 0 to 1"):
        read_image(f"{path}#2")


def png_bomb():
    size = (60_000).to_bytes(4, "big")
    head = b"IHDR" + size + size + bytes([8, 0, 0, 0, 0])
    end = b"\0\0\0\0IEND\xaeB`\x82"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big") + end


def thumbnail_bomb():
    """A TIFF whose first page is huge and marked as a thumbnail."""
    tags = [(254, 1), (256, 60_000), (257, 60_000)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    second = struct.pack("<HHHIIHHIII", 2, 256, 4, 1, 8, 257, 4, 1, 8, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + struct.pack("<I", 50) + second


def tiff(tags, tiles=(b"", b"")):
    """A TIFF file with these tags, as (tag, type, number), and these tiles of equal size."""
    count, size = len(tiles), len(tiles[0])
    place = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = [*tags, (324, 4, place), (325, 4, place + 4 * count)]
    lengths = [1] * (len(tags) - 2) + [count] * 2
    entries = [struct.pack("<HHII", t, k, n, v) for (t, k, v), n in zip(tags, lengths, strict=True)]
    starts = (place + 8 * count + k * size for k in range(count))
    arrays = struct.pack(f"<{2 * count}I", *starts, *[size] * count)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return header + b"".join(entries) + bytes(4) + arrays + b"".join(tiles)


def tiff_with_a_long_width():
    """A TIFF whose width has eight bytes, which are elsewhere."""
    place = 8 + 2 + 12 * 8 + 4
    tags = [(256, 16, place), (257, 4, 60_000), (258, 3, 8), (262, 3, 1), (322, 4, 256),
            (323, 4, 256)]  # fmt: skip
    data = tiff(tags)
    return data[:place] + struct.pack("<Q", 60_000) + data[place:]


def tiff_with_two_widths():
    """A TIFF in which some decoders find another width than others."""
    return tiff([(256, 4, 60_000), (256, 4, 10), (257, 4, 60_000), (258, 3, 8), (262, 3, 1)])


def tiff_with_too_many_tags():
    """A TIFF of overlapping pages, each with the maximum number of tags."""
    pages = b"\xff\xff" * 40_000
    offsets = b"".join(struct.pack("<I", 8 + 4 * (k + 1)) for k in range(190_000))
    return b"II*\0\x08\0\0\0" + pages + offsets


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (thumbnail_bomb(), "60000 x 60000 pixels"),
        (tiff_with_too_many_tags(), "tiff header is cut or damaged"),
        (tiff_with_a_long_width(), "60000 x 60000 pixels"),
        (tiff_with_two_widths(), "tiff header is cut or damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 200_000, "png header is cut"),
        (b"<html>not found</html>", r"begins with b'<html>not fo', which is none of png"),
        (b"\0" * 500, "which is none of"),
        (png_bomb(), "60000 x 60000 pixels; allowed are 100000000"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpeg header is cut"),
        (b"\xff\xd8" + b"\xff" * 1_000_000, "jpeg header is cut"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "0 x 0 pixels"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_with_its_name(tmp_path, data, message):
    with pytest.raises(ImageError, match=rf"scan.png: .*{message}"):
        read_image(write(tmp_path, data, "scan.png"))


def test_webp_bombs_and_bmp_files_with_the_old_header_are_refused(tmp_path, color):
    bomb = bytearray(encode(color, "WEBP", lossless=True))
    sizes = bomb.index(b"VP8L") + 9  # 14 bits of width - 1, then 14 bits of height - 1
    bomb[sizes : sizes + 4] = struct.pack("<I", 11_999 | 11_999 << 14)
    with pytest.raises(ImageError, match="12000 x 12000 pixels; allowed are 100000000"):
        read_image(write(tmp_path, bytes(bomb)))
    bmp = encode(color, "BMP")
    old = bmp[:10] + struct.pack("<IIHHHH", 26, 12, 56, 40, 1, 24) + bmp[54:]
    with pytest.raises(ImageError, match="an OS/2 BMP"):
        read_image(write(tmp_path, old))


def test_a_false_chunk_length_is_refused_before_memory_is_allocated(tmp_path, color):
    data = bytearray(encode(color, "PNG"))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (2**31 - 9).to_bytes(4, "big")
    with pytest.raises(ImageError, match="png header is cut or damaged"):
        read_image(write(tmp_path, bytes(data)))


def test_a_missing_file_and_too_many_bytes_are_refused(tmp_path, color, monkeypatch):
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"x.bin: \d+ bytes; allowed are 100"):
        read_image(write(tmp_path, encode(color, "PNG")))


def mutate(data, rng):
    kind = rng.integers(4)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        at = rng.integers(len(data))
        return data[:at] + bytes(rng.integers(1, 200)) + data[at:]
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def outcome(path):
    try:
        image = read_image(path)
    except ImageError as error:
        return "error" if str(error).startswith(str(path)) else f"without name: {error}"
    is_valid = image.dtype == np.uint8 and image.shape[2:] in ((), (3,))
    return "image" if is_valid else "invalid"


def test_mutated_files_give_an_image_or_an_error_with_their_name(tmp_path, color):
    rng = np.random.default_rng(7)
    kinds = ["PNG", "JPEG", "TIFF", "BMP", "WEBP"]
    originals = [encode(part, kind) for kind in kinds for part in (color, color[..., 0].copy())]
    for number in range(200):
        path = write(tmp_path, mutate(originals[number % len(originals)], rng), f"m{number}.png")
        assert outcome(path) in ("image", "error")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_truncated_file_is_never_read_in_part(tmp_path, kind):
    large = cv2.resize(np.eye(9, dtype=np.uint8) * 255, (600, 500))
    data = encode(large, kind)
    for fraction in (0.5, 0.9, 0.98):
        with pytest.raises(ImageError, match="cut"):
            read_image(write(tmp_path, data[: int(len(data) * fraction)]))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "odd.png"
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"),
     "folder": path.mkdir}[kind]()  # fmt: skip
    with pytest.raises(ImageError, match=r"odd\.png: not a file"):
        read_image(path)
    assert file_hashes([str(path)], tmp_path) == {str(path): f"{path}: not a file"}


def test_the_hash_of_an_image_depends_on_every_byte_and_on_the_frame_but_not_on_the_name(tmp_path):
    data = bytes(200_000)
    changed = [data[:at] + b"x" + data[at + 1 :] for at in range(0, 200_000, 7_919)]
    paths = [str(write(tmp_path, part, f"{k}.dcm")) for k, part in enumerate([data, *changed])]
    copy = str(write(tmp_path, data, "copy.dcm"))
    hashes = images.content_hashes([*paths, copy, f"{copy}#0", f"{copy}#1", f"{copy}#2"])
    assert hashes[0] == hashes[-4] == hashes[-3]
    assert len(set(hashes)) == len(paths) + 2
    with pytest.raises(ImageError, match=r"nowhere\.dcm: No such file"):
        images.content_hashes([copy, str(tmp_path / "nowhere.dcm")])


def large_file(kind):
    """An encoded image of 3000 x 2000 pixels."""
    noise = np.random.default_rng(0).integers(0, 65535, (200, 300), np.uint16)
    gray = cv2.resize(noise, (3000, 2000))
    color = np.dstack([gray, gray, gray])
    if kind.startswith("dicom"):
        rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        tags = {"Rows": 2000, "Columns": 3000, "BitsStored": 16, "HighBit": 15}
        stream = io.BytesIO()
        is_color = kind == "dicom rgb"
        write_dicom(stream, color if is_color else gray, **tags, **(rgb if is_color else {}))
        return stream.getvalue()
    bytes_of_color, floats = (color >> 8).astype(np.uint8), (gray / 65535).astype(np.float32)
    pixels = {"rgba16": np.dstack([color, gray]), "rgb16": color, "gray16": gray,
              "rgb8": bytes_of_color, "gray8": bytes_of_color[..., 0].copy(), "float": floats,
              "floats": np.dstack([floats] * 3)}  # fmt: skip
    name, suffix = kind.split(maxsplit=1)
    if suffix == "tiles":
        bits = 16 if name.endswith("16") else 8
        tags = [(256, 4, 3000), (257, 4, 2000), (258, 3, bits), (262, 3, 1), (322, 4, 256),
                (323, 4, 256)]  # fmt: skip
        padded = np.pad(pixels[name], [(0, 48), (0, 72)])
        rows = (row for part in np.split(padded, 8) for row in np.split(part, 12, axis=1))
        return tiff(tags, [tile.tobytes() for tile in rows])
    if suffix.startswith("."):
        return cv2.imencode(suffix, pixels[name], [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()
    mode, pages = {"palette": "P", "cmyk": "CMYK"}.get(suffix), 5 if suffix == "pages" else 1
    image = Image.fromarray(pixels[name])
    options = {"compression": "zstd" if suffix == "zstd" else "tiff_lzw"}
    options |= {"tiffinfo": {278: 2000}} if suffix == "in one strip" else {}
    image, out = image.convert(mode) if mode else image, io.BytesIO()
    image.save(out, "TIFF", save_all=True, append_images=[image] * (pages - 1), **options)
    return out.getvalue()


TIFF_BYTES_PER_PIXEL = {  # twice the decoded image, or the image and a strip with its RGBA
    "gray8 strips": (2, 2), "gray8 tiles": (2, 2), "gray8 in one strip": (6, 8),
    "gray8 zstd": (4, 5), "rgb8 strips": (6, 6), "rgb8 in one strip": (10, 13),
    "rgb8 pages": (6, 6), "rgb8 palette": (6, 6), "rgb8 cmyk": (6, 6), "rgb8 zstd": (14, 16),
    "gray16 strips": (4, 4), "gray16 tiles": (4, 4), "gray16 in one strip": (6, 7),
    "rgb16 .tif": (12, 12), "rgba16 .tif": (12, 12), "float strips": (12, 12),
    "floats .tif": (36, 36),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFF_BYTES_PER_PIXEL)
def test_the_memory_of_a_tiff_is_estimated_by_its_strips_and_pixels(kind):
    low, high = TIFF_BYTES_PER_PIXEL[kind]
    data = np.frombuffer(large_file(kind), np.uint8)
    assert low <= images.decoded_bytes(data) / 6_000_000 <= high


def test_a_small_tiff_of_one_huge_tile_takes_as_much_as_the_tile():
    side = 1 << 14
    tags = [(256, 4, 10), (257, 4, 10), (258, 3, 8), (262, 3, 1), (322, 4, side), (323, 4, side)]
    assert images.decoded_bytes(np.frombuffer(tiff(tags), np.uint8)) > 5 * side**2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux only")
@pytest.mark.parametrize(
    "kind",
    ["rgba16 .png", "rgb16 .png", "gray16 .png", "rgb8 .png", "rgb8 .jpg", "rgb8 .webp",
     "dicom gray", "dicom rgb", *TIFF_BYTES_PER_PIXEL],
)  # fmt: skip
def test_decoding_takes_no_more_memory_than_the_header_tells(kind):
    def resident(name):
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if name in s)
        return int(line.split()[1]) << 10

    data = np.frombuffer(large_file(kind), np.uint8)
    Path("/proc/self/clear_refs").write_text("5")
    start = resident("VmRSS")
    images.decode_bytes(data, frame=3 if "pages" in kind else None)
    assert resident("VmHWM") - start <= images.decoded_bytes(data) + (8 << 20)
