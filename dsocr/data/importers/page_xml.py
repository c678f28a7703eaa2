"""PAGE XML (2013 and 2019, and other versions with the same elements): Transkribus, eScriptorium, OCR-D."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, AnnotatedLine, Point, find_image, parse_entries
from dsocr.data.importers.xml_files import children, descendants, local_name, parse_points, whole_text


def _text_of(element: etree._Element) -> str:
    # Several TextEquivs are alternatives: take the one with the lowest index.
    equivalents = sorted(children(element, "TextEquiv"), key=lambda equivalent: int(equivalent.get("index") or 0))
    for equivalent in equivalents:
        for unicode_text in children(equivalent, "Unicode"):
            if text := whole_text(unicode_text):
                return text
    words = [_text_of(word) for word in children(element, "Word")]
    return " ".join(word for word in words if word)


def _outline(element: etree._Element) -> tuple[Point, ...]:
    coordinates = children(element, "Coords")
    if not coordinates:
        return ()
    polygon = parse_points(coordinates[0].get("points", ""))
    if not polygon:
        # PAGE 2010 has one element per point.
        points = [(float(p.get("x", 0)), float(p.get("y", 0))) for p in descendants(coordinates[0], "Point")]
        polygon = tuple(points) if len(points) >= 3 else ()
    return polygon


def _referred(group: etree._Element) -> Iterator[str]:
    """Region ids of a reading order, by their `index` where they have one, nested groups included."""
    members = sorted(group, key=lambda member: int(member.get("index") or 0) if isinstance(member.tag, str) else 0)
    for member in members:
        if reference := member.get("regionRef"):
            yield reference
        yield from _referred(member)


def _ordered_regions(page: etree._Element) -> list[etree._Element]:
    """Regions with text of their own: with lines as children, or with a text and no lines anywhere inside."""
    regions = [
        element
        for element in page.iter()
        if children(element, "TextLine")
        or (
            local_name(element).endswith(("Region", "Cell"))
            and children(element, "TextEquiv")
            and not descendants(element, "TextLine")
        )
    ]
    order: dict[str, int] = {}
    for reading_order in descendants(page, "ReadingOrder"):
        for reference in _referred(reading_order):
            order.setdefault(reference, len(order))
    # Put regions missing from the reading order behind it, in the order of the file.
    return sorted(regions, key=lambda element: order.get(element.get("id", ""), len(order)))


def _lines(page: etree._Element, path: Path) -> Iterator[AnnotatedLine]:
    for region in _ordered_regions(page):
        # A region without lines has one text for all of its writing.
        for line in children(region, "TextLine") or [region]:
            yield AnnotatedLine(_text_of(line).strip(), f"{path}#{line.get('id', '')}", _outline(line))


def parse_page_xml(path: Path, root: etree._Element, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the pages of one file.

    Args:
        path: The file.
        root: Its root element.
        bad: Counts pages without an image name, and malformed ones.
    """

    def parse(where: str, page: etree._Element) -> AnnotatedImage:
        name = page.get("imageFilename", "")
        if not name:
            raise UnusableSampleError("the page names no image (imageFilename)", "no_image_name")
        try:
            size = (float(page.get("imageWidth", "")), float(page.get("imageHeight", "")))
        except ValueError:
            size = None
        # Transkribus keeps its files in page/, beside the images.
        folder = path.parent
        if folder.name == "page" and not find_image(folder, name)[0].is_file():
            folder = folder.parent
        return AnnotatedImage(*find_image(folder, name), where, path.stem, size, tuple(_lines(page, path)))

    return parse_entries(((str(path), page) for page in descendants(root, "Page")), parse, bad)
