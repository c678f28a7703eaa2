"""Transcribe a stream of pages: batches span page borders, results come page by page."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from dsocr.data.image_files import UnreadableImageError
from dsocr.data.texts import normalize
from dsocr.reading.generation import ReadingOptions, read_lines
from dsocr.reading.page_inputs import PageInput
from dsocr.reading.page_lines import Box, Detector, cut_lines
from dsocr.reading.reader import Reader
from dsocr.samples.processor import OcrProcessor


@dataclass
class TranscribedLine:
    """One line.

    Attributes:
        box: `(left, top, right, bottom)` in pixels of the page.
        image: The line.
        text: Text read by the model.
        confidence: Mean probability of its tokens, 0..1.
    """

    box: Box
    image: Image.Image
    text: str = ""
    confidence: float = 0.0


@dataclass
class TranscribedPage:
    """One transcribed input.

    Attributes:
        name: Its name, see `PageInput`.
        size: `(width, height)` in pixels; `(0, 0)` when it could not be opened.
        lines: Its lines; without segmentation a single one, the whole image.
        problems: For every part that is missing its name in `dsocr.common.problems.PROBLEMS`, and a message for people.
    """

    name: str
    size: tuple[int, int] = (0, 0)
    lines: list[TranscribedLine] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The texts of all lines, joined by line breaks."""
        return "\n".join(line.text for line in self.lines)


def _prepare(page: PageInput, processor: OcrProcessor, detect: Detector | None) -> TranscribedPage:
    if page.image is None:
        return TranscribedPage(page.name, problems=[(page.reason, page.problem)])
    prepared = TranscribedPage(page.name, page.image.size)
    cut = [((0, 0, *page.image.size), page.image)] if detect is None else cut_lines(page.image, detect)
    for box, image in cut:
        try:
            processor.prepare(image)
        except UnreadableImageError as error:
            prepared.problems.append((error.reason, f"{page.name}: {error}"))
            continue
        # The geometry refuses a strip whose global view would be under one pixel high.
        except ValueError as error:
            prepared.problems.append(("too_elongated", f"{page.name}: {error}"))
            continue
        prepared.lines.append(TranscribedLine(box, image))
    if not prepared.lines and not prepared.problems:
        prepared.problems.append(("no_line", f"{page.name}: no line of text was found on this page."))
    return prepared


def transcribe_pages(
    reader: Reader,
    pages: Iterable[PageInput],
    options: ReadingOptions = ReadingOptions(),
    *,
    detect: Detector | None = None,
) -> Iterator[TranscribedPage]:
    """Read pages in order, holding no more than a few batches of images in memory.

    Args:
        reader: Model and processor.
        pages: Inputs, lazily.
        options: See `read_lines`.
        detect: Finds the lines of a page; `None` takes each image as one line.
    """
    waiting: list[TranscribedPage] = []

    def read() -> Iterator[TranscribedPage]:
        lines = [line for page in waiting for line in page.lines]
        for found in read_lines(reader.model, reader.processor, [line.image for line in lines], options):
            lines[found.index].text = found.text if detect is None else normalize(found.text)
            lines[found.index].confidence = found.confidence
        yield from waiting
        waiting.clear()

    for page in pages:
        waiting.append(_prepare(page, reader.processor, detect))
        # Read a few batches together, so that images of one size can share a batch.
        if sum(len(page.lines) for page in waiting) >= 4 * options.batch_size:
            yield from read()
    yield from read()
