"""Open an image file as a person sees it: rotated by its EXIF tag, 8 bit, RGB, transparent parts on white."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from dsocr.common.errors import UnusableSampleError


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 100_000_000
MIN_SIDE = 4
MAX_ASPECT = 100
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION_TAG, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class UnreadableImageError(UnusableSampleError):
    """An image cannot be used. Reasons: missing, unreadable, too_small, too_elongated, too_large, outside_folder."""

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
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise UnreadableImageError(f"{name}: there is no such file.", "missing")
    try:
        return Image.open(source)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{name}: not an image that Pillow can read ({error}).") from error


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
        UnreadableImageError: as `open_image`.
    """
    name = image_name(source)
    image = _open(source, name)
    size = _seen_size(image, name)
    try:
        # A JPEG is decoded at an eighth of its size; Pillow still goes through every byte.
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()
    except _DAMAGE as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error
    return size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # Don't use Pillow's own conversion: it clips at 255 and turns a 16-bit scan white.
        return image.point(lambda value: value / 257, "F").convert("L").convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        # Put alpha on white: without its alpha channel the hidden colour shows, mostly black, and hides the ink.
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def open_image(source: Any) -> Image.Image:
    """Open an image for the model.

    Args:
        source: A path, a `PIL.Image.Image`, or the `{"bytes", "path"}` of a `datasets.Image` column.

    Returns:
        An RGB image, rotated by its EXIF tag; 16-bit grey scaled to 8, CMYK and palettes converted, transparency put
        on white.

    Raises:
        UnreadableImageError: missing, damaged or truncated file; a side under 4 pixels; a strip of more than 100
            to 1; more than 100 million pixels.
    """
    name = image_name(source)
    image = _open(source, name)
    _check_size(image.size, name)
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise UnreadableImageError(f"{name}: damaged or truncated image ({error}).") from error
