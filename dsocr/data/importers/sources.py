"""Detect the kind of a source and choose its importer."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from dsocr.common.files import load_json
from dsocr.data.checking import BadSamples
from dsocr.data.importers.alto import parse_alto
from dsocr.data.importers.annotations import AnnotatedImage, settle_images
from dsocr.data.importers.coco import is_coco, parse_coco
from dsocr.data.importers.label_studio import is_label_studio, parse_label_studio
from dsocr.data.importers.messages import is_messages, parse_messages
from dsocr.data.importers.page_xml import parse_page_xml
from dsocr.data.importers.text_files import SUFFIX as TEXT_SUFFIX
from dsocr.data.importers.text_files import parse_text_files
from dsocr.data.importers.xml_files import XmlError, local_name, parse_xml
from dsocr.data.tables import SUFFIXES, parse_table


_XML_ROOTS = {"PcGts": parse_page_xml, "alto": parse_alto}
# Files in page exports that hold no page.
_SIDE_FILES = ("mets.xml", "metadata.xml")


def _parse_xml_file(path: Path, bad: BadSamples) -> Iterator[AnnotatedImage]:
    try:
        root = parse_xml(path)
    except XmlError as error:
        bad.add("broken_xml", str(path), str(error))
        return
    reader = _XML_ROOTS.get(local_name(root))
    if reader is None:
        bad.add("unknown_xml", str(path), f"its root is {local_name(root)!r}, expected PcGts (PAGE) or alto")
        return
    yield from reader(path, root, bad)


def _parse_json(path: Path, bad: BadSamples) -> Iterator[AnnotatedImage]:
    content = load_json(path, kind=object)
    if is_coco(content):
        return parse_coco(path, content, bad)
    if is_label_studio(content):
        return parse_label_studio(path, content, bad)
    if isinstance(content, list) and any(is_messages(row) for row in content):
        return parse_messages(path, enumerate(content), bad)
    raise ValueError(
        f"{path}: JSON of an unknown kind; known are Label Studio's export, COCO, and a list of `messages` with `images`."
    )


def _has_messages(path: Path) -> bool:
    if path.suffix.lower() != ".jsonl":
        return False
    _, first = next(iter(parse_table(path, BadSamples("skip"))), (0, {}))
    return is_messages(first)


def _parse(path: Path, bad: BadSamples) -> Iterator[AnnotatedImage] | None:
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".xml":
            return _parse_xml_file(path, bad)
        if suffix == ".json":
            return _parse_json(path, bad)
        if suffix in SUFFIXES and _has_messages(path):
            return parse_messages(path, parse_table(path, bad), bad)
        return None
    if not path.is_dir() or any((path / f"metadata{suffix}").is_file() for suffix in SUFFIXES):
        return None
    xml = [p for p in sorted(path.rglob("*.xml")) if p.name.lower() not in _SIDE_FILES]
    if xml:
        return chain.from_iterable(_parse_xml_file(p, bad) for p in xml)
    if next(path.rglob(f"*{TEXT_SUFFIX}"), None):
        return parse_text_files(path, bad)
    json_files = sorted(path.glob("*.json"))
    tables = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    if len(json_files) == 1 and not tables:
        return _parse_json(json_files[0], bad)
    return None


def parse_annotations(source: str | Path, bad: BadSamples) -> Iterator[AnnotatedImage] | None:
    """Parse the annotated images of a source; plain tables of images and texts are left to `load_ocr_dataset`.

    Args:
        source: A PAGE, ALTO, Label Studio, COCO or chat file, or a folder of such files or of `.gt.txt` pairs.
        bad: Refuses or counts unusable entries.

    Returns:
        Images lazily; `None` for a source of `load_ocr_dataset`: a table, an imagefolder, a Hub id.

    Raises:
        ValueError: for a JSON file of an unknown kind.
    """
    images = _parse(Path(source), bad)
    return None if images is None else settle_images(images, bad)
