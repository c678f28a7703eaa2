"""Opening images of every kind."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dsocr.data import image_files
from dsocr.data.image_files import (
    UnreadableImageError,
    check_image,
    count_pages,
    measure_image_size,
    open_checked_image,
    open_image,
)


def test_exif_orientation_is_applied(tmp_path, scratch_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    scratch_image(60, 30).save(tmp_path / "phone.jpg", exif=exif)
    image = open_image(tmp_path / "phone.jpg")
    path = tmp_path / "phone.jpg"
    assert image.size == check_image(path) == measure_image_size(path) == (30, 60)
    pixels = np.asarray(image.convert("L"))
    assert pixels[5, 25] < 60 and pixels[5, 5] > 200


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 32, dtype=np.uint16).reshape(32, 64)
    Image.fromarray(values).save(tmp_path / "scan.png")
    pixels = np.asarray(open_image(tmp_path / "scan.png").convert("L"))
    assert pixels.min() == 0 and pixels.max() == 255
    assert abs(float(pixels.mean()) - 127.5) < 1


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "LA", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb_with_its_colours(tmp_path, scratch_image, mode):
    image = scratch_image(40, 30).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    pixels = np.asarray(opened)
    assert pixels[2, 2].max() < 40 and pixels[-2, -2].min() > 200


def test_a_cmyk_jpeg(tmp_path, scratch_image):
    scratch_image(40, 30).convert("CMYK").save(tmp_path / "press.jpg")
    pixels = np.asarray(open_image(tmp_path / "press.jpg"))
    assert pixels[2, 2].max() < 60 and pixels[-2, -2].min() > 200


def test_transparency_becomes_white_paper(tmp_path):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (5, 5, 10, 10))
    image.save(tmp_path / "ink.png")
    pixels = np.asarray(open_image(tmp_path / "ink.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[6, 6].tolist() == [10, 10, 10]


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(1, (5, 5, 10, 10))
    image.save(tmp_path / "palette.png", transparency=0)
    pixels = np.asarray(open_image(tmp_path / "palette.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[6, 6].tolist() == [200, 0, 0]


@pytest.mark.parametrize("check", [open_image, check_image])
def test_what_cannot_be_used_is_refused_with_its_name_and_reason(tmp_path, scratch_image, check):
    scratch_image(200, 100).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (30000, 20)).save(tmp_path / "strip.png")
    reasons = {
        "cut.jpg": "unreadable",
        "text.png": "unreadable",
        "empty.png": "unreadable",
        "dot.png": "too_small",
        "strip.png": "too_elongated",
    }
    for name, reason in {**reasons, "gone.png": "missing"}.items():
        with pytest.raises(UnreadableImageError, match=name) as caught:
            check(tmp_path / name)
        assert caught.value.reason == reason, name


def test_a_decompression_bomb_is_not_opened(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match="bomb.png") as caught:
        open_image(tmp_path / "bomb.png")
    assert caught.value.reason in ("too_large", "unreadable")


def test_bytes_and_pil_images(scratch_image):
    image = scratch_image(30, 20)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for source in (image, {"bytes": buffer.getvalue(), "path": None}):
        assert open_image(source).size == check_image(source) == (30, 20)


def test_the_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png: gone", "missing")))
    assert (error.reason, str(error)) == ("missing", "a.png: gone")


@pytest.mark.parametrize("read", [check_image, measure_image_size])
def test_a_png_that_ends_in_its_pixels_is_damaged(tmp_path, read):
    path = tmp_path / "cut.png"
    Image.new("RGB", (200, 40), "white").save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match=r"cut\.png: damaged or truncated"):
        read(path)


def gradient(top, dtype):
    """A grey ramp from 0 to `top` with a dark bar, as a scanner of that range stores it."""
    values = np.linspace(0, top, 64 * 40).reshape(40, 64)
    values[10:20, 10:30] = 0
    return Image.fromarray(values.astype(dtype))


@pytest.mark.parametrize(
    ("top", "dtype"),
    [
        (4095, np.uint16),
        (65535, np.uint16),
        (255, np.int32),
        (65535, np.int32),
        (10**6, np.int32),
        (1.0, np.float32),
        (255.0, np.float32),
        (65535.0, np.float32),
    ],
)
def test_scans_of_any_range_fill_eight_bits(tmp_path, top, dtype):
    gradient(top, dtype).save(tmp_path / "scan.tiff")
    assert check_image(tmp_path / "scan.tiff") == (64, 40)
    pixels = np.asarray(open_image(tmp_path / "scan.tiff"))[..., 0]
    assert pixels.max() >= 254 and pixels[15, 20] == 0 and 120 < pixels[20, 5] < 136


def test_white_ink_on_transparency_stays_ink(tmp_path):
    image = Image.new("RGBA", (60, 20), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (10, 5, 40, 12))
    image.save(tmp_path / "white.png")
    pixels = np.asarray(open_image(tmp_path / "white.png"))
    assert pixels[8, 20].tolist() == [255] * 3 and pixels[0, 0].tolist() == [0] * 3


def test_a_blank_image_is_refused(tmp_path):
    Image.new("RGB", (60, 20), "white").save(tmp_path / "blank.png")
    with pytest.raises(UnreadableImageError, match="nothing is written on it") as caught:
        check_image(tmp_path / "blank.png")
    assert caught.value.reason == "blank"


def test_a_file_of_several_pages_is_no_row_and_its_pages_can_be_opened(tmp_path, scratch_image):
    pages = [scratch_image(60 + 10 * number, 30) for number in range(3)]
    pages[0].save(tmp_path / "book.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableImageError, match="holds 3 pages") as caught:
        check_image(tmp_path / "book.tiff")
    assert caught.value.reason == "several_pages"
    assert [
        open_image(tmp_path / "book.tiff", number).width for number in range(count_pages(tmp_path / "book.tiff"))
    ] == [60, 70, 80]


def test_text_chunks_over_pillows_limits_are_said_by_name(tmp_path):
    chunk = b"a\0\0" + zlib.compress(b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 10))
    stored = io.BytesIO()
    Image.new("RGB", (60, 20)).save(stored, "PNG")
    content = stored.getvalue()
    body = b"zTXt" + chunk
    packed = struct.pack(">I", len(chunk)) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "text.png").write_bytes(content[:33] + packed + content[33:])
    for read in (open_image, check_image, measure_image_size):
        with pytest.raises(UnreadableImageError, match="text.png"):
            read(tmp_path / "text.png")


def test_heic_names_its_plug_in(tmp_path, monkeypatch):
    (tmp_path / "photo.heic").write_bytes(b"x")
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    with pytest.raises(UnreadableImageError, match="photo.heic: HEIC images need `pip install pillow-heif`"):
        open_image(tmp_path / "photo.heic")


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "a\0b.png"])
def test_what_is_no_path_is_said(name):
    with pytest.raises(UnreadableImageError):
        open_image(name)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "RGBA", "I;16"])
def test_one_mark_anywhere_is_enough_writing(tmp_path, mode):
    """Some pixels are looked at first; where those are alike, all are."""
    path = tmp_path / "line.tif"
    for mark in (None, (0, 0), (13, 5), (198, 38)):
        image = Image.new("L", (200, 40), "white")
        if mark is not None:
            image.putpixel(mark, 0)
        image.convert(mode).save(path)
        if mark is None:
            with pytest.raises(UnreadableImageError, match="nothing is written"):
                check_image(path)
        else:
            assert check_image(path) == (200, 40)


@pytest.mark.parametrize(("suffix", "times"), [("png", 1), ("tif", 1), ("jpg", 2)])
def test_an_image_is_decoded_once_for_check_and_pixels(tmp_path, monkeypatch, suffix, times):
    """A JPEG twice: first small, as training judges it."""
    path, exif = tmp_path / f"line.{suffix}", Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((320, 64)).convert("RGB").save(path, exif=exif)
    expected, opened = open_image(path), []
    monkeypatch.setattr(Image, "open", lambda source, open=Image.open: opened.append(source) or open(source))
    found = open_checked_image(path)
    assert found.size == (64, 320) and found.tobytes() == expected.tobytes() and len(opened) == times
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImageError, match="damaged or truncated|not an image"):
        open_checked_image(path)


def test_an_image_in_memory_is_copied(scratch_image):
    image = scratch_image(40, 20)
    for opened in (open_image(image), open_checked_image(image)):
        opened.thumbnail((10, 10))
    assert image.size == (40, 20)
