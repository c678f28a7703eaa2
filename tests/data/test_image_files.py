"""Opening images of every kind."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from dsocr.data.image_files import UnreadableImageError, check_image, measure_image_size, open_image


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
