"""Open an image file as a person sees it: rotated by its EXIF tag, 8 bit, RGB, transparent parts on white."""

import io
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dsocr.common.errors import UnusableSampleError


# What a folder is searched for. A file that Pillow cannot open is named, never passed over.
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".pnm", ".pgm", ".ppm"),
    *(".avif", ".heic", ".heif"),
)
_HEIF_SUFFIXES = (".heic", ".heif")
MAX_PIXELS = 100_000_000
MIN_SIDE = 4
MAX_ASPECT = 100
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# Largest difference of brightness, of 255, on an image on which nothing is written.
_BLANK_RANGE = 6
# Modes in which the colour of a pixel does not depend on others.
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_DRAFT = 8
_ORIENTATION_TAG, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, struct.error, Image.DecompressionBombError)


class UnreadableImageError(UnusableSampleError):
    """An image cannot be used."""

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message, reason)


def image_name(source: Any) -> str:
    """Name an image in messages: its path, or the type of the object."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, dict):
        return source.get("path") or "<image stored in the dataset>"
    return getattr(source, "filename", "") or f"<{type(source).__name__}>"


def _open(source: Any, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, dict):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source["path"]
    suffix = Path(name).suffix.lower()
    if isinstance(source, str | Path) and not _is_file(source):
        raise UnreadableImageError(f"{name[:200]}: there is no such file.", "missing")
    try:
        if suffix in _HEIF_SUFFIXES:
            _register_heif(name)
        return Image.open(source)
    except UnusableSampleError:
        raise
    # Pillow raises a plain ValueError for text chunks over its limits, struct.error for headers that end too early.
    except _DAMAGE as error:
        raise UnreadableImageError(f"{name[:200]}: not an image that Pillow can open ({error}).") from error


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        # A name of over 255 bytes, a NUL character.
        return False


def _register_heif(name: str) -> None:
    """Let Pillow open HEIC files, where the plug-in is installed.

    Raises:
        UnreadableImageError: where it is not; the message says how to install it.
    """
    if find_spec("pillow_heif") is None:
        raise UnreadableImageError(f"{name}: HEIC images need `pip install pillow-heif`.", "needs_plugin")
    from pillow_heif import register_heif_opener

    register_heif_opener()


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise UnreadableImageError(
            f"{name}: {width}x{height} pixels; a side under {MIN_SIDE} holds no text.", "too_small"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise UnreadableImageError(
            f"{name}: {width}x{height} pixels; nothing can be read in a strip of more than {MAX_ASPECT} to 1, cut it into "
            "shorter pieces.",
            "too_elongated",
        )
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"{name}: {width}x{height} pixels; more than {MAX_PIXELS // 10**6} million are not opened.", "too_large"
        )


def _seen_size(image: Image.Image, name: str) -> tuple[int, int]:
    _check_size(image.size, name)
    width, height = image.size
    try:
        # A PNG may store its EXIF tag after the pixels; Pillow then loads them to find it.
        rotated = image.getexif().get(_ORIENTATION_TAG, 1) in _SIDEWAYS
    except _DAMAGE as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error
    return (height, width) if rotated else (width, height)


def measure_image_size(source: Any) -> tuple[int, int]:
    """`(width, height)` in pixels after EXIF rotation, from the file's header alone.

    Raises:
        UnreadableImageError: as `open_image`, except for damage behind the header.
    """
    name = image_name(source)
    return _seen_size(_open(source, name), name)


def check_image(source: Any) -> tuple[int, int]:
    """Decode a whole file, at the lowest resolution its format allows, to find damage early.

    Returns:
        `(width, height)` in pixels after EXIF rotation.

    Raises:
        UnreadableImageError: as `open_image`; also for a file of several pages, and for one on which nothing is written.
    """
    return _check(source)[0]


def open_checked_image(source: Any) -> Image.Image:
    """Do the same as `check_image` and then `open_image`, and decode only once what `check_image` decodes in full.

    Raises:
        UnreadableImageError: as `check_image`.
    """
    size, image = _check(source)
    if sorted(image.size) != sorted(size):
        # A JPEG was decoded small.
        return open_image(source)
    try:
        return _finish(image)
    except _DAMAGE as error:
        raise UnreadableImageError(f"{image_name(source)}: damaged or truncated image ({error}).") from error


def _check(source: Any) -> tuple[tuple[int, int], Image.Image]:
    """Size as seen, and the image as it was decoded to find damage."""
    name = image_name(source)
    image = _open(source, name)
    size = _seen_size(image, name)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnreadableImageError(f"{name}: holds {frames} pages; a row takes one, split the file.", "several_pages")
    try:
        # A JPEG is decoded at an eighth of its size; Pillow still goes through every byte.
        image.draft("RGB", (max(1, image.width // _DRAFT), max(1, image.height // _DRAFT)))
        image.load()
        # Pixels of the image itself: where those differ, the image is not blank, and nobody looks at the others.
        plain = image.mode in _PLAIN_MODES and "transparency" not in image.info
        some = image.resize((max(1, image.width // _DRAFT), max(1, image.height // _DRAFT)), Image.Resampling.NEAREST)
        blank = not (plain and not _is_blank(_to_rgb(some))) and _is_blank(_to_rgb(image))
    except _DAMAGE as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error
    if blank:
        raise UnreadableImageError(f"{name}: nothing is written on it; all its pixels are alike.", "blank")
    return size, image


def _is_blank(image: Image.Image) -> bool:
    pixels = np.asarray(image.convert("L"))
    return int(pixels.max()) - int(pixels.min()) <= _BLANK_RANGE


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits, or of floats, by the range that its values fill.

    Pillow's own conversion clips at 255, which turns a 16-bit scan white, and a scan of 0..1 black.
    """
    values = np.asarray(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # The usual ranges keep their white; values outside all of them are stretched from the darkest to the brightest.
    limits = (1.0, 255.0, 4095.0, 65535.0) if image.mode == "F" else (255.0, 4095.0, 65535.0)
    top = next((limit for limit in limits if high <= limit), None)
    if low < 0 or top is None:
        span = high - low
        scaled = (values - low) * (255.0 / span) if span else np.zeros_like(values)
    else:
        scaled = values * (255.0 / top)
    return Image.fromarray(np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8))


def _has_white_ink(rgba: Image.Image) -> bool:
    """Tell whether all that is visible of a transparent image is nearly white."""
    pixels = np.asarray(rgba)
    visible = pixels[pixels[..., 3] > 127][:, :3]
    some_hidden = bool((pixels[..., 3] <= 127).any())
    return some_hidden and len(visible) > 0 and int(visible.min()) > 200


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in (*_SIXTEEN_BIT, "I", "F"):
        return _scale_to_8_bit(image).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        # Put alpha on white: without its alpha channel the hidden colour shows, mostly black, and hides the ink.
        rgba = image.convert("RGBA")
        # White ink would vanish on white paper.
        paper = Image.new("RGBA", rgba.size, "black" if _has_white_ink(rgba) else "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _finish(image: Image.Image) -> Image.Image:
    # exif_transpose copies also what it does not turn.
    return _to_rgb(ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION_TAG, 1) != 1 else image)


def open_image(source: Any, page: int = 0) -> Image.Image:
    """Open an image for the model.

    Args:
        source: A path, a `PIL.Image.Image`, or the `{"bytes", "path"}` of a `datasets.Image` column.
        page: Which page of a file with several (TIFF, animations), from 0.

    Returns:
        An RGB image, rotated by its EXIF tag; grey of more than 8 bits scaled by its own range, CMYK and palettes
        converted, transparency put on white (white ink on black).

    Raises:
        UnreadableImageError: missing, damaged or truncated file; a side under 4 pixels; a strip of more than 100
            to 1; more than 100 million pixels.
    """
    name = image_name(source)
    image = _open(source, name)
    try:
        if page:
            image.seek(page)
        _check_size(image.size, name)
        image.load()
        return _finish(image)
    except UnusableSampleError:
        raise
    except (*_DAMAGE, EOFError) as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error


def count_pages(source: Any) -> int:
    """The number of pages of an image file; 1 for most.

    Raises:
        UnreadableImageError: as `open_image`.
    """
    name = image_name(source)
    image = _open(source, name)
    try:
        return getattr(image, "n_frames", 1)
    except (*_DAMAGE, EOFError) as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error
