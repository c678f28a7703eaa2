"""Label Studio's JSON export: rectangles and polygons in per cent, each with a TextArea."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, Point, find_image, parse_entries


_PERCENT = (100.0, 100.0)
# Label Studio puts eight random hexadecimal digits before an upload's name: /data/upload/3/ab12cd34-page.png.
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")


def is_label_studio(content: Any) -> bool:
    """Whether parsed JSON is a list with Label Studio's tasks."""
    return isinstance(content, list) and any(isinstance(task, dict) and "data" in task for task in content)


def _image_name(data: dict) -> str:
    names = [
        value for key, value in data.items() if isinstance(value, str) and key in ("image", "ocr", "img", "captioning")
    ]
    names += [value for value in data.values() if isinstance(value, str) and "." in value]
    return unquote(names[0].partition("?d=")[2] or names[0]) if names else ""


def _text(value: dict) -> str:
    text = value.get("text", "")
    if isinstance(text, list):
        return " ".join(part for part in text if part)
    if not isinstance(text, str):
        raise UnusableSampleError(f"the text is {text!r:.80}", "not_text")
    return text


def _corners(value: dict, result: dict) -> tuple[Point, ...]:
    """Corners of a rectangle rotated clockwise around its top left corner, clockwise from there, in per cent."""
    width, height = float(result["original_width"]), float(result["original_height"])
    angle = math.radians(float(value["rotation"]))
    # Rotate in pixels: per cents of width and height differ in length.
    across = float(value["width"]) * width
    down = float(value["height"]) * height
    left, top = float(value["x"]) * width, float(value["y"]) * height
    return tuple(
        (
            (left + x * math.cos(angle) - y * math.sin(angle)) / width,
            (top + x * math.sin(angle) + y * math.cos(angle)) / height,
        )
        for x, y in ((0, 0), (across, 0), (across, down), (0, down))
    )


def _region(result: dict) -> Any:
    """Key of a result's region: its id; in exports without ids its geometry."""
    value = result.get("value", {})
    geometry = [value.get(name) for name in ("x", "y", "width", "height", "rotation")]
    return result.get("id") or (*geometry, str(value.get("points")))


def _lines(results: list[dict], where: str) -> Iterator[AnnotatedLine]:
    texts = {_region(r): _text(r["value"]) for r in results if r.get("type") == "textarea" and "value" in r}
    done = set()
    for number, result in enumerate(results):
        value, region = result.get("value", {}), _region(result)
        if region in done or not ("points" in value or "width" in value):
            continue
        done.add(region)
        polygon: tuple[Point, ...] = tuple((float(x), float(y)) for x, y in value.get("points", ()))
        box, upright = None, True
        if "width" in value and value.get("rotation"):
            polygon, upright = _corners(value, result), False
        elif "width" in value:
            left, top = float(value["x"]), float(value["y"])
            box = (left, top, left + float(value["width"]), top + float(value["height"]))
        name = f"{where}#{result.get('id') or number}"
        yield AnnotatedLine(texts.get(region, _text(value)).strip(), name, polygon, box, upright)


def _find_upload(folder: Path, name: str) -> tuple[Path, Path]:
    image, expected = find_image(folder, name)
    if not image.is_file() and (own := _UPLOAD.match(Path(name).name)):
        return find_image(folder, own.group(1))[0], expected
    return image, expected


def parse_label_studio(path: Path, content: list, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the tasks of an export; each task gives its first annotation that was not cancelled.

    Args:
        path: The export.
        content: Its parsed JSON.
        bad: Counts tasks without an annotation, and malformed ones.
    """

    def parse(where: str, task: dict) -> AnnotatedImage:
        annotations = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
        name = _image_name(task["data"])
        if not name or not annotations:
            raise UnusableSampleError("no image or no annotation in this task", "not_annotated")
        image, expected = _find_upload(path.parent, name)
        results = annotations[0].get("result", [])
        lines = tuple(_lines(results, where))
        page = Path(name).stem
        if lines:
            return AnnotatedImage(image, expected, where, page, _PERCENT, lines)
        texts = [_text(r["value"]) for r in results if r.get("type") == "textarea" and "value" in r]
        return AnnotatedImage(image, expected, where, page, text=" ".join(texts).strip())

    return parse_entries(((f"{path}[{number}]", task) for number, task in enumerate(content)), parse, bad)
