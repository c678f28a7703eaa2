"""Find the lines of a page: rapidocr (an optional extra) detects boxes, this module joins them into lines."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from PIL import Image


Box = tuple[int, int, int, int]
Detector = Callable[[Image.Image], list[Box]]
# Two boxes belong to one line if the lower one's middle lies inside the upper one and the gap between them is at most
# this many times their height.
_MAX_GAP = 3.0
_MARGIN = 0.15


class SegmenterMissingError(ValueError):
    """Cutting pages into lines needs rapidocr, but it is not installed."""


def load_detector() -> Detector:
    """Load a function that finds boxes `(left, top, right, bottom)` of text on a page, in pixels.

    Raises:
        SegmenterMissingError: when rapidocr is not installed; the message says how to install it.
    """
    if find_spec("rapidocr") is None:
        raise SegmenterMissingError(
            "--segment needs rapidocr, which finds the lines: `pip install rapidocr onnxruntime`."
        )
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "warning"})

    def detect(page: Image.Image) -> list[Box]:
        found = engine(np.asarray(page.convert("RGB"))[:, :, ::-1], use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None:
            return []
        return [
            (int(quad[:, 0].min()), int(quad[:, 1].min()), int(quad[:, 0].max()), int(quad[:, 1].max()))
            for quad in np.asarray(found.boxes)
        ]

    return detect


def _middle(box: Box) -> float:
    return (box[1] + box[3]) / 2


def _joins(line: Box, box: Box) -> bool:
    height = min(line[3] - line[1], box[3] - box[1])
    gap = max(box[0] - line[2], line[0] - box[2])
    return line[1] <= _middle(box) <= line[3] and gap <= _MAX_GAP * height


def join_boxes(boxes: list[Box]) -> list[Box]:
    """Join the boxes of each line, and put lines in reading order: from top to bottom, from left to right.

    Example:
        >>> join_boxes([(60, 11, 100, 31), (0, 50, 90, 70), (0, 10, 50, 30)])
        [(0, 10, 100, 31), (0, 50, 90, 70)]
    """
    lines: list[Box] = []
    for box in sorted(boxes):
        for index, line in enumerate(lines):
            if _joins(line, box):
                lines[index] = (
                    min(line[0], box[0]),
                    min(line[1], box[1]),
                    max(line[2], box[2]),
                    max(line[3], box[3]),
                )
                break
        else:
            lines.append(box)
    rows: list[list[Box]] = []
    for line in sorted(lines, key=_middle):
        if rows and _middle(line) <= rows[-1][0][3] - (rows[-1][0][3] - rows[-1][0][1]) / 4:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row)]


def cut_lines(page: Image.Image, detect: Detector) -> list[tuple[Box, Image.Image]]:
    """Find and cut the lines of a page.

    Args:
        page: RGB image.
        detect: See `load_detector`.

    Returns:
        Boxes with a margin of 15 % of the line's height, inside the page, and their images, in reading order.
    """
    cut = []
    for left, top, right, bottom in join_boxes(detect(page)):
        margin = round(_MARGIN * (bottom - top))
        box = (
            max(0, left - margin),
            max(0, top - margin),
            min(page.width, right + margin),
            min(page.height, bottom + margin),
        )
        cut.append((box, page.crop(box)))
    return cut
