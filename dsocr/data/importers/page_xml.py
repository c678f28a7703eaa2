"""PAGE XML (2013 and 2019, and other versions with the same elements): Transkribus, eScriptorium, OCR-D."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, find_image
from dsocr.data.importers.xml_files import children, descendants, parse_points


_REGIONS = ("TextRegion", "TableRegion", "TableCell")


def _text_of(line: etree._Element) -> str:
    # Several TextEquivs are alternatives: take the one with the lowest index.
    equivalents = sorted(children(line, "TextEquiv"), key=lambda element: int(element.get("index", "0") or 0))
    for equivalent in equivalents:
        for unicode_text in children(equivalent, "Unicode"):
            if unicode_text.text:
                return unicode_text.text
    words = [_text_of(word) for word in children(line, "Word")]
    return " ".join(word for word in words if word)


def _ordered_regions(page: etree._Element) -> list[etree._Element]:
    regions = [element for name in _REGIONS for element in descendants(page, name)]
    regions.sort(key=lambda element: element.sourceline or 0)
    order: dict[str, int] = {}
    for position, reference in enumerate(descendants(page, "RegionRefIndexed") + descendants(page, "RegionRef")):
        order.setdefault(reference.get("regionRef", ""), position)
    # Put regions missing from the reading order behind it, in their own order.
    return sorted(regions, key=lambda element: order.get(element.get("id", ""), len(order)))


def _lines(page: etree._Element, path: Path) -> Iterator[AnnotatedLine]:
    for region in _ordered_regions(page):
        for line in children(region, "TextLine"):
            coordinates = children(line, "Coords")
            polygon = parse_points(coordinates[0].get("points", "")) if coordinates else ()
            if coordinates and not polygon:
                # PAGE 2010 has one element per point.
                points = [(float(p.get("x", 0)), float(p.get("y", 0))) for p in descendants(coordinates[0], "Point")]
                polygon = tuple(points) if len(points) >= 3 else ()
            yield AnnotatedLine(_text_of(line).strip(), f"{path}#{line.get('id', '')}", polygon)


def parse_page_xml(path: Path, root: etree._Element, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the pages of one file.

    Args:
        path: The file.
        root: Its root element.
        bad: Counts pages without an image name.
    """
    for page in descendants(root, "Page"):
        name = page.get("imageFilename", "")
        if not name:
            bad.add("no_image_name", str(path), "the page names no image (imageFilename)")
            continue
        try:
            size = (float(page.get("imageWidth", "")), float(page.get("imageHeight", "")))
        except ValueError:
            size = None
        image = find_image(path.parent, name)
        # Transkribus keeps its files in page/, beside the images.
        if not image.is_file() and path.parent.name == "page":
            image = find_image(path.parent.parent, name)
        yield AnnotatedImage(image, str(path), path.stem, size, tuple(_lines(page, path)))
