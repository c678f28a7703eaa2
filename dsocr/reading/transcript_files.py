"""Write transcriptions as plain text, JSON lines or ALTO, each page as soon as it is read."""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Protocol, TextIO

from dsocr.common.files import name_partial, write_then_rename
from dsocr.common.run_files import SKIPPED_NAME
from dsocr.reading.transcription import TranscribedPage


FORMATS = ("text", "jsonl", "alto")
ALTO_NAMESPACE = "http://www.loc.gov/standards/alto/ns-v4#"


# Characters that XML does not allow, in text and in names.
_NO_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


class TranscriptWriter(Protocol):
    """Writes pages one by one; an incomplete result keeps the name `.part`."""

    def write(self, page: TranscribedPage) -> None: ...

    def close(self, *, complete: bool) -> None: ...


class _StreamWriter:
    def __init__(self, output: str | None):
        self._path = Path(output) if output else None
        self._stream: TextIO = sys.stdout
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Keep the file open for the whole run; `close` closes it. An earlier result stays until this one is whole.
            # A file name that is no UTF-8 reaches Python with half characters; they are written as \udcff.
            self._stream = name_partial(self._path).open("w", encoding="utf-8", errors="backslashreplace")

    def _put(self, text: str) -> None:
        self._stream.write(text)
        # Flush: finished pages must survive a stopped run.
        self._stream.flush()

    def close(self, *, complete: bool) -> None:
        if self._path:
            self._stream.close()
            if complete:
                os.replace(name_partial(self._path), self._path)


class TextWriter(_StreamWriter):
    """Write texts, with the inputs' names above them when there are several."""

    def __init__(self, output: str | None, *, with_names: bool):
        super().__init__(output)
        self._with_names = with_names

    def write(self, page: TranscribedPage) -> None:
        if page.lines:
            self._put(f"{f'# {page.name}' + chr(10) if self._with_names else ''}{page.text}\n")


class JsonLinesWriter(_StreamWriter):
    """Write one JSON object per line of text: `image`, `line`, `box`, `text`, `confidence`."""

    def write(self, page: TranscribedPage) -> None:
        for number, line in enumerate(page.lines):
            entry = {"image": page.name, "line": number, "box": line.box, "text": line.text}
            self._put(json.dumps({**entry, "confidence": round(line.confidence, 4)}, ensure_ascii=False) + "\n")


def build_alto(page: TranscribedPage) -> ElementTree.ElementTree:
    """Build an ALTO 4 document of a page: boxes in pixels, one String per word, the line's confidence as its `WC`."""
    root = ElementTree.Element("alto", {"xmlns": ALTO_NAMESPACE})
    description = ElementTree.SubElement(root, "Description")
    ElementTree.SubElement(description, "MeasurementUnit").text = "pixel"
    source = ElementTree.SubElement(description, "sourceImageInformation")
    ElementTree.SubElement(source, "fileName").text = _NO_XML.sub("", page.name)
    width, height = page.size
    size = {"WIDTH": str(width), "HEIGHT": str(height)}
    layout = ElementTree.SubElement(root, "Layout")
    element = ElementTree.SubElement(layout, "Page", {"ID": "page", "PHYSICAL_IMG_NR": "1", **size})
    space = ElementTree.SubElement(element, "PrintSpace", {"HPOS": "0", "VPOS": "0", **size})
    block = ElementTree.SubElement(space, "TextBlock", {"ID": "block", "HPOS": "0", "VPOS": "0", **size})
    for number, line in enumerate(page.lines):
        left, top, right, bottom = line.box
        place = {"HPOS": str(left), "VPOS": str(top), "WIDTH": str(right - left), "HEIGHT": str(bottom - top)}
        parent = ElementTree.SubElement(block, "TextLine", {"ID": f"line_{number}", **place})
        text = _NO_XML.sub("", line.text)
        for word_number, word in enumerate(text.split()):
            if word_number:
                ElementTree.SubElement(parent, "SP")
            content = {"ID": f"word_{number}_{word_number}", "CONTENT": word, "WC": f"{line.confidence:.3f}"}
            ElementTree.SubElement(parent, "String", {**content, **place})
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


class AltoWriter:
    """Write one ALTO file per page, named after the input, in one folder."""

    def __init__(self, output: str):
        self._folder = Path(output)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._taken: set[str] = set()

    def write(self, page: TranscribedPage) -> None:
        if not page.lines:
            return
        stem = re.sub(r"[^\w.-]+", "_", Path(page.name).name).strip("_") or "page"
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        path = self._folder / f"{name}.xml"
        with write_then_rename(path) as partial:
            build_alto(page).write(partial, encoding="utf-8", xml_declaration=True)

    def close(self, *, complete: bool) -> None:
        pass


def name_skipped(output: str | Path) -> Path:
    """The file for the inputs that could not be read: in the output's folder, or beside the output's file."""
    path = Path(output)
    return path / SKIPPED_NAME if path.is_dir() else path.with_name(f"{path.name}.{SKIPPED_NAME}")


def open_writer(kind: str, output: str | None, *, with_names: bool) -> TranscriptWriter:
    """Open the writer of a format.

    Args:
        kind: `"text"`, `"jsonl"` or `"alto"`.
        output: File (alto: folder); `None` is the console.
        with_names: Text only: put the names of the inputs above their texts.

    Raises:
        ValueError: for ALTO without a folder, or an unknown format.
    """
    if kind == "text":
        return TextWriter(output, with_names=with_names)
    if kind == "jsonl":
        return JsonLinesWriter(output)
    if kind == "alto":
        if output is None:
            raise ValueError("--format alto writes one file a page: name a folder with --output.")
        return AltoWriter(output)
    raise ValueError(f"--format {kind}: not one of {', '.join(FORMATS)}.")
