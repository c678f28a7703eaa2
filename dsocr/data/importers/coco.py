"""COCO annotations with the transcription in an attribute."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, find_image


_TEXT_KEYS = ("translation", "transcription", "text", "utf8_string", "caption", "label")


def is_coco(content: Any) -> bool:
    """Whether parsed JSON has COCO's two tables."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _text(annotation: dict) -> str:
    attributes = annotation.get("attributes") or {}
    for source in (attributes, annotation):
        for key in _TEXT_KEYS:
            if isinstance(source.get(key), str):
                return source[key].strip()
    return ""


def _line(annotation: dict, where: str) -> AnnotatedLine:
    polygon: tuple[tuple[float, float], ...] = ()
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        numbers = [float(number) for number in segmentation[0]]
        polygon = tuple(zip(numbers[::2], numbers[1::2], strict=False)) if len(numbers) >= 6 else ()
    box = None
    if len(annotation.get("bbox") or ()) == 4:
        left, top, width, height = map(float, annotation["bbox"])
        box = (left, top, left + width, top + height)
    return AnnotatedLine(_text(annotation), f"{where}#annotation {annotation.get('id')}", polygon, box)


def parse_coco(path: Path, content: dict, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the images of a COCO file, their lines in the order of the annotations.

    Args:
        path: The file.
        content: Its parsed JSON.
        bad: Counts annotations of unlisted images.
    """
    by_image: dict[Any, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation.get("image_id")].append(annotation)
    for image in content["images"]:
        where = f"{path}#image {image.get('id')}"
        lines = tuple(_line(annotation, where) for annotation in by_image.pop(image.get("id"), []))
        size = (float(image["width"]), float(image["height"])) if image.get("width") and image.get("height") else None
        name = str(image.get("file_name", ""))
        yield AnnotatedImage(find_image(path.parent, name), where, Path(name).stem, size, lines)
    for identity, annotations in by_image.items():
        bad.add(
            "no_image_name", str(path), f"{len(annotations)} annotations of image {identity!r}, which is not listed"
        )
