"""ALTO 2 to 4: eScriptorium, libraries, ABBYY."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, find_image, parse_entries
from dsocr.data.importers.xml_files import children, descendants, local_name, parse_points, whole_text


_HYPHEN = "HYP"


def _text_of(line: etree._Element) -> str:
    text, glued = "", True
    for element in line:
        kind = local_name(element)
        if kind == "String":
            text += ("" if glued or not text else " ") + element.get("CONTENT", "")
            glued = False
        elif kind == _HYPHEN:
            text += element.get("CONTENT", "-")
    return text


def _box(line: etree._Element) -> tuple[float, float, float, float] | None:
    try:
        left, top, width, height = (float(line.get(name, "")) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    except ValueError:
        return None
    return left, top, left + width, top + height


def _line(line: etree._Element, path: Path) -> AnnotatedLine:
    polygons = [p for shape in children(line, "Shape") for p in children(shape, "Polygon")]
    polygon = parse_points(polygons[0].get("POINTS", "")) if polygons else ()
    return AnnotatedLine(_text_of(line).strip(), f"{path}#{line.get('ID', '')}", polygon, _box(line))


def parse_alto(path: Path, root: etree._Element, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the pages of one file; coordinates are scaled by the page's declared size, so any unit works.

    Args:
        path: The file.
        root: Its root element.
        bad: Counts pages without an image.
    """
    names = [name for element in descendants(root, "fileName") if (name := whole_text(element).strip())]
    pages = descendants(root, "Page")

    def parse(where: str, entry: tuple[int, etree._Element]) -> AnnotatedImage:
        number, page = entry
        if len(pages) > 1 and len(names) < len(pages):
            raise UnusableSampleError(f"{len(pages)} pages and {len(names)} image names (fileName)", "no_image_name")
        # A file that names no image belongs to the image with the file's own name.
        name = names[number] if number < len(names) else names[0] if names else f"{path.stem}.png"
        try:
            size = (float(page.get("WIDTH", "")), float(page.get("HEIGHT", "")))
        except ValueError:
            size = None
        lines = tuple(_line(line, path) for line in descendants(page, "TextLine"))
        suffix = f"_{number + 1}" if len(pages) > 1 else ""
        return AnnotatedImage(*find_image(path.parent, name), where, f"{path.stem}{suffix}", size, lines)

    return parse_entries(((str(path), entry) for entry in enumerate(pages)), parse, bad)
