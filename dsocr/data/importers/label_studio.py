"""Label Studio's JSON export: rectangles and polygons in per cent, each with a TextArea."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, find_image


_PERCENT = (100.0, 100.0)


def is_label_studio(content: Any) -> bool:
    """Whether parsed JSON is a list of Label Studio's tasks."""
    return isinstance(content, list) and bool(content) and all(isinstance(t, dict) and "data" in t for t in content)


def _image_name(data: dict) -> str:
    names = [
        value for key, value in data.items() if isinstance(value, str) and key in ("image", "ocr", "img", "captioning")
    ]
    names += [value for value in data.values() if isinstance(value, str) and "." in value]
    # Label Studio puts a random prefix before an upload's name: /data/upload/3/ab12cd34-page.png.
    return unquote(names[0].partition("?d=")[2] or names[0]) if names else ""


def _text(value: dict) -> str:
    text = value.get("text", "")
    return " ".join(text) if isinstance(text, list) else str(text)


def _lines(results: list[dict], where: str) -> Iterator[AnnotatedLine]:
    texts = {r.get("id"): _text(r["value"]) for r in results if r.get("type") == "textarea" and "value" in r}
    done = set()
    for result in results:
        value, identity = result.get("value", {}), result.get("id")
        if identity in done or not ("points" in value or "width" in value):
            continue
        done.add(identity)
        polygon = tuple((float(x), float(y)) for x, y in value.get("points", ()))
        box = None
        if "width" in value:
            left, top = float(value["x"]), float(value["y"])
            box = (left, top, left + float(value["width"]), top + float(value["height"]))
        yield AnnotatedLine(texts.get(identity, _text(value)).strip(), f"{where}#{identity}", polygon, box)


def parse_label_studio(path: Path, content: list[dict], bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the tasks of an export; each task gives its first annotation that was not cancelled.

    Args:
        path: The export.
        content: Its parsed JSON.
        bad: Counts tasks without an annotation.
    """
    for number, task in enumerate(content):
        where = f"{path}[{number}]"
        annotations = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
        name = _image_name(task["data"])
        if not name or not annotations:
            bad.add("not_annotated", where, "no image or no annotation in this task")
            continue
        image = find_image(path.parent, name)
        if not image.is_file() and "-" in Path(name).name:
            image = find_image(path.parent, Path(name).name.partition("-")[2])
        results = annotations[0].get("result", [])
        lines = tuple(_lines(results, where))
        texts = [_text(r["value"]) for r in results if r.get("type") == "textarea" and "value" in r]
        page = Path(name).stem
        if lines:
            yield AnnotatedImage(image, where, page, _PERCENT, lines)
        else:
            yield AnnotatedImage(image, where, page, text=" ".join(texts).strip())
