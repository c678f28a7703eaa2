"""Parse XML from unknown sources safely: no document types, no entities, no network."""

import math
from pathlib import Path
from typing import Any

from lxml import etree


MAX_BYTES = 100_000_000


class XmlError(ValueError):
    """A file is not well-formed XML, or declares a document type."""


def parse_xml(path: Path) -> etree._Element:
    """Parse an XML file and return its root element.

    Args:
        path: The file, in any encoding that it declares.

    Raises:
        XmlError: for broken XML, a file of more than 100 MB, or a document type: entities, which may multiply or fetch
            files, are declared there.
    """
    if path.stat().st_size > MAX_BYTES:
        raise XmlError(f"{path}: more than {MAX_BYTES // 10**6} MB of XML are not read.")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        tree = etree.parse(str(path), parser)
    except (etree.XMLSyntaxError, OSError) as error:
        raise XmlError(f"{path}: not well-formed XML ({error}).") from error
    docinfo: Any = tree.docinfo
    if docinfo.doctype:
        raise XmlError(f"{path}: has a document type declaration, which may hold entities; remove it.")
    return tree.getroot()


def local_name(element: etree._Element) -> str:
    """Name of an element without its namespace."""
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def children(element: etree._Element, name: str) -> list[etree._Element]:
    """Direct children of the given name, in any namespace."""
    return [child for child in element if local_name(child) == name]


def descendants(element: etree._Element, name: str) -> list[etree._Element]:
    """All descendants of the given name, in any namespace, in document order."""
    return [child for child in element.iter() if local_name(child) == name]


def whole_text(element: etree._Element) -> str:
    """Text of an element and its children; comments between the words are left out."""
    return str(element.xpath("string()"))


def parse_points(text: str) -> tuple[tuple[float, float], ...]:
    """Parse `"1,2 3,4"` (PAGE) or `"1 2 3 4"` (ALTO) into points; empty for fewer than three points or for non-numbers.

    Example:
        >>> parse_points("0,0 10,0 10,5"), parse_points("0 0 10 0 10 5"), parse_points("1,2 x")
        (((0.0, 0.0), (10.0, 0.0), (10.0, 5.0)), ((0.0, 0.0), (10.0, 0.0), (10.0, 5.0)), ())
    """
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return ()
    points = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    return points if len(points) >= 3 and len(numbers) % 2 == 0 and all(map(math.isfinite, numbers)) else ()
