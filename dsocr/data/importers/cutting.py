"""Cut a transcribed line out of its page."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dsocr.common.errors import UnusableSampleError
from dsocr.data.image_files import MIN_SIDE, UnreadableImageError, open_image
from dsocr.data.importers.annotations import AnnotatedLine, Point


# A declared size fits an image if the horizontal and the vertical scale differ by no more than this share.
_SAME_SHAPE = 0.02
_MIN_VISIBLE = 0.5


class CutError(UnusableSampleError):
    """A line cannot be cut."""


def _fits(size: tuple[int, int], declared: tuple[float, float]) -> bool:
    across, down = size[0] / declared[0], size[1] / declared[1]
    return abs(across - down) <= _SAME_SHAPE * max(across, down)


def open_page(path: Path, declared: tuple[float, float] | None) -> tuple[Image.Image, tuple[float, float]]:
    """Open a page in the orientation of its coordinates.

    Coordinates mostly refer to the image after EXIF rotation, but some tools ignore the EXIF tag; the declared size
    shows which.

    Args:
        path: The image.
        declared: Size of the page in the coordinates' unit; `None` for pixels after EXIF rotation. `(100, 100)` is per
            cent.

    Returns:
        RGB image, and the horizontal and vertical factor from coordinates to pixels.

    Raises:
        UnreadableImageError: for a missing or damaged image.
        CutError: when the declared size has another aspect ratio than the image, rotated or not.
    """
    if not path.is_file():
        raise UnreadableImageError(
            f"{path}: there is no such image (nor one of that name with another suffix).", "missing"
        )
    image = open_image(path)
    if declared is None:
        return image, (1.0, 1.0)
    if not all(0 < side < math.inf for side in declared):
        raise CutError(f"{path}: declared size {declared[0]:g}x{declared[1]:g}.", "bad_page_size")
    if declared != (100.0, 100.0) and not _fits(image.size, declared):
        with Image.open(path) as stored:
            unrotated = stored.convert("RGB")
        if not _fits(unrotated.size, declared):
            width, height = image.size
            turned = ", it was rotated after the lines were drawn" if _fits((height, width), declared) else ""
            raise CutError(
                f"{path}: {width}x{height} pixels, but its lines were drawn on {declared[0]:g}x{declared[1]:g}{turned}.",
                "other_page_size",
            )
        image = unrotated
    return image, (image.width / declared[0], image.height / declared[1])


def _outline(line: AnnotatedLine, scale: tuple[float, float]) -> list[Point]:
    if line.polygon:
        points = list(line.polygon)
    elif line.box:
        left, top, right, bottom = line.box
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    else:
        raise CutError(f"{line.name}: neither a polygon nor a box.", "no_coordinates")
    if not all(math.isfinite(number) for point in points for number in point):
        raise CutError(f"{line.name}: its coordinates are no numbers.", "no_coordinates")
    return [(x * scale[0], y * scale[1]) for x, y in points]


def _turn_upright(page: Image.Image, corners: list[Point], margin: float) -> Image.Image:
    """Cut a rotated rectangle; `corners` go clockwise from the start of the writing."""
    start, end, _, below = (np.array(corner) for corner in corners)
    width, height = np.linalg.norm(end - start), np.linalg.norm(below - start)
    if min(width, height) < MIN_SIDE:
        raise CutError(f"{width:.0f}x{height:.0f} pixels; no line is that small.", "too_small")
    extra = margin * height
    across, down = (end - start) / width * extra, (below - start) / height * extra
    top_left, bottom_left = start - across - down, below - across + down
    top_right, bottom_right = end + across - down, end + (below - start) + across + down
    quadrangle = np.concatenate([top_left, bottom_left, bottom_right, top_right])
    size = (round(width + 2 * extra), round(height + 2 * extra))
    paper = paper_colour(np.asarray(page).reshape(-1, 3)[:: max(1, page.width * page.height // 100_000)])
    return page.transform(size, Image.Transform.QUAD, quadrangle.tolist(), Image.Resampling.BICUBIC, fillcolor=paper)


def paper_colour(pixels: np.ndarray) -> tuple[int, int, int]:
    """Estimate the paper's colour: the median of the brighter half of `[n, 3]` pixels."""
    brightness = pixels.sum(axis=1)
    bright = pixels[brightness >= np.median(brightness)]
    red, green, blue = (int(value) for value in np.median(bright, axis=0))
    return red, green, blue


def cut_line(page: Image.Image, line: AnnotatedLine, scale: tuple[float, float], *, margin: float = 0.0) -> Image.Image:
    """Cut one line, and paint the area outside its polygon in the paper's colour to hide neighbouring lines.

    A rotated rectangle is turned upright.

    Args:
        page: RGB image of the page.
        line: The line.
        scale: Factors from its coordinates to pixels.
        margin: Added around the outline's box, as a share of its height; its pixels outside the polygon become paper.

    Raises:
        CutError: when the line has no coordinates, is less than 4 pixels high or wide, or lies more than half outside
            the page.
    """
    points = _outline(line, scale)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    area = (right - left) * (bottom - top)
    inside = max(0.0, min(right, page.width) - max(left, 0)) * max(0.0, min(bottom, page.height) - max(top, 0))
    if min(right - left, bottom - top) < MIN_SIDE:
        raise CutError(
            f"{line.name}: {right - left:.0f}x{bottom - top:.0f} pixels; no line is that small.", "too_small"
        )
    if inside < _MIN_VISIBLE * area:
        raise CutError(
            f"{line.name}: box {left:.0f},{top:.0f},{right:.0f},{bottom:.0f} lies outside the page of "
            f"{page.width}x{page.height} pixels.",
            "outside_page",
        )
    if not line.upright:
        return _turn_upright(page, points, margin)
    extra = margin * (bottom - top)
    box = (
        max(0, int(left - extra)),
        max(0, int(top - extra)),
        min(page.width, int(np.ceil(right + extra))),
        min(page.height, int(np.ceil(bottom + extra))),
    )
    crop = page.crop(box)
    if not line.polygon:
        return crop
    mask = Image.new("L", crop.size, 0)
    draw, shifted = ImageDraw.Draw(mask), [(x - box[0], y - box[1]) for x, y in points]
    draw.polygon(shifted, fill=255, outline=255)
    if extra:
        # Widen the polygon by the margin too: otherwise the margin would be nothing but paper.
        draw.line([*shifted, shifted[0]], fill=255, width=2 * round(extra), joint="curve")
    pixels, chosen = np.asarray(crop), np.asarray(mask) > 0
    paper = Image.new("RGB", crop.size, paper_colour(pixels[chosen]))
    paper.paste(crop, mask=mask)
    return paper
