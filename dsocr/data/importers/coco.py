"""COCO annotations with the transcription in an attribute."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import MALFORMED, AnnotatedImage, AnnotatedLine, find_image, parse_entries


_TEXT_KEYS = ("translation", "transcription", "text", "utf8_string", "caption", "label")


def is_coco(content: Any) -> bool:
    """Whether parsed JSON has COCO's two tables."""
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in ("images", "annotations"))


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
        bad: Counts annotations of unlisted images, and malformed entries.
    """
    by_image: dict[Any, list[AnnotatedLine]] = defaultdict(list)
    for number, annotation in enumerate(content["annotations"]):
        try:
            by_image[annotation["image_id"]].append(_line(annotation, str(path)))
            continue
        except MALFORMED as error:
            message = f"the annotation is malformed ({type(error).__name__}: {error})"
        bad.add("malformed", f"{path}#annotations[{number}]", message)

    def parse(where: str, image: dict) -> AnnotatedImage:
        lines = tuple(by_image.pop(image["id"], []))
        size = (float(image["width"]), float(image["height"])) if image.get("width") and image.get("height") else None
        name = image["file_name"]
        return AnnotatedImage(*find_image(path.parent, name), where, Path(name).stem, size, lines)

    def name_image(number: int, image: Any) -> str:
        return (
            f"{path}#image {image['id']}" if isinstance(image, dict) and "id" in image else f"{path}#images[{number}]"
        )

    named = ((name_image(number, image), image) for number, image in enumerate(content["images"]))
    yield from parse_entries(named, parse, bad)
    for identity, annotations in by_image.items():
        bad.add(
            "no_image_name", str(path), f"{len(annotations)} annotations of image {identity!r}, which is not listed"
        )
