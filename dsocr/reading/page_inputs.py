"""Inputs of the transcriber: image files, PDF files, folders, patterns, names on standard input."""

import glob
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dsocr.data.image_files import IMAGE_SUFFIXES, MAX_PIXELS, UnreadableImageError, count_pages, open_image


PDF_SUFFIX = ".pdf"
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class PageInput:
    """One image to read, or the reason why it is missing.

    Attributes:
        name: The file, with `#page=3` for a page of a PDF.
        image: RGB image; `None` when it could not be opened.
        problem: The reason, for people; empty without a problem.
        reason: Its name in `dsocr.common.problems.PROBLEMS`.
    """

    name: str
    image: Image.Image | None
    problem: str = ""
    reason: str = ""


def _in_folder(folder: Path) -> list[Path]:
    suffixes = (*IMAGE_SUFFIXES, PDF_SUFFIX)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def list_files(inputs: list[str]) -> list[Path]:
    """Expand files, folders and patterns into files, in order and without repetition.

    Args:
        inputs: Files, folders, patterns (`scans/*.jpg`), or `-` for a list of names on standard input.

    Raises:
        FileNotFoundError: when an input matches nothing: no such file, an empty folder, a pattern without a match.
    """
    words: list[str] = []
    for word in inputs:
        words += [line.strip() for line in sys.stdin if line.strip()] if word == "-" else [word]
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = _in_folder(path)
            if not files:
                raise FileNotFoundError(
                    f"{word}: no image ({', '.join(IMAGE_SUFFIXES)}) and no PDF file in this folder."
                )
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(word, recursive=True) if Path(match).is_file())
            if not files:
                raise FileNotFoundError(
                    f"{word}: there is no such file or folder, and nothing matches it as a pattern."
                )
        found |= dict.fromkeys(files)
    if not found:
        raise FileNotFoundError("nothing to read: name images, PDF files or folders.")
    return list(found)


def _pdf_pages(path: Path, dpi: int) -> Iterator[PageInput]:
    try:
        import pypdfium2
    except ImportError as error:
        raise ModuleNotFoundError(f"{path}: PDF files need `pip install pypdfium2` ({error}).") from error
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        yield PageInput(str(path), None, f"{path}: not a PDF file that can be read ({error}).", "unreadable")
        return
    with closing(document):
        for number in range(len(document)):
            name = f"{path}#page={number + 1}"
            try:
                page = document[number]
                width, height = (side / POINTS_PER_INCH * dpi for side in page.get_size())
                if width * height > MAX_PIXELS:
                    text = f"{name}: {width:.0f}x{height:.0f} pixels at {dpi} dpi; give a lower --dpi."
                    yield PageInput(name, None, text, "too_large")
                    continue
                image = page.render(scale=dpi / POINTS_PER_INCH).to_pil().convert("RGB")
                page.close()
            except (pypdfium2.PdfiumError, ValueError, OSError) as error:
                yield PageInput(name, None, f"{name}: cannot be drawn ({error}).", "unreadable")
                continue
            yield PageInput(name, image)


def open_pages(files: list[Path], *, dpi: int = 200) -> Iterator[PageInput]:
    """Open files one after the other, PDF files page by page, so that a long one is never held in memory whole.

    Args:
        files: Images and PDF files.
        dpi: Resolution at which PDF pages are drawn.

    Raises:
        ModuleNotFoundError: for a PDF file without pypdfium2.
    """
    for path in files:
        if path.suffix.lower() == PDF_SUFFIX:
            yield from _pdf_pages(path, dpi)
            continue
        yield from _image_pages(path)


def _image_pages(path: Path) -> Iterator[PageInput]:
    """The pages of an image file: one, or those of a TIFF or an animation."""
    try:
        # Open from memory, so that no file stays open.
        source = {"bytes": path.read_bytes(), "path": str(path)}
        pages = count_pages(source)
    except UnreadableImageError as error:
        yield PageInput(str(path), None, str(error), error.reason)
        return
    except OSError as error:
        yield PageInput(str(path), None, str(error), "unreadable")
        return
    for number in range(pages):
        name = f"{path}#page={number + 1}" if pages > 1 else str(path)
        try:
            yield PageInput(name, open_image(source, number))
        except UnreadableImageError as error:
            yield PageInput(name, None, str(error), error.reason)
